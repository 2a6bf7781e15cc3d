//! vhost-user messages that no sane front-end sends.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ferry_bench::frontend::{GuestDevice, GuestMemory, Op, Vmm, feature};
use ferry_dataplane::disk::Service;

use crate::rig::{
    Answer, Guest, Host, MIB, Served, code, eventually, finish, memory_disk, options, ring_state,
    say,
};

struct Pair {
    victim: Served,
    bystander: Guest,
    _other: Served,
    _host: Host,
}

impl Pair {
    fn new() -> Pair {
        let host = Host::new(1);
        let victim = host.serve_as("victim", &memory_disk(MIB), 2, Service::Open);
        let other = host.serve_as("other", &memory_disk(MIB), 1, Service::Open);
        let bystander = Guest::start(&other, 1);
        Pair {
            _host: host,
            victim,
            bystander,
            _other: other,
        }
    }

    fn assert_unharmed(&mut self) {
        self.bystander.write(0, 3, &[0x77; 512]);
        self.victim.assert_serves();
    }
}

fn address(index: u32, flags: u32, at: [u64; 4]) -> Vec<u8> {
    let mut body = [index.to_ne_bytes(), flags.to_ne_bytes()].concat();
    at.iter().for_each(|word| body.extend(word.to_ne_bytes()));
    body
}

#[test]
fn ring_sizes_that_are_none_are_refused() {
    let mut pair = Pair::new();
    let mut vmm = pair.victim.vmm();
    for size in [0, 3, 255, 65535, 65536, 1 << 20, u32::MAX] {
        let body = ring_state(0, size);
        let answer = say(&mut vmm, code::SET_VRING_NUM, &body, &[]);
        assert_ne!(answer, Answer::Done, "size {size}");
        if answer == Answer::Gone {
            vmm = pair.victim.vmm();
        }
    }
    for size in [1, 2, 256, 32768] {
        let body = ring_state(0, size);
        assert_eq!(say(&mut vmm, code::SET_VRING_NUM, &body, &[]), Answer::Done);
    }
    drop(vmm);
    pair.assert_unharmed();
}

#[test]
fn rings_that_are_not_there_are_refused() {
    let mut pair = Pair::new();
    let mut vmm = pair.victim.vmm();
    let spare = GuestDevice::new(&GuestMemory::new(MIB).unwrap(), 1, 16).unwrap();
    let fd = spare.queues()[0].kick.as_raw_fd();
    for index in [2u32, 3, 255] {
        for (code, body, fds) in [
            (code::SET_VRING_NUM, ring_state(index, 16), &[][..]),
            (code::SET_VRING_BASE, ring_state(index, 0), &[]),
            (code::SET_VRING_ENABLE, ring_state(index, 1), &[]),
            (code::SET_VRING_ADDR, address(index, 0, [0; 4]), &[]),
            (
                code::SET_VRING_KICK,
                u64::from(index).to_ne_bytes().to_vec(),
                &[fd],
            ),
            (
                code::SET_VRING_CALL,
                u64::from(index).to_ne_bytes().to_vec(),
                &[fd],
            ),
        ] {
            let answer = say(&mut vmm, code, &body, fds);
            assert_ne!(answer, Answer::Done, "message {code}, ring {index}");
            if answer == Answer::Gone {
                vmm = pair.victim.vmm();
            }
        }
    }
    let base = say(&mut vmm, code::SET_VRING_BASE, &ring_state(0, 65536), &[]);
    assert_ne!(base, Answer::Done, "an index of more than 16 bits");
    drop(vmm);
    pair.assert_unharmed();
}

/// No reply can say that there is no such ring: the end of the connection does.
#[test]
fn the_base_of_a_ring_that_is_not_there_ends_the_connection() {
    let mut pair = Pair::new();
    let mut vmm = pair.victim.vmm();
    let body = ring_state(7, 0);
    assert_eq!(
        say(&mut vmm, code::GET_VRING_BASE, &body, &[]),
        Answer::Gone
    );
    pair.assert_unharmed();
}

