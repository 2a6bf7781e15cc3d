//! The statistics file: hosts that die, and blocks that are not what they should be.

use std::ops::Range;

use ferry_bench::sioc::array::ArraySpec;
use ferry_bench::sioc::client::{ClientSpec, MS, SECOND};
use ferry_bench::sioc::spec::{Control, Damage, Fault, WorldSpec};
use ferry_bench::sioc::world::World;
use ferry_dataplane::qos::stats_file::Ignored;

use super::{ideal, judge};

const PERIOD: u64 = 2 * SECOND;
const FAULT: u64 = 40 * SECOND;

fn array() -> ArraySpec {
    ArraySpec::seeking(40, 8000.0)
}

fn clients() -> Vec<ClientSpec> {
    let shares = [1000, 2000, 500, 1000];
    let disk = |(host, shares)| ClientSpec::disk(host, shares, 256);
    shares.into_iter().enumerate().map(disk).collect()
}

fn spec(turn: u64) -> WorldSpec {
    let control = Control {
        period_ns: PERIOD,
        ..Control::default()
    };
    let mut spec = WorldSpec::new(array(), clients()).controlled(control);
    for (at, host) in spec.hosts.iter_mut().enumerate() {
        host.phase_ns = (at as u64 * 450 + turn * 410) * MS % PERIOD;
    }
    spec
}

#[test]
fn a_dead_hosts_shares_are_the_others_after_three_periods() {
    let mut left = clients();
    left.remove(1);
    let mut parts = ideal(&array(), 30.0, &left);
    parts.insert(1, 0.0);
    for turn in 0..5 {
        let mut spec = spec(turn);
        spec.hosts[1].dies_ns = Some(FAULT);
        let mut world = World::new(spec);
        let time = FAULT + 3 * PERIOD..FAULT + 3 * PERIOD + SECOND;
        world.run_to(time.end);
        for client in [0, 2, 3] {
            let had = world.had(client, time.clone()).units();
            let what = format!("turn {turn}, client {client}");
            super::near(&what, had, parts[client], 5.0);
        }
    }
}

/// Damages the blocks of a host for a time; all figures of the others, and of itself, are judged.
fn damaged(damage: Damage, time: Range<u64>) -> World {
    let mut spec = spec(0);
    let host = 1;
    spec.faults = vec![Fault {
        host,
        time_ns: time,
        damage,
    }];
    let mut world = World::new(spec);
    world.run_to(FAULT + 60 * SECOND);
    world
}

const DAMAGES: [Damage; 5] = [
    Damage::Torn,
    Damage::Flipped,
    Damage::FromTheFuture,
    Damage::Lost,
    Damage::Stale,
];

/// What the other hosts counted of it, by what it was.
fn counted(world: &World, damage: Damage) -> [u64; 3] {
    [0, 2, 3].map(|host| {
        let ignored = world.ignored(host);
        match damage {
            Damage::Torn | Damage::Flipped => ignored.torn,
            Damage::FromTheFuture => ignored.version,
            Damage::Stale => ignored.stale,
            Damage::Lost => u64::from(ignored == Ignored::default()),
        }
    })
}

#[test]
fn a_bad_block_for_a_moment_changes_nothing() {
    let ideal = ideal(&array(), 30.0, &clients());
    for damage in DAMAGES {
        let world = damaged(damage, FAULT..FAULT + PERIOD);
        for second in 0..30 {
            let time = FAULT + second * SECOND..FAULT + (second + 1) * SECOND;
            judge(&format!("{damage:?}"), &world, &ideal, &time);
        }
        let counted = counted(&world, damage);
        assert!(
            counted.iter().all(|&count| count > 0),
            "{damage:?}: {counted:?}"
        );
    }
}

#[test]
fn bad_blocks_for_good_starve_nobody() {
    let ideal = ideal(&array(), 30.0, &clients());
    for damage in DAMAGES {
        let world = damaged(damage, FAULT..u64::MAX);
        for second in 0..60 {
            let time = FAULT + second * SECOND..FAULT + (second + 1) * SECOND;
            for (client, ideal) in ideal.iter().enumerate() {
                let had = world.had(client, time.clone()).units();
                let what = format!("{damage:?}, client {client}, {time:?}: {had} of {ideal}");
                assert!(had > ideal / 2.0, "{what}");
            }
        }
    }
}

#[test]
fn a_host_whose_blocks_are_good_again_is_one_of_them_again() {
    let ideal = ideal(&array(), 30.0, &clients());
    for damage in DAMAGES {
        let mut spec = spec(0);
        spec.faults = vec![Fault {
            host: 2,
            time_ns: FAULT..2 * FAULT,
            damage,
        }];
        let mut world = World::new(spec);
        let time = 2 * FAULT + 3 * PERIOD..2 * FAULT + 3 * PERIOD + SECOND;
        world.run_to(time.end);
        judge(&format!("{damage:?}"), &world, &ideal, &time);
    }
}
