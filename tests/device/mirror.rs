//! The mirror: a copier walks the disk while a guest uses it, and both sides end equal.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use ferry_bench::frontend::{Op, QueueOptions, Segment, Status};
use ferry_dataplane::backend::Backend;
use ferry_dataplane::backend::file::Cache;
use ferry_dataplane::buffer::AlignedBuf;
use ferry_dataplane::lifecycle::{DiskLifecycle, LifecycleError, TapEvent, WriteTap};
use ferry_vhost::blk::device::BlkDevice;

use crate::places::{Loop, Small};
use crate::rig::{
    Guest, Host, MIB, PATIENCE, Served, assert_clean, eventually, finish, image_at, load,
    memory_disk, options, plan, poll_for, slow,
};

const EXTENT: u64 = 64 << 10;

/// The other side: what it holds, and what it was told besides.
#[derive(Default)]
struct Applied {
    bytes: Vec<u8>,
    dirty: Vec<Range<u64>>,
    failed: bool,
    mirrored: u64,
}

/// A copy under way: one thread reads the disk, one applies what comes through the channel.
struct Copy {
    device: Arc<BlkDevice>,
    events: Sender<TapEvent>,
    copier: JoinHandle<()>,
    applier: JoinHandle<Applied>,
}

fn tap(device: &BlkDevice, patience: Duration) -> Receiver<TapEvent> {
    let (events, queue) = bounded(4096);
    device.attach_tap(with_patience(events, patience)).unwrap();
    queue
}

fn with_patience(events: Sender<TapEvent>, patience: Duration) -> WriteTap {
    WriteTap {
        failed: Arc::default(),
        events,
        patience_ns: u64::try_from(patience.as_nanos()).unwrap(),
    }
}

impl Copy {
    fn start(device: &Arc<BlkDevice>) -> Copy {
        let (events, queue) = bounded(4096);
        device
            .attach_tap(with_patience(events.clone(), PATIENCE))
            .unwrap();
        let len = device.geometry().capacity_bytes;
        let (disk, to) = (device.clone(), events.clone());
        let copier = std::thread::spawn(move || {
            let mut at = 0;
            while at < len {
                let end = (at + EXTENT).min(len);
                copy(&disk, &to, at..end, end);
                at = end;
            }
        });
        let disk = device.clone();
        let applier = std::thread::spawn(move || apply(&disk, &queue, len));
        Copy {
            device: device.clone(),
            events,
            copier,
            applier,
        }
    }

    fn is_copied(&self) -> bool {
        self.copier.is_finished()
    }

    /// With the rings stopped: ends the mirror, and fails unless both sides are equal.
    fn assert_equal(self, served: &Served) -> Applied {
        self.copier.join().unwrap();
        self.device.detach_tap();
        drop(self.events);
        let applied = self.applier.join().unwrap();
        assert!(!applied.failed, "the mirror was given up");
        assert_eq!(applied.dirty, []);
        let (here, there) = (served.contents(), &applied.bytes);
        let apart = here.iter().zip(there).position(|(a, b)| a != b);
        assert_eq!(apart, None, "the sides differ, first at this byte");
        applied
    }
}

/// Copies an extent into the channel, as a migration does.
fn copy(disk: &BlkDevice, to: &Sender<TapEvent>, range: Range<u64>, below: u64) {
    let len = usize::try_from(range.end - range.start).unwrap();
    disk.lock_range(range.clone()).unwrap();
    let mut data = AlignedBuf::new(len);
    disk.read_at(range.start, &mut data, len).unwrap();
    let event = TapEvent::Write {
        seq: 0,
        offset_bytes: range.start,
        data: Arc::new(data),
        len,
    };
    to.send(event).unwrap();
    disk.unlock_range(below).unwrap();
}

fn apply(disk: &BlkDevice, events: &Receiver<TapEvent>, len: u64) -> Applied {
    let mut applied = Applied {
        bytes: vec![0xdd; usize::try_from(len).unwrap()],
        ..Applied::default()
    };
    for event in events {
        match event {
            TapEvent::Write {
                seq,
                offset_bytes,
                data,
                len,
            } => {
                let at = usize::try_from(offset_bytes).unwrap();
                applied.bytes[at..at + len].copy_from_slice(&data[..len]);
                drop(data);
                acknowledge(disk, &mut applied, seq);
            }
            TapEvent::Zero {
                seq,
                offset_bytes,
                len_bytes,
            } => {
                let at = usize::try_from(offset_bytes).unwrap();
                applied.bytes[at..at + usize::try_from(len_bytes).unwrap()].fill(0);
                acknowledge(disk, &mut applied, seq);
            }
            TapEvent::Dirty {
                offset_bytes,
                len_bytes,
            } => applied.dirty.push(offset_bytes..offset_bytes + len_bytes),
            TapEvent::Failed(_) => applied.failed = true,
        }
    }
    applied
}

