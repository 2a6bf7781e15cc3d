//! Every request, on every kind of disk, however its bytes are cut.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferry_bench::frontend::{
    DESC_INDIRECT, Desc, GuestDevice, GuestMemory, Op, QueueOptions, Range, Segment, Status, Vmm,
    VmmOptions, feature,
};
use ferry_dataplane::backend::file::{Cache, Image};
use ferry_dataplane::backend::{Backend, Store};

use crate::rig::{
    Guest, Host, MIB, RawRing, assert_clean, eventually, finish, header, image_at, load,
    memory_disk, options, plain_features, plan, readable, writable,
};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let byte = |at: usize| (at / 512 * 7 + at % 251) as u8;
    (0..len).map(|at| byte(at).wrapping_add(seed)).collect()
}

/// What any disk that keeps its bytes must do.
pub fn every_request(host: &Host, backend: &Backend, block: u32) {
    let served = host.serve(backend, 1);
    let mut guest = Guest::start(&served, 1);
    let config = guest.vmm.config();
    assert_eq!(config.capacity_sectors * 512, 16 * MIB);
    assert_eq!((config.blk_size, config.num_queues), (block, 1));

    let data = pattern(256 << 10, 1);
    guest.write(0, 64, &data);
    assert_eq!(guest.run(0, Op::Flush, 0, &[]), Status::Ok);
    assert_eq!(guest.read(0, 64, data.len()), data);
    assert_eq!(guest.read(0, 65, 512), data[512..1024], "one sector");
    assert_eq!(served.contents()[64 * 512..][..data.len()], data[..]);

    let at = |sectors: u32| Segment {
        addr: 0,
        len: sectors * 512,
    };
    for (op, sector) in [
        (Op::Discard, 72),
        (Op::WriteZeroes { unmap: true }, 96),
        (Op::WriteZeroes { unmap: false }, 128),
        (Op::WriteZeroes { unmap: false }, 161),
    ] {
        assert_eq!(guest.run(0, op, sector, &[at(16)]), Status::Ok, "{op:?}");
        let offset = (sector - 64) as usize * 512;
        let around = guest.read(0, sector - 1, 18 * 512);
        assert_eq!(around[..512], data[offset - 512..offset], "{op:?}: before");
        assert!(around[512..17 * 512].iter().all(|b| *b == 0), "{op:?}");
        assert_eq!(around[17 * 512..], data[offset + 16 * 512..][..512]);
    }

    // To the last sector, and not past it.
    let last = config.capacity_sectors - 1;
    guest.write(0, last, &[9; 512]);
    assert_eq!(guest.read(0, last, 512), [9; 512]);
    assert_eq!(served.contents().len() as u64, 16 * MIB);
    let id = guest.buffer(20);
    assert_eq!(guest.run(0, Op::GetId, 0, &[id]), Status::Ok);
    assert_eq!(&guest.bytes(id)[..16], b"ferry-test-disk\0");
}

#[test]
fn a_file_on_a_disk_does_every_request() {
    let host = Host::new(1);
    every_request(&host, &host.image("disk.raw", 16 * MIB), 512);
}

#[test]
fn a_file_in_memory_does_every_request() {
    let host = Host::new(1);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    every_request(
        &host,
        &image_at(&dir.path().join("disk.raw"), 16 * MIB),
        512,
    );
}

#[test]
fn a_file_in_the_page_cache_does_every_request() {
    let host = Host::new(1);
    drop(host.image("disk.raw", 16 * MIB));
    let image = Image::open_with(&host.dir().join("disk.raw"), false, Cache::Writeback).unwrap();
    let backend = Backend::new(Store::Image(Arc::new(image)), false);
    every_request(&host, &backend, 512);
}

#[test]
fn a_memory_disk_does_every_request() {
    every_request(&Host::new(1), &memory_disk(16 * MIB), 512);
}

