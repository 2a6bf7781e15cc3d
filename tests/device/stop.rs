//! Stop and start: a ring that was stopped is drained, and goes on where it stood.

use std::time::{Duration, Instant};

use ferry_bench::frontend::{GuestDevice, GuestMemory, Op, QueueOptions, Segment, Status, Vmm};

use crate::rig::{
    Answer, Guest, Host, MIB, Served, assert_clean, code, eventually, finish, load, memory_disk,
    options, plan, poll_for, ring_state, say, slow,
};

fn whole(memory: &GuestMemory) -> Vec<u8> {
    let from = ferry_bench::frontend::DEFAULT_BASE;
    let mut out = vec![0; usize::try_from(memory.end() - from).unwrap()];
    memory.read(from, &mut out).unwrap();
    out
}

/// How often the guest was called since the last look.
fn calls(device: &GuestDevice) -> u64 {
    device
        .queues()
        .iter()
        .filter_map(|q| q.call.read().ok())
        .sum()
}

fn deep(served: &Served) -> Guest {
    let queue = QueueOptions::default().with_depth(64);
    Guest::start_with(served, 1, options(), queue)
}

#[test]
fn the_base_is_answered_after_the_drain_and_then_nothing_moves() {
    let host = Host::new(1);
    for backend in [memory_disk(4 * MIB), host.image("disk.raw", 4 * MIB)] {
        let served = host.serve(&slow(backend, 150), 1);
        let mut guest = deep(&served);
        let buffers: Vec<Segment> = (0..20).map(|_| guest.buffer(4096)).collect();
        for (at, buffer) in (0u64..).zip(&buffers) {
            let op = if at % 2 == 0 { Op::Read } else { Op::Write };
            guest.queues[0].submit(op, at * 8, &[*buffer]).unwrap();
        }
        guest.queues[0].commit().unwrap();
        let ring = guest.device.ring(0).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(ring.used_index(), 0, "the disk is slow");
        let bases = guest.vmm.stop().unwrap();
        assert_eq!(bases, [20]);
        assert_eq!(ring.used_index(), 20, "all that was taken is answered");
        calls(&guest.device);
        // Put in after the stop: nobody may look.
        let late = guest.queues[0].submit(Op::Read, 0, &[buffers[0]]).unwrap();
        guest.queues[0].commit().unwrap();
        let before = whole(&guest.memory);
        std::thread::sleep(Duration::from_millis(300));
        assert!(
            whole(&guest.memory) == before,
            "memory changed after the stop"
        );
        assert_eq!(calls(&guest.device), 0, "called after the stop");
        for _ in 0..20 {
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
        assert_eq!(guest.queues[0].pop().unwrap(), None);
        guest.vmm.start_at(&guest.device, &bases).unwrap();
        assert_eq!(finish(&mut guest.queues[0]).token, late);
        assert_eq!(served.requests(), 21, "each is done once");
    }
}

#[test]
fn a_stop_leaves_what_was_not_taken_in_the_ring() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(4 * MIB), 1);
    let mut guest = deep(&served);
    let mut bases = guest.vmm.stop().unwrap();
    let buffer = guest.buffer(4096);
    let mut sent = 0;
    // Across the wrap of the ring, with the stop at any place of the load.
    for round in 0u16..60 {
        guest.vmm.start_at(&guest.device, &bases).unwrap();
        for _ in 0..20 {
            guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
            guest.queues[0].commit().unwrap();
        }
        sent += 20;
        bases = guest.vmm.stop().unwrap();
        let ring = guest.device.ring(0).unwrap();
        assert_eq!(bases, [ring.used_index()], "round {round}");
        guest.vmm.start_at(&guest.device, &bases).unwrap();
        for _ in 0..20 {
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
        bases = guest.vmm.stop().unwrap();
        assert_eq!(bases, [sent]);
    }
    assert_eq!(served.requests(), u64::from(sent));
}

#[test]
fn a_stamped_load_goes_on_through_stops() {
    let host = Host::new(2);
    let served = host.serve(&host.image("disk.raw", 8 * MIB), 2);
    let mut guest = Guest::start(&served, 2);
    let load = load(&guest, 16, true, &plan(8 * MIB, 11));
    for round in 0..30 {
        std::thread::sleep(Duration::from_millis(round % 7 * 4));
        let bases = guest.vmm.stop().unwrap();
        for (queue, base) in bases.iter().enumerate() {
            let ring = guest.device.ring(queue).unwrap();
            assert_eq!(*base, ring.used_index(), "round {round}");
        }
        guest.vmm.start_at(&guest.device, &bases).unwrap();
    }
    assert_clean(load);
}

