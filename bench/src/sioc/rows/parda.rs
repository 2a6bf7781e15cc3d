//! PARDA's experiments: hosts with one window each, on an array of some 3350 reads of 16 KiB a second.

use std::ops::Range;

use super::Row;
use crate::sioc::array::ArraySpec;
use crate::sioc::client::{ClientSpec, MS, SECOND};
use crate::sioc::ideal::{Claim, divide};
use crate::sioc::spec::{Control, Unmanaged, WorldSpec};
use crate::sioc::world::World;

const SPINDLES: u32 = 20;
const IOPS: f64 = 3350.0;
/// PARDA's period.
const PERIOD_NS: u64 = 2 * SECOND;

fn array(iops: f64) -> ArraySpec {
    ArraySpec::seeking(SPINDLES, iops)
}

fn control(threshold_ms: u64) -> Control {
    Control {
        threshold_ns: threshold_ms * MS,
        period_ns: PERIOD_NS,
        unmanaged: Unmanaged::Keep,
        ..Control::default()
    }
}

/// Each client's part by the book, in I/Os a second, of an array that is busy; reads of 16 KiB.
fn ideal(iops: f64, threshold_ms: f64, clients: &[ClientSpec]) -> Vec<f64> {
    let request_s = f64::from(SPINDLES) / iops;
    let claim = |client: &ClientSpec| {
        let (shares, depth) = (f64::from(client.policy.shares), f64::from(client.depth()));
        Claim::of_depth(shares, depth, 1.0, threshold_ms / 1e3, request_s)
    };
    let claims: Vec<Claim> = clients.iter().map(claim).collect();
    divide(f64::from(SPINDLES), &claims)
}

fn run(spec: WorldSpec, to_ns: u64) -> World {
    let mut world = World::new(spec);
    world.run_to(to_ns);
    world
}

pub(super) fn equal_hosts() -> Row {
    let about = "PARDA, table 3: 4 hosts, equal shares, threshold 30 ms, with and without control";
    let mut row = Row::new('A', about);
    // Some 124 requests are under way without control: 3360 a second, 37 ms each.
    let clients: Vec<_> = (0..4)
        .map(|host| ClientSpec::disk(host, 1000, 31))
        .collect();
    let time = 20 * SECOND..120 * SECOND;
    let open = WorldSpec::new(array(3360.0), clients.clone());
    let open = run(open, time.end);
    let published = [780.0, 900.0, 890.0, 790.0];
    for (host, published) in published.into_iter().enumerate() {
        let ours = open.had(host, time.clone()).iops();
        row.add(
            format!("host {}, no control", host + 1),
            published,
            840.0,
            ours,
        );
    }
    let all = open.all_had(time.clone());
    row.add("all, no control", 3360.0, 3360.0, all.iops());
    let open_ms = 4.0 * 31.0 / 3.36;
    row.add("latency, no control (ms)", 37.0, open_ms, all.device_ms());
    let ideal = ideal(3360.0, 30.0, &clients);
    let held = run(
        WorldSpec::new(array(3360.0), clients).controlled(control(30)),
        time.end,
    );
    let published = [730.0, 890.0, 930.0, 800.0];
    for (host, published) in published.into_iter().enumerate() {
        let ours = held.had(host, time.clone()).iops();
        row.add(format!("host {}", host + 1), published, ideal[host], ours);
    }
    let all = held.all_had(time);
    row.add("all", 3350.0, 3360.0, all.iops());
    row.add("latency (ms)", 31.0, 30.0, all.device_ms());
    row
}

pub(super) fn unequal_hosts() -> Row {
    let about = "PARDA, figure 8: 4 hosts, shares 1:1:2:2, threshold 25 ms";
    let mut row = Row::new('B', about);
    let shares = [1000, 1000, 2000, 2000];
    let clients: Vec<_> = (0..4)
        .map(|host| ClientSpec::disk(host, shares[host], 64))
        .collect();
    let ideal = ideal(IOPS, 25.0, &clients);
    let time = 20 * SECOND..120 * SECOND;
    let spec = WorldSpec::new(array(IOPS), clients).controlled(control(25));
    let world = run(spec, time.end);
    for (host, ideal) in ideal.iter().enumerate() {
        let ours = world.had(host, time.clone()).iops();
        row.add(format!("host {}", host + 1), None, *ideal, ours);
    }
    windows(&mut row, "", &world, &time, &[1.0, 1.0, 2.0, 2.0], true);
    let latency = world.all_had(time).device_ms();
    row.add("latency (ms)", 25.0, 25.0, latency);
    row
}

/// The hosts' windows in a time, each against the first host's, by the ratios that they should have.
fn windows(
    row: &mut Row,
    when: &str,
    world: &World,
    time: &Range<u64>,
    ratios: &[f64],
    published: bool,
) {
    let first = world.window(0, time.clone());
    for (host, &ratio) in ratios.iter().enumerate().skip(1) {
        let ours = world.window(host, time.clone()) / first;
        let client = format!("host {} : host 1{when} (window)", host + 1);
        row.add(client, published.then_some(ratio), ratio, ours);
    }
}

