//! Whoever uses the array and is not managed.

use ferry_bench::sioc::array::{ArraySpec, Cache, Pauses, Queues, Service, Slow};
use ferry_bench::sioc::client::{ClientSpec, MS, SECOND};
use ferry_bench::sioc::spec::{Control, Happened, Unmanaged, WorldSpec};
use ferry_bench::sioc::world::World;

use super::near;

const PERIOD: u64 = 4 * SECOND;
const JOINS: u64 = 60 * SECOND;

/// Three hosts with a window of 240 together, and somebody who joins some time into a period.
fn world(unmanaged: Unmanaged, depth: u32, into_ns: u64) -> World {
    let shares = [1000, 2000, 1000];
    let mut clients: Vec<_> = (0..3)
        .map(|host| ClientSpec::disk(host, shares[host], 256))
        .collect();
    let stays = JOINS + into_ns..300 * SECOND;
    clients.push(ClientSpec::stranger(depth).during(stays));
    let control = Control {
        period_ns: PERIOD,
        unmanaged,
        ..Control::default()
    };
    let array = ArraySpec::seeking(40, 8000.0);
    let mut spec = WorldSpec::new(array, clients).controlled(control);
    for (at, host) in spec.hosts.iter_mut().enumerate() {
        host.phase_ns = at as u64 * SECOND;
    }
    World::new(spec)
}

/// Depths of strangers that are found: from what is as deep as our own window.
const DEPTHS: [u32; 3] = [240, 512, 1024];
/// How far into a period they come.
const INTO: [u64; 3] = [0, 1500 * MS, 2500 * MS];

/// Whoever looks only once in a period has seen three periods of a stranger at the end of the third one
/// that it was there for all the time.
fn found_in_time(what: &str, world: &World, joined_ns: u64) {
    let first = world.events().first();
    let first = first.unwrap_or_else(|| panic!("{what}: not found"));
    assert_eq!(first.what, Happened::StrangerFound, "{what}");
    let phase_ns = first.host as u64 * SECOND;
    let whole = (joined_ns - phase_ns).next_multiple_of(PERIOD) + phase_ns;
    let time = joined_ns..=whole + 3 * PERIOD;
    assert!(time.contains(&first.at_ns), "{what}: {first:?}");
}

#[test]
fn a_stranger_is_found_within_three_periods_and_the_shares_are_kept() {
    for (depth, into_ns) in DEPTHS
        .iter()
        .flat_map(|depth| INTO.map(|into| (*depth, into)))
    {
        let mut world = world(Unmanaged::Keep, depth, into_ns);
        world.run_to(200 * SECOND);
        found_in_time(&format!("depth {depth}"), &world, JOINS + into_ns);
        let time = 120 * SECOND..200 * SECOND;
        let had = |client| world.had(client, time.clone()).units();
        near("kept", had(1), 2.0 * had(0), 5.0);
        near("kept", had(2), had(0), 5.0);
    }
}

#[test]
fn a_stranger_is_found_within_three_periods_and_nothing_is_held_back() {
    for (depth, into_ns) in DEPTHS
        .iter()
        .flat_map(|depth| INTO.map(|into| (*depth, into)))
    {
        let what = format!("depth {depth}");
        let mut world = world(Unmanaged::Stop, depth, into_ns);
        world.run_to(JOINS + 8 * PERIOD);
        found_in_time(&what, &world, JOINS + into_ns);
        for host in 0..3 {
            let at = JOINS + 6 * PERIOD;
            let window = world.window(host, at..at + PERIOD);
            assert!(window.is_infinite(), "{what}, host {host}: {window}");
        }
        // Gone, and tried again: the shares hold.
        world.run_to(600 * SECOND);
        let time = 560 * SECOND..600 * SECOND;
        let had = |client| world.had(client, time.clone()).units();
        near("again", had(1), 2.0 * had(0), 5.0);
        near("again", world.all_had(time.clone()).device_ms(), 30.0, 5.0);
    }
}

/// A slow array, so that a day is some ten million requests.
fn slow_array() -> ArraySpec {
    let each = Service {
        begin_ns: 20.0 * MS as f64,
        unit_ns: 0.0,
    };
    ArraySpec {
        spindles: 2,
        queues: Queues::Shared,
        read: each,
        write: each,
        chance: 0.3,
        cache: Cache {
            read_percent: 30,
            write_percent: 50,
            hit_ns: MS,
        },
        cached_ns: 0..u64::MAX,
        slow: Vec::new(),
        pauses: None,
        seed: 1,
    }
}

#[test]
fn nobody_is_found_in_a_day_of_rebuilds_garbage_and_a_cache() {
    let hour = 3600 * SECOND;
    let mut array = slow_array();
    // A rebuild every three hours, of half an hour, from a little to a lot.
    array.slow = (0..8u32)
        .map(|at| Slow {
            from_ns: u64::from(at) * 3 * hour + hour,
            to_ns: u64::from(at) * 3 * hour + hour + hour / 2,
            factor: 1.25 + 0.25 * f64::from(at),
        })
        .collect();
    array.pauses = Some(Pauses {
        every_ns: 7 * SECOND,
        pause_ns: 600 * MS,
        in_turn: true,
    });
    // Cold in the first hours, then warm.
    array.cached_ns = 4 * hour..16 * hour;
    let mut clients = Vec::new();
    for (at, shares) in [1000, 2000, 500].into_iter().enumerate() {
        let mut client = ClientSpec::disk(at / 2, shares, 64);
        client.write_percent = 30;
        clients.push(client);
    }
    // One has its working hours, and one comes and goes.
    clients[1].on = vec![2 * hour..10 * hour, 12 * hour..u64::MAX];
    clients[2].on = (0..144)
        .map(|at| at * 600 * SECOND..at * 600 * SECOND + 200 * SECOND)
        .collect();
    let control = Control {
        threshold_ns: 400 * MS,
        period_ns: 4 * SECOND,
        tick_ns: 250 * MS,
        ..Control::default()
    };
    let mut spec = WorldSpec::new(array, clients).controlled(control);
    spec.piece_ns = 60 * SECOND;
    let mut world = World::new(spec);
    world.run_to(24 * hour);
    assert_eq!(world.events(), [], "false alarms");
    let busy = world.all_had(13 * hour..24 * hour);
    assert!(
        busy.device_ms() > 300.0,
        "it was congested: {} ms",
        busy.device_ms()
    );
}
