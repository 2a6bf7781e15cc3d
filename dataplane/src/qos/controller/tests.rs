mod odd;
mod outsider;
mod plant;

use plant::{MS, PERIOD_NS, Plant};

use super::*;
use crate::qos::division::Want;

/// What it is, how many hosts, and the disks of each.
type Row = (&'static str, u64, &'static [(f64, f64)]);

fn settings() -> Settings {
    Settings::new(30_000_000, PERIOD_NS)
}

/// So many hosts out of step, each with these disks.
fn hosts(plant: &mut Plant, count: u64, disks: &[(f64, f64)]) {
    for host in 0..count {
        plant.host(settings(), 7 * host, disks);
    }
}

/// The largest error of any disk's part, over what was got since the last look.
fn worst(plant: &mut Plant) -> f64 {
    let (latency_ms, _) = plant.taken();
    let ideal = plant.ideal(latency_ms * MS / plant.service_ns - plant.outsider);
    let errors = plant.parts().into_iter().zip(ideal).filter(|it| it.1 > 0.0);
    errors
        .map(|(got, ideal)| (got / ideal - 1.0).abs())
        .fold(0.0, f64::max)
}

/// Shares within 5 % of water-filling, latency within 5 % of the threshold, throughput kept.
fn assert_held(plant: &mut Plant, what: &str) {
    plant.taken();
    plant.parts();
    plant.run(1.0);
    for period in 0..10 {
        plant.run(1.0);
        let parts = plant.parts();
        let (latency_ms, units) = plant.taken();
        assert!(
            (28.5..=31.5).contains(&latency_ms),
            "{what}, {period}: {latency_ms} ms"
        );
        assert!(
            units * plant.service_ns > 0.98e9,
            "{what}, {period}: {units}"
        );
        let ideal = plant.ideal(latency_ms * MS / plant.service_ns);
        for (disk, (got, ideal)) in parts.iter().zip(ideal).enumerate() {
            let error = if ideal > 0.0 { got / ideal - 1.0 } else { 0.0 };
            assert!(
                error.abs() < 0.05,
                "{what}, {period}, disk {disk}: {got} for {ideal}"
            );
        }
    }
}

#[test]
fn shares_latency_and_throughput_are_held() {
    let rows: [Row; 6] = [
        (
            "one host",
            1,
            &[(1000.0, 256.0), (1000.0, 64.0), (3000.0, 128.0)],
        ),
        ("two hosts", 2, &[(1000.0, 256.0)]),
        ("four hosts", 4, &[(500.0, 64.0), (2000.0, 64.0)]),
        ("one to twenty", 3, &[(100.0, 256.0), (2000.0, 256.0)]),
        (
            "some want little",
            4,
            &[
                (1000.0, 1.0),
                (1000.0, 4.0),
                (500.0, 256.0),
                (2000.0, 30.0),
                (1000.0, 100.0),
            ],
        ),
        (
            "64 hosts",
            64,
            &[(1000.0, 32.0), (500.0, 1.0), (2000.0, 8.0)],
        ),
    ];
    for (what, count, disks) in rows {
        for (noise, lag) in [(0.0, 0), (0.03, 0), (0.03, 20)] {
            let mut plant = Plant::new();
            (plant.noise, plant.lag) = (noise, lag);
            hosts(&mut plant, count, disks);
            plant.run(15.0);
            assert_held(&mut plant, &format!("{what}, noise {noise}, lag {lag}"));
        }
    }
}

#[test]
fn nothing_is_held_back_without_congestion() {
    let mut plant = Plant::new();
    plant.noise = 0.05;
    hosts(&mut plant, 4, &[(1000.0, 16.0), (4000.0, 32.0)]);
    plant.run(200.0);
    assert!(
        plant
            .hosts
            .iter()
            .all(|it| it.decision.window_total.is_infinite())
    );
    let (latency_ms, units) = plant.taken();
    assert!(
        (latency_ms - 24.0).abs() < 0.1 && units > 7990.0,
        "{latency_ms} {units}"
    );
}

#[test]
fn a_change_of_shares_has_come_through_in_two_periods() {
    for phase in 0..20 {
        let mut plant = Plant::new().seeded(phase);
        plant.noise = 0.03;
        hosts(&mut plant, 4, &[(1000.0, 64.0), (1000.0, 64.0)]);
        plant.run(20.0 + phase as f64 / 20.0);
        plant.hosts[1].disks[0].shares = 4000.0;
        plant.run(2.0);
        worst(&mut plant);
        plant.run(1.0);
        let worst = worst(&mut plant);
        assert!(worst < 0.05, "{phase}: {worst}");
        plant.run(3.0);
        assert_held(&mut plant, "after the change");
    }
}