pub(super) fn hosts_that_stop() -> Row {
    let about = "PARDA, table 4 and figure 9: 6 hosts, depth 32, threshold 30 ms; hosts 6, 5 and 4 \
                 stop at 145, 220 and 310 s";
    let mut row = Row::new('C', about);
    let iops = 3150.0;
    let clients: Vec<_> = (0..6)
        .map(|host| ClientSpec::disk(host, 1000, 32))
        .collect();
    let time = 20 * SECOND..140 * SECOND;
    let open = run(WorldSpec::new(array(iops), clients.clone()), time.end);
    let all = open.all_had(time.clone());
    row.add("all, no control", 3130.0, iops, all.iops());
    let open_ms = 6.0 * 32.0 / iops * 1e3;
    row.add("latency, no control (ms)", 60.0, open_ms, all.device_ms());
    let mut stopping = clients.clone();
    for (host, stop) in [(5, 145), (4, 220), (3, 310)] {
        stopping[host] = clients[host].clone().during(0..stop * SECOND);
    }
    let world = WorldSpec::new(array(iops), stopping).controlled(control(30));
    let world = run(world, 400 * SECOND);
    let phases = [(6, 20, 145), (5, 150, 220), (4, 225, 310), (3, 315, 400)];
    for (hosts, from, to) in phases {
        let time = from * SECOND..to * SECOND;
        let all = world.all_had(time.clone());
        let published = (hosts == 6).then_some((3150.0, 30.0));
        let name = |what: &str| format!("{what}, {hosts} hosts");
        row.add(name("all"), published.map(|it| it.0), iops, all.iops());
        // Three hosts have just as much under way as the threshold allows.
        let ideal_ms = 30f64.min(f64::from(hosts) * 32.0 / iops * 1e3);
        let client = name("latency (ms)");
        row.add(client, published.map(|it| it.1), ideal_ms, all.device_ms());
        let ideal = ideal(iops, 30.0, &clients[..hosts as usize])[0];
        row.add(name("host 1"), None, ideal, world.had(0, time).iops());
    }
    row
}

pub(super) fn a_stranger_joins() -> Row {
    let about = "PARDA, figure 11: 5 hosts, shares 2:2:1:1:1, threshold 30 ms; a sixth joins at 230 s \
                 that is not managed, depth 32; the shares are kept (policy keep)";
    let mut row = Row::new('D', about);
    let shares = [2000, 2000, 1000, 1000, 1000];
    let mut clients: Vec<_> = (0..5)
        .map(|host| ClientSpec::disk(host, shares[host], 64))
        .collect();
    let before = ideal(IOPS, 30.0, &clients);
    // At the threshold the stranger has what its depth gives it; the rest is shared.
    let strangers = 32.0 / 0.030;
    let after = ideal(IOPS - strangers, 30.0, &clients);
    clients.push(ClientSpec::stranger(32).during(230 * SECOND..u64::MAX));
    let world = WorldSpec::new(array(IOPS), clients).controlled(control(30));
    let world = run(world, 400 * SECOND);
    for (when, time, ideal) in [
        ("before", 20 * SECOND..230 * SECOND, before),
        ("after", 260 * SECOND..400 * SECOND, after),
    ] {
        for (host, ideal) in ideal.iter().enumerate() {
            let ours = world.had(host, time.clone()).iops();
            row.add(format!("host {}, {when}", host + 1), None, *ideal, ours);
        }
        let ratios = [1.0, 1.0, 0.5, 0.5, 0.5];
        windows(&mut row, &format!(", {when}"), &world, &time, &ratios, true);
        let latency = world.all_had(time).device_ms();
        row.add(format!("latency, {when} (ms)"), 30.0, 30.0, latency);
    }
    row
}

pub(super) fn an_idle_disk() -> Row {
    let about = "PARDA, table 6 and figure 13: 4 hosts with disks of shares 20+10, 10+10, 20 and 10, \
                 threshold 25 ms; host 1's second disk is idle from 140 to 310 s";
    let mut row = Row::new('E', about);
    let disks = [
        (0, 2000),
        (0, 1000),
        (1, 1000),
        (1, 1000),
        (2, 2000),
        (3, 1000),
    ];
    let mut clients: Vec<_> = disks
        .iter()
        .map(|&(host, shares)| ClientSpec::disk(host, shares, 64))
        .collect();
    let all = ideal(IOPS, 25.0, &clients);
    let working: Vec<_> = [&clients[..1], &clients[2..]].concat();
    let mut less = ideal(IOPS, 25.0, &working);
    less.insert(1, 0.0);
    clients[1].on = vec![0..140 * SECOND, 310 * SECOND..u64::MAX];
    let world = WorldSpec::new(array(IOPS), clients).controlled(control(25));
    let world = run(world, 450 * SECOND);
    let phases = [
        ("before", 20..140, all.clone(), [6.0, 4.0, 4.0, 2.0]),
        ("idle", 150..310, less, [4.0, 4.0, 4.0, 2.0]),
        ("after", 320..450, all, [6.0, 4.0, 4.0, 2.0]),
    ];
    for (when, seconds, ideal, betas) in phases {
        let time = seconds.start * SECOND..seconds.end * SECOND;
        for (disk, &ideal) in ideal.iter().enumerate().filter(|it| *it.1 > 0.0) {
            let ours = world.had(disk, time.clone()).iops();
            let host = disks[disk].0 + 1;
            row.add(
                format!("disk {} (host {host}), {when}", disk + 1),
                None,
                ideal,
                ours,
            );
        }
        let first = world.window(0, time.clone());
        let last = world.window(3, time.clone());
        let ratio = betas[0] / betas[3];
        let client = format!("host 1 : host 4, {when} (window)");
        row.add(client, ratio, ratio, first / last);
        let latency = world.all_had(time).device_ms();
        row.add(format!("latency, {when} (ms)"), 25.0, 25.0, latency);
    }
    row
}
