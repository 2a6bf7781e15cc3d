//! Storage I/O Control in virtual time: what the shares, the threshold and the statistics file promise.
//!
//! The ideal is max-min fairness with each client's own depth, worked out by `ferry_bench::sioc::ideal`.
#![allow(missing_docs)]

mod change;
mod command;
mod file;
mod latency;
mod rows;
mod shares;
mod strangers;

use std::ops::Range;

use ferry_bench::sioc::array::ArraySpec;
use ferry_bench::sioc::client::{ClientSpec, SECOND};
use ferry_bench::sioc::ideal::{Claim, divide};
use ferry_bench::sioc::spec::{Control, WorldSpec};
use ferry_bench::sioc::world::World;

/// Fails if what was found is further from what was expected than so many percent.
fn near(what: &str, found: f64, expected: f64, percent: f64) {
    let error = (found / expected - 1.0) * 100.0;
    assert!(
        error.abs() <= percent,
        "{what}: {found:.2}, not {expected:.2}: {error:+.1} %"
    );
}

/// Units a second that each client should have at a latency.
fn ideal(array: &ArraySpec, latency_ms: f64, clients: &[ClientSpec]) -> Vec<f64> {
    let claim = |client: &ClientSpec| {
        let shares = f64::from(client.policy.shares);
        let depth = f64::from(client.depth());
        let (writes, bytes) = (client.write_percent as f64 / 100.0, client.bytes);
        let request_ns =
            array.mean_ns(bytes, true) * writes + array.mean_ns(bytes, false) * (1.0 - writes);
        Claim::of_depth(
            shares,
            depth,
            client.units(),
            latency_ms / 1e3,
            request_ns / 1e9,
        )
        .limited(client.rate.unwrap_or(f64::INFINITY) * client.units())
    };
    let claims: Vec<_> = clients.iter().map(claim).collect();
    divide(f64::from(array.spindles), &claims)
}

/// A world whose windows are steered, after some seconds.
fn run(array: &ArraySpec, clients: &[ClientSpec], control: Control, seconds: u64) -> World {
    let spec = WorldSpec::new(array.clone(), clients.to_vec());
    let mut world = World::new(spec.controlled(control));
    world.run_to(seconds * SECOND);
    world
}

/// Fails if a client had not what it should have had in a time, within 5 %.
fn judge(what: &str, world: &World, ideal: &[f64], time: &Range<u64>) {
    for (client, &ideal) in ideal.iter().enumerate() {
        let had = world.had(client, time.clone()).units();
        let what = format!("{what}: client {client} from {time:?}");
        near(&what, had, ideal, 5.0);
    }
}