#[test]
fn ring_addresses_outside_memory_start_nothing() {
    let mut pair = Pair::new();
    for at in 0..3 {
        for bad in 0..8 {
            let mut guest = Guest::start(&pair.victim, 1);
            let layout = guest.device.queues()[0].layout;
            let user = |addr| guest.memory.user_addr(addr).unwrap();
            let (desc, avail, used) = (user(layout.desc), user(layout.avail), user(layout.used));
            let end = user(guest.memory.end() - 16) + 16;
            let sane = [desc, used, avail, 0];
            let mut place = sane;
            place[at] = [
                0,
                1,
                sane[at] + 1,
                end,
                end - 16,
                u64::MAX,
                u64::MAX - 15,
                16 << 40,
            ][bad];
            let body = address(0, 0, place);
            let answer = say(&mut guest.vmm, code::SET_VRING_ADDR, &body, &[]);
            let buffer = guest.buffer(512);
            guest.queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
            guest.queues[0].commit().unwrap();
            if answer == Answer::Done {
                std::thread::sleep(Duration::from_millis(2));
                assert!(!guest.queues[0].has_completion(), "{place:x?}");
            }
            if answer != Answer::Gone {
                let body = address(0, 0, sane);
                assert_eq!(
                    say(&mut guest.vmm, code::SET_VRING_ADDR, &body, &[]),
                    Answer::Done
                );
                finish(&mut guest.queues[0]);
            }
        }
    }
    pair.assert_unharmed();
}

#[test]
fn memory_that_is_none_is_refused_and_the_old_stays() {
    let mut pair = Pair::new();
    let mut guest = Guest::start(&pair.victim, 1);
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let fd = file.as_raw_fd();
    let (far, user) = (1u64 << 40, 1u64 << 45);
    let one = |words: [u64; 4]| {
        let mut body = vec![0; 8];
        words
            .iter()
            .for_each(|word| body.extend(word.to_ne_bytes()));
        body
    };
    let main = guest.memory.region_infos()[0];
    for words in [
        [far, 2 * MIB, user, 0],
        [far, MIB, user, 4096],
        [far, 0, user, 0],
        [far, MIB, user, u64::MAX],
        [far, u64::MAX, user, 0],
        [u64::MAX - 4095, MIB, user, 0],
        [far, MIB, u64::MAX - 4095, 0],
        [main.guest_phys_addr + 4096, MIB, user, 0],
        [main.guest_phys_addr - 4096, MIB, user, 0],
    ] {
        let answer = say(&mut guest.vmm, code::ADD_MEM_REG, &one(words), &[fd]);
        if answer == Answer::Gone {
            guest = Guest::start(&pair.victim, 1);
        }
        assert_ne!(answer, Answer::Done, "{words:x?}");
        guest.write(0, 0, &[1; 512]);
    }
    // Descriptors of the wrong kind, or none.
    let pipe = UnixStream::pair().unwrap();
    for fds in [&[pipe.0.as_raw_fd()][..], &[], &[fd, fd]] {
        let body = one([far, 4096, user, 0]);
        let answer = say(&mut guest.vmm, code::ADD_MEM_REG, &body, fds);
        assert_ne!(answer, Answer::Done, "{} descriptors", fds.len());
        if answer == Answer::Gone {
            guest = Guest::start(&pair.victim, 1);
        }
        guest.write(0, 0, &[1; 512]);
    }
    let gone = say(
        &mut guest.vmm,
        code::REM_MEM_REG,
        &one([far, 4096, user, 0]),
        &[],
    );
    assert_ne!(gone, Answer::Done, "a region that was never there");
    drop(guest);
    pair.assert_unharmed();
}