#[test]
fn a_disk_that_stops_or_starts_has_come_through_in_two_periods() {
    for phase in 0..20 {
        let mut plant = Plant::new().seeded(phase);
        plant.noise = 0.03;
        hosts(&mut plant, 4, &[(1000.0, 96.0), (2000.0, 96.0)]);
        plant.run(20.0 + phase as f64 / 20.0);
        for depth in [0.0, 96.0] {
            plant.hosts[3].disks[1].depth = depth;
            plant.run(2.0);
            worst(&mut plant);
            plant.run(1.0);
            let worst = worst(&mut plant);
            assert!(worst < 0.05, "{phase}, {depth}: {worst}");
            plant.run(3.0);
            assert_held(&mut plant, "after it");
        }
    }
}

#[test]
fn a_window_stands_still_while_a_host_is_late() {
    let mut own = HostReport {
        ios: 8000,
        latency_ns: 40_000_000,
        units: 8000.0,
        limited: true,
        window_total: f64::INFINITY,
        ..HostReport::default()
    };
    own.demand.add(Want {
        shares: 1000.0,
        slots: 400.0,
    });
    let mut controller = Controller::new(settings());
    let mut other = own.clone();
    for _ in 0..8 {
        controller.update(0, &own, std::slice::from_ref(&other));
        other.window_total = controller.window_total();
    }
    let window = controller.last_window;
    assert!(window.is_finite());
    // It was not there for all of the period; its last report still says that it was.
    (own.latency_ns, own.units) = (own.latency_ns / 2, 2.0 * own.units);
    other.late = true;
    for _ in 0..3 {
        let decision = controller.update(0, &own, std::slice::from_ref(&other));
        assert_eq!(decision.window_total, window, "before the last step");
    }
    let decision = controller.update(0, &own, &[]);
    assert!(decision.window > 1.9 * window / 2.0, "all of it");
}

#[test]
fn a_slower_device_is_followed_without_swinging() {
    for (factor, lag) in [(2.0, 0), (0.5, 0), (3.0, 0), (2.0, 20), (0.5, 20)] {
        let mut plant = Plant::new();
        (plant.noise, plant.lag) = (0.02, lag);
        plant.service_ns *= 2.0;
        hosts(&mut plant, 4, &[(1000.0, 160.0), (2000.0, 160.0)]);
        plant.run(20.0);
        plant.service_ns *= factor;
        plant.run(if lag == 0 { 6.0 } else { 12.0 });
        // From here on it never leaves again.
        assert_held(&mut plant, &format!("factor {factor}, lag {lag}"));
        assert!(plant.hosts.iter().all(|it| it.events.is_empty()));
    }
}

#[test]
fn it_opens_when_congestion_ends_and_gives_all_again() {
    let mut plant = Plant::new();
    plant.noise = 0.03;
    hosts(&mut plant, 4, &[(1000.0, 40.0), (2000.0, 40.0)]);
    plant.run(20.0);
    assert!(
        plant
            .hosts
            .iter()
            .all(|it| it.decision.window_total.is_finite())
    );
    // Guests stop.
    for host in &mut plant.hosts {
        host.disks[0].depth = 2.0;
        host.disks[1].depth = 20.0;
    }
    plant.run(8.0);
    assert!(
        plant
            .hosts
            .iter()
            .all(|it| it.decision.window_total.is_infinite())
    );
    // Guests come back; then the device becomes faster.
    for host in &mut plant.hosts {
        host.disks[1].depth = 120.0;
    }
    plant.run(8.0);
    assert_held(&mut plant, "congested again");
    plant.service_ns /= 4.0;
    plant.run(10.0);
    assert!(
        plant
            .hosts
            .iter()
            .all(|it| it.decision.window_total.is_infinite())
    );
    plant.taken();
    plant.run(5.0);
    let (latency_ms, units) = plant.taken();
    assert!(
        latency_ms < 16.0 && units > 31_900.0,
        "{latency_ms} {units}"
    );
}

#[test]
fn a_dead_hosts_part_returns_within_three_periods() {
    for phase in 0..20 {
        let mut plant = Plant::new().seeded(phase);
        hosts(&mut plant, 3, &[(1000.0, 160.0)]);
        plant.run(20.0 + phase as f64 / 20.0);
        plant.hosts[1].dead = true;
        plant.run(3.0);
        let windows: f64 = [0, 2]
            .map(|it: usize| plant.hosts[it].decision.window)
            .iter()
            .sum();
        assert!(windows > 0.9 * 240.0, "{phase}: {windows}");
        plant.run(4.0);
        assert_held(&mut plant, "without it");
    }
}

