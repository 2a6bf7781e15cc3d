//! Guests and front-ends that break the rules. Each loses its own requests or its own ring; a second
//! device of the same process is served before, meanwhile and after.

use std::time::Duration;

use ferry_bench::frontend::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, GuestDevice, GuestMemory, Vmm, VmmOptions,
};
use ferry_dataplane::disk::Service;

use crate::rig::{
    Guest, Host, MIB, PATIENCE, RawRing, Served, assert_clean, header, load, memory_disk, options,
    plain_features, plan, readable, slow, writable,
};

const REST: Duration = Duration::from_millis(60);
const IN: u32 = 0;
const OUT: u32 = 1;

/// A device that is attacked and one that must not notice.
struct Pair {
    victim: Served,
    bystander: Guest,
    _other: Served,
    count: u8,
    host: Host,
}

/// An attacker's ring, with a sound header, status and data area laid out.
struct Attack {
    _vmm: Vmm,
    raw: RawRing,
    head: u64,
    status: u64,
    data: u64,
}

impl Pair {
    fn new() -> Pair {
        let host = Host::new(1);
        let victim = host.serve_as("victim", &memory_disk(MIB), 1, Service::Open);
        let other = host.serve_as("other", &memory_disk(MIB), 1, Service::Open);
        let bystander = Guest::start(&other, 1);
        Pair {
            host,
            victim,
            bystander,
            _other: other,
            count: 0,
        }
    }

    fn attack(&self) -> Attack {
        self.attack_with(options(), 16)
    }

    fn attack_with(&self, options: VmmOptions, size: u16) -> Attack {
        let memory = GuestMemory::new(4 * MIB).unwrap();
        Attack::on(&self.victim, &memory, options, size)
    }

    /// The other device serves, on the same worker.
    fn assert_unharmed(&mut self) {
        self.count += 1;
        self.bystander.write(0, 8, &[self.count; 512]);
        assert_eq!(self.bystander.read(0, 8, 512), [self.count; 512]);
    }

    /// The attacked device serves whoever comes next, too.
    fn assert_recovers(&mut self, attack: Attack) {
        self.assert_unharmed();
        drop(attack);
        self.victim.assert_serves();
        self.assert_unharmed();
    }
}

impl Attack {
    fn on(served: &Served, memory: &GuestMemory, options: VmmOptions, size: u16) -> Attack {
        let device = GuestDevice::new(memory, 1, size).unwrap();
        let mut vmm = Vmm::connect(&served.socket, options).unwrap();
        vmm.start(&device).unwrap();
        let head = memory.alloc(16, 16).unwrap();
        memory.write(head, &header(OUT, 0)).unwrap();
        let status = memory.alloc(1, 1).unwrap();
        memory.write(status, &[0xff]).unwrap();
        Attack {
            _vmm: vmm,
            raw: RawRing::new(&device, 0),
            head,
            status,
            data: memory.alloc(65536, 4096).unwrap(),
        }
    }

    /// A sound request, to see whether the ring is served still.
    fn is_served(&mut self) -> bool {
        self.raw.memory.write(self.head, &header(OUT, 0)).unwrap();
        self.raw.chain(&[
            readable(self.head, 16),
            readable(self.data, 512),
            writable(self.status, 1),
        ]);
        self.raw.offer(0);
        self.raw.next_used(Duration::from_millis(300)).is_some()
    }

    fn assert_served(&mut self) {
        self.raw.memory.write(self.status, &[0xff]).unwrap();
        assert!(self.is_served());
        assert_eq!(self.raw.byte(self.status), 0);
    }

    fn status(&self) -> u8 {
        self.raw.byte(self.status)
    }

    /// A chain so broken that it has no place for a status: given back with nothing written.
    fn assert_given_back(&mut self, descs: &[Desc]) {
        for (at, desc) in (0u16..).zip(descs) {
            self.raw.ring.write_desc(at, *desc);
        }
        self.raw.offer(0);
        assert_eq!(self.raw.next_used(PATIENCE), Some((0, 0)), "{descs:?}");
        self.assert_served();
    }
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}

#[test]
fn loops_and_chains_without_an_end_are_given_back() {
    let mut pair = Pair::new();
    let mut attack = pair.attack();
    let (head, status) = (attack.head, attack.status);
    attack.assert_given_back(&[desc(head, 16, DESC_NEXT, 0)]);
    attack.assert_given_back(&[desc(head, 16, DESC_NEXT, 1), desc(head, 1, DESC_NEXT, 0)]);
    let ring: Vec<Desc> = (0..16)
        .map(|at| desc(head, 0, DESC_NEXT, (at + 1) % 16))
        .collect();
    attack.assert_given_back(&ring);
    let w = DESC_WRITE | DESC_NEXT;
    attack.assert_given_back(&[desc(head, 16, DESC_NEXT, 1), desc(status, 1, w, 1)]);
    pair.assert_recovers(attack);
}