#[test]
fn features_and_configuration_out_of_bounds_are_refused() {
    let mut pair = Pair::new();
    let mut vmm = pair.victim.vmm();
    for features in [1u64 << 5, 1 << 63, u64::MAX, 1 << 34] {
        let body = features.to_ne_bytes();
        let answer = say(&mut vmm, code::SET_FEATURES, &body, &[]);
        assert_ne!(answer, Answer::Done, "{features:#x}");
        if answer == Answer::Gone {
            vmm = pair.victim.vmm();
        }
    }
    let config = |offset: u32, size: u32, bytes: usize| {
        let mut body = [offset.to_ne_bytes(), size.to_ne_bytes(), [0; 4]].concat();
        body.extend(vec![0xaa; bytes]);
        body
    };
    for (offset, size, bytes) in [(0, 1, 1), (32, 2, 2), (33, 1, 1), (255, 1, 1), (32, 1, 200)] {
        let answer = say(
            &mut vmm,
            code::SET_CONFIG,
            &config(offset, size, bytes),
            &[],
        );
        assert_ne!(answer, Answer::Done, "{bytes} bytes at {offset}");
        if answer == Answer::Gone {
            vmm = pair.victim.vmm();
        }
    }
    for (offset, size) in [(0, 257), (256, 1), (u32::MAX, 1), (1, u32::MAX)] {
        let body = config(offset, size, 4);
        // An empty or missing answer; never bytes from elsewhere.
        if let Ok(Some(reply)) = vmm.raw_request(code::GET_CONFIG, 0, &body, &[], true) {
            assert!(reply.body.len() <= 12, "{size} bytes at {offset}");
        } else {
            vmm = pair.victim.vmm();
        }
    }
    drop(vmm);
    pair.assert_unharmed();
}

#[test]
fn a_log_that_is_too_small_is_not_written_past_its_end() {
    let mut pair = Pair::new();
    let mut guest = Guest::start(&pair.victim, 1);
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let fd = file.as_raw_fd();
    let log = |size: u64, offset: u64| [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
    for (size, offset) in [
        (8192, 0),
        (4096, 4096),
        (u64::MAX, 0),
        (4096, u64::MAX),
        (0, 0),
    ] {
        let body = log(size, offset);
        let answer = say(&mut guest.vmm, code::SET_LOG_BASE, &body, &[fd]);
        assert_eq!(answer, Answer::Gone, "{size} bytes at {offset}");
        drop(guest);
        guest = Guest::start(&pair.victim, 1);
        guest.write(0, 0, &[1; 512]);
    }
    // 8 bytes are 64 pages, the guest's buffers lie beyond them.
    vmm_raw(&mut guest.vmm, code::SET_LOG_BASE, &log(8, 0), &[fd]).unwrap();
    let features = guest.vmm.features() | feature::LOG_ALL;
    let body = features.to_ne_bytes();
    assert_eq!(
        say(&mut guest.vmm, code::SET_FEATURES, &body, &[]),
        Answer::Done
    );
    guest.write(0, 0, &[2; 512]);
    assert_eq!(guest.read(0, 0, 512), [2; 512]);
    let mut bytes = vec![0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert!(
        bytes[8..].iter().all(|b| *b == 0),
        "marked past the log's end"
    );
    drop(guest);
    pair.assert_unharmed();
}

fn vmm_raw(vmm: &mut Vmm, code: u32, body: &[u8], fds: &[i32]) -> Result<(), ()> {
    vmm.raw_request(code, 8, body, fds, true)
        .map(drop)
        .map_err(drop)
}

#[test]
fn garbage_ends_its_connection_only() {
    let mut pair = Pair::new();
    let mut seed = 1u64;
    let mut random = || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as u32
    };
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let fds = [file.as_raw_fd(); 12];
    for round in 0..400usize {
        let mut vmm = pair.victim.vmm();
        for _ in 0..4 {
            let len = random() as usize % 300;
            let body: Vec<u8> = (0..len)
                .map(|_| {
                    if random().is_multiple_of(3) {
                        random() as u8
                    } else {
                        0
                    }
                })
                .collect();
            let count = random() as usize % 4 * usize::from(round % 5 == 0);
            // Never a reply that is waited for: the answer may be none.
            let flags = random() & 0xc;
            if vmm
                .raw_request(random() % 46, flags, &body, &fds[..count], false)
                .is_err()
            {
                break;
            }
        }
    }
    // Half a header, a size that lies, a flood of descriptors, and bytes that mean nothing.
    for bytes in [
        &[1u8, 0, 0][..],
        &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f],
        &[0xff; 64],
    ] {
        let mut stream = UnixStream::connect(&pair.victim.socket).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
        let mut vmm = pair.victim.vmm();
        let _ = vmm.raw_bytes(bytes, &fds);
    }
    pair.assert_unharmed();
}