#[test]
fn a_null_disk_takes_all_and_changes_nothing() {
    let host = Host::new(1);
    let store = Store::Null {
        capacity_bytes: 16 * MIB,
    };
    let served = host.serve(&Backend::new(store, false), 1);
    let mut guest = Guest::start(&served, 1);
    guest.write(0, 0, &[1; 4096]);
    assert_eq!(guest.read(0, 0, 4096), [0xee; 4096], "the buffer is left");
    let range = Segment { addr: 0, len: 4096 };
    for op in [Op::Discard, Op::WriteZeroes { unmap: true }] {
        assert_eq!(guest.run(0, op, 0, &[range]), Status::Ok);
    }
    assert_eq!(guest.run(0, Op::Flush, 0, &[]), Status::Ok);
}

fn blocks(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks()
}

#[test]
fn discard_and_unmap_give_space_back_and_plain_zeroes_keep_it() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let host = Host::new(1);
    space_is_given_back_and_kept(&host.dir().join("disk.raw"));
    space_is_given_back_and_kept(&dir.path().join("disk.raw"));
}

fn space_is_given_back_and_kept(path: &Path) {
    let host = Host::new(1);
    let served = host.serve(&image_at(path, 16 * MIB), 1);
    let mut guest = Guest::start(&served, 1);
    guest.write(0, 0, &[7; 1 << 20]);
    guest.write(0, 2048, &[8; 1 << 20]);
    assert_eq!(guest.run(0, Op::Flush, 0, &[]), Status::Ok);
    let full = blocks(path);
    assert!(full >= 4096, "{full}");
    let half = Segment {
        addr: 0,
        len: 512 << 10,
    };
    let keep = Op::WriteZeroes { unmap: false };
    assert_eq!(guest.run(0, keep, 2048, &[half]), Status::Ok);
    assert_eq!(blocks(path), full, "kept");
    assert_eq!(guest.run(0, Op::Discard, 0, &[half]), Status::Ok);
    assert_eq!(blocks(path), full - 1024, "discarded");
    let unmap = Op::WriteZeroes { unmap: true };
    assert_eq!(guest.run(0, unmap, 1024, &[half]), Status::Ok);
    assert_eq!(blocks(path), full - 2048, "unmapped");
    assert!(guest.read(0, 0, 1 << 20).iter().all(|b| *b == 0));
    assert!(guest.read(0, 2048, 512 << 10).iter().all(|b| *b == 0));
    assert!(guest.read(0, 3072, 512 << 10).iter().all(|b| *b == 8));
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let host = Host::new(1);
    drop(host.image("disk.raw", MIB));
    let image = Image::open(&host.dir().join("disk.raw"), true).unwrap();
    let served = host.serve(&Backend::new(Store::Image(Arc::new(image)), true), 1);
    let mut guest = Guest::start(&served, 1);
    assert_ne!(guest.vmm.offered_features() & feature::RO, 0);
    assert_eq!(guest.vmm.offered_features() & feature::DISCARD, 0);
    let buffer = guest.buffer(4096);
    for op in [Op::Write, Op::Discard, Op::WriteZeroes { unmap: false }] {
        assert_eq!(guest.run(0, op, 0, &[buffer]), Status::IoErr, "{op:?}");
    }
    assert_eq!(guest.run(0, Op::Flush, 0, &[]), Status::Ok);
    assert!(guest.read(0, 0, 4096).iter().all(|b| *b == 0));
}

/// A device driven by hand, and room for its buffers.
struct ByHand {
    _vmm: Vmm,
    raw: RawRing,
    area: u64,
    head: u64,
    status: u64,
}

impl ByHand {
    fn start(served: &crate::rig::Served) -> ByHand {
        let memory = GuestMemory::new(4 * MIB).unwrap();
        let device = GuestDevice::new(&memory, 1, 256).unwrap();
        let mut vmm = served.vmm();
        vmm.start(&device).unwrap();
        let raw = RawRing::new(&device, 0);
        let area = memory.alloc(MIB, 4096).unwrap();
        let head = memory.alloc(64, 64).unwrap();
        let status = memory.alloc(1, 1).unwrap();
        ByHand {
            _vmm: vmm,
            raw,
            area,
            head,
            status,
        }
    }

    fn put_header(&self, kind: u32, sector: u64) {
        let header = header(kind, sector);
        self.raw.memory.write(self.head, &header).unwrap();
        self.raw.memory.write(self.status, &[0xff]).unwrap();
    }

