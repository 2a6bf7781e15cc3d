//! Limits, shares and windows of a datastore, on real rings. What they come to under a controller is
//! simulated (`ferry-bench sioc`); here it is shown that the workers do what they are told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{BlkQueue, Op, QueueOptions, Segment};
use ferry_dataplane::clock::now_ns;
use ferry_dataplane::disk::Service;
use ferry_dataplane::qos::domain::{DiskControl, Domain, Group};
use ferry_dataplane::qos::{CostModel, Medium, Policy};

use crate::idle::cpu_ns;
use crate::rig::{Guest, Host, MIB, Served, eventually, finish, memory_disk, options, slow};

fn domain(host: &Host) -> Arc<Domain> {
    let workers = host.handles().len();
    Arc::new(Domain::new(workers, CostModel::Size, Medium::Ssd))
}

fn put(served: &Served, domain: &Arc<Domain>, policy: Policy) -> Arc<DiskControl> {
    let control = Arc::new(DiskControl::new(domain.clone(), now_ns(), policy));
    served.device.disk().set_qos(Some(&control)).unwrap();
    control
}

/// A request takes one descriptor of the ring, so that many fit.
fn guest(served: &Served, queues: u16) -> Guest {
    let indirect = QueueOptions {
        indirect: true,
        ..QueueOptions::default().with_depth(128)
    };
    Guest::start_with(served, queues, options(), indirect)
}

fn limited(limit_iops: u64) -> Policy {
    Policy {
        limit_iops: Some(limit_iops),
        ..Policy::default()
    }
}