#[test]
fn descriptors_that_point_out_of_the_table_are_given_back() {
    let mut pair = Pair::new();
    let mut attack = pair.attack();
    let (head, status) = (attack.head, attack.status);
    for next in [16, 17, 255, 256, 32767, u16::MAX] {
        attack.assert_given_back(&[desc(head, 16, DESC_NEXT, next)]);
    }
    // The device reads first and writes then.
    let w = DESC_WRITE | DESC_NEXT;
    attack.assert_given_back(&[desc(status, 1, w, 1), desc(head, 16, 0, 0)]);
    // Nothing to write a status into.
    attack.assert_given_back(&[desc(head, 16, 0, 0)]);
    attack.assert_given_back(&[desc(head, 16, DESC_NEXT, 1), desc(status, 0, DESC_WRITE, 0)]);
    pair.assert_recovers(attack);
}

#[test]
fn tables_that_break_the_rules_are_given_back() {
    let mut pair = Pair::new();
    let mut attack = pair.attack();
    let (head, status, table) = (attack.head, attack.status, attack.data + 4096);
    let put = |attack: &Attack, at: u64, desc: Desc| {
        attack
            .raw
            .memory
            .write(table + at * 16, &desc.to_bytes())
            .unwrap();
    };
    put(&attack, 0, desc(head, 16, DESC_NEXT, 1));
    put(&attack, 1, desc(attack.data, 512, DESC_NEXT, 2));
    put(&attack, 2, desc(status, 1, DESC_WRITE, 0));
    attack
        .raw
        .ring
        .write_desc(0, desc(table, 48, DESC_INDIRECT, 0));
    attack.raw.offer(0);
    assert_eq!(
        attack.raw.next_used(PATIENCE),
        Some((0, 1)),
        "a sound table"
    );
    for len in [0, 1, 15, 17, 47, 32, 16, u32::MAX] {
        attack.assert_given_back(&[desc(table, len, DESC_INDIRECT, 0)]);
    }
    for at in [0, u64::MAX, u64::MAX - 47, u64::MAX - 15, 1 << 50] {
        attack.assert_given_back(&[desc(at, 48, DESC_INDIRECT, 0)]);
    }
    let both = DESC_INDIRECT | DESC_NEXT;
    attack.assert_given_back(&[desc(table, 48, both, 1), desc(status, 1, DESC_WRITE, 0)]);
    // A sound table in a table.
    put(&attack, 1, desc(table + 64, 32, DESC_INDIRECT, 0));
    put(&attack, 4, desc(attack.data, 512, DESC_NEXT, 1));
    put(&attack, 5, desc(status, 1, DESC_WRITE, 0));
    attack.assert_given_back(&[desc(table, 48, DESC_INDIRECT, 0)]);
    // A table in itself, a loop in one, and the way out of one.
    put(&attack, 1, desc(table, 48, DESC_INDIRECT, 0));
    attack.assert_given_back(&[desc(table, 48, DESC_INDIRECT, 0)]);
    put(&attack, 1, desc(head, 1, DESC_NEXT, 0));
    attack.assert_given_back(&[desc(table, 48, DESC_INDIRECT, 0)]);
    put(&attack, 1, desc(head, 1, DESC_NEXT, 3));
    attack.assert_given_back(&[desc(table, 48, DESC_INDIRECT, 0)]);
    pair.assert_recovers(attack);
}

#[test]
fn a_table_with_more_buffers_than_a_request_may_have_is_given_back() {
    let mut pair = Pair::new();
    let mut attack = pair.attack();
    let entries = 60_000u16;
    let table = attack
        .raw
        .memory
        .alloc(u64::from(entries) * 16, 16)
        .unwrap();
    for at in 0..entries {
        let next = desc(attack.head, 0, DESC_NEXT, at + 1).to_bytes();
        attack
            .raw
            .memory
            .write(table + u64::from(at) * 16, &next)
            .unwrap();
    }
    let len = u32::from(entries) * 16;
    attack.assert_given_back(&[desc(table, len, DESC_INDIRECT, 0)]);
    pair.assert_recovers(attack);
}

