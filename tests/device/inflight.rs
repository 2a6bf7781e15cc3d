//! The in-flight region: what a front-end hands over from a server that died, built by hand, and
//! what a server writes into one. The request is GET_ID, which is answered when it is popped: the
//! used ring shows the order of popping.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{DEFAULT_BASE, GuestDevice, GuestMemory, InflightRegion, View, Vmm};
use ferry_dataplane::disk::Service;

use crate::rig::{
    Guest, Host, MIB, PATIENCE, RawRing, SCRATCH, Served, eventually, header, memory_disk, options,
    readable, slow, writable,
};

/// What is done to something before it is taken up.
type Change<'a, T> = dyn Fn(&mut T) + 'a;

const REST: Duration = Duration::from_millis(60);
const RING: u16 = 32;
const IN: u32 = 0;
const GET_ID: u32 = 8;

// The region, as the vhost-user document lays it out for split rings.
const VERSION: u64 = 8;
const ENTRIES: u64 = 10;
const LAST_BATCH_HEAD: u64 = 12;
const USED_IDX: u64 = 14;
const NEXT: u64 = 6;
const COUNTER: u64 = 8;

fn entry(head: u16) -> u64 {
    16 + 16 * u64::from(head)
}

/// A ring whose server is gone, and the region that it left.
struct Left {
    vmm: Vmm,
    device: GuestDevice,
    memory: GuestMemory,
    raw: RawRing,
    region: InflightRegion,
}

impl Left {
    /// A ring that nobody has used yet, with a region that a server has begun.
    fn new(served: &Served) -> Left {
        let memory = GuestMemory::new(4 * MIB).unwrap();
        let device = GuestDevice::new(&memory, 1, RING).unwrap();
        let mut vmm = Vmm::connect(&served.socket, options()).unwrap();
        vmm.start(&device).unwrap();
        assert_eq!(vmm.stop().unwrap(), [0]);
        Left {
            region: vmm.inflight().expect("it is offered").clone(),
            raw: RawRing::new(&device, 0),
            vmm,
            device,
            memory,
        }
    }

    /// Makes so many chains available; their heads are multiples of three.
    fn offer(&mut self, chains: u16) -> Vec<u16> {
        let head_at = self.memory.alloc(16, 16).unwrap();
        self.memory.write(head_at, &header(GET_ID, 0)).unwrap();
        let heads: Vec<u16> = (0..chains).map(|n| 3 * n).collect();
        for &head in &heads {
            let data = self.memory.alloc(32, 16).unwrap();
            let parts = [
                readable(head_at, 16),
                writable(data, 20),
                writable(data + 20, 1),
            ];
            for (at, part) in (head..).zip(parts) {
                let more = u16::from(at < head + 2);
                let desc = ferry_bench::frontend::Desc {
                    flags: part.flags | more,
                    next: at + 1,
                    ..part
                };
                self.raw.ring.write_desc(at, desc);
            }
            self.raw.ring.set_avail(self.raw.avail, head);
            self.raw.avail = self.raw.avail.wrapping_add(1);
        }
        self.raw.ring.publish(self.raw.avail);
        heads
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.region.file.write_all_at(bytes, at).unwrap();
    }

    fn put_u16(&self, at: u64, value: u16) {
        self.put(at, &value.to_ne_bytes());
    }

    fn get_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.region.file.read_exact_at(&mut bytes, at).unwrap();
        u16::from_ne_bytes(bytes)
    }

    fn in_flight(&self, head: u16) -> bool {
        self.get_u16(entry(head)) & 0xff != 0
    }

    /// The head was popped, as the so many-th.
    fn popped(&self, head: u16, counter: u64) {
        self.put(entry(head) + COUNTER, &counter.to_ne_bytes());
        self.put(entry(head), &[1]);
    }

    /// The ring's used index, which only a device writes.
    fn show(&mut self, used: u16) {
        let at = self.device.queues()[0].layout.used + 2;
        self.memory.write(at, &used.to_le_bytes()).unwrap();
        self.raw.used = used;
    }

    /// Hands all this to a server, from the used index as QEMU does.
    fn recover(&mut self) {
        let bases = [self.raw.ring.used_index()];
        self.vmm
            .recover(&self.device, &bases, self.region.clone())
            .unwrap();
    }

    /// The heads that a server ends, until it rests.
    fn ended(&mut self, expected: usize) -> Vec<u16> {
        let mut heads = Vec::new();
        while heads.len() < expected {
            let (head, _) = self.raw.next_used(PATIENCE).expect("a request was lost");
            heads.push(head as u16);
        }
        assert_eq!(self.raw.next_used(REST), None, "after {heads:?}");
        heads
    }

    fn assert_at_rest(&self) {
        let used = self.raw.ring.used_index();
        eventually("the region is at rest", || self.get_u16(USED_IDX) == used);
        assert!((0..RING).all(|head| !self.in_flight(head)));
    }
}

