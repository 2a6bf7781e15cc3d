use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn disk(shares: u32, per_worker: &[f64]) -> DiskDemand {
    DiskDemand {
        shares,
        per_worker: per_worker.to_vec(),
        has_queues: vec![true; per_worker.len()],
        ..DiskDemand::default()
    }
}

fn divided(window: f64, disks: &[DiskDemand]) -> Allotment {
    let mut out = Allotment::default();
    divide(window, disks, &mut out);
    out
}

#[test]
fn a_disk_alone_on_its_worker_gets_its_shares_and_no_more() {
    let disks = [disk(500, &[64.0, 0.0]), disk(2000, &[0.0, 64.0])];
    let out = divided(4.0, &disks);
    assert!((out.windows[0] - 0.8).abs() < 1e-9 && (out.windows[1] - 3.2).abs() < 1e-9);
}

#[test]
fn weights_follow_the_demand_and_start_even() {
    let out = divided(8.0, &[disk(1000, &[30.0, 10.0]), disk(1000, &[0.0, 0.0])]);
    assert_eq!(out.weights[0], [750.0, 250.0]);
    assert_eq!(out.weights[1], [500.0, 500.0]);
    let moved = divided(8.0, &[disk(1000, &[40.0, 0.0])]);
    assert_eq!(moved.weights[0], [1000.0, 1.0], "never nothing");
}

#[test]
fn two_disks_spread_unevenly_have_their_shares() {
    let disks = [disk(1000, &[60.0, 20.0]), disk(3000, &[10.0, 70.0])];
    let out = divided(16.0, &disks);
    let mut got = [0.0; 2];
    for worker in 0..2 {
        let sum: f64 = out.weights.iter().map(|it| it[worker]).sum();
        for (disk, got) in got.iter_mut().enumerate() {
            *got += out.windows[worker] * out.weights[disk][worker] / sum;
        }
    }
    assert!((got[1] / got[0] - 3.0).abs() < 0.01, "{got:?}");
}

#[test]
fn reservations_move_with_the_demand_and_have_their_slots() {
    let mut small = disk(100, &[32.0, 0.0]);
    small.reservation_iops = 250;
    small.floor = 5.0;
    let out = divided(10.0, &[small, disk(10_000, &[0.0, 64.0])]);
    assert_eq!(out.reservations[0], [250.0, 0.0]);
    assert!((out.windows[0] - 5.0).abs() < 1e-9);
}

#[test]
fn an_open_window_is_open_everywhere_and_an_idle_worker_may_begin() {
    let disks = [disk(1000, &[32.0, 0.0, 0.0])];
    let open = divided(f64::INFINITY, &disks);
    assert!(open.windows.iter().all(|it| it.is_infinite()));
    let closed = divided(12.0, &disks);
    assert!(closed.windows[1] > 0.2 && closed.windows[2] > 0.2);
    assert!((closed.windows.iter().sum::<f64>() - 12.0).abs() < 1e-9);
}

#[test]
fn a_disk_without_queues_and_no_disk_at_all() {
    let mut none = disk(1000, &[0.0, 0.0]);
    none.has_queues = vec![false, false];
    let out = divided(6.0, &[none]);
    assert_eq!(out.windows, [3.0, 3.0]);
    assert_eq!(divided(6.0, &[]).windows, Vec::<f64>::new());
}

proptest! {
    #[test]
    fn windows_add_up_and_nobody_is_left_out(
        window in 0.1f64..500.0,
        disks in vec((1u32..20_000, vec(prop_oneof![Just(0.0), 0.0f64..64.0], 4), 0.0f64..4.0), 1..12),
    ) {
        let disks: Vec<DiskDemand> = disks.into_iter().map(|(shares, per_worker, floor)| {
            DiskDemand { floor, ..disk(shares, &per_worker) }
        }).collect();
        let out = divided(window, &disks);
        let sum: f64 = out.windows.iter().sum();
        prop_assert!((sum / window - 1.0).abs() < 1e-6, "{sum} of {window}");
        prop_assert!(out.windows.iter().all(|&it| it > 0.0));
        prop_assert!(out.weights.iter().flatten().all(|&it| it > 0.0));
    }

    #[test]
    fn odd_numbers_do_no_harm(
        window in proptest::num::f64::ANY, demands in vec(proptest::num::f64::ANY, 6), floor in proptest::num::f64::ANY,
    ) {
        let disks: Vec<DiskDemand> = demands.chunks(2)
            .map(|it| DiskDemand { floor, ..disk(0, it) }).collect();
        let out = divided(window, &disks);
        prop_assert!(out.windows.iter().all(|it| *it >= 0.0));
        prop_assert!(out.weights.iter().flatten().all(|it| *it > 0.0 && it.is_finite()));
    }
}
