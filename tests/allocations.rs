//! Once the rings of a disk or a NIC run, their worker allocates nothing: not for requests of any kind, at any
//! depth, not for frames on whichever way, nor for falling asleep and waking up. Control messages may.
#![allow(unsafe_code)] // an allocator is made of it
#![allow(clippy::cast_possible_truncation)] // the numbers of these tests are small

#[path = "device/nic_rig.rs"]
#[allow(dead_code)]
mod nic_rig;
#[path = "device/rig.rs"]
#[allow(dead_code)]
mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferry_bench::frontend::{Op, QueueOptions, Segment, Status};
use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::clock::now_ns;
use ferry_dataplane::net::nic::BridgeHandle;
use ferry_dataplane::qos::domain::{DiskControl, Domain};
use ferry_dataplane::qos::{CostModel, Medium, Policy};
use ferry_vhost::net::config::feature;
use nic_rig::{Kind, Lan, NicGuest};
use rig::{Guest, Host, MIB, PATIENCE, eventually, memory_disk, options, poll_for, slow};

/// The system's allocator, with a count of what one thread asks of it.
struct Counting;

/// The thread that is watched; 0 for none.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Size of the first one.
static FIRST: AtomicUsize = AtomicUsize::new(0);

fn note(layout: Layout) {
    let watched = WATCHED.load(Ordering::Relaxed);
    // SAFETY: no argument, no memory.
    let is_watched = watched != 0 && watched == unsafe { libc::gettid() };
    if is_watched && COUNT.fetch_add(1, Ordering::Relaxed) == 0 {
        FIRST.store(layout.size(), Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting changes nothing of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(layout);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The thread of this process with that name.
fn thread_named(name: &str) -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of = |task: std::fs::DirEntry| {
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        (comm.trim_end() == name).then(|| task.file_name().to_str()?.parse().ok())?
    };
    tasks.filter_map(of).next().expect("the worker's thread")
}

const DEPTH: u16 = 128;

/// A round of every kind of request, at depth, on each queue.
fn round(guest: &mut Guest, whole: &[Segment], refuses: bool) {
    let sectors = MIB * 8 / 512;
    for queue in 0..guest.queues.len() {
        let driver = &mut guest.queues[queue];
        let mut at = queue as u64;
        for (n, &buffer) in whole.iter().enumerate() {
            at = (at * 25 + 1016) % (sectors - 64);
            let aligned = at / 8 * 8;
            let odd = Segment {
                addr: buffer.addr + 512,
                len: 1024,
            };
            let (op, sector, data): (_, _, &[Segment]) = match n % 8 {
                0 | 1 => (Op::Read, aligned, &[buffer]),
                2 | 3 => (Op::Write, aligned, &[buffer]),
                4 => (Op::Flush, 0, &[]),
                // Part of a block, and memory that direct I/O does not take.
                5 => (Op::Write, at, &[odd]),
                6 => (Op::Read, at, &[odd, odd]),
                _ => (Op::WriteZeroes { unmap: n % 16 == 7 }, aligned, &[buffer]),
            };
            driver.submit(op, sector, data).unwrap();
        }
        driver.commit().unwrap();
    }
    for driver in &mut guest.queues {
        while driver.in_flight() > 0 {
            let done = poll_for(driver, PATIENCE).expect("no completion in time");
            assert!(refuses || done.status == Status::Ok, "{:?}", done.status);
        }
    }
}

/// Only one thread is watched at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Does it while the first worker of a host is watched, which is to allocate nothing.
fn watched(host: &str, what: &str, task: impl FnOnce()) {
    COUNT.store(0, Ordering::Relaxed);
    WATCHED.store(thread_named(&format!("{host}-0")), Ordering::Relaxed);
    task();
    WATCHED.store(0, Ordering::Relaxed);
    let (count, first) = (COUNT.load(Ordering::Relaxed), FIRST.load(Ordering::Relaxed));
    assert_eq!(count, 0, "{what}: the first of {first} bytes");
}

#[test]
fn a_worker_allocates_nothing_for_requests() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let null = Store::Null {
        capacity_bytes: 8 * MIB,
    };
    let host = Host::named("counted", 1);
    let image = host.image("image", 8 * MIB);
    let datastore = Arc::new(Domain::new(1, CostModel::Size, Medium::Ssd));
    let shared = |limit_iops| {
        let policy = Policy {
            limit_iops,
            ..Policy::default()
        };
        Some(Arc::new(DiskControl::new(
            datastore.clone(),
            now_ns(),
            policy,
        )))
    };
    for (name, backend, control, window) in [
        ("memory", memory_disk(8 * MIB), None, f64::INFINITY),
        ("null", Backend::new(null, false), None, f64::INFINITY),
        ("image", image.clone(), None, f64::INFINITY),
        ("slow", slow(memory_disk(8 * MIB), 2), None, f64::INFINITY),
        ("counted", image.clone(), shared(None), f64::INFINITY),
        ("windowed", image, shared(None), 3.5),
        (
            "limited",
            memory_disk(8 * MIB),
            shared(Some(40_000)),
            f64::INFINITY,
        ),
    ] {
        let served = host.serve_as(
            &format!("{name}.sock"),
            &backend,
            2,
            ferry_dataplane::disk::Service::Open,
        );
        served.device.disk().set_qos(control.as_ref()).unwrap();
        datastore.set_window(0, window);
        datastore.announce();
        let queue = QueueOptions {
            depth: DEPTH,
            segments_max: 4,
            indirect: true,
        };
        let mut guest = Guest::start_with(&served, 2, options(), queue);
        let buffers: Vec<Segment> = (0..DEPTH).map(|_| guest.buffer(4096)).collect();
        eventually("the rings run", || guest.vmm.is_running());
        round(&mut guest, &buffers, false);
        watched("counted", name, || {
            for turn in 0..40 {
                round(&mut guest, &buffers, false);
                // Long enough to fall asleep, now and then.
                std::thread::sleep(Duration::from_micros(turn % 4 * 100));
            }
        });
    }
}

/// A frame of 1000 bytes whose checksum is left to do, with its header.
fn unfinished(frame: &[u8]) -> Vec<u8> {
    let mut header = [0; nic_rig::HEADER as usize];
    // At byte 2 of what is behind the first 20.
    (header[0], header[6], header[8]) = (1, 20, 2);
    let mut bytes = [&header, frame].concat();
    bytes.resize(1012, 7);
    bytes
}

/// Frames to one, to nobody and to all, whole and to be finished on the way, each way.
fn frames(guests: &mut [NicGuest; 2], macs: [[u8; 6]; 2]) {
    for from in 0..2 {
        let (own, other) = (macs[from], macs[1 - from]);
        for to in [other, [0xff; 6], [2, 2, 2, 2, 2, 2]] {
            let whole = nic_rig::frame(to, own, 3);
            guests[from].send(&whole);
            guests[from].send_cut(0, &unfinished(&whole), &[12, 40]);
            for _ in 0..2 {
                assert!(guests[1 - from].receive(PATIENCE).is_some());
            }
        }
    }
}

#[test]
fn a_worker_allocates_nothing_for_frames() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::named("wired", 1);
    let wire = BridgeHandle::wire(&host.handles()[0]).unwrap();
    for (name, lan) in [
        ("switched", Lan::on(Host::named("switched", 1))),
        ("wired", Lan::of(wire, host)),
    ] {
        let nics = [1, 2].map(|number| lan.nic(number, Kind::default()));
        let takes = nic_rig::plain() | feature::CSUM;
        let mut guests = nics.each_ref().map(|nic| nic.guest_with(1, takes));
        let macs = nics.each_ref().map(|nic| nic.mac);
        for _ in 0..4 {
            frames(&mut guests, macs);
        }
        watched(name, "frames", || {
            for turn in 0..100 {
                frames(&mut guests, macs);
                std::thread::sleep(Duration::from_micros(turn % 4 * 100));
            }
        });
    }
}
