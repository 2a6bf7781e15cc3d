use super::*;
use crate::sioc::array::ArraySpec;
use crate::sioc::client::SECOND;

fn near(found: f64, expected: f64, percent: f64) {
    let error = (found / expected - 1.0).abs() * 100.0;
    assert!(error < percent, "{found}, not {expected}");
}

fn limited(shares: u32, reservation_iops: u64, limit_iops: Option<u64>) -> ClientSpec {
    let mut client = ClientSpec::disk(0, shares, 64);
    client.policy.reservation_iops = reservation_iops;
    client.policy.limit_iops = limit_iops;
    client
}

#[test]
fn without_control_depth_decides() {
    let clients = vec![ClientSpec::disk(0, 1000, 10), ClientSpec::disk(1, 1, 90)];
    let spec = WorldSpec::new(ArraySpec::seeking(10, 2000.0), clients);
    let mut world = World::new(spec);
    world.run_to(21 * SECOND);
    let time = SECOND..21 * SECOND;
    near(world.had(0, time.clone()).iops(), 200.0, 2.0);
    near(world.had(1, time.clone()).iops(), 1800.0, 2.0);
    near(world.all_had(time.clone()).device_ms(), 50.0, 2.0);
    near(world.all_had(time).guest_ms(), 50.0, 2.0);
}

#[test]
fn a_fixed_window_is_divided_by_shares_limits_and_reservations() {
    for (iops, expected) in [
        (1200.0, [250.0, 380.0, 570.0]),
        (2500.0, [500.0, 1000.0, 1000.0]),
    ] {
        let clients = vec![
            limited(100, 250, None),
            limited(200, 250, None),
            limited(300, 0, Some(1000)),
        ];
        let mut spec = WorldSpec::new(ArraySpec::seeking(10, iops), clients);
        spec.hosts[0].slots = iops * 0.03;
        let mut world = World::new(spec);
        world.run_to(11 * SECOND);
        let time = SECOND..11 * SECOND;
        for (client, expected) in expected.into_iter().enumerate() {
            near(world.had(client, time.clone()).iops(), expected, 3.0);
        }
        near(world.all_had(time).device_ms(), 30.0, 3.0);
    }
}

#[test]
fn schedules_rates_and_deaths() {
    let mut clients = vec![
        ClientSpec::disk(0, 1, 4).during(SECOND..3 * SECOND),
        ClientSpec::disk(1, 1, 4),
        ClientSpec::stranger(4),
    ];
    clients[1].rate = Some(50.0);
    let mut spec = WorldSpec::new(ArraySpec::seeking(16, 1600.0), clients);
    spec.hosts[1].dies_ns = Some(5 * SECOND);
    let mut world = World::new(spec);
    world.run_to(10 * SECOND);
    assert_eq!(world.had(0, 0..SECOND).ios, 0);
    near(world.had(0, SECOND..3 * SECOND).iops(), 400.0, 3.0);
    assert!(world.had(0, 3 * SECOND..10 * SECOND).ios <= 4);
    near(world.had(1, SECOND..5 * SECOND).iops(), 50.0, 1.0);
    assert!(world.had(1, 5 * SECOND..10 * SECOND).ios <= 4);
    near(world.had(2, 0..10 * SECOND).iops(), 400.0, 3.0);
}
