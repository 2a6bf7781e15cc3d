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

/// A world of hosts whose periods of two seconds begin at different times.
fn world(clients: &[ClientSpec]) -> World {
    let control = Control {
        period_ns: 2 * SECOND,
        ..Control::default()
    };
    let mut spec = WorldSpec::new(array(), clients.to_vec()).controlled(control);
    for (at, host) in spec.hosts.iter_mut().enumerate() {
        *host = HostSpec {
            phase_ns: (at as u64 * 700 * MS) % (2 * SECOND),
            ..HostSpec::default()
        };
    }
    World::new(spec)
}

/// Clients as they are from the change on, against what they should have in a second after it.
fn judge_after(what: &str, clients: &[ClientSpec], then: &[ClientSpec], time: Range<u64>) {
    let mut world = world(clients);
    world.run_to(time.end);
    judge(what, &world, &ideal(&array(), 30.0, then), &time);
}

#[test]
fn new_shares_hold_after_two_periods_among_hosts_and_100_ms_on_one() {
    for (what, hosts, settled) in [
        ("hosts", [0, 1, 2], 4 * SECOND),
        ("one host", [0; 3], 100 * MS),
    ] {
        let mut clients: Vec<_> = hosts.map(|host| ClientSpec::disk(host, 1000, 256)).to_vec();
        let mut then = clients.clone();
        clients[0].changes = vec![(CHANGE, shares(4000))];
        then[0].policy = shares(4000);
        let time = CHANGE + settled..CHANGE + settled + SECOND;
        judge_after(what, &clients, &then, time);
    }
}

#[test]
fn who_stops_is_replaced_and_who_comes_is_let_in() {
    for (what, hosts, settled) in [
        ("hosts", [0, 1, 2], 4 * SECOND),
        ("one host", [0; 3], 100 * MS),
    ] {
        let host = |at: usize| ClientSpec::disk(hosts[at], [2000, 1000, 1000][at], 256);
        let mut clients: Vec<_> = (0..3).map(host).collect();
        let all = clients.clone();
        clients[0].on = vec![0..CHANGE, 2 * CHANGE..u64::MAX];
        let mut world = world(&clients);
        world.run_to(3 * CHANGE);
        let stopped = CHANGE + settled..CHANGE + settled + SECOND;
        let rest = ideal(&array(), 30.0, &all[1..]);
        for (client, ideal) in rest.into_iter().enumerate() {
            let had = world.had(client + 1, stopped.clone()).units();
            super::near(&format!("{what}, one stopped: {client}"), had, ideal, 5.0);
        }
        let back = 2 * CHANGE + settled..2 * CHANGE + settled + SECOND;
        judge(what, &world, &ideal(&array(), 30.0, &all), &back);
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
    let mut world = world(&clients);
    world.run_to(CHANGE + 4 * SECOND);
    let settled = |at: u64| at + 100 * MS..at + 1100 * MS;
    let held = world.had(0, settled(CHANGE)).units();
    super::near("limited", held, 1000.0, 0.5);
    // Depth 64 at 30 ms.
    let free = world.had(0, settled(CHANGE + 2 * SECOND)).units();
    super::near("free again", free, 64.0 / 0.03, 5.0);
}
