mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use world::{PERIOD_NS, TICK_NS, World, policy};

fn settings() -> Settings {
    Settings::new(30_000_000, PERIOD_NS)
}

fn lane(in_flight: f64, waiting: f64) -> LaneReading {
    LaneReading {
        has_queues: true,
        in_flight,
        waiting,
        window_waits: waiting > 0.0,
        ..LaneReading::default()
    }
}

fn one(policy: Policy, lanes: &[LaneReading]) -> Readings {
    Readings {
        disks: vec![DiskReading {
            disk: 7,
            policy,
            lanes: lanes.to_vec(),
        }],
    }
}

#[test]
fn a_report_says_what_was_done() {
    let mut governor = Governor::new(settings(), 2);
    let mut lanes = [lane(3.0, 1.0), lane(1.0, 0.0)];
    for tick in 0..=200u64 {
        // 100 I/Os of two units and of 4 ms in each tick, at either worker.
        for lane in &mut lanes {
            lane.ios = tick * 100;
            lane.latency_sum_ns = tick * 400_000_000;
            lane.units = tick * 200 * u64::from(COST_ONE);
        }
        governor.tick(tick * TICK_NS, &one(policy(1000), &lanes));
        assert_eq!(governor.due(tick * TICK_NS), tick >= 100);
    }
    // Two seconds, in periods of one.
    let report = governor.report(200 * TICK_NS);
    assert_eq!((report.ios, report.latency_ns), (40_000, 4_000_000));
    assert!((report.units - 40_000.0).abs() < 1.0, "{}", report.units);
    assert!((report.outstanding - 4.0).abs() < 1e-9);
    assert!(report.limited && report.window_total.is_infinite());
    let want = report.demand.total();
    assert!(
        (want.slots - 5.0).abs() < 1e-3 && want.shares == 1000.0,
        "{want:?}"
    );
    assert!(!governor.due(201 * TICK_NS));
    assert_eq!(governor.report(201 * TICK_NS).ios, 0);
}

#[test]
fn counters_that_start_over_and_disks_that_go_count_nothing() {
    let mut governor = Governor::new(settings(), 1);
    let mut reading = lane(1.0, 0.0);
    reading.ios = 1_000_000;
    governor.tick(0, &one(policy(1000), &[reading]));
    reading.ios = 5;
    governor.tick(TICK_NS, &one(policy(1000), &[reading]));
    reading.ios = 9;
    governor.tick(2 * TICK_NS, &one(policy(1000), &[reading]));
    assert_eq!(governor.report(3 * TICK_NS).ios, 4);
    governor.tick(4 * TICK_NS, &Readings::default());
    let report = governor.report(5 * TICK_NS);
    assert_eq!(report.demand.total().slots, 0.0);
    assert_eq!(report.latency_ns, 0);
}

#[test]
fn a_limit_and_a_reservation_show_in_what_is_wanted() {
    let limited = Policy {
        limit_iops: Some(1000),
        ..policy(1000)
    };
    let by_bytes = Policy {
        limit_bytes: Some(1000 * UNIT_BYTES),
        ..policy(1000)
    };
    for policy in [limited, by_bytes] {
        let mut governor = Governor::new(settings(), 1);
        governor.tick(0, &one(policy, &[lane(4.0, 200.0)]));
        let want = governor.report(PERIOD_NS).demand.total();
        assert!((want.slots - 31.5).abs() < 0.1, "{want:?}");
    }
    let mut governor = Governor::new(settings(), 1);
    let reserved = Policy {
        reservation_iops: 2000,
        ..policy(10)
    };
    governor.tick(0, &one(reserved, &[lane(4.0, 200.0)]));
    assert_eq!(governor.report(PERIOD_NS).demand.total().shares, 10.0);
    governor.decision.level = 0.1;
    let want = governor.report(2 * PERIOD_NS).demand.total();
    assert!(
        (want.shares - 600.0).abs() < 1.0,
        "60 slots at a tenth for a share: {want:?}"
    );
}

#[test]
fn a_device_that_gives_nothing_back_has_a_bad_latency() {
    let mut governor = Governor::new(settings(), 1);
    for tick in 0..300 {
        governor.tick(tick * TICK_NS, &one(policy(1000), &[lane(12.0, 0.0)]));
    }
    let report = governor.report(300 * TICK_NS);
    assert_eq!((report.ios, report.latency_ns), (12, 3_000_000_000));
    let decision = governor.decide(300 * TICK_NS, &report, &[]);
    assert!(decision.window.is_finite() && decision.window >= 4.0);
    // Nothing at the device is nothing to wait for.
    governor.tick(301 * TICK_NS, &one(policy(1000), &[lane(0.0, 0.0)]));
    assert_eq!(governor.report(400 * TICK_NS).latency_ns, 0);
}

#[test]
fn shares_and_latency_are_held_over_workers_and_hosts() {
    let mut world = World::new();
    world.host(
        settings(),
        0,
        2,
        vec![
            (policy(1000), vec![64.0, 16.0]),
            (policy(2000), vec![0.0, 100.0]),
        ],
    );
    world.host(
        settings(),
        33,
        3,
        vec![
            (policy(4000), vec![90.0, 90.0, 10.0]),
            (policy(1000), vec![0.0, 0.0, 2.0]),
        ],
    );
    world.run(15.0);
    world.take();
    world.run(5.0);
    let (latency_ms, got) = world.take();
    assert!((28.5..31.5).contains(&latency_ms), "{latency_ms}");
    // Two slots for the last, and 1:2:4 of the rest.
    let slots: Vec<f64> = got.iter().map(|it| it * 240.0).collect();
    for (slots, ideal) in slots.iter().zip([34.0, 68.0, 136.0, 2.0]) {
        assert!((slots / ideal - 1.0).abs() < 0.05, "{slots} for {ideal}");
    }
}