/// The copier's own pieces have the number 0; the disk's count up by one.
fn acknowledge(disk: &BlkDevice, applied: &mut Applied, seq: u64) {
    if seq > 0 {
        applied.mirrored += 1;
        assert_eq!(seq, applied.mirrored, "the tap's numbers have a gap");
        disk.acknowledge(seq);
    }
}

/// A stamped load with overlaps, discards and zeroes, through a whole copy and on after it.
fn copied_under_load(host: &Host, backend: &Backend, seed: u64, stops: bool) {
    let bytes = backend.geometry().capacity_bytes;
    let served = host.serve(backend, 2);
    let mut guest = Guest::start(&served, 2);
    let load = load(&guest, 16, seed.is_multiple_of(2), &plan(bytes, seed));
    std::thread::sleep(Duration::from_millis(100));
    let copy = Copy::start(&served.device);
    let until = Instant::now() + Duration::from_millis(600);
    while Instant::now() < until || !copy.is_copied() {
        std::thread::sleep(Duration::from_millis(20));
        if stops {
            let bases = guest.vmm.stop().unwrap();
            guest.vmm.start_at(&guest.device, &bases).unwrap();
        }
    }
    assert_clean(load);
    guest.vmm.stop().unwrap();
    let applied = copy.assert_equal(&served);
    assert!(
        applied.mirrored > 50,
        "{} changes mirrored",
        applied.mirrored
    );
}

#[test]
fn a_file_is_copied_under_load() {
    let host = Host::new(2);
    copied_under_load(&host, &host.image("disk.raw", 8 * MIB), 1, false);
}

#[test]
fn a_file_is_copied_under_load_and_stops() {
    let host = Host::new(2);
    copied_under_load(&host, &host.image("disk.raw", 8 * MIB), 2, true);
}

#[test]
fn a_memory_disk_is_copied_under_load_and_stops() {
    copied_under_load(&Host::new(2), &memory_disk(8 * MIB), 3, true);
}

#[test]
fn a_slow_file_is_copied_under_load() {
    let host = Host::new(2);
    copied_under_load(&host, &slow(host.image("disk.raw", 4 * MIB), 3), 4, false);
}

#[test]
fn a_file_on_tmpfs_is_copied_under_load() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let backend = image_at(&dir.path().join("disk.raw"), 8 * MIB);
    copied_under_load(&Host::new(2), &backend, 6, true);
}

/// Blocks of a page, and a guest that writes single sectors.
#[test]
fn a_file_of_large_blocks_is_copied_under_load() {
    let host = Host::new(2);
    if let Some(device) = Loop::new("a_file_of_large_blocks", host.dir(), 8 * MIB) {
        copied_under_load(&host, &device.open(Cache::None), 5, true);
    }
}

#[test]
fn two_copies_one_after_the_other() {
    let host = Host::new(2);
    let served = host.serve(&host.image("disk.raw", 4 * MIB), 2);
    let mut guest = Guest::start(&served, 2);
    for round in 0..3u8 {
        guest.write(1, 8, &[round; 4096]);
        let copy = Copy::start(&served.device);
        eventually("the copy", || copy.is_copied());
        guest.write(0, 16, &[round; 512]);
        guest.write(1, 17, &[round + 1; 512]);
        let applied = copy.assert_equal(&served);
        assert_eq!(applied.mirrored, 2, "from either queue, once each");
        guest.write(1, 16, &[9; 512]);
    }
}

