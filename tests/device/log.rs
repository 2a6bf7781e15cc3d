//! The dirty log: every page of guest memory that the device writes is marked.

use std::time::Duration;

use ferry_bench::frontend::{
    DEFAULT_BASE, GuestMemory, LOG_PAGE, Op, QueueOptions, RingLayout, Segment, Status, VmmOptions,
    feature,
};
use ferry_dataplane::backend::Backend;

use crate::rig::{
    Answer, Guest, Host, MIB, code, finish, memory_disk, options, plain_features, poll_for, say,
    slow,
};

fn snapshot(memory: &GuestMemory) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(memory.end() - DEFAULT_BASE).unwrap()];
    memory.read(DEFAULT_BASE, &mut out).unwrap();
    out
}

/// Pages that differ, but for those that only the driver writes.
fn changed(before: &[u8], after: &[u8], ring: RingLayout) -> Vec<u64> {
    let pages = before.chunks(4096).zip(after.chunks(4096));
    (DEFAULT_BASE / LOG_PAGE..)
        .zip(pages)
        .filter(|(page, (a, b))| a != b && *page != ring.avail / LOG_PAGE)
        .map(|(page, _)| page)
        .collect()
}

fn page(addr: u64) -> u64 {
    addr / LOG_PAGE
}

/// Reads of every shape, a write, zeroes, a name; each buffer on pages of its own.
fn all_is_marked(backend: &Backend, features: u64, indirect: bool) {
    let host = Host::new(1);
    let served = host.serve(backend, 1);
    let options = VmmOptions {
        features,
        ..options()
    };
    let queue = QueueOptions {
        depth: 32,
        segments_max: 8,
        indirect,
    };
    let memory = GuestMemory::new(8 * MIB).unwrap();
    let mut guest = Guest::ready(&served, &memory, 1, options, queue);
    guest.vmm.start(&guest.device).unwrap();
    guest.write(0, 0, &vec![0x3c; 1 << 20]);
    let log = guest.vmm.enable_dirty_log().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    log.take();

    let part = |segment: Segment, skip: u64, len: u32| Segment {
        addr: segment.addr + skip,
        len,
    };
    let (a, b, c) = (
        guest.buffer(65536),
        guest.buffer(65536),
        guest.buffer(65536),
    );
    let (d, id, from) = (guest.buffer(65536), guest.buffer(4096), guest.buffer(4096));
    let tokens = [
        (Op::Read, 0, vec![part(a, 0, 65536)]),
        (Op::Read, 8, vec![part(b, 4000, 512), part(b, 20000, 1024)]),
        (Op::Read, 3, vec![part(c, 1, 32768)]),
        (Op::Read, 5, vec![part(d, 4095, 512)]),
        (Op::GetId, 0, vec![part(id, 100, 20)]),
        (Op::Write, 400, vec![from]),
        (Op::WriteZeroes { unmap: true }, 500, vec![from]),
        (Op::Flush, 0, vec![]),
    ]
    .map(|(op, sector, data)| guest.queues[0].submit(op, sector, &data).unwrap());
    let before = snapshot(&memory);
    guest.queues[0].commit().unwrap();
    let ring = guest.device.ring(0).unwrap();
    crate::rig::eventually("all are answered", || ring.used_index() == 9);
    guest.vmm.stop().unwrap();
    let after = snapshot(&memory);
    let layout = guest.device.queues()[0].layout;
    let dirty = log.take();
    let changed = changed(&before, &after, layout);
    assert!(changed.len() > 16 + 4 + 9 + 2, "{changed:x?}");
    for page in &changed {
        assert!(
            dirty.contains(page),
            "page {page:#x} was written and not marked"
        );
    }
    assert!(dirty.contains(&page(layout.used)));
    for token in tokens {
        assert!(dirty.contains(&page(guest.queues[0].status_addr(token))));
    }
    // Marks are for what was written, not for everything.
    assert!(!dirty.contains(&page(from.addr)), "the device only read it");
    assert!(dirty.len() < changed.len() + 8, "{dirty:x?}");
    for _ in 0..8 {
        assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    }
}

#[test]
fn every_page_that_is_written_is_marked() {
    let host = Host::new(1);
    all_is_marked(&host.image("disk.raw", 4 * MIB), options().features, false);
    all_is_marked(&memory_disk(4 * MIB), options().features, true);
}

#[test]
fn every_page_is_marked_without_event_indexes() {
    let host = Host::new(1);
    all_is_marked(&host.image("disk.raw", 4 * MIB), plain_features(), false);
}

#[test]
fn reads_in_flight_when_logging_begins_are_marked() {
    let host = Host::new(1);
    let served = host.serve(&slow(host.image("disk.raw", 4 * MIB), 200), 1);
    let mut guest = Guest::start(&served, 1);
    let buffer = guest.buffer(65536);
    let token = guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let log = guest.vmm.enable_dirty_log().unwrap();
    assert!(!log.is_dirty(buffer.addr));
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    for at in 0..16 {
        assert!(log.is_dirty(buffer.addr + at * LOG_PAGE), "page {at}");
    }
    assert!(log.is_dirty(guest.queues[0].status_addr(token)));
    assert!(log.is_dirty(guest.device.queues()[0].layout.used));
}

#[test]
fn nothing_is_written_while_the_log_is_yet_to_come() {
    let host = Host::new(1);
    for in_flight in [false, true] {
        let delay = if in_flight { 60 } else { 0 };
        let served = host.serve(&slow(memory_disk(4 * MIB), delay), 1);
        let mut guest = Guest::start(&served, 1);
        let buffer = guest.buffer(4096);
        std::thread::sleep(Duration::from_millis(10));
        let read = |guest: &mut Guest| {
            let token = guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
            guest.queues[0].commit().unwrap();
            token
        };
        let mut tokens = Vec::new();
        if in_flight {
            tokens.push(read(&mut guest));
            std::thread::sleep(Duration::from_millis(10));
        }
        let features = (guest.vmm.features() | feature::LOG_ALL).to_ne_bytes();
        let answer = say(&mut guest.vmm, code::SET_FEATURES, &features, &[]);
        assert_eq!(answer, Answer::Done);
        tokens.push(read(&mut guest));
        // Between two looks, only what this side writes by itself may change: nothing.
        let before = snapshot(&guest.memory);
        std::thread::sleep(Duration::from_millis(150));
        assert!(snapshot(&guest.memory) == before, "written without a log");
        assert_eq!(
            poll_for(&mut guest.queues[0], Duration::from_millis(5)),
            None
        );
        let log = guest.vmm.enable_dirty_log().unwrap();
        for token in tokens {
            let done = finish(&mut guest.queues[0]);
            assert_eq!((done.token, done.status), (token, Status::Ok));
            assert!(log.is_dirty(guest.queues[0].status_addr(token)));
        }
        assert!(log.is_dirty(buffer.addr));
    }
}

#[test]
fn a_log_that_is_turned_off_is_written_no_more() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(4 * MIB), 1);
    let mut guest = Guest::start(&served, 1);
    let log = guest.vmm.enable_dirty_log().unwrap();
    guest.read(0, 0, 4096);
    assert!(!log.take().is_empty());
    guest.vmm.disable_dirty_log().unwrap();
    std::thread::sleep(Duration::from_millis(10));
    log.take();
    guest.read(0, 0, 4096);
    std::thread::sleep(Duration::from_millis(10));
    assert!(log.take().is_empty());
    // And on again, with another log.
    let log = guest.vmm.enable_dirty_log().unwrap();
    guest.read(0, 0, 4096);
    assert!(!log.take().is_empty());
}