#[test]
fn an_available_index_that_jumps_breaks_that_ring_only() {
    for jump in [17u16, 100, 32768, u16::MAX] {
        let mut pair = Pair::new();
        let mut attack = pair.attack();
        attack.assert_served();
        attack.raw.avail = attack.raw.avail.wrapping_add(jump);
        attack.raw.ring.publish(attack.raw.avail);
        attack.raw.kick();
        std::thread::sleep(REST);
        assert!(
            attack.raw.ring.used_index() == attack.raw.used,
            "nothing is done for it"
        );
        assert!(!attack.is_served());
        pair.assert_recovers(attack);
    }
}

#[test]
fn a_head_outside_the_table_breaks_that_ring_only() {
    for head in [16u16, 17, 4096, u16::MAX] {
        let mut pair = Pair::new();
        let mut attack = pair.attack();
        attack.raw.offer(head);
        assert_eq!(attack.raw.next_used(REST), None);
        assert!(!attack.is_served());
        pair.assert_recovers(attack);
    }
}

#[test]
fn a_head_in_flight_may_not_be_offered_again() {
    let mut pair = Pair::new();
    let slow_one = pair
        .host
        .serve_as("slow", &slow(memory_disk(MIB), 150), 1, Service::Open);
    let memory = GuestMemory::new(4 * MIB).unwrap();
    let mut attack = Attack::on(&slow_one, &memory, options(), 16);
    attack.raw.chain(&[
        readable(attack.head, 16),
        readable(attack.data, 512),
        writable(attack.status, 1),
    ]);
    attack.raw.ring.set_avail(0, 0);
    attack.raw.ring.set_avail(1, 0);
    attack.raw.ring.publish(2);
    attack.raw.kick();
    // The first is answered, the second never, nor anything after it.
    assert_eq!(attack.raw.next_used(PATIENCE), Some((0, 1)));
    assert_eq!(attack.raw.next_used(Duration::from_millis(300)), None);
    attack.raw.avail = 2;
    assert!(!attack.is_served());
    pair.assert_unharmed();
    drop(attack);
    slow_one.assert_serves();
    assert_eq!(slow_one.requests(), 3, "one of the two, and the check's");
}

#[test]
fn buffers_outside_guest_memory_end_their_request() {
    let mut pair = Pair::new();
    let mut attack = pair.attack();
    let (head, status, data) = (attack.head, attack.status, attack.data);
    let end = attack.raw.memory.end();
    let bad = [
        (0, 512),
        (end, 512),
        (end - 256, 512),
        (1 << 50, 512),
        (u64::MAX - 511, 512),
        (u64::MAX - 255, 512),
        (u64::MAX, 512),
        (data, u32::MAX - 511),
        (data, 1 << 31),
    ];
    for (addr, len) in bad {
        for kind in [IN, OUT] {
            attack.raw.memory.write(head, &header(kind, 0)).unwrap();
            attack.raw.memory.write(status, &[0xff]).unwrap();
            let buffer = if kind == IN {
                writable(addr, len)
            } else {
                readable(addr, len)
            };
            let written = attack
                .raw
                .ask(&[readable(head, 16), buffer, writable(status, 1)]);
            assert_eq!((attack.status(), written), (1, 1), "{addr:#x} {len}");
        }
        // A header there cannot be read, and a status not be written.
        attack.raw.memory.write(status, &[0xff]).unwrap();
        attack.raw.ask(&[readable(addr, len), writable(status, 1)]);
        assert_ne!(attack.status(), 0, "{addr:#x} {len}");
    }
    for addr in [0, end, 1 << 50, u64::MAX, u64::MAX - 1] {
        attack.assert_given_back(&[
            desc(head, 16, DESC_NEXT, 1),
            desc(data, 512, DESC_NEXT, 2),
            desc(addr, 1, DESC_WRITE, 0),
        ]);
    }
    attack.assert_given_back(&[
        desc(head, 16, DESC_NEXT, 1),
        desc(u64::MAX - 3, 16, DESC_WRITE, 0),
    ]);
    // Many buffers, each as long as can be: their sum is no length that counts.
    let mut chain = vec![readable(head, 16)];
    chain.extend((0..12).map(|_| writable(data, u32::MAX)));
    chain.push(writable(status, 1));
    attack.raw.memory.write(head, &header(IN, 0)).unwrap();
    attack.raw.ask(&chain);
    assert_eq!(attack.status(), 1);
    pair.assert_recovers(attack);
}