/// Descriptors that are no eventfds, and that would block whoever reads or writes them.
#[test]
fn a_kick_or_call_that_blocks_stops_no_worker() {
    let mut pair = Pair::new();
    let mut guest = Guest::start(&pair.victim, 1);
    let index = 0u64.to_ne_bytes();
    // A full socket as the call: a write to it would wait for ever.
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[0; 4096]).is_ok() {}
    ours.set_nonblocking(false).unwrap();
    let fds = [ours.as_raw_fd()];
    say(&mut guest.vmm, code::SET_VRING_CALL, &index, &fds);
    let buffer = guest.buffer(512);
    for _ in 0..3 {
        guest.queues[0].submit(Op::Read, 0, &[buffer]).unwrap();
        guest.queues[0].commit().unwrap();
        guest.queues[0].wait(Duration::from_millis(20)).unwrap();
    }
    pair.bystander.write(0, 9, &[3; 512]);
    drop(theirs);
    // A kick of fewer bytes than a counter has: a read of eight would wait for the rest.
    let (reader, writer) = std::io::pipe().unwrap();
    say(
        &mut guest.vmm,
        code::SET_VRING_KICK,
        &index,
        &[reader.as_raw_fd()],
    );
    for _ in 0..3 {
        (&writer).write_all(&[1]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        pair.bystander.write(0, 9, &[4; 512]);
    }
    drop(guest);
    pair.assert_unharmed();
}

/// Who is told that a ring broke may be named while the ring runs.
#[test]
fn a_ring_that_breaks_tells_the_error_eventfd_set_while_it_runs() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let mut guest = Guest::start(&served, 1);
    guest.write(0, 0, &[1; 512]);
    let spare = GuestDevice::new(&GuestMemory::new(MIB).unwrap(), 1, 16).unwrap();
    let err = &spare.queues()[0].call;
    let index = 0u64.to_ne_bytes();
    let fds = [err.as_raw_fd()];
    assert_eq!(
        say(&mut guest.vmm, code::SET_VRING_ERR, &index, &fds),
        Answer::Done
    );
    let ring = guest.device.ring(0).unwrap();
    ring.publish(ring.avail_index().wrapping_add(1000));
    guest.device.queues()[0].kick.write(1).unwrap();
    eventually("the error is told", || err.read().is_ok());
}

/// Two front-ends at once: the second waits for the first to leave.
#[test]
fn a_second_front_end_waits() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.victim, 1);
    let socket = pair.victim.socket.clone();
    let second = std::thread::spawn(move || Vmm::connect(&socket, options()).is_ok());
    std::thread::sleep(Duration::from_millis(50));
    assert!(!second.is_finished());
    drop(guest);
    eventually("the second is served", || second.is_finished());
    assert!(second.join().unwrap());
}

/// Whoever removes a socket must not hang the daemon that listened on it.
#[test]
fn a_device_whose_socket_was_removed_still_ends() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    std::fs::remove_file(&served.socket).unwrap();
    let ended = std::thread::spawn(move || drop(served));
    eventually("the device ends", || ended.is_finished());
}
