//! Queues that move between workers while they are used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{Op, Segment};
use ferry_dataplane::disk::Service;
use ferry_dataplane::rebalance::Rebalancer;

use crate::rig::{Guest, Host, MIB, Served, assert_clean, load, memory_disk, plan};

/// The worker of each running queue.
fn workers(served: &Served) -> Vec<usize> {
    let placed = served.device.disk().placed();
    placed.iter().map(|placed| placed.worker).collect()
}

/// Reads at depth on the first queue until told to stop.
fn hammer(guest: &mut Guest, go_on: impl Fn() -> bool) {
    let data: Vec<Segment> = (0..32).map(|_| guest.buffer(4096)).collect();
    let queue = &mut guest.queues[0];
    while go_on() {
        for segment in &data {
            queue.submit(Op::Read, 0, &[*segment]).unwrap();
        }
        queue.commit().unwrap();
        while queue.in_flight() > 0 {
            if queue.pop().unwrap().is_none() {
                queue.wait(Duration::from_millis(1)).unwrap();
            }
        }
    }
}

#[test]
fn two_busy_disks_of_one_worker_are_parted_and_then_left_alone() {
    let host = Host::new(2);
    let disks: Vec<Served> = ["one", "two"]
        .iter()
        .map(|name| host.serve_as(name, &memory_disk(MIB), 1, Service::Open))
        .collect();
    let mut guests: Vec<Guest> = disks.iter().map(|served| Guest::start(served, 1)).collect();
    assert_eq!(disks.iter().map(workers).collect::<Vec<_>>(), [[0], [0]]);
    let all: Vec<_> = disks.iter().map(|d| d.device.disk().clone()).collect();
    let balance = Rebalancer::start(host.handles(), move || all.clone()).unwrap();
    let began = Instant::now();
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        for guest in &mut guests {
            scope.spawn(|| hammer(guest, || began.elapsed() < Duration::from_secs(12)));
        }
        while began.elapsed() < Duration::from_secs(12) {
            let now: Vec<_> = disks.iter().flat_map(workers).collect();
            if now.len() == 2 && seen.last() != Some(&now) {
                seen.push(now);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    drop(balance);
    assert_eq!(seen.len(), 2, "one move and no other: {seen:?}");
    assert_ne!(seen[1][0], seen[1][1]);
}

#[test]
fn a_queue_is_moved_to_and_fro_under_a_verified_load() {
    let host = Host::new(3);
    for backend in [host.image("image.raw", 32 * MIB), memory_disk(32 * MIB)] {
        let served = host.serve(&backend, 3);
        let guest = Guest::start(&served, 3);
        let disk = served.device.disk();
        let load = load(&guest, 32, true, &plan(32 * MIB, 11));
        let whole = disk.placed()[0].queue.is_none();
        for round in 0..60 {
            let (queue, to) = ((!whole).then_some(round % 3), round * 7 % 3);
            assert!(disk.move_to(queue, to).unwrap());
            let placed = disk.placed();
            assert!(placed.iter().any(|p| p.queue == queue && p.worker == to));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_clean(load);
    }
}

/// A ring that is stopped and started stays where it was moved to.
#[test]
fn a_place_outlives_its_ring() {
    let host = Host::new(2);
    let served = host.serve(&memory_disk(MIB), 2);
    let mut guest = Guest::start(&served, 2);
    assert_eq!(workers(&served), [0, 1]);
    assert!(served.device.disk().move_to(Some(0), 1).unwrap());
    assert!(!served.device.disk().move_to(None, 1).unwrap());
    let bases = guest.vmm.stop().unwrap();
    assert!(workers(&served).is_empty());
    guest.vmm.start_at(&guest.device, &bases).unwrap();
    assert_eq!(workers(&served), [1, 1]);
    guest.write(0, 0, &[1; 512]);
}

#[test]
fn one_worker_needs_no_one_to_watch_it() {
    let host = Host::new(1);
    let asked = Arc::new(());
    let held = asked.clone();
    let _balance = Rebalancer::start(host.handles(), move || {
        let _ = &held;
        Vec::new()
    });
    assert_eq!(Arc::strong_count(&asked), 1, "nothing is kept, nobody runs");
}