#[test]
fn a_buffer_may_span_regions_that_touch_but_not_a_gap() {
    let mut pair = Pair::new();
    let low = 16 * MIB;
    let shape = [
        (MIB, 4 * MIB),
        (low, MIB),
        (low + MIB, MIB),
        (low + 4 * MIB, MIB),
    ];
    let memory = GuestMemory::with_regions(&shape).unwrap();
    let mut attack = Attack::on(&pair.victim, &memory, options(), 16);
    let (head, status) = (attack.head, attack.status);
    let edge = low + MIB;
    // Both sides of the seam are different mappings, at odd distances from it.
    memory.write(edge - 100, &[1; 100]).unwrap();
    memory.write(edge, &[2; 412]).unwrap();
    attack.raw.ask(&[
        readable(head, 16),
        readable(edge - 100, 512),
        writable(status, 1),
    ]);
    assert_eq!(attack.status(), 0);
    let image = pair.victim.contents();
    assert!(image[..100].iter().all(|b| *b == 1) && image[100..512].iter().all(|b| *b == 2));
    memory.write(head, &header(IN, 0)).unwrap();
    memory.write(edge - 3, &[0; 3]).unwrap();
    memory.write(edge, &[0; 600]).unwrap();
    attack.raw.ask(&[
        readable(head, 16),
        writable(edge - 3, 512),
        writable(status, 1),
    ]);
    assert_eq!(attack.status(), 0);
    let mut back = [0; 509];
    memory.read(edge, &mut back).unwrap();
    assert_eq!(back[..], image[3..512]);
    // A header and a status over the seam.
    memory.write(edge - 8, &header(OUT, 9)[..8]).unwrap();
    memory.write(edge, &header(OUT, 9)[8..]).unwrap();
    attack.raw.ask(&[
        readable(edge - 8, 16),
        readable(attack.data, 512),
        writable(status, 1),
    ]);
    assert_eq!(attack.status(), 0);
    for start in [low + 2 * MIB - 1, low + 2 * MIB - 256, low + 4 * MIB - 256] {
        memory.write(status, &[0xff]).unwrap();
        memory.write(head, &header(IN, 0)).unwrap();
        attack.raw.ask(&[
            readable(head, 16),
            writable(start, 512),
            writable(status, 1),
        ]);
        assert_eq!(attack.status(), 1, "{start:#x}");
    }
    attack.assert_served();
    pair.assert_recovers(attack);
}

#[test]
fn plain_rings_break_as_harmlessly() {
    let plain = VmmOptions {
        features: plain_features(),
        ..options()
    };
    let mut pair = Pair::new();
    let mut attack = pair.attack_with(plain, 8);
    let (head, table) = (attack.head, attack.data);
    attack.assert_given_back(&[desc(table, 48, DESC_INDIRECT, 0)]);
    attack.assert_given_back(&[desc(head, 16, DESC_NEXT, 8)]);
    attack.raw.offer(8);
    assert!(!attack.is_served());
    pair.assert_recovers(attack);
}

/// Memory that is cut short while it is read and written.
#[test]
fn memory_cut_short_under_load_harms_only_its_own_device() {
    let host = Host::new(1);
    let sound = host.serve_as("sound", &host.image("sound.raw", 8 * MIB), 1, Service::Open);
    let guest = Guest::start(&sound, 1);
    let running = load(&guest, 16, false, &plan(8 * MIB, 21));
    for (name, backend) in [
        ("file", host.image("cut.raw", 8 * MIB)),
        ("memory", memory_disk(8 * MIB)),
    ] {
        let victim = host.serve_as(name, &backend, 1, Service::Open);
        for keep in [0, 4096, MIB, 6 * MIB] {
            let mut doomed = Guest::start(&victim, 1);
            let buffer = doomed.buffer(256 << 10);
            let odd = ferry_bench::frontend::Segment {
                addr: buffer.addr + 1,
                len: 64 << 10,
            };
            let parts = doomed.device.queues()[0].clone();
            for at in 0..8 {
                let op = [
                    ferry_bench::frontend::Op::Read,
                    ferry_bench::frontend::Op::Write,
                ];
                let data = if at % 3 == 0 { odd } else { buffer };
                doomed.queues[0]
                    .submit(op[at as usize % 2], at * 512, &[data])
                    .unwrap();
            }
            doomed.queues[0].commit().unwrap();
            doomed.memory.file(0).unwrap().set_len(keep).unwrap();
            for _ in 0..5 {
                parts.kick.write(1).unwrap();
                std::thread::sleep(Duration::from_millis(4));
            }
            // Its pages are gone for us as well: nothing of it is looked at any more.
            let _ = doomed.vmm.stop();
        }
        victim.assert_serves();
    }
    assert_clean(running);
}