/// A guest may change its buffer at any time; the disk and the other side must get the same bytes.
#[test]
fn a_buffer_changed_in_flight_leaves_both_sides_equal() {
    let host = Host::new(1);
    for backend in [memory_disk(16 * MIB), host.image("disk.raw", 16 * MIB)] {
        let served = host.serve(&backend, 1);
        let mut guest = Guest::start(&served, 1);
        let copy = Copy::start(&served.device);
        eventually("the copy", || copy.is_copied());
        let buffer = guest.buffer(256 << 10);
        let (memory, over) = (guest.memory.clone(), Arc::new(AtomicBool::new(false)));
        let ended = over.clone();
        let scribbler = std::thread::spawn(move || {
            let mut byte = 0u8;
            while !ended.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                memory.write(buffer.addr, &[byte; 256 << 10]).unwrap();
            }
        });
        // Only the last write of each place shows, so there are many places.
        for round in 0..128 {
            guest.queues[0]
                .submit(Op::Write, round % 64 * 512, &[buffer])
                .unwrap();
            guest.queues[0].commit().unwrap();
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
        over.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
        guest.vmm.stop().unwrap();
        copy.assert_equal(&served);
    }
}

/// Everything is behind the cursor from now on.
fn mirror_all(device: &BlkDevice) {
    let len = device.geometry().capacity_bytes;
    device.lock_range(0..len).unwrap();
    device.unlock_range(len).unwrap();
}

