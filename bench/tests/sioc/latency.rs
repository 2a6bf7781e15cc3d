//! The threshold is held, and costs no throughput.

use ferry_bench::sioc::array::{ArraySpec, Queues};
use ferry_bench::sioc::client::{ClientSpec, MS, SECOND};
use ferry_bench::sioc::spec::{Control, WorldSpec};
use ferry_bench::sioc::world::World;

use super::{near, run};

fn four(depth: u32) -> Vec<ClientSpec> {
    let shares = [1000, 2500, 500, 1000];
    let disk = |(at, shares)| ClientSpec::disk(at / 2, shares, depth);
    shares.into_iter().enumerate().map(disk).collect()
}

fn uncontrolled(array: &ArraySpec, clients: &[ClientSpec], seconds: u64) -> World {
    let mut world = World::new(WorldSpec::new(array.clone(), clients.to_vec()));
    world.run_to(seconds * SECOND);
    world
}

#[test]
fn the_threshold_is_held_and_throughput_kept() {
    let alone = ArraySpec {
        queues: Queues::PerSpindle,
        chance: 0.3,
        ..ArraySpec::seeking(8, 4000.0)
    };
    for (name, array, threshold_ms) in [
        ("8000 IOPS", ArraySpec::seeking(40, 8000.0), 30),
        ("3350 IOPS", ArraySpec::seeking(20, 3350.0), 30),
        ("flash", ArraySpec::seeking(64, 60_000.0), 15),
        ("queues of their own", alone, 50),
        ("a few spindles", ArraySpec::seeking(4, 600.0), 30),
    ] {
        for period_ns in [SECOND, 4 * SECOND] {
            let control = Control {
                threshold_ns: threshold_ms * MS,
                period_ns,
                ..Control::default()
            };
            let clients = four(256);
            let time = 20 * SECOND..40 * SECOND;
            let held = run(&array, &clients, control, 40).all_had(time.clone());
            let open = uncontrolled(&array, &clients, 40).all_had(time);
            let what = format!("{name}, period {} s", period_ns / SECOND);
            near(&what, held.device_ms(), threshold_ms as f64, 5.0);
            let kept = held.iops() / open.iops();
            assert!(kept >= 0.98, "{what}: {kept} of the throughput");
        }
    }
}

#[test]
fn without_congestion_nothing_is_lost() {
    let array = ArraySpec::seeking(40, 8000.0);
    for depth in [1, 16, 50] {
        let clients = four(depth);
        let time = 5 * SECOND..65 * SECOND;
        let held = run(&array, &clients, Control::default(), 65).all_had(time.clone());
        let open = uncontrolled(&array, &clients, 65).all_had(time);
        let kept = held.iops() / open.iops();
        assert!(kept >= 0.995, "depth {depth}: {kept} of the throughput");
        assert!(held.device_ms() < 28.0, "no congestion");
    }
}

#[test]
fn an_array_that_changes_its_pace_is_followed() {
    use ferry_bench::sioc::array::Slow;
    let mut array = ArraySpec::seeking(40, 8000.0);
    array.slow = vec![Slow {
        from_ns: 40 * SECOND,
        to_ns: 80 * SECOND,
        factor: 2.0,
    }];
    let control = Control {
        period_ns: SECOND,
        ..Control::default()
    };
    let world = run(&array, &four(256), control, 120);
    for (from, to, iops) in [(20, 40, 8000.0), (50, 80, 4000.0), (90, 120, 8000.0)] {
        let all = world.all_had(from * SECOND..to * SECOND);
        near(
            &format!("latency from {from} s"),
            all.device_ms(),
            30.0,
            5.0,
        );
        near(&format!("throughput from {from} s"), all.iops(), iops, 2.0);
    }
    let strangers = world.events().len();
    assert_eq!(strangers, 0, "a rebuild is nobody");
}
