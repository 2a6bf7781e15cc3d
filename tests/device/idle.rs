//! A disk that nobody uses costs nothing.

use std::time::{Duration, Instant};

use ferry_bench::frontend::{GuestMemory, Op, QueueOptions, Status, VmmOptions};
use ferry_dataplane::disk::Service;

use crate::nic_rig::{Kind, Lan, Nic, frame};
use crate::rig::{
    Answer, Guest, Host, MIB, PATIENCE, code, finish, memory_disk, options, plain_features, say,
};

/// Nanoseconds on a CPU of this process's threads of that name. Other tests run in the same process.
pub fn cpu_ns(thread: &str) -> u64 {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        if name.trim_end() == thread {
            total += stat.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    total
}

#[test]
fn ten_idle_disks_cost_nothing_and_wake_at_a_kick() {
    let host = Host::named("idle", 1);
    let served: Vec<_> = (0..10)
        .map(|n| host.serve_as(&format!("idle{n}"), &memory_disk(MIB), 2, Service::Open))
        .collect();
    let mut guests: Vec<Guest> = served
        .iter()
        .map(|served| Guest::start(served, 2))
        .collect();
    for guest in &mut guests {
        guest.write(1, 0, &[1; 512]);
    }
    std::thread::sleep(Duration::from_millis(50));
    let (before, began) = (cpu_ns("idle-0"), Instant::now());
    assert!(before > 0, "the worker's thread is found");
    std::thread::sleep(Duration::from_secs(2));
    let spent = cpu_ns("idle-0") - before;
    let share = spent as f64 / began.elapsed().as_nanos() as f64;
    assert!(share < 0.01, "{:.2} % of a core", share * 100.0);
    let began = Instant::now();
    for guest in &mut guests {
        guest.write(0, 1, &[2; 512]);
        guest.write(1, 1, &[3; 512]);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "asleep");
}

#[test]
fn ten_idle_nics_cost_nothing_and_wake_at_a_kick() {
    let lan = Lan::on(Host::named("quiet", 1));
    let nics: Vec<_> = (1..=10).map(|n| lan.nic(n, Kind::default())).collect();
    let mut guests: Vec<_> = nics.iter().map(Nic::guest).collect();
    // Each has sent, and is known to the switch.
    for (nic, guest) in nics.iter().zip(&mut guests) {
        guest.send(&frame(nic.mac, nic.mac, 1));
    }
    std::thread::sleep(Duration::from_millis(50));
    let (before, began) = (cpu_ns("quiet-0"), Instant::now());
    assert!(before > 0, "the worker's thread is found");
    std::thread::sleep(Duration::from_secs(2));
    let spent = cpu_ns("quiet-0") - before;
    let share = spent as f64 / began.elapsed().as_nanos() as f64;
    assert!(share < 0.01, "{:.2} % of a core", share * 100.0);
    for at in 0..nics.len() {
        let to = (at + 1) % nics.len();
        let sent = frame(nics[to].mac, nics[at].mac, 2);
        guests[at].send(&sent);
        guests[to].assert_receives(&sent);
    }
}

/// A ring that the guest's memory does not hold any more cannot be armed. It must not be polled for
/// ever instead, and must be served again when its memory is back.
#[test]
fn a_ring_outside_memory_lets_its_worker_sleep() {
    let host = Host::named("apart", 1);
    let served = host.serve(&memory_disk(MIB), 1);
    let mut guest = Guest::start(&served, 1);
    guest.write(0, 0, &[1; 512]);
    let away = GuestMemory::new(MIB).unwrap();
    let show = |guest: &mut Guest, memory: &GuestMemory| {
        let main = memory.region_infos()[0];
        let mut table = 1u64.to_ne_bytes().to_vec();
        for word in [
            main.guest_phys_addr,
            main.memory_size,
            main.userspace_addr,
            main.mmap_offset,
        ] {
            table.extend(word.to_ne_bytes());
        }
        let fds = [main.mmap_handle];
        assert_eq!(
            say(&mut guest.vmm, code::SET_MEM_TABLE, &table, &fds),
            Answer::Done
        );
    };
    show(&mut guest, &away);
    std::thread::sleep(Duration::from_millis(50));
    let (before, began) = (cpu_ns("apart-0"), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let share = (cpu_ns("apart-0") - before) as f64 / began.elapsed().as_nanos() as f64;
    assert!(share < 0.1, "{:.2} % of a core", share * 100.0);
    // A request that waits in the ring meanwhile is served when the memory is back.
    let buffer = guest.buffer(512);
    guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    let memory = guest.memory.clone();
    show(&mut guest, &memory);
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    guest.write(0, 0, &[2; 512]);
}

/// A queue goes back to kicks by itself, while its worker is busy with another.
#[test]
fn a_quiet_queue_beside_a_busy_one_is_woken() {
    let host = Host::new(1);
    let busy = host.serve_as("busy", &memory_disk(MIB), 1, Service::Open);
    let quiet = host.serve_as("quiet", &memory_disk(MIB), 1, Service::Open);
    let (mut one, mut other) = (Guest::start(&busy, 1), Guest::start(&quiet, 1));
    let until = Instant::now() + Duration::from_millis(300);
    let mut rounds = 0u32;
    while Instant::now() < until {
        one.write(0, 0, &[1; 512]);
        rounds += 1;
        if rounds.is_multiple_of(50) {
            other.write(0, 0, &[2; 512]);
        }
    }
}

/// The worker polls for a while and then asks for kicks; a request that comes right then is seen.
#[test]
fn a_request_that_comes_as_its_queue_falls_asleep_is_seen() {
    let host = Host::new(1);
    for features in [options().features, plain_features()] {
        let served = host.serve(&memory_disk(MIB), 1);
        let options = VmmOptions {
            features,
            ..options()
        };
        let mut guest = Guest::start_with(&served, 1, options, QueueOptions::default());
        let buffer = guest.buffer(512);
        for round in 0..4000u64 {
            let gap = Duration::from_nanos(40_000 + round % 300 * 100);
            let began = Instant::now();
            while began.elapsed() < gap {
                std::hint::spin_loop();
            }
            guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
            guest.queues[0].commit().unwrap();
            while !guest.queues[0].has_completion() && began.elapsed() < PATIENCE {
                std::hint::spin_loop();
            }
            assert!(guest.queues[0].pop().unwrap().is_some(), "round {round}");
        }
    }
}