#[test]
fn a_mirrored_write_waits_for_the_other_side() {
    let host = Host::new(1);
    for backend in [memory_disk(MIB), host.image("disk.raw", MIB)] {
        let served = host.serve(&backend, 1);
        let mut guest = Guest::start(&served, 1);
        let events = tap(&served.device, PATIENCE);
        mirror_all(&served.device);
        let range = guest.buffer(4096);
        let ops = [Op::Write, Op::Discard, Op::WriteZeroes { unmap: false }];
        for (seq, op) in (1..).zip(ops) {
            guest.queues[0].submit(op, 8, &[range]).unwrap();
            guest.queues[0].commit().unwrap();
            assert_eq!(
                poll_for(&mut guest.queues[0], Duration::from_millis(50)),
                None
            );
            match events.recv_timeout(PATIENCE).unwrap() {
                TapEvent::Write { seq: s, .. } | TapEvent::Zero { seq: s, .. } => {
                    assert_eq!(s, seq);
                }
                other => panic!("{other:?}"),
            }
            // Reads and flushes are local.
            assert_eq!(guest.vmm.reload_config().unwrap().blk_size, 512);
            guest.queues[0].submit(Op::Flush, 0, &[]).unwrap();
            guest.queues[0].submit(Op::Read, 0, &[range]).unwrap();
            guest.queues[0].commit().unwrap();
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
            assert_eq!(
                poll_for(&mut guest.queues[0], Duration::from_millis(20)),
                None
            );
            served.device.acknowledge(seq);
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
    }
}

#[test]
fn the_base_is_answered_without_the_other_side() {
    let host = Host::new(1);
    let served = host.serve(&host.image("disk.raw", 64 * MIB), 1);
    let queue = QueueOptions {
        depth: 80,
        segments_max: 1,
        indirect: false,
    };
    let mut guest = Guest::start_with(&served, 1, options(), queue);
    let events = tap(&served.device, Duration::from_secs(60));
    mirror_all(&served.device);
    let buffer = guest.buffer(4096);
    // More than there are bounce buffers, none of which comes back.
    for at in 0..80 {
        guest.queues[0]
            .submit(Op::Write, at * 8, &[buffer])
            .unwrap();
    }
    guest.queues[0].commit().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    assert_eq!(guest.vmm.stop().unwrap(), [80]);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    for _ in 0..80 {
        assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    }
    // The other side gets every one of them still.
    assert_eq!(events.try_iter().count(), 80);
    served.device.detach_tap();
}

#[test]
fn a_silent_other_side_fails_the_mirror_and_not_the_guest() {
    let host = Host::new(1);
    for count in [1, 60] {
        let served = host.serve(&host.image(&format!("{count}.raw"), MIB), 1);
        let deep = QueueOptions::default().with_depth(60);
        let mut guest = Guest::start_with(&served, 1, options(), deep);
        let events = tap(&served.device, Duration::from_millis(200));
        mirror_all(&served.device);
        let buffer = guest.buffer(512);
        let began = Instant::now();
        for at in 0..count {
            guest.queues[0].submit(Op::Write, at, &[buffer]).unwrap();
        }
        guest.queues[0].commit().unwrap();
        for _ in 0..count {
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
        let waited = began.elapsed();
        assert!(waited > Duration::from_millis(190), "{waited:?}");
        assert!(waited < Duration::from_secs(2), "{waited:?}");
        guest.write(0, 3, &[1; 512]);
        let told: Vec<_> = events.iter().collect();
        assert!(matches!(told.last(), Some(TapEvent::Failed(_))), "{told:?}");
        assert_eq!(told.len() as u64, count + 1, "nothing follows");
        assert!(
            served.device.lock_range(0..4096).is_err(),
            "the tap is gone"
        );
        served.device.detach_tap();
        Copy::start(&served.device).assert_equal(&served);
    }
}

#[test]
fn a_full_channel_fails_the_mirror_and_not_the_guest() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let mut guest = Guest::start(&served, 1);
    for closed in [false, true] {
        let (events, queue) = bounded(1);
        served
            .device
            .attach_tap(with_patience(events, PATIENCE))
            .unwrap();
        let _kept = (!closed).then_some(queue);
        mirror_all(&served.device);
        let buffer = guest.buffer(512);
        let range = [Op::Write, Op::WriteZeroes { unmap: true }, Op::Write];
        for (at, op) in (0..).zip(range) {
            guest.queues[0].submit(op, at, &[buffer]).unwrap();
        }
        guest.queues[0].commit().unwrap();
        for _ in 0..3 {
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
        served.device.detach_tap();
    }
}

#[test]
fn a_detached_mirror_lets_go_of_what_waited() {
    let host = Host::new(2);
    let served = host.serve(&host.image("disk.raw", MIB), 2);
    let mut guest = Guest::start(&served, 2);
    let _events = tap(&served.device, PATIENCE);
    mirror_all(&served.device);
    let buffer = guest.buffer(4096);
    for queue in &mut guest.queues {
        for at in 0..10 {
            queue.submit(Op::Write, at * 8, &[buffer]).unwrap();
        }
        queue.commit().unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    // And a range that is locked is so no longer.
    served.device.lock_range(0..4096).unwrap();
    guest.queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    assert_eq!(
        poll_for(&mut guest.queues[0], Duration::from_millis(30)),
        None
    );
    let device = served.device.clone();
    let detached = std::thread::spawn(move || {
        device.detach_tap();
        device.detach_tap();
    });
    eventually("the tap is detached", || detached.is_finished());
    for count in [11, 10].into_iter().enumerate() {
        for _ in 0..count.1 {
            assert_eq!(finish(&mut guest.queues[count.0]).status, Status::Ok);
        }
    }
    guest.write(0, 0, &[1; 512]);
    guest.write(1, 0, &[2; 512]);
}

#[test]
fn a_lock_delays_only_what_overlaps_it() {
    let host = Host::new(1);
    for backend in [memory_disk(MIB), host.image("disk.raw", MIB)] {
        let served = host.serve(&backend, 1);
        let mut guest = Guest::start(&served, 1);
        let events = tap(&served.device, PATIENCE);
        served.device.lock_range(EXTENT..2 * EXTENT).unwrap();
        assert!(served.device.lock_range(0..512).is_err(), "one at a time");
        let first = EXTENT / 512;
        let buffer = guest.buffer(1024);
        let held = [
            (Op::Write, first),
            (Op::Write, first - 1),
            (Op::Discard, first + 5),
            (Op::WriteZeroes { unmap: false }, 2 * first - 1),
        ];
        for (op, sector) in held {
            guest.queues[0].submit(op, sector, &[buffer]).unwrap();
        }
        guest.queues[0].commit().unwrap();
        assert_eq!(
            poll_for(&mut guest.queues[0], Duration::from_millis(60)),
            None
        );
        let free = [
            (Op::Write, first - 4),
            (Op::Write, 2 * first + 1),
            (Op::Read, first),
            (Op::Flush, 0),
            (Op::Discard, 0),
        ];
        for (op, sector) in free {
            let data = if op == Op::Flush { &[][..] } else { &[buffer] };
            let token = guest.queues[0].submit(op, sector, data).unwrap();
            guest.queues[0].commit().unwrap();
            assert_eq!(finish(&mut guest.queues[0]).token, token, "{op:?} {sector}");
        }
        served.device.unlock_range(0).unwrap();
        for _ in held {
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
        assert_eq!(events.try_iter().count(), 0, "nothing is behind the cursor");
        served.device.detach_tap();
    }
}

/// A write that is in flight, mirrored or not, is on the disk when the lock is given.
#[test]
fn a_lock_waits_for_what_is_in_flight() {
    let host = Host::new(1);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for backend in [
        host.image("disk.raw", 16 * MIB),
        image_at(&dir.path().join("disk.raw"), 16 * MIB),
    ] {
        let served = host.serve(&backend, 1);
        let mut guest = Guest::start(&served, 1);
        let big = guest.buffer(1 << 20);
        let mut buf = AlignedBuf::new(1 << 20);
        for round in 1..=40u8 {
            guest.memory.write(big.addr, &[round; 1 << 20]).unwrap();
            // Unaligned as well, so that it goes through in chunks.
            let odd = Segment {
                addr: big.addr + u64::from(round % 2),
                len: (1 << 20) - 512,
            };
            guest.queues[0].submit(Op::Write, 0, &[odd]).unwrap();
            guest.queues[0].commit().unwrap();
            // The write was there before the tap, or comes while it is attached: either way it has
            // landed whole, or not begun.
            std::thread::sleep(Duration::from_micros(u64::from(round) * 20));
            let _events = tap(&served.device, PATIENCE);
            served.device.lock_range(0..MIB).unwrap();
            served.device.read_at(0, &mut buf, 1 << 20).unwrap();
            let (seen, whole) = (buf[0], &buf[..(1 << 20) - 512]);
            assert!(
                whole.iter().all(|b| *b == seen),
                "round {round}: half a write"
            );
            assert!(seen == round || seen == round - 1);
            served.device.detach_tap();
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
    }
}

#[test]
fn a_second_tap_is_refused_and_changes_nothing() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let _first = tap(&served.device, PATIENCE);
    let (events, _queue) = bounded(1);
    let second = served.device.attach_tap(with_patience(events, PATIENCE));
    assert!(
        matches!(second, Err(LifecycleError::Refused(_))),
        "{second:?}"
    );
    served.device.lock_range(0..512).unwrap();
    served.device.unlock_range(512).unwrap();
    served.device.detach_tap();
    assert!(served.device.lock_range(0..512).is_err());
    assert!(served.device.unlock_range(0).is_err());
}

#[test]
fn a_write_that_fails_here_is_dirty_there() {
    let Some(small) = Small::mount("a_write_that_fails_here", "size=1m") else {
        return;
    };
    let host = Host::new(1);
    let backend = image_at(&small.path().join("disk.raw"), 8 * MIB);
    let block = u64::from(backend.geometry().block_bytes);
    let served = host.serve(&backend, 1);
    drop(backend);
    let mut guest = Guest::start(&served, 1);
    let events = tap(&served.device, PATIENCE);
    let buffer = guest.buffer(512 << 10);
    // Ahead of the cursor: told all the same, as part of it may have landed.
    let mut failed = 0;
    for at in 0..6 {
        let status = guest.run(0, Op::Write, at * 1024, &[buffer]);
        failed += u32::from(status == Status::IoErr);
    }
    assert!(failed >= 4, "{failed} of 6 failed");
    let dirty = |event: &TapEvent| match event {
        TapEvent::Dirty {
            offset_bytes,
            len_bytes,
        } => Some(*offset_bytes..offset_bytes + len_bytes),
        _ => None,
    };
    let told: Vec<_> = events.try_iter().collect();
    assert_eq!(told.len(), failed as usize, "{told:?}");
    let last = dirty(told.last().unwrap()).unwrap();
    assert_eq!(last, 5 * (512 << 10)..6 * (512 << 10));
    // Behind it: the write first, then what became of it.
    mirror_all(&served.device);
    let sector = Segment {
        addr: buffer.addr,
        len: 512,
    };
    guest.queues[0]
        .submit(Op::Write, 10_001, &[sector])
        .unwrap();
    guest.queues[0].commit().unwrap();
    let first = events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(first, TapEvent::Write { seq: 1, .. }), "{first:?}");
    let range = dirty(&events.recv_timeout(PATIENCE).unwrap()).unwrap();
    assert!(range.start <= 10_001 * 512 && range.end >= 10_002 * 512);
    assert_eq!(range.end - range.start, block.max(512));
    served.device.acknowledge(1);
    assert_eq!(finish(&mut guest.queues[0]).status, Status::IoErr);
    served.device.detach_tap();
}