#[test]
fn within_a_host_a_change_has_come_through_in_a_tenth_of_a_second() {
    let mut world = World::new();
    // Alone on their workers.
    let disks = vec![
        (policy(1000), vec![300.0, 0.0]),
        (policy(3000), vec![0.0, 300.0]),
    ];
    world.host(settings(), 0, 2, disks);
    world.run(15.3);
    for (shares, ideal) in [(1000, 0.5), (3000, 0.75), (9000, 0.9)] {
        world.hosts[0].disks[1].0.shares = shares;
        world.run(0.1);
        world.take();
        world.run(0.1);
        let (_, got) = world.take();
        assert!(
            (got[1] / ideal - 1.0).abs() < 0.05,
            "{} for {ideal}",
            got[1]
        );
    }
    for (depth, ideal) in [(0.0, 0.0), (300.0, 0.9)] {
        world.hosts[0].disks[1].1[1] = depth;
        world.run(0.1);
        world.take();
        world.run(0.1);
        let (latency_ms, got) = world.take();
        assert!(
            (got[1] - ideal).abs() < 0.05 * 0.9,
            "{} for {ideal}",
            got[1]
        );
        assert!((27.0..33.0).contains(&latency_ms), "{latency_ms}");
    }
}

#[test]
fn between_hosts_a_change_has_come_through_in_two_periods() {
    for phase in [0.0, 0.2, 0.5, 0.9] {
        let mut world = World::new();
        for host in 0..3 {
            world.host(
                settings(),
                host * 30,
                1,
                vec![(policy(1000), vec![200.0]), (policy(1000), vec![200.0])],
            );
        }
        world.run(15.0 + phase);
        for (depth, ideal) in [(0.0, 0.0), (200.0, 1.0 / 6.0)] {
            world.hosts[1].disks[0].1[0] = depth;
            world.run(2.0);
            world.take();
            world.run(0.5);
            let (_, got) = world.take();
            assert!(
                (got[0] - got[5]).abs() < 0.05 * got[5],
                "{phase}, {depth}: {got:?}"
            );
            assert!(
                (got[2] - ideal).abs() < 0.05 / 6.0,
                "{phase}, {depth}: {got:?}"
            );
            world.run(3.0);
        }
    }
}

#[test]
fn a_reservation_holds_whatever_host_the_others_are_on() {
    let mut world = World::new();
    let reserved = Policy {
        reservation_iops: 2000,
        ..policy(100)
    };
    world.host(settings(), 0, 1, vec![(reserved, vec![128.0])]);
    world.host(
        settings(),
        40,
        1,
        vec![(policy(2000), vec![400.0]), (policy(1000), vec![400.0])],
    );
    world.run(25.0);
    world.take();
    world.run(5.0);
    let (latency_ms, got) = world.take();
    assert!((28.5..31.5).contains(&latency_ms), "{latency_ms}");
    let iops: Vec<f64> = got.iter().map(|it| it * 8000.0).collect();
    for (iops, ideal) in iops.iter().zip([2000.0, 4000.0, 2000.0]) {
        assert!((iops / ideal - 1.0).abs() < 0.05, "{iops} for {ideal}");
    }
}

#[test]
fn a_limit_leaves_the_rest_to_the_others() {
    let mut world = World::new();
    let limited = Policy {
        limit_iops: Some(1000),
        ..policy(4000)
    };
    world.host(settings(), 0, 1, vec![(limited, vec![400.0])]);
    world.host(settings(), 40, 1, vec![(policy(1000), vec![400.0])]);
    world.run(20.0);
    world.take();
    world.run(5.0);
    let (latency_ms, got) = world.take();
    assert!((28.5..31.5).contains(&latency_ms), "{latency_ms}");
    assert!((got[0] * 8000.0 / 1000.0 - 1.0).abs() < 0.06, "{got:?}");
}

proptest! {
    #[test]
    fn odd_readings_do_no_harm(
        numbers in vec((proptest::num::f64::ANY, any::<u64>(), any::<bool>()), 1..40),
        times in vec(any::<u64>(), 40), shares in any::<u32>(), limit in any::<Option<u64>>(), reservation_iops in any::<u64>(),
    ) {
        let mut governor = Governor::new(settings(), 2);
        let policy = Policy { shares, limit_iops: limit, limit_bytes: limit, reservation_iops };
        for (&(number, count, flag), now_ns) in numbers.iter().zip(times) {
            let odd = LaneReading { has_queues: flag, in_flight: number, waiting: -number, window_waits: flag,
                ios: count, latency_sum_ns: count, units: count };
            let lanes = vec![odd; if flag { 1 } else { 3 }];
            let allotment = governor.tick(now_ns, &one(policy, &lanes));
            prop_assert!(allotment.windows.iter().all(|it| *it > 0.0));
            prop_assert!(allotment.weights.iter().flatten().all(|it| *it > 0.0));
            let report = governor.report(now_ns);
            prop_assert!(report.units >= 0.0 && report.outstanding >= 0.0);
            let decision = governor.decide(now_ns, &report, std::slice::from_ref(&report));
            prop_assert!(decision.window > 0.0);
        }
    }
}