    /// Sends header, then `middle`, then the status; returns (status, bytes written).
    fn ask(&mut self, kind: u32, sector: u64, middle: &[Desc]) -> (u8, u32) {
        self.put_header(kind, sector);
        let mut chain = vec![readable(self.head, 16)];
        chain.extend_from_slice(middle);
        chain.push(writable(self.status, 1));
        let written = self.raw.ask(&chain);
        (self.raw.byte(self.status), written)
    }
}

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

#[test]
fn a_header_may_be_cut_at_every_byte() {
    let host = Host::new(1);
    let served = host.serve(&host.image("disk.raw", MIB), 1);
    let mut hand = ByHand::start(&served);
    let (area, head, status) = (hand.area, hand.head, hand.status);
    for cut in 1..16u32 {
        let data = pattern(512, u8::try_from(cut).unwrap());
        hand.raw.memory.write(area, &data).unwrap();
        hand.put_header(OUT, cut.into());
        let written = hand.raw.ask(&[
            readable(head, cut),
            readable(head + u64::from(cut), 16 - cut),
            readable(area, 512),
            writable(status, 1),
        ]);
        assert_eq!((hand.raw.byte(status), written), (OK, 1), "cut at {cut}");
        let at = cut as usize * 512;
        assert_eq!(served.contents()[at..at + 512], data, "cut at {cut}");
    }
    // Header and data in one buffer; data and status in one buffer.
    let one = area + 8192;
    hand.raw.memory.write(one, &header(OUT, 40)).unwrap();
    hand.raw.memory.write(one + 16, &[0x33; 512]).unwrap();
    hand.raw
        .ask(&[readable(one, 16 + 512), writable(status, 1)]);
    assert_eq!(served.contents()[40 * 512..41 * 512], [0x33; 512]);
    hand.put_header(IN, 40);
    let written = hand.raw.ask(&[readable(head, 16), writable(area, 513)]);
    assert_eq!(written, 513);
    let mut back = [0xff; 513];
    hand.raw.memory.read(area, &mut back).unwrap();
    assert_eq!((&back[..512], back[512]), (&[0x33; 512][..], OK));
}

#[test]
fn data_in_odd_pieces_at_odd_addresses_is_bounced() {
    let host = Host::new(1);
    for backend in [host.image("disk.raw", MIB), memory_disk(MIB)] {
        let served = host.serve(&backend, 1);
        let mut hand = ByHand::start(&served);
        let data = pattern(4096, 3);
        for (round, piece) in [1u32, 3, 33, 511, 513, 4095].into_iter().enumerate() {
            let sector = round as u64 * 16;
            // Pieces of one byte would make the chain longer than any request may be.
            let total: u32 = if piece < 33 { 512 } else { 4096 };
            let piece = piece.max(total / 120);
            let (mut out, mut back, mut at) = (Vec::new(), Vec::new(), 0);
            let (from, to) = (hand.area + 1, hand.area + 65536 + 5);
            while at < total {
                let len = piece.min(total - at);
                // Apart from each other, so that nothing is glued together.
                let place = u64::from(at) + u64::from(at / piece) * 3;
                let bytes = &data[at as usize..(at + len) as usize];
                hand.raw.memory.write(from + place, bytes).unwrap();
                hand.raw
                    .memory
                    .write(to + place, &vec![0xaa; len as usize + 3])
                    .unwrap();
                out.push(readable(from + place, len));
                back.push(writable(to + place, len));
                at += len;
            }
            assert_eq!(hand.ask(OUT, sector, &out), (OK, 1), "pieces of {piece}");
            assert_eq!(hand.ask(IN, sector, &back), (OK, total + 1));
            let mut seen = Vec::new();
            for desc in &back {
                let mut bytes = vec![0; desc.len as usize + 1];
                hand.raw.memory.read(desc.addr, &mut bytes).unwrap();
                assert_eq!(bytes.pop(), Some(0xaa), "nothing past the piece");
                seen.extend(bytes);
            }
            assert!(seen == data[..total as usize], "pieces of {piece}");
            let image = served.contents();
            assert!(image[sector as usize * 512..][..total as usize] == seen[..]);
        }
    }
}