#[test]
fn what_waits_before_any_kick_is_found_at_the_start() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let memory = GuestMemory::new(8 * MIB).unwrap();
    let silent = ferry_bench::frontend::VmmOptions {
        kick_on_start: false,
        ..options()
    };
    let mut guest = Guest::ready(&served, &memory, 1, silent, QueueOptions::default());
    let buffer = guest.buffer(512);
    guest.queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    let _ = guest.device.queues()[0].kick.read();
    guest.vmm.start(&guest.device).unwrap();
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
}

#[test]
fn a_disabled_ring_waits_and_an_enabled_one_looks() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let mut guest = Guest::start(&served, 1);
    guest.write(0, 0, &[1; 512]);
    let buffer = guest.buffer(512);
    for _ in 0..3 {
        let set = |vmm: &mut Vmm, on| say(vmm, code::SET_VRING_ENABLE, &ring_state(0, on), &[]);
        assert_eq!(set(&mut guest.vmm, 0), Answer::Done);
        guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
        guest.queues[0].commit().unwrap();
        assert_eq!(
            poll_for(&mut guest.queues[0], Duration::from_millis(60)),
            None
        );
        assert_eq!(set(&mut guest.vmm, 1), Answer::Done);
        assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    }
}

#[test]
fn a_front_end_that_leaves_with_requests_in_flight_may_come_back() {
    let host = Host::new(1);
    let served = host.serve(&slow(memory_disk(4 * MIB), 100), 1);
    let memory = GuestMemory::new(16 * MIB).unwrap();
    let queue = QueueOptions::default();
    let mut guest = Guest::ready(&served, &memory, 1, options(), queue);
    guest.vmm.start(&guest.device).unwrap();
    let buffer = guest.buffer(512);
    let Guest {
        mut vmm,
        device,
        mut queues,
        ..
    } = guest;
    let (ring, queue) = (device.ring(0).unwrap(), &mut queues[0]);
    let mut done = 0u16;
    for _ in 0..5 {
        for sector in 0..10 {
            queue.submit(Op::Write, sector, &[buffer]).unwrap();
        }
        queue.commit().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        drop(vmm);
        vmm = served.vmm();
        // As a VMM does that lost its back-end: from the used index.
        vmm.start_at(&device, &[ring.used_index()]).unwrap();
        for _ in 0..10 {
            assert_eq!(finish(queue).status, Status::Ok);
        }
        done += 10;
        assert_eq!(ring.used_index(), done);
        assert_eq!(queue.pop().unwrap(), None);
    }
    assert_eq!(served.requests(), u64::from(done));
}

/// A body of one memory region, as ADD_MEM_REG and REM_MEM_REG have it.
fn region(info: &[u64; 4]) -> Vec<u8> {
    let mut body = vec![0; 8];
    info.iter().for_each(|word| body.extend(word.to_ne_bytes()));
    body
}

#[test]
fn memory_changes_under_load_lose_nothing() {
    use std::os::fd::AsRawFd;
    let host = Host::new(2);
    let served = host.serve(&host.image("disk.raw", 8 * MIB), 2);
    let mut guest = Guest::start(&served, 2);
    let load = load(&guest, 16, false, &plan(8 * MIB, 12));
    let other = GuestMemory::with_regions(&[(1 << 40, 4 * MIB)]).unwrap();
    let info = other.region_infos()[0];
    let body = region(&[
        info.guest_phys_addr,
        info.memory_size,
        info.userspace_addr,
        info.mmap_offset,
    ]);
    let main = guest.memory.region_infos()[0];
    let mut table = 1u32.to_ne_bytes().to_vec();
    table.extend([0; 4]);
    for word in [
        main.guest_phys_addr,
        main.memory_size,
        main.userspace_addr,
        main.mmap_offset,
    ] {
        table.extend(word.to_ne_bytes());
    }
    for _ in 0..25 {
        let fd = other.file(0).unwrap().as_raw_fd();
        assert_eq!(
            say(&mut guest.vmm, code::ADD_MEM_REG, &body, &[fd]),
            Answer::Done
        );
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(
            say(&mut guest.vmm, code::REM_MEM_REG, &body, &[]),
            Answer::Done
        );
        // The same table once more: mapped anew under the running rings.
        let fd = guest.memory.file(0).unwrap().as_raw_fd();
        assert_eq!(
            say(&mut guest.vmm, code::SET_MEM_TABLE, &table, &[fd]),
            Answer::Done
        );
        std::thread::sleep(Duration::from_millis(3));
    }
    assert_clean(load);
}

