//! What a worker registers with its ring: images, and guest memory where a disk asks for it.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{DEFAULT_BASE, Op, QueueOptions, Status};
use ferry_dataplane::backend::file::Image;
use ferry_dataplane::backend::{Backend, Store};

use crate::rig::{
    Guest, Host, MIB, Served, assert_clean, is_root, load, memory_disk, options, plan, skip,
};

fn pinned(backend: Backend) -> Backend {
    Backend {
        pin_guest_memory: true,
        ..backend
    }
}

/// Fails unless nobody holds the image's lock any more.
fn assert_free(path: &std::path::Path) {
    let began = Instant::now();
    Image::open(path, false).unwrap();
    // Opening waits for a lock for seconds; a lock that is free is had at once.
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "the lock was held"
    );
}

#[test]
fn an_image_is_unlocked_as_soon_as_its_disk_is_let_go() {
    let host = Host::new(2);
    let path = host.dir().join("disk.raw");
    let other = host.serve_as("other", &host.image("other.raw", MIB), 2, OPEN);
    let served = host.serve(&host.image("disk.raw", MIB), 2);
    served.assert_serves();
    assert!(matches!(
        Image::open(&path, false),
        Err(ferry_dataplane::backend::file::ImageError::Locked { .. })
    ));
    drop(served);
    assert_free(&path);
    // Moved away: the disk stays, on nothing.
    let served = host.serve(&Backend::new(reopened(&path), false), 2);
    served.assert_serves();
    served.device.disk().hold().unwrap();
    let pending = Store::Pending {
        capacity_bytes: MIB,
        block_bytes: 512,
    };
    let disk = served.device.disk();
    disk.set_backend(&Backend::new(pending, false)).unwrap();
    assert_free(&path);
    // And back: the registered place is used again.
    let back = Backend::new(reopened(&path), false);
    disk.set_backend(&back).unwrap();
    drop(back);
    disk.open().unwrap();
    served.assert_serves();
    other.assert_serves();
}

const OPEN: ferry_dataplane::disk::Service = ferry_dataplane::disk::Service::Open;

fn reopened(path: &std::path::Path) -> Store {
    Store::Image(Image::open(path, false).unwrap().into())
}

#[test]
fn a_stamped_load_on_pinned_memory() {
    let host = Host::new(2);
    let served = host.serve(&pinned(host.image("disk.raw", 8 * MIB)), 2);
    for round in 0..3 {
        // Another machine each time, with other memory, perhaps at the same addresses.
        let guest = Guest::start(&served, 2);
        let mut plan = plan(8 * MIB, 41);
        if round > 0 {
            plan.initial = ferry_bench::stamp::Initial::Unknown;
            plan.run = 60 + round;
        }
        let running = load(&guest, 16, round == 1, &plan);
        std::thread::sleep(Duration::from_millis(300));
        assert_clean(running);
    }
}

/// A disk without a file has no use for it.
#[test]
fn a_memory_disk_pins_nothing_and_serves() {
    let host = Host::new(1);
    host.serve(&pinned(memory_disk(MIB)), 1).assert_serves();
}

/// Writes a page of guest memory, gives it back to the host as a balloon does, fills it anew, and
/// writes it again; returns what the disk has then.
fn over_a_hole(served: &Served) -> u8 {
    let mut guest = Guest::start_with(served, 1, options(), QueueOptions::default());
    let page = guest.buffer(4096);
    guest.memory.write(page.addr, &[1; 4096]).unwrap();
    assert_eq!(guest.run(0, Op::Write, 0, &[page]), Status::Ok);
    let file = guest.memory.file(0).unwrap();
    let punched = std::process::Command::new("fallocate")
        .args(["--punch-hole", "--offset"])
        .arg((page.addr - DEFAULT_BASE).to_string())
        .args(["--length", "4096"])
        .arg(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            file.as_raw_fd()
        ))
        .status();
    assert!(punched.unwrap().success());
    assert_eq!(guest.bytes(page), [0; 4096], "the guest has a fresh page");
    guest.memory.write(page.addr, &[2; 4096]).unwrap();
    assert_eq!(guest.run(0, Op::Write, 0, &[page]), Status::Ok);
    let seen = served.contents()[..4096].to_vec();
    assert!(seen.iter().all(|byte| *byte == seen[0]));
    seen[0]
}

/// Why guest memory is not pinned unless one asks for it: pinned pages do not follow the guest's
/// memory when a balloon or free page reporting takes pages away.
#[test]
fn a_hole_in_guest_memory_is_followed_unless_it_is_pinned() {
    let host = Host::new(1);
    let followed = host.serve(&host.image("followed.raw", MIB), 1);
    assert_eq!(over_a_hole(&followed), 2);
    if !is_root() {
        return skip(
            "a_hole_in_guest_memory",
            "pinning takes root, or much locked memory",
        );
    }
    let stale = host.serve_as("stale", &pinned(host.image("stale.raw", MIB)), 1, OPEN);
    assert_eq!(over_a_hole(&stale), 1, "the page that was pinned");
}