/// Keeps `depth` reads asked for on each of the queues, for a time; when each ended.
fn load(queues: &mut [(&mut BlkQueue, Segment)], depth: usize, time: Duration) -> Vec<u64> {
    for (queue, buffer) in queues.iter_mut() {
        for _ in queue.in_flight()..depth {
            queue.submit(Op::Read, 0, &[*buffer]).unwrap();
        }
        queue.commit().unwrap();
    }
    let (began, mut ends) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        for (queue, buffer) in queues.iter_mut() {
            let mut more = false;
            while let Some(done) = queue.pop().unwrap() {
                assert_eq!(done.status, ferry_bench::frontend::Status::Ok);
                ends.push(u64::try_from(began.elapsed().as_nanos()).unwrap());
                queue.submit(Op::Read, 0, &[*buffer]).unwrap();
                more = true;
            }
            if more {
                queue.commit().unwrap();
            }
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    ends
}

fn queues_of(guests: &mut [Guest], bytes: u32) -> Vec<(&mut BlkQueue, Segment)> {
    let mut all = Vec::new();
    for guest in guests {
        let buffer = guest.buffer(bytes);
        all.extend(guest.queues.iter_mut().map(|queue| (queue, buffer)));
    }
    all
}

/// Ends what is in flight, whatever holds it back.
fn finish_all(served: &Served, guests: &mut [Guest]) {
    served.device.disk().set_qos(None).unwrap();
    for queue in guests.iter_mut().flat_map(|guest| &mut guest.queues) {
        while queue.in_flight() > 0 {
            finish(queue);
        }
    }
}

const SECOND: u64 = 1_000_000_000;

fn a_thousand(queues: u16, workers: usize, depth: usize) {
    let host = Host::named("limit", workers);
    let served = host.serve_as("disk", &memory_disk(MIB), queues, Service::Open);
    put(&served, &domain(&host), limited(1000));
    let mut guests = [guest(&served, queues)];
    let ends = load(
        &mut queues_of(&mut guests, 4096),
        depth,
        Duration::from_millis(1400),
    );
    let within = |from: u64, time: u64| {
        ends.iter()
            .filter(|&&at| (from..from + time).contains(&at))
            .count()
    };
    // What its start lets through at once is over by then.
    let second = within(SECOND / 5, SECOND);
    // What is not made up for: that no worker had a processor for longer than a burst.
    let gaps = ends.windows(2).map(|it| (it[1] - it[0]) / 1_000_000);
    let lost: u64 = gaps.map(|gap_ms| gap_ms.saturating_sub(4)).sum();
    let least = 995 - usize::try_from(lost).unwrap();
    assert!(
        (least..=1005).contains(&second),
        "{second} in a second, {lost} ms lost"
    );
    // Those of ten milliseconds, a burst of four, and the one that is due. A worker or a client that
    // had no processor for a while makes up for it: where there was such a gap, so many more.
    for (at, &from) in ends.iter().enumerate() {
        let burst = within(from, SECOND / 100);
        let first = ends.partition_point(|&it| it + SECOND / 50 < from);
        let near = &ends[first.saturating_sub(1)..at + burst];
        let gap_ns = near.windows(2).map(|it| it[1] - it[0]).max().unwrap_or(0);
        let most = 15 + usize::try_from(gap_ns / 1_000_000).unwrap();
        assert!(
            burst <= most,
            "{burst} in 10 ms, after at most {gap_ns} ns without one: {near:?}"
        );
    }
    finish_all(&served, &mut guests);
}

#[test]
fn a_limit_of_a_thousand_gives_a_thousand_at_depth_1() {
    a_thousand(1, 1, 1);
}

#[test]
fn a_limit_of_a_thousand_gives_a_thousand_at_depth_128() {
    a_thousand(1, 1, 128);
}

#[test]
fn a_limit_is_one_for_four_queues_of_two_workers() {
    a_thousand(4, 2, 32);
    a_thousand(4, 2, 1);
}

#[test]
fn bytes_are_limited_and_large_requests_count_as_several() {
    let host = Host::new(1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Open);
    let policy = Policy {
        limit_bytes: Some(64 << 20),
        ..Policy::default()
    };
    let domain = domain(&host);
    let control = put(&served, &domain, policy);
    let mut guests = [guest(&served, 1)];
    let seconds = Duration::from_millis(500);
    let ends = load(&mut queues_of(&mut guests, 256 << 10), 8, seconds);
    // 128 in half a second, and what begins at once.
    assert!((124..=136).contains(&ends.len()), "{}", ends.len());
    control.set_policy(now_ns(), limited(800));
    served.device.disk().wake();
    load(&mut queues_of(&mut guests, 256 << 10), 8, seconds); // what was booked passes
    let ends = load(&mut queues_of(&mut guests, 256 << 10), 8, seconds);
    assert!((45..=55).contains(&ends.len()), "{}", ends.len());
    finish_all(&served, &mut guests);
}

#[test]
fn a_window_is_shared_by_shares() {
    let host = Host::named("window", 1);
    let domain = domain(&host);
    let mut guests = Vec::new();
    let mut disks = Vec::new();
    for (name, shares) in [("a", 1000), ("b", 4000)] {
        let served = host.serve_as(name, &slow(memory_disk(MIB), 2), 1, Service::Open);
        let shares = Policy {
            shares,
            ..Policy::default()
        };
        let control = put(&served, &domain, shares);
        guests.push(guest(&served, 1));
        disks.push((served, control));
    }
    domain.set_window(0, 7.5);
    domain.announce();
    let rates: Vec<f64> = {
        let before: Vec<_> = disks.iter().map(|(disk, _)| disk.requests()).collect();
        load(
            &mut queues_of(&mut guests, 4096),
            32,
            Duration::from_secs(1),
        );
        let after = disks.iter().map(|(disk, _)| disk.requests());
        after
            .zip(before)
            .map(|(after, before)| (after - before) as f64)
            .collect()
    };
    // 7.5 slots of 2 ms: 3750 a second, or somewhat less: the delay is at least that.
    let (sum, ratio) = (rates[0] + rates[1], rates[1] / rates[0]);
    assert!((2_000.0..=3_900.0).contains(&sum), "{rates:?}");
    assert!((3.7..=4.3).contains(&ratio), "{rates:?}");
    // What a guest waited for is the throttle's and the device's, and next to nothing else.
    for (_, control) in &disks {
        let all = control.latencies();
        let [guest, device, throttle] =
            [&all.guest, &all.device, &all.throttle].map(|it| it.sum_ns() as f64);
        assert!(
            (guest / (device + throttle) - 1.0).abs() < 0.01,
            "{guest} {device} {throttle}"
        );
        let mean_ns = all.device.mean_ns().unwrap();
        assert!((2_000_000..4_000_000).contains(&mean_ns), "{mean_ns}");
        assert!(all.throttle.mean_ns().unwrap() > 2 * mean_ns);
        assert!(control.meters()[0].read().held > 0);
    }
    // Open again, all goes at once.
    domain.set_window(0, f64::INFINITY);
    domain.announce();
    disks[0].0.device.disk().wake();
    let began = Instant::now();
    for queue in guests.iter_mut().flat_map(|guest| &mut guest.queues) {
        while queue.in_flight() > 0 {
            finish(queue);
        }
    }
    assert!(began.elapsed() < Duration::from_millis(500));
    let reading = disks[0].1.meters()[0].read();
    assert_eq!(
        (reading.in_flight, reading.waiting, reading.held),
        (0, 0, 0)
    );
}

#[test]
fn a_reservation_is_served_before_shares() {
    let host = Host::new(1);
    let domain = domain(&host);
    let mut guests = Vec::new();
    let mut disks = Vec::new();
    for (name, shares, reservation) in [("a", 1, 500.0), ("b", 100_000, 0.0)] {
        let served = host.serve_as(name, &slow(memory_disk(MIB), 2), 1, Service::Open);
        let policy = Policy {
            shares,
            ..Policy::default()
        };
        let control = put(&served, &domain, policy);
        control.meters()[0].set_share(shares.into(), reservation);
        guests.push(guest(&served, 1));
        disks.push(served);
    }
    domain.set_window(0, 2.0);
    domain.announce();
    load(
        &mut queues_of(&mut guests, 4096),
        32,
        Duration::from_secs(1),
    );
    let served = disks[0].requests();
    assert!((430..=560).contains(&served), "{served}");
    for (disk, guest) in disks.iter().zip(guests.chunks_mut(1)) {
        finish_all(disk, guest);
    }
}

#[test]
fn a_group_is_under_one_limit() {
    let host = Host::named("group", 2);
    let domain = domain(&host);
    let group = Arc::new(Group::default());
    group.set(now_ns(), Some(2000), None);
    let mut guests = Vec::new();
    let mut disks = Vec::new();
    for name in ["a", "b"] {
        let served = host.serve_as(name, &memory_disk(MIB), 2, Service::Open);
        put(&served, &domain, Policy::default()).set_group(Some(group.clone()));
        guests.push(guest(&served, 2));
        disks.push(served);
    }
    let ends = load(
        &mut queues_of(&mut guests, 4096),
        16,
        Duration::from_secs(1),
    );
    assert!((1_980..=2_030).contains(&ends.len()), "{}", ends.len());
    // Lifted while they run.
    group.set(now_ns(), None, None);
    domain.announce();
    disks.iter().for_each(|disk| disk.device.disk().wake());
    let ends = load(
        &mut queues_of(&mut guests, 4096),
        16,
        Duration::from_millis(300),
    );
    assert!(ends.len() > 2_000, "{}", ends.len());
}

#[test]
fn what_is_held_back_is_not_polled_for() {
    let host = Host::named("heldback", 1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Open);
    let domain = domain(&host);
    let control = put(&served, &domain, limited(20));
    let mut guests = [guest(&served, 1)];
    let buffer = guests[0].buffer(4096);
    for _ in 0..80 {
        guests[0].queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
    }
    guests[0].queues[0].commit().unwrap();
    let held = || control.meters()[0].read().held;
    eventually("requests are held back", || held() > 0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(
        held() + served.device.disk().backlog().unwrap() + served.requests(),
        80
    );
    assert!(
        served.device.disk().backlog().unwrap() > 0,
        "some wait in the ring"
    );
    let before = cpu_ns("heldback-0");
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_ns("heldback-0") - before;
    assert!(spent < SECOND / 20, "{spent} ns of a second");
    finish_all(&served, &mut guests);
}

#[test]
fn a_queue_that_is_stopped_waits_for_no_limit() {
    let host = Host::new(1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Open);
    let domain = domain(&host);
    let control = put(&served, &domain, limited(1));
    let mut guest = guest(&served, 1);
    let buffer = guest.buffer(4096);
    for _ in 0..100 {
        guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
    }
    guest.queues[0].commit().unwrap();
    eventually("requests are held back", || {
        control.meters()[0].read().held > 10
    });
    let began = Instant::now();
    guest.vmm.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(control.meters()[0].read().held, 0);
    assert!(
        control.booked_ns(now_ns()) > 10_000_000_000,
        "it is charged for them"
    );
}

#[test]
fn a_disk_that_is_drained_waits_for_no_limit() {
    let host = Host::new(1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Open);
    put(&served, &domain(&host), limited(1));
    let mut guests = [guest(&served, 1)];
    let buffer = guests[0].buffer(4096);
    for _ in 0..100 {
        guests[0].queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
    }
    guests[0].queues[0].commit().unwrap();
    let began = Instant::now();
    served.device.disk().hold().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(served.device.disk().flow().in_flight(), 0);
    served.device.disk().open().unwrap();
    finish_all(&served, &mut guests);
}