#[test]
fn hosts_with_different_windows_come_together() {
    for (one, other) in [
        (10.0, 600.0),
        (600.0, 10.0),
        (240.0, f64::INFINITY),
        (4.0, f64::INFINITY),
    ] {
        let mut plant = Plant::new();
        plant.noise = 0.03;
        hosts(&mut plant, 2, &[(1000.0, 256.0)]);
        plant.hosts[0].controller.close(one);
        if other.is_finite() {
            plant.hosts[1].controller.close(other);
        }
        plant.run(8.0);
        let [a, b] = [0, 1].map(|it: usize| plant.hosts[it].decision.window_total);
        assert!((a / b).ln().abs() < 0.05, "{one} {other}: {a} {b}");
        plant.run(2.0);
        assert_held(&mut plant, "together");
    }
}

#[test]
fn demands_that_change_all_the_time_do_not_upset_it() {
    let mut plant = Plant::new();
    plant.noise = 0.03;
    hosts(
        &mut plant,
        4,
        &[(1000.0, 100.0), (2000.0, 100.0), (500.0, 100.0)],
    );
    plant.run(20.0);
    plant.taken();
    for _ in 0..200 {
        let host = plant.pick(4);
        let disk = plant.pick(3);
        let depth = if plant.random() > 0.0 { 100.0 } else { 2.0 };
        // One that always wants more than its part keeps it congested.
        if (host, disk) != (0, 0) {
            plant.hosts[host].disks[disk].depth = depth;
        }
        plant.hosts[0].disks[0].depth = 300.0;
        plant.run(1.5);
    }
    let (latency_ms, units) = plant.taken();
    assert!((28.5..31.5).contains(&latency_ms), "{latency_ms}");
    assert!(units > 0.98 * 8000.0, "{units}");
}

#[test]
fn hosts_first_divides_among_hosts_first() {
    for (division, ideal) in [
        (Division::Hosts, [1711.0, 4279.0, 10.0, 2000.0]),
        (Division::Disks, [1776.0, 4439.0, 10.0, 1776.0]),
    ] {
        let mut plant = Plant::new();
        let settings = Settings {
            division,
            ..settings()
        };
        // What they can use at 30 ms, in slots; the last has a limit of 2000.
        plant.host(settings, 0, &[(1000.0, 256.0), (2500.0, 256.0)]);
        plant.host(settings, 11, &[(500.0, 0.3), (1000.0, 60.0)]);
        plant.run(30.0);
        plant.parts();
        plant.run(5.0);
        let got: Vec<f64> = plant.parts().iter().map(|it| it * 8000.0).collect();
        for (got, ideal) in got.iter().zip(ideal) {
            assert!(
                (got / ideal - 1.0).abs() < 0.05,
                "{division:?}: {got} for {ideal}"
            );
        }
    }
}

#[test]
fn without_a_threshold_it_only_watches() {
    let mut plant = Plant::new();
    let settings = Settings {
        threshold_ns: u64::MAX,
        ..settings()
    };
    plant.host(settings, 0, &[(1000.0, 2000.0)]);
    plant.run(20.0);
    assert!(plant.hosts[0].decision.window.is_infinite());
    assert!(plant.hosts[0].decision.latency_ns > 200_000_000);
    // It can be given one, and be without one again.
    plant.hosts[0]
        .controller
        .configure(Settings::new(30_000_000, PERIOD_NS));
    plant.run(5.0);
    assert!(plant.hosts[0].decision.window.is_finite());
    plant.hosts[0].controller.configure(settings);
    assert!(plant.hosts[0].controller.window_total().is_infinite());
}

#[test]
fn between_updates_a_host_that_wakes_up_has_its_part_at_once() {
    let mut plant = Plant::new();
    hosts(&mut plant, 2, &[(1000.0, 256.0)]);
    plant.hosts[1].disks[0].depth = 0.0;
    plant.run(10.0);
    let controller = &plant.hosts[1].controller;
    assert!(controller.part(&Bins::default()) <= 1.0);
    let mut awake = Bins::default();
    awake.add(Want {
        shares: 1000.0,
        slots: 256.0,
    });
    let part = controller.part(&awake);
    assert!((part / 120.0 - 1.0).abs() < 0.05, "{part}");
}