/// More than one bounce buffer's worth, from an odd address.
#[test]
fn a_long_unaligned_request_goes_through_in_chunks() {
    let host = Host::new(1);
    let served = host.serve(&host.image("disk.raw", 4 * MIB), 1);
    let mut hand = ByHand::start(&served);
    let data = pattern(900 << 10, 5);
    let len = u32::try_from(data.len()).unwrap();
    let odd = hand.area + 7;
    hand.raw.memory.write(odd, &data).unwrap();
    assert_eq!(hand.ask(OUT, 3, &[readable(odd, len)]), (OK, 1));
    hand.raw.memory.write(odd, &vec![0; data.len()]).unwrap();
    assert_eq!(hand.ask(IN, 3, &[writable(odd, len)]), (OK, len + 1));
    let mut back = vec![0; data.len()];
    hand.raw.memory.read(odd, &mut back).unwrap();
    assert!(back == data);
    assert!(served.contents()[3 * 512..][..data.len()] == data[..]);
}

#[test]
fn what_makes_no_sense_gets_a_status() {
    let host = Host::new(1);
    let served = host.serve(&host.image("disk.raw", MIB), 1);
    let sectors = MIB / 512;
    let mut hand = ByHand::start(&served);
    let area = hand.area;
    let data = |len| [readable(area, len)];
    let room = |len| [writable(area, len)];
    let refused = [
        hand.ask(OUT, 0, &data(511)),
        hand.ask(OUT, 0, &data(1)),
        hand.ask(IN, 0, &room(513)),
        hand.ask(OUT, 0, &[]),
        hand.ask(IN, 0, &[]),
        hand.ask(OUT, sectors, &data(512)),
        hand.ask(OUT, sectors - 1, &data(1024)),
        hand.ask(IN, sectors, &room(512)),
        hand.ask(IN, u64::MAX, &room(512)),
        hand.ask(OUT, u64::MAX / 512, &data(512)),
        hand.ask(OUT, u64::MAX / 512 + 1, &data(512)),
        hand.ask(IN, 1 << 55, &room(4096)),
    ];
    for (at, answer) in refused.into_iter().enumerate() {
        assert_eq!(answer, (IO_ERROR, 1), "number {at}");
    }
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, u32::MAX, 1 << 31] {
        assert_eq!(hand.ask(kind, 0, &data(512)), (UNSUPPORTED, 1), "{kind}");
    }
    // A read where there is nothing to read into, and the other way round.
    assert_eq!(hand.ask(IN, 0, &data(512)), (IO_ERROR, 1));
    assert_eq!(hand.ask(OUT, 0, &room(512)), (IO_ERROR, 1));
    assert_eq!(hand.ask(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(hand.ask(GET_ID, 0, &room(20)), (OK, 21));
    assert_eq!(hand.ask(GET_ID, 0, &room(5)), (OK, 6), "cut to the room");
    // Too short for a header.
    let (head, status) = (hand.head, hand.status);
    hand.put_header(IN, 0);
    hand.raw.ask(&[readable(head, 15), writable(status, 1)]);
    assert_eq!(hand.raw.byte(status), IO_ERROR);
    assert!(served.contents().iter().all(|b| *b == 0), "nothing changed");
}

#[test]
fn ranges_that_make_no_sense_get_a_status() {
    let host = Host::new(1);
    let served = host.serve(&host.image("disk.raw", MIB), 1);
    let sectors = MIB / 512;
    let mut hand = ByHand::start(&served);
    let area = hand.area;
    let mut ask = |kind, sector, count, flags, len| {
        let range = Range {
            sector,
            sectors: count,
            flags,
        };
        hand.raw.memory.write(area, &range.to_bytes()).unwrap();
        hand.raw.memory.write(area + 16, &range.to_bytes()).unwrap();
        hand.ask(kind, 0, &[readable(area, len)]).0
    };
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(ask(kind, 0, 8, 0, 16), OK);
        assert_eq!(ask(kind, 0, 0, 0, 16), IO_ERROR, "empty");
        assert_eq!(ask(kind, sectors, 1, 0, 16), IO_ERROR, "past the end");
        assert_eq!(ask(kind, sectors - 1, 2, 0, 16), IO_ERROR, "over the end");
        assert_eq!(ask(kind, u64::MAX, 8, 0, 16), IO_ERROR, "wraps");
        assert_eq!(ask(kind, u64::MAX / 512, 8, 0, 16), IO_ERROR, "wraps");
        assert_eq!(ask(kind, 0, u32::MAX, 0, 16), IO_ERROR, "too long");
        assert_eq!(ask(kind, 0, 8, 2, 16), UNSUPPORTED, "unknown flag");
        for len in [0, 8, 15, 17, 32] {
            assert_ne!(ask(kind, 0, 8, 0, len), OK, "{len} bytes of ranges");
        }
    }
    assert_eq!(
        ask(DISCARD, 0, 8, 1, 16),
        UNSUPPORTED,
        "unmap is no discard"
    );
    assert_eq!(ask(WRITE_ZEROES, 0, 8, 1, 16), OK);
}

