//! Changes of shares, and disks that begin and stop, while others run.

use std::ops::Range;

use ferry_bench::sioc::array::ArraySpec;
use ferry_bench::sioc::client::{ClientSpec, MS, SECOND};
use ferry_bench::sioc::spec::{Control, HostSpec, WorldSpec};
use ferry_bench::sioc::world::World;
use ferry_dataplane::qos::Policy;

use super::{ideal, judge};

const CHANGE: u64 = 30 * SECOND;

fn array() -> ArraySpec {
    ArraySpec::seeking(40, 8000.0)
}

fn shares(shares: u32) -> Policy {
    Policy {
        shares,
        ..Policy::default()
    }
}

/// A world of hosts whose periods of two seconds begin at different times, before the change and after it.
fn world(clients: &[ClientSpec], turn: u64) -> World {
    let control = Control {
        period_ns: 2 * SECOND,
        ..Control::default()
    };
    let mut spec = WorldSpec::new(array(), clients.to_vec()).controlled(control);
    for (at, host) in spec.hosts.iter_mut().enumerate() {
        *host = HostSpec {
            phase_ns: (at as u64 * 700 + turn * 410) * MS % (2 * SECOND),
            ..HostSpec::default()
        };
    }
    World::new(spec)
}

/// What is tried: where the disks are, in how long a change has to be through, and how the periods lie.
fn cases() -> Vec<(&'static str, [usize; 3], u64, u64)> {
    let among_hosts = (0..5).map(|turn| ("hosts", [0, 1, 2], 4 * SECOND, turn));
    let on_one = ("one host", [0; 3], 100 * MS, 0);
    among_hosts.chain([on_one]).collect()
}

fn after(change_ns: u64, settled_ns: u64) -> Range<u64> {
    change_ns + settled_ns..change_ns + settled_ns + SECOND
}

#[test]
fn new_shares_hold_after_two_periods_among_hosts_and_100_ms_on_one() {
    for (what, hosts, settled, turn) in cases() {
        for new in [250, 4000] {
            let disks = hosts.map(|host| ClientSpec::disk(host, 1000, 256));
            let (mut clients, mut then) = (disks.to_vec(), disks.to_vec());
            clients[0].changes = vec![(CHANGE, shares(new))];
            then[0].policy = shares(new);
            let mut world = world(&clients, turn);
            let time = after(CHANGE, settled);
            world.run_to(time.end);
            let what = format!("{what}, turn {turn}, {new} shares");
            judge(&what, &world, &ideal(&array(), 30.0, &then), &time);
        }
    }
}

#[test]
fn who_stops_is_replaced_and_who_comes_is_let_in() {
    for (what, hosts, settled, turn) in cases() {
        let what = format!("{what}, turn {turn}");
        let host = |at: usize| ClientSpec::disk(hosts[at], [2000, 1000, 1000][at], 256);
        let all: Vec<_> = (0..3).map(host).collect();
        let mut clients = all.clone();
        clients[0].on = vec![0..CHANGE, 2 * CHANGE..u64::MAX];
        let mut world = world(&clients, turn);
        world.run_to(3 * CHANGE);
        let rest = ideal(&array(), 30.0, &all[1..]);
        for (client, ideal) in rest.into_iter().enumerate() {
            let had = world.had(client + 1, after(CHANGE, settled)).units();
            super::near(&format!("{what}, one stopped: {client}"), had, ideal, 5.0);
        }
        let ideal = ideal(&array(), 30.0, &all);
        judge(&what, &world, &ideal, &after(2 * CHANGE, settled));
    }
}

#[test]
fn limits_and_reservations_change_at_once() {
    let mut clients = vec![
        ClientSpec::disk(0, 1000, 64),
        ClientSpec::disk(0, 1000, 256),
    ];
    let limited = Policy {
        limit_iops: Some(1000),
        ..Policy::default()
    };
    clients[0].changes = vec![(CHANGE, limited), (CHANGE + 2 * SECOND, Policy::default())];
    let mut world = world(&clients, 0);
    world.run_to(CHANGE + 4 * SECOND);
    let settled = |at: u64| at + 100 * MS..at + 1100 * MS;
    let held = world.had(0, settled(CHANGE)).units();
    super::near("limited", held, 1000.0, 0.5);
    // Depth 64 at 30 ms.
    let free = world.had(0, settled(CHANGE + 2 * SECOND)).units();
    super::near("free again", free, 64.0 / 0.03, 5.0);
}