/// Requests keep the memory they were made with, however long they take.
#[test]
fn a_region_taken_away_stays_until_its_requests_are_done() {
    use std::os::fd::AsRawFd;
    let host = Host::new(1);
    let served = host.serve(&slow(memory_disk(MIB), 200), 1);
    let memory = GuestMemory::with_regions(&[(MIB, 8 * MIB), (1 << 40, MIB)]).unwrap();
    let mut guest = Guest::ready(&served, &memory, 1, options(), QueueOptions::default());
    guest.vmm.start(&guest.device).unwrap();
    let far = Segment {
        addr: 1 << 40,
        len: 4096,
    };
    guest.queues[0].submit(Op::Read, 0, &[far]).unwrap();
    guest.queues[0].commit().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let info = memory.region_infos()[1];
    let body = region(&[
        info.guest_phys_addr,
        info.memory_size,
        info.userspace_addr,
        0,
    ]);
    assert_eq!(
        say(&mut guest.vmm, code::REM_MEM_REG, &body, &[]),
        Answer::Done
    );
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    assert_eq!(guest.run(0, Op::Read, 0, &[far]), Status::IoErr, "gone now");
    let fd = memory.file(1).unwrap().as_raw_fd();
    assert_eq!(
        say(&mut guest.vmm, code::ADD_MEM_REG, &body, &[fd]),
        Answer::Done
    );
    assert_eq!(guest.run(0, Op::Read, 0, &[far]), Status::Ok);
}

/// Rings that are in the table no more are not served, and go on when they are back.
#[test]
fn a_ring_whose_memory_went_away_waits_for_it() {
    use std::os::fd::AsRawFd;
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let mut guest = Guest::start(&served, 1);
    guest.write(0, 0, &[1; 512]);
    let info = guest.memory.region_infos()[0];
    let body = region(&[
        info.guest_phys_addr,
        info.memory_size,
        info.userspace_addr,
        0,
    ]);
    assert_eq!(
        say(&mut guest.vmm, code::REM_MEM_REG, &body, &[]),
        Answer::Done
    );
    let buffer = guest.buffer(512);
    guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    assert_eq!(
        poll_for(&mut guest.queues[0], Duration::from_millis(50)),
        None
    );
    let fd = guest.memory.file(0).unwrap().as_raw_fd();
    assert_eq!(
        say(&mut guest.vmm, code::ADD_MEM_REG, &body, &[fd]),
        Answer::Done
    );
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    assert_eq!(guest.read(0, 0, 512), [1; 512]);
}

#[test]
fn kick_and_call_may_be_replaced_under_load() {
    use std::os::fd::AsRawFd;
    let host = Host::new(1);
    let served = host.serve(&host.image("disk.raw", 8 * MIB), 1);
    let mut guest = Guest::start(&served, 1);
    let load = load(&guest, 16, false, &plan(8 * MIB, 13));
    let parts = guest.device.queues()[0].clone();
    // A second pair, whose kick the load does not know: the first is put back each time.
    let spare = GuestDevice::new(&GuestMemory::new(MIB).unwrap(), 1, 16).unwrap();
    for _ in 0..25 {
        for fds in [&spare.queues()[0], &parts] {
            let (kick, call) = (fds.kick.as_raw_fd(), fds.call.as_raw_fd());
            let index = 0u64.to_ne_bytes();
            assert_eq!(
                say(&mut guest.vmm, code::SET_VRING_CALL, &index, &[call]),
                Answer::Done
            );
            assert_eq!(
                say(&mut guest.vmm, code::SET_VRING_KICK, &index, &[kick]),
                Answer::Done
            );
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    assert_clean(load);
}

/// No eventfd for the kick means that the ring is polled.
#[test]
fn a_ring_without_a_kick_is_polled() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let mut guest = Guest::start(&served, 1);
    let none = 0x100u64.to_ne_bytes();
    assert_eq!(
        say(&mut guest.vmm, code::SET_VRING_KICK, &none, &[]),
        Answer::Done
    );
    std::thread::sleep(Duration::from_millis(20));
    let buffer = guest.buffer(512);
    for _ in 0..3 {
        guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
        guest.queues[0].commit().unwrap();
        let _ = guest.device.queues()[0].kick.read();
        assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stop_of_an_idle_slow_disk_is_quick() {
    let host = Host::new(1);
    let served = host.serve(&slow(memory_disk(MIB), 2000), 1);
    let mut guest = Guest::start(&served, 1);
    let began = Instant::now();
    assert_eq!(guest.vmm.stop().unwrap(), [0]);
    assert!(began.elapsed() < Duration::from_millis(500));
    eventually("the rings stand still", || {
        use ferry_dataplane::lifecycle::DiskLifecycle;
        !served.device.rings_running()
    });
}