#[test]
fn a_table_of_descriptors_does_what_a_chain_does() {
    let host = Host::new(1);
    let served = host.serve(&host.image("disk.raw", MIB), 1);
    let options = QueueOptions {
        indirect: true,
        ..QueueOptions::default()
    };
    let mut guest = Guest::start_with(&served, 1, crate::rig::options(), options);
    let data = pattern(64 << 10, 9);
    guest.write(0, 5, &data);
    assert_eq!(guest.read(0, 5, data.len()), data);

    // A table that was not negotiated is a mistake of that request alone.
    let memory = GuestMemory::new(MIB).unwrap();
    drop(guest);
    let plain = VmmOptions {
        features: plain_features(),
        ..crate::rig::options()
    };
    let device = GuestDevice::new(&memory, 1, 16).unwrap();
    let mut vmm = Vmm::connect(&served.socket, plain).unwrap();
    vmm.start(&device).unwrap();
    let mut raw = RawRing::new(&device, 0);
    let table = memory.alloc(64, 64).unwrap();
    let desc = Desc {
        addr: table,
        len: 32,
        flags: DESC_INDIRECT,
        next: 0,
    };
    assert_eq!(raw.ask(&[desc]), 0);
}

fn stamped(features: u64, indirect: bool, seed: u64) {
    let host = Host::new(2);
    let served = host.serve(&host.image("disk.raw", 16 * MIB), 4);
    let options = VmmOptions {
        features,
        ..options()
    };
    let guest = Guest::start_with(&served, 4, options, QueueOptions::default());
    let load = load(&guest, 16, indirect, &plan(16 * MIB, seed));
    std::thread::sleep(Duration::from_millis(800));
    eventually("there was a load", || load.progress().ops > 500);
    assert_clean(load);
}

#[test]
fn a_stamped_load_on_four_queues_over_two_workers() {
    stamped(options().features, true, 1);
}

#[test]
fn a_stamped_load_without_tables_and_event_indexes() {
    stamped(plain_features(), false, 2);
}

/// A sector that two workers write at once ends as the one or the other, never half and half.
#[test]
fn a_stamped_load_on_a_memory_disk_over_two_workers() {
    let host = Host::new(2);
    for seed in 41..44 {
        let served = host.serve(&memory_disk(4 * MIB), 2);
        let guest = Guest::start(&served, 2);
        let load = load(&guest, 16, false, &plan(4 * MIB, seed));
        std::thread::sleep(Duration::from_millis(500));
        assert_clean(load);
    }
}

/// Requests that several queues have in flight at once, each answered once.
#[test]
fn every_request_of_a_full_ring_is_answered_once() {
    let host = Host::new(2);
    let served = host.serve(&host.image("disk.raw", 16 * MIB), 2);
    let deep = QueueOptions::default().with_depth(80);
    let mut guest = Guest::start_with(&served, 2, options(), deep);
    let buffers: Vec<Segment> = (0..80).map(|_| guest.buffer(4096)).collect();
    for queue in &mut guest.queues {
        for (at, buffer) in (0u64..).zip(&buffers) {
            queue.submit(Op::Read, at * 8, &[*buffer]).unwrap();
        }
        queue.commit().unwrap();
    }
    for queue in &mut guest.queues {
        for _ in 0..80 {
            assert_eq!(finish(queue).status, Status::Ok);
        }
        assert_eq!(queue.pop().unwrap(), None);
    }
    assert_eq!(served.requests(), 160);
}
