//! Leases and takeovers on a shared datastore under chaos, by chance and by seeds.
//!
//! ```text
//!   cargo test --test leases -- --nocapture                      the first seeds
//!   FERRY_SIM_RUNS=1000000 cargo test --release --test leases -- --nocapture
//!   FERRY_SIM_SEED=N cargo test --test leases -- --nocapture     one, with its trace
//! ```
//!
//! Production code: the holder's and the observer's half of a lease, the chain of claims, the table and
//! the steps of a takeover. Around it three hosts whose clocks began anywhere and run at rates some
//! percent apart; daemons that are killed, or stopped for longer than any lease; storage that keeps a
//! heartbeat for seconds. The fence is the image's lock in half of the runs; in the other half
//! locks do not hold between hosts, and it is a command that turns the owner off. Then everything runs again, and one host must serve the disk.

#[path = "leases/world.rs"]
mod world;

use std::time::Instant;

use world::{Seen, World};

/// Enough for each planted fault to show many times over.
const FIRST: u64 = 30_000;
/// Ticks of chaos, and then at most so many until one host serves.
const CHAOS: u32 = 3000;
const HEALING: u32 = 2000;

fn run(seed: u64, traced: bool) -> (Result<(), String>, Seen) {
    let mut world = World::new(seed, traced);
    let result = (|| {
        for _ in 0..CHAOS {
            world.trouble();
            world.tick()?;
        }
        world.heal();
        for _ in 0..HEALING {
            world.tick()?;
            if world.is_whole() {
                return Ok(());
            }
        }
        Err(format!("healed, and nobody serves for ever: {world:?}"))
    })();
    (result, world.seen)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn leases_under_chaos_have_one_owner() {
    if let Some(seed) = number("FERRY_SIM_SEED") {
        let (result, _) = run(seed, true);
        return result.unwrap();
    }
    let (began, runs) = (Instant::now(), number("FERRY_SIM_RUNS").unwrap_or(FIRST));
    let mut all = Seen::default();
    for seed in 0..runs {
        let (result, seen) = run(seed, false);
        if let Err(why) = result {
            panic!(
                "seed {seed}: {why}\nall of it: FERRY_SIM_SEED={seed} cargo test --test leases -- \
                 --nocapture"
            );
        }
        all.add(&seen);
    }
    println!(
        "{runs} runs in {:.1} s: {all:?}",
        began.elapsed().as_secs_f64()
    );
    assert!(all.is_everything(), "something never happened: {all:?}");
}
