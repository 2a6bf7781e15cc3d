//! VMware's figures for Storage I/O Control, and mClock's example.

use super::Row;
use crate::sioc::array::ArraySpec;
use crate::sioc::client::{ClientSpec, SECOND};
use crate::sioc::ideal::{Claim, divide, divide_by_host};
use crate::sioc::spec::{Control, WorldSpec};
use crate::sioc::world::World;

/// The array of rows F and G: spindles, and what they do together.
const ARRAY: (u32, f64) = (40, 8000.0);
const THRESHOLD_MS: f64 = 30.0;
/// Enough for the part of any: half of 240 slots.
const DEPTH: u32 = 256;

fn claim(client: &ClientSpec, (spindles, iops): (u32, f64)) -> Claim {
    let shares = f64::from(client.policy.shares);
    let depth = f64::from(client.depth());
    let request_s = f64::from(spindles) / iops;
    let latency_s = THRESHOLD_MS / 1e3;
    let claim = Claim::of_depth(shares, depth, client.units(), latency_s, request_s);
    #[allow(clippy::cast_precision_loss)]
    let limit = client
        .policy
        .limit_iops
        .map_or(f64::INFINITY, |it| it as f64);
    let limit = limit.min(client.rate.unwrap_or(f64::INFINITY));
    #[allow(clippy::cast_precision_loss)]
    claim
        .limited(limit)
        .reserving(client.policy.reservation_iops as f64)
}

fn run(array: (u32, f64), clients: Vec<ClientSpec>, control: Control, to_ns: u64) -> World {
    let array = ArraySpec::seeking(array.0, array.1);
    let mut world = World::new(WorldSpec::new(array, clients).controlled(control));
    world.run_to(to_ns);
    world
}

/// Two disks on each of two hosts.
fn four(shares: [u32; 4]) -> Vec<ClientSpec> {
    let disk = |(at, shares)| ClientSpec::disk(at / 2, shares, DEPTH);
    shares.into_iter().enumerate().map(disk).collect()
}

pub(super) fn shares() -> Row {
    let about = "SIOC: an array of 8000 IOPS, 4 disks on 2 hosts, shares 1000, 2500, 500, 1000, \
                 threshold 30 ms";
    let mut row = Row::new('F', about);
    let clients = four([1000, 2500, 500, 1000]);
    let claims: Vec<_> = clients.iter().map(|client| claim(client, ARRAY)).collect();
    let ideal = divide(f64::from(ARRAY.0), &claims);
    let time = 20 * SECOND..60 * SECOND;
    let world = run(ARRAY, clients, Control::default(), time.end);
    for (vm, published) in [1600.0, 4000.0, 800.0, 1600.0].into_iter().enumerate() {
        let ours = world.had(vm, time.clone()).iops();
        row.add(format!("VM{}", vm + 1), published, ideal[vm], ours);
    }
    let all = world.all_had(time);
    row.add("all", 8000.0, 8000.0, all.iops());
    row.add("latency (ms)", None, THRESHOLD_MS, all.device_ms());
    row
}

pub(super) fn little_and_limited() -> Row {
    let about = "F, with VM3 asking for 10 IOPS and VM4 limited to 2000: hosts first, and all disks \
                 alike (flat)";
    let mut row = Row::new('G', about);
    let mut clients = four([1000, 2500, 500, 1000]);
    clients[2].rate = Some(10.0);
    clients[3].policy.limit_iops = Some(2000);
    let claims: Vec<_> = clients.iter().map(|client| claim(client, ARRAY)).collect();
    let spindles = f64::from(ARRAY.0);
    let hosts = [claims[..2].to_vec(), claims[2..].to_vec()];
    let first = divide_by_host(spindles, &hosts).concat();
    let flat = divide(spindles, &claims);
    let time = 20 * SECOND..60 * SECOND;
    for (name, by_host, ideal, published) in [
        ("", true, first, [1711.0, 4279.0, 10.0, 2000.0]),
        (", flat", false, flat, [1776.0, 4439.0, 10.0, 1776.0]),
    ] {
        let control = Control {
            by_host,
            ..Control::default()
        };
        let world = run(ARRAY, clients.clone(), control, time.end);
        for (vm, published) in published.into_iter().enumerate() {
            let ours = world.had(vm, time.clone()).iops();
            row.add(format!("VM{}{name}", vm + 1), published, ideal[vm], ours);
        }
        let latency = world.all_had(time.clone()).device_ms();
        row.add(format!("latency{name} (ms)"), None, THRESHOLD_MS, latency);
    }
    row
}

pub(super) fn reservations() -> Row {
    let about = "mClock: RD with 100 shares and 250 IOPS reserved, OLTP with 200 and 250, DM with 300 \
                 and a limit of 1000, on arrays of 1200 and 2500 IOPS, threshold 30 ms";
    let mut row = Row::new('H', about);
    let disk = |name, shares, reservation_iops, limit_iops| {
        let mut disk = ClientSpec::disk(0, shares, DEPTH).named(name);
        disk.policy.reservation_iops = reservation_iops;
        disk.policy.limit_iops = limit_iops;
        disk
    };
    let clients = vec![
        disk("RD", 100, 250, None),
        disk("OLTP", 200, 250, None),
        disk("DM", 300, 0, Some(1000)),
    ];
    let time = 20 * SECOND..120 * SECOND;
    for (iops, published) in [
        (1200.0, [250.0, 380.0, 570.0]),
        (2500.0, [500.0, 1000.0, 1000.0]),
    ] {
        // Few spindles: what one takes for a request has to be well below the threshold.
        let array = (8, iops);
        let claims: Vec<_> = clients.iter().map(|client| claim(client, array)).collect();
        let ideal = divide(8.0, &claims);
        let world = run(array, clients.clone(), Control::default(), time.end);
        for (at, client) in clients.iter().enumerate() {
            let ours = world.had(at, time.clone()).iops();
            let name = format!("{}, {iops:.0} IOPS", client.name);
            row.add(name, published[at], ideal[at], ours);
        }
        let latency = world.all_had(time.clone()).device_ms();
        row.add(
            format!("latency, {iops:.0} IOPS (ms)"),
            None,
            THRESHOLD_MS,
            latency,
        );
    }
    row
}