fn served(host: &Host) -> Served {
    host.serve(&memory_disk(MIB), 1)
}

#[test]
fn what_was_in_flight_is_served_in_the_order_of_popping_and_before_all_else() {
    let host = Host::new(1);
    let served = served(&host);
    let mut left = Left::new(&served);
    left.offer(6);
    for (head, counter) in [(0, 8), (3, 5), (6, 9), (9, 6)] {
        left.popped(head, counter);
    }
    left.recover();
    assert_eq!(left.ended(6), [3, 9, 0, 6, 12, 15]);
    left.assert_at_rest();
}

/// A server pops five chains and ends two of them as a batch: its death after each of its stores.
#[test]
fn a_death_between_any_two_steps_loses_and_repeats_nothing() {
    let host = Host::new(1);
    let served = served(&host);
    let (a, b, rest) = (3, 0, [6, 9, 12]);
    let steps: [(&str, &Change<'_, Left>); 9] = [
        ("nothing has ended", &|_| {}),
        ("a leads on", &|left| {
            let last = left.get_u16(LAST_BATCH_HEAD);
            left.put_u16(entry(a) + NEXT, last);
        }),
        ("the batch begins with a", &|left| {
            left.put_u16(LAST_BATCH_HEAD, a);
        }),
        ("b leads to a", &|left| left.put_u16(entry(b) + NEXT, a)),
        ("the batch begins with b", &|left| {
            left.put_u16(LAST_BATCH_HEAD, b);
        }),
        ("the guest is shown both", &|left| left.show(2)),
        ("a is no longer in flight", &|left| left.put(entry(a), &[0])),
        ("nor is b", &|left| left.put(entry(b), &[0])),
        ("the region knows the index", &|left| {
            left.put_u16(USED_IDX, 2);
        }),
    ];
    for death in 0..steps.len() {
        let mut left = Left::new(&served);
        left.offer(6);
        for (head, counter) in [(b, 1), (a, 2), (6, 3), (9, 4), (12, 5)] {
            left.popped(head, counter);
        }
        // The sixth was about to be popped: its number stands, its mark does not.
        left.put(entry(15) + COUNTER, &6u64.to_ne_bytes());
        for (_, step) in &steps[..=death] {
            step(&mut left);
        }
        let shown = left.raw.used == 2;
        let owed: Vec<u16> = (if shown { vec![] } else { vec![b, a] })
            .into_iter()
            .chain(rest)
            .chain([15])
            .collect();
        left.recover();
        assert_eq!(left.ended(owed.len()), owed, "{}", steps[death].0);
        left.assert_at_rest();
    }
}

/// A destination asks for a region in the middle of a ring's life.
#[test]
fn a_fresh_region_begins_at_the_rings_used_index() {
    let host = Host::new(1);
    let (here, there) = (
        served(&host),
        host.serve_as("b", &memory_disk(MIB), 1, Service::Open),
    );
    let mut left = Left::new(&here);
    left.offer(5);
    left.vmm.start_at(&left.device, &[0]).unwrap();
    assert_eq!(left.ended(5).len(), 5);
    let bases = left.vmm.stop().unwrap();
    assert_eq!(bases, [5]);

    left.vmm = Vmm::connect(&there.socket, options()).unwrap();
    left.vmm.start_at(&left.device, &bases).unwrap();
    assert_eq!(left.vmm.stop().unwrap(), bases);
    left.region = left.vmm.inflight().unwrap().clone();
    assert_eq!(left.get_u16(VERSION), 1);
    assert_eq!(left.get_u16(USED_IDX), 5);

    // It dies with two in flight, before any has ended.
    left.offer(3);
    left.popped(3, 1);
    left.popped(0, 2);
    left.recover();
    assert_eq!(left.ended(3), [3, 0, 6]);
    left.assert_at_rest();
}

#[test]
fn what_is_popped_is_written_down_while_it_is_served() {
    let host = Host::new(1);
    let served = host.serve(&slow(memory_disk(MIB), 300), 1);
    let mut guest = Guest::start(&served, 1);
    let region = guest.vmm.inflight().unwrap().clone();
    let marked = || {
        let mut bytes = vec![0; 16 + 16 * 256];
        region.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes[16..].chunks(16).filter(|entry| entry[0] != 0).count()
    };
    assert_eq!(marked(), 0);
    let buffer = guest.buffer(SCRATCH);
    for _ in 0..3 {
        let op = ferry_bench::frontend::Op::Write;
        guest.queues[0].submit(op, 0, &[buffer]).unwrap();
    }
    guest.queues[0].commit().unwrap();
    eventually("three are marked", || marked() == 3);
    assert!(!guest.queues[0].has_completion(), "the disk is slow");
    for _ in 0..3 {
        crate::rig::finish(&mut guest.queues[0]);
    }
    eventually("none is marked", || marked() == 0);
}

/// A region that lies in guest memory, where this side can look at it as closely as at the ring.
struct Watched {
    guest: RawRing,
    region: View,
    _vmm: Vmm,
}

impl Watched {
    const RING: u16 = 256;
    const CHAINS: u16 = 80;

    fn new(served: &Served) -> Watched {
        let memory = GuestMemory::new(4 * MIB).unwrap();
        let device = GuestDevice::new(&memory, 1, Watched::RING).unwrap();
        let mut vmm = Vmm::connect(&served.socket, options()).unwrap();
        vmm.start(&device).unwrap();
        vmm.stop().unwrap();
        let mut region = vmm.inflight().unwrap().clone();
        let bytes = region.shape.mmap_size;
        let at = memory.alloc(bytes, 4096).unwrap();
        region.shape.mmap_offset = at - DEFAULT_BASE;
        region.file = Arc::new(memory.file(0).unwrap().try_clone().unwrap());
        let guest = RawRing::new(&device, 0);
        let (head_at, data) = (
            memory.alloc(16, 16).unwrap(),
            memory.alloc(512, 512).unwrap(),
        );
        memory.write(head_at, &header(IN, 0)).unwrap();
        for n in 0..Watched::CHAINS {
            let status = memory.alloc(1, 1).unwrap();
            let parts = [
                readable(head_at, 16),
                writable(data, 512),
                writable(status, 1),
            ];
            for (at, part) in (3 * n..).zip(parts) {
                let more = u16::from(at < 3 * n + 2);
                let desc = ferry_bench::frontend::Desc {
                    flags: part.flags | more,
                    next: at + 1,
                    ..part
                };
                guest.ring.write_desc(at, desc);
            }
        }
        vmm.recover(&device, &[0], region).unwrap();
        Watched {
            region: memory.view(at, bytes).unwrap(),
            guest,
            _vmm: vmm,
        }
    }

    fn in_flight(&self, head: u16) -> bool {
        let at = usize::try_from(entry(head)).unwrap();
        self.region.u16_at(at).load(Ordering::Acquire) & 0xff != 0
    }

    /// Offers all chains, and tells by how many the used index had moved when the mark of the
    /// first went out; `None` when that was not seen.
    fn round(&mut self) -> Option<u16> {
        let used = self.guest.ring.used_index();
        for n in 0..Watched::CHAINS {
            self.guest.ring.set_avail(self.guest.avail, 3 * n);
            self.guest.avail = self.guest.avail.wrapping_add(1);
        }
        self.guest.ring.publish(self.guest.avail);
        self.guest.kick();
        let until = Instant::now() + PATIENCE;
        let moved = |guest: &RawRing| guest.ring.used_index().wrapping_sub(used);
        while !self.in_flight(0) && moved(&self.guest) == 0 {
            assert!(Instant::now() < until, "nothing is popped");
        }
        let marked = self.in_flight(0);
        while self.in_flight(0) {
            assert!(Instant::now() < until, "nothing ends");
        }
        let seen = moved(&self.guest);
        while moved(&self.guest) != Watched::CHAINS {
            assert!(Instant::now() < until, "not all end");
        }
        marked.then_some(seen)
    }
}

/// A mark goes out only when the guest has been shown the end of its request. The other way round,
/// a death in between would leave a request that nobody owes and nobody has served.
#[test]
fn a_mark_outlives_the_publication() {
    let host = Host::new(1);
    let served = served(&host);
    let mut watched = Watched::new(&served);
    let (mut seen, began) = (0, Instant::now());
    // Where both sides share a core for a while, neither sees the other at work.
    while seen < 1000 {
        assert!(
            began.elapsed() < 3 * PATIENCE,
            "seen in {seen} rounds only, of the thousand wanted"
        );
        let Some(moved) = watched.round() else {
            continue;
        };
        seen += 1;
        assert!(moved > 0, "round {seen}: a mark is out, and no end shown");
    }
}

/// Its predecessor died between showing the last requests and calling: the guest may sleep on them.
#[test]
fn a_guest_that_was_shown_and_not_called_is_called() {
    let host = Host::new(1);
    let served = served(&host);
    let mut left = Left::new(&served);
    left.offer(2);
    left.popped(0, 1);
    left.popped(3, 2);
    left.put_u16(LAST_BATCH_HEAD, 0);
    left.put_u16(entry(0) + NEXT, 3);
    left.show(2);
    let call = left.device.queues()[0].call.clone();
    let _ = call.read();
    left.recover();
    eventually("the guest is called", || call.read().is_ok());
    left.assert_at_rest();
}

#[test]
fn regions_that_are_not_what_they_are_said_to_be_are_refused() {
    let host = Host::new(1);
    let victim = served(&host);
    let other = host.serve_as("other", &memory_disk(MIB), 1, Service::Open);
    let mut bystander = Guest::start(&other, 1);
    let lies: [(&str, &Change<'_, InflightRegion>); 10] = [
        ("no bytes", &|region| region.shape.mmap_size = 0),
        ("few bytes", &|region| region.shape.mmap_size = 64),
        ("more than the file", &|region| {
            region.shape.mmap_size = 1 << 40;
        }),
        ("all bytes", &|region| region.shape.mmap_size = u64::MAX),
        ("past the end", &|region| region.shape.mmap_offset = 4096),
        ("far out", &|region| {
            region.shape.mmap_offset = u64::MAX - 63;
        }),
        ("many queues", &|region| region.shape.num_queues = u16::MAX),
        ("no queues", &|region| region.shape.num_queues = 0),
        ("large rings", &|region| region.shape.queue_size = u16::MAX),
        ("small rings", &|region| region.shape.queue_size = 8),
    ];
    for (what, lie) in lies {
        let mut left = Left::new(&victim);
        left.offer(1);
        lie(&mut left.region);
        let taken = left.vmm.recover(&left.device, &[0], left.region.clone());
        assert!(taken.is_err(), "{what}");
        assert_eq!(
            left.raw.next_used(Duration::from_millis(20)),
            None,
            "{what}"
        );
        drop(left);
        victim.assert_serves();
        bystander.write(0, 0, &[1; 512]);
    }
}

#[test]
fn nonsense_in_a_region_harms_nobody() {
    let host = Host::new(1);
    let victim = served(&host);
    let other = host.serve_as("other", &memory_disk(MIB), 1, Service::Open);
    let mut bystander = Guest::start(&other, 1);
    let nonsense: [(&str, &Change<'_, Left>); 9] = [
        ("another number of entries", &|left| {
            left.put_u16(ENTRIES, 0);
        }),
        ("a used index far off", &|left| {
            left.put_u16(USED_IDX, 0x8000);
        }),
        ("a used index ahead", &|left| left.put_u16(USED_IDX, 1)),
        ("a batch out of the region", &|left| {
            left.put_u16(USED_IDX, 0u16.wrapping_sub(RING));
            left.put_u16(LAST_BATCH_HEAD, u16::MAX);
        }),
        ("a batch in a circle", &|left| {
            left.put_u16(USED_IDX, 0u16.wrapping_sub(RING));
            left.put_u16(LAST_BATCH_HEAD, 3);
            left.put_u16(entry(3) + NEXT, 3);
        }),
        ("a batch that leads out", &|left| {
            left.put_u16(USED_IDX, 0u16.wrapping_sub(2));
            left.put_u16(LAST_BATCH_HEAD, 3);
            left.put_u16(entry(3) + NEXT, RING);
        }),
        ("all in flight", &|left| {
            (0..RING).for_each(|head| left.popped(head, u64::MAX));
        }),
        ("one that was never available", &|left| {
            left.popped(31, u64::MAX);
        }),
        ("ones everywhere", &|left| {
            left.put(ENTRIES, &[0xff; 6]);
            left.put(16, &[0xff; 16 * RING as usize]);
        }),
    ];
    for (what, put) in nonsense {
        let mut left = Left::new(&victim);
        left.offer(1);
        put(&mut left);
        left.recover();
        // One that it does not believe it served from the ring; one that it does believe may hold
        // a chain that is none.
        assert!(left.raw.next_used(PATIENCE).is_some(), "{what}");
        drop(left);
        victim.assert_serves();
        bystander.write(0, 0, &[2; 512]);
    }
    for version in [2, u16::MAX] {
        let mut left = Left::new(&victim);
        left.put_u16(VERSION, version);
        let taken = left.vmm.recover(&left.device, &[0], left.region.clone());
        assert!(taken.is_err(), "version {version}");
    }
    victim.assert_serves();
}

#[test]
fn a_region_cut_short_while_it_is_used_harms_nobody() {
    let host = Host::new(1);
    let victim = served(&host);
    for keep in [0, 16] {
        let mut guest = Guest::start(&victim, 1);
        guest.write(0, 0, &[7; 512]);
        guest.vmm.inflight().unwrap().file.set_len(keep).unwrap();
        for _ in 0..3 {
            assert_eq!(guest.read(0, 0, 512), [7; 512]);
        }
        // Handed over again it is no region any more.
        let bases = guest.vmm.stop().unwrap();
        let region = guest.vmm.inflight().unwrap().clone();
        assert!(guest.vmm.recover(&guest.device, &bases, region).is_err());
        drop(guest);
        victim.assert_serves();
    }
}
