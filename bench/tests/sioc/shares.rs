//! Shares within 5 % of the ideal, second by second.

use ferry_bench::sioc::array::{ArraySpec, Queues};
use ferry_bench::sioc::client::{ClientSpec, Lane, SECOND};
use ferry_bench::sioc::spec::Control;

use super::{ideal, judge, run};

/// Every second from the tenth to the twentieth is judged alone: the array does 20 000 a second, and
/// whoever has the least of it some 500, so that chance is well below 5 %.
fn each_second(what: &str, array: &ArraySpec, clients: &[ClientSpec]) {
    let ideal = ideal(array, 15.0, clients);
    let control = control();
    let world = run(array, clients, control, 20);
    for second in 10..20 {
        judge(
            what,
            &world,
            &ideal,
            &(second * SECOND..(second + 1) * SECOND),
        );
    }
}

/// Threshold 15 ms, period 1 s.
fn control() -> Control {
    Control {
        threshold_ns: 15_000_000,
        period_ns: SECOND,
        ..Control::default()
    }
}

fn array() -> ArraySpec {
    ArraySpec::seeking(32, 20_000.0)
}

#[test]
fn one_to_twenty_on_one_host() {
    let shares = [1000, 500, 200, 100, 50];
    let clients = shares.map(|shares| ClientSpec::disk(0, shares, 256));
    each_second("one host", &array(), &clients);
}

#[test]
fn one_to_twenty_among_hosts() {
    let mut host = 0;
    let clients = [1000, 500, 200, 100, 50].map(|shares| {
        host += 1;
        ClientSpec::disk(host - 1, shares, 256)
    });
    each_second("five hosts", &array(), &clients);
    // The last disk of each pair on a host that another one is on.
    let pairs = [(0, 1000), (0, 50), (1, 500), (1, 100), (2, 200)];
    let clients = pairs.map(|(host, shares)| ClientSpec::disk(host, shares, 256));
    each_second("three hosts", &array(), &clients);
}

#[test]
fn small_and_large_requests() {
    // 64 KiB count for two, and take longer.
    let mut array = ArraySpec::seeking(32, 16_000.0);
    array.read.unit_ns = 300_000.0;
    array.write.unit_ns = 400_000.0;
    let mut clients = Vec::new();
    for (at, bytes) in [4u64 << 10, 64 << 10, 4 << 10, 64 << 10]
        .into_iter()
        .enumerate()
    {
        let shares = [1000, 1000, 2000, 500][at];
        let mut client = ClientSpec::disk(at / 2, shares, 128);
        (client.bytes, client.write_percent) = (bytes, 30);
        clients.push(client);
    }
    each_second("4 KiB and 64 KiB", &array, &clients);
}

#[test]
fn depths_from_1_to_256() {
    let depths = [1, 4, 16, 64, 256, 256];
    let mut clients = Vec::new();
    for (at, depth) in depths.into_iter().enumerate() {
        clients.push(ClientSpec::disk(at / 2, 1000, depth));
    }
    let (array, control) = (array(), control());
    let ideal = ideal(&array, 15.0, &clients);
    let world = run(&array, &clients, control, 30);
    // One at a time is 67 a second: it takes 20 seconds to tell 5 % from chance.
    judge("depths", &world, &ideal, &(10 * SECOND..30 * SECOND));
    for second in 10..30 {
        let time = second * SECOND..(second + 1) * SECOND;
        for (client, &ideal) in ideal.iter().enumerate().skip(2) {
            let had = world.had(client, time.clone()).units();
            super::near(&format!("{client} in {time:?}"), had, ideal, 5.0);
        }
    }
}

#[test]
fn disks_with_queues_at_several_workers() {
    // The first is everywhere, the second and third at one worker each, the last lopsided.
    let lanes: [&[(usize, u32)]; 4] = [
        &[(0, 64), (1, 64), (2, 64), (3, 64)],
        &[(0, 256)],
        &[(1, 256)],
        &[(2, 200), (3, 16)],
    ];
    let mut clients = Vec::new();
    for (lanes, shares) in lanes.into_iter().zip([1000, 1000, 500, 2000]) {
        let mut client = ClientSpec::disk(0, shares, 0);
        let lane = |&(worker, depth): &(usize, u32)| Lane { worker, depth };
        client.lanes = lanes.iter().map(lane).collect();
        clients.push(client);
    }
    let array = array();
    let ideal = ideal(&array, 15.0, &clients);
    let world = run(&array, &clients, control(), 20);
    for second in 10..20 {
        let time = second * SECOND..(second + 1) * SECOND;
        judge("four workers", &world, &ideal, &time);
    }
}

#[test]
fn spindles_with_queues_of_their_own() {
    // Where chance decides who waits, everybody waits alike.
    let array = ArraySpec {
        queues: Queues::PerSpindle,
        chance: 0.6,
        ..array()
    };
    let clients = [(0, 1000), (0, 500), (1, 2000), (1, 500)];
    let clients = clients.map(|(host, shares)| ClientSpec::disk(host, shares, 256));
    let world = run(&array, &clients, control(), 30);
    let time = 10 * SECOND..30 * SECOND;
    // Some spindles idle: what there is to divide is what all had.
    let all = world.all_had(time.clone()).units();
    for (client, shares) in [1000.0, 500.0, 2000.0, 500.0].into_iter().enumerate() {
        let had = world.had(client, time.clone()).units();
        super::near(&format!("client {client}"), had, all * shares / 4000.0, 5.0);
    }
}
