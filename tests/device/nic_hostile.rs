//! Guests whose NICs break the rules. Each loses its own frames or its own queue, and its own counters
//! tell; two neighbours on the same switch talk before, meanwhile and after.

use ferry_bench::frontend::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, GuestDevice, GuestMemory};
use ferry_dataplane::net::header::{
    FLAG_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, Header,
};
use ferry_vhost::net::config::feature;

use crate::nic_rig::{HEADER, Kind, Lan, Nic, NicGuest, REST, RING, features, frame, plain};
use crate::rig::{MIB, PATIENCE, eventually, writable};

/// Buffers that a device may have looked at before their turn, and a few more. What a guest does to those
/// is not seen.
const LOOKED_AT: u16 = 20;

/// The attacked NIC, and two that must not notice.
struct Street {
    attacker: Option<NicGuest>,
    near_guest: NicGuest,
    far_guest: NicGuest,
    victim: Nic,
    near: Nic,
    far: Nic,
    seed: u8,
    _lan: Lan,
}

impl Street {
    fn new() -> Street {
        Street::with(offloads())
    }

    fn with(features: u64) -> Street {
        let lan = Lan::new();
        let [victim, near, far] = [1, 2, 3].map(|at| lan.nic(at, Kind::default()));
        let mut street = Street {
            attacker: Some(victim.guest_with(1, features)),
            near_guest: near.guest_with(1, plain() | offloads() & !feature::CTRL_VQ),
            far_guest: far.guest_with(1, plain()),
            victim,
            near,
            far,
            seed: 0,
            _lan: lan,
        };
        // The switch knows who is where, and has nothing to flood.
        street.teach();
        street
    }

    fn teach(&mut self) {
        let [victim, near, far] = [&self.victim, &self.near, &self.far].map(|nic| nic.mac);
        self.guest().send(&frame(near, victim, 0));
        self.near_guest.send(&frame(far, near, 0));
        self.far_guest.send(&frame(victim, far, 0));
        self.drain();
        self.attacker.as_mut().unwrap().drain(&self.victim);
    }

    /// The guest of the attacked NIC.
    fn guest(&mut self) -> &mut NicGuest {
        self.attacker.as_mut().unwrap()
    }

    /// The head that a frame for the attacked guest goes to, after those of `reach_head`.
    fn next_head(&mut self) -> u16 {
        (self.guest().rings[0].used + LOOKED_AT) % (RING / 2)
    }

    /// Frames that come before.
    fn reach_head(&mut self) {
        let frame = frame(self.victim.mac, self.near.mac, 0);
        for _ in 0..LOOKED_AT {
            self.near_guest.send(&frame);
            self.guest().assert_receives(&frame);
        }
    }

    /// Forgets what the neighbours have been sent.
    fn drain(&mut self) {
        self.near_guest.drain(&self.near);
        self.far_guest.drain(&self.far);
    }

    /// The neighbours talk, hear nothing else, and have done nothing wrong.
    #[track_caller]
    fn assert_unharmed(&mut self) {
        self.seed += 1;
        let frame = frame(self.far.mac, self.near.mac, self.seed);
        self.near_guest.send(&frame);
        self.far_guest.assert_receives(&frame);
        let back = crate::nic_rig::frame(self.near.mac, self.far.mac, self.seed);
        self.far_guest.send(&back);
        self.near_guest.assert_receives(&back);
        for nic in [&self.near, &self.far] {
            let totals = nic.totals();
            assert_eq!(nic.errors(), 0);
            assert_eq!(totals.no_buffers + totals.capture_lost + totals.no_link, 0);
        }
    }

    /// The attacked NIC serves whoever comes next, too.
    #[track_caller]
    fn assert_recovers(&mut self) {
        self.assert_unharmed();
        // One front-end at a time.
        self.attacker = None;
        self.attacker = Some(self.victim.guest_with(1, plain()));
        self.assert_sends();
        self.assert_unharmed();
    }

    /// A sound frame of the attacked guest's arrives, and one arrives at it.
    #[track_caller]
    fn assert_sends(&mut self) {
        let errors = self.victim.errors();
        let frame = frame(self.near.mac, self.victim.mac, 0xee);
        self.guest().send(&frame);
        self.near_guest.assert_receives(&frame);
        let back = crate::nic_rig::frame(self.victim.mac, self.near.mac, 0xdd);
        self.near_guest.send(&back);
        self.guest().assert_receives(&back);
        assert_eq!(self.victim.errors(), errors);
    }

    /// Sends bytes, the header among them, that go nowhere and are counted.
    #[track_caller]
    fn refused(&mut self, bytes: &[u8], what: &str) {
        let (errors, heard) = (self.victim.errors(), self.near.totals().rx_frames);
        self.guest().send_cut(0, bytes, &[]);
        assert_eq!(self.victim.errors(), errors + 1, "{what}");
        assert_eq!(self.near.totals().rx_frames, heard, "{what}");
    }

    /// A chain on the ring to send by that is no frame: it comes back, and is counted.
    #[track_caller]
    fn given_back(&mut self, descs: &[Desc]) {
        let errors = self.victim.errors();
        let ring = &mut self.guest().rings[1];
        for (at, desc) in (0u16..).zip(descs) {
            ring.ring.write_desc(at, *desc);
        }
        ring.offer(0);
        assert_eq!(ring.next_used(PATIENCE), Some((0, 0)), "{descs:?}");
        assert_eq!(self.victim.errors(), errors + 1, "{descs:?}");
    }

    /// Waits until the attacked NIC counts a queue that broke, and no other mistake.
    #[track_caller]
    fn assert_breaks(&mut self, what: &str) {
        eventually(what, || self.victim.totals().broken_queues == 1);
        assert_eq!(self.victim.errors(), 1, "{what}");
        self.assert_recovers();
    }
}

/// With all that may be left undone.
fn offloads() -> u64 {
    use feature::{
        CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6,
        HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO, HOST_USO,
    };
    let sends = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO;
    let takes = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO;
    features() | sends | takes | GUEST_USO4 | GUEST_USO6
}

/// A long segment of TCP over IPv4.
fn tcp(to: [u8; 6], from: [u8; 6], payload: usize) -> Vec<u8> {
    let mut bytes = [&to[..], &from[..], &[8, 0]].concat();
    let total = u16::try_from(40 + payload).unwrap().to_be_bytes();
    bytes.extend([0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([
        0xc0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 2, 0, 0, 0, 0, 0,
    ]);
    bytes.resize(54 + payload, 7);
    bytes
}

/// The header that goes with it.
fn sound() -> Header {
    Header {
        flags: FLAG_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    }
}

fn with(header: Header, frame: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], frame].concat()
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
fn headers_that_lie_are_counted_and_go_nowhere() {
    let mut street = Street::new();
    let long = tcp(street.near.mac, street.victim.mac, 4000);
    street.guest().send_cut(0, &with(sound(), &long), &[]);
    let arrived = street.near_guest.receive(PATIENCE).expect("it is sound");
    assert_eq!(arrived.len(), long.len());
    assert_eq!(street.victim.errors(), 0);
    let h = sound();
    let lies = [
        ("no size", Header { gso_size: 0, ..h }),
        ("one byte each", Header { gso_size: 1, ..h }),
        ("headers beyond the frame", Header { hdr_len: 4055, ..h }),
        (
            "headers far beyond it",
            Header {
                hdr_len: u16::MAX,
                ..h
            },
        ),
        (
            "a sum from beyond the frame",
            Header {
                csum_start: 4054,
                ..h
            },
        ),
        (
            "a sum from far beyond it",
            Header {
                csum_start: u16::MAX,
                ..h
            },
        ),
        (
            "a sum to beyond it",
            Header {
                csum_offset: 4019,
                ..h
            },
        ),
        (
            "a sum to far beyond it",
            Header {
                csum_offset: u16::MAX,
                ..h
            },
        ),
        ("a sum over the addresses", Header { csum_start: 0, ..h }),
        (
            "a sum over the IP header",
            Header {
                csum_start: 20,
                ..h
            },
        ),
        (
            "a sum elsewhere in TCP",
            Header {
                csum_offset: 4,
                ..h
            },
        ),
        (
            "IPv6",
            Header {
                gso_type: GSO_TCPV6,
                ..h
            },
        ),
        (
            "UDP",
            Header {
                gso_type: GSO_UDP,
                ..h
            },
        ),
        (
            "UDP segments",
            Header {
                gso_type: GSO_UDP_L4,
                ..h
            },
        ),
        (
            "UDP with ECN",
            Header {
                gso_type: GSO_UDP | GSO_ECN,
                ..h
            },
        ),
        (
            "ECN of nothing",
            Header {
                gso_type: GSO_ECN,
                ..h
            },
        ),
        ("a type of no name", Header { gso_type: 2, ..h }),
        (
            "another",
            Header {
                gso_type: 0x7f,
                ..h
            },
        ),
        (
            "the last",
            Header {
                gso_type: u8::MAX,
                ..h
            },
        ),
        ("no sum to do", Header { flags: 0, ..h }),
    ];
    for (what, header) in lies {
        street.refused(&with(header, &long), what);
    }
    // A checksum alone, of a frame that is not to be cut.
    let short = tcp(street.near.mac, street.victim.mac, 1000);
    let sum = Header {
        gso_type: 0,
        gso_size: 0,
        ..h
    };
    street.guest().send_cut(0, &with(sum, &short), &[]);
    assert!(street.near_guest.receive(PATIENCE).is_some(), "it is sound");
    for (csum_start, csum_offset) in [
        (0, 16),
        (33, 16),
        (34, 1019),
        (34, u16::MAX),
        (1053, 0),
        (1054, 0),
        (u16::MAX, 0),
        (u16::MAX, u16::MAX),
    ] {
        let lie = Header {
            csum_start,
            csum_offset,
            ..sum
        };
        street.refused(&with(lie, &short), &format!("{csum_start} {csum_offset}"));
    }
    // What the headers of the frame itself say.
    for (at, byte, _) in [
        (12, 0x86, "no IPv4"),
        (14, 0x65, "version 6"),
        (14, 0x4f, "long"),
        (14, 0x41, "short"),
        (23, 17, "no TCP"),
        (46, 0x10, "short TCP"),
        (46, 0xf0, "long TCP"),
        (20, 0x20, "a fragment"),
    ] {
        let mut frame = long.clone();
        frame[at] = byte;
        // Some are merely odd; they are passed on or not, and nobody comes to harm.
        street.guest().send_cut(0, &with(sound(), &frame), &[]);
        street.drain();
        street.assert_unharmed();
    }
    // Too short for what the header says.
    for len in 14..54 {
        street.refused(&with(sound(), &long[..len]), &format!("{len} bytes"));
    }
    street.assert_sends();
    street.assert_recovers();
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let mut street = Street::with(features() | feature::CSUM);
    let long = tcp(street.near.mac, street.victim.mac, 1000);
    street.refused(&with(sound(), &long), "segments");
    street.assert_sends();
    street.assert_recovers();
}

/// A device that took on no offload does not look at what a header says (virtio 1.2, section 5.1.6.2.2), and
/// nobody else is told it.
#[test]
fn where_nothing_was_negotiated_a_header_says_nothing() {
    let mut street = Street::with(features());
    let long = tcp(street.near.mac, street.victim.mac, 1000);
    let sum = Header {
        gso_type: 0,
        gso_size: 0,
        ..sound()
    };
    for header in [sound(), sum] {
        street.guest().send_cut(0, &with(header, &long), &[]);
        street.near_guest.assert_receives(&long);
    }
    street.assert_sends();
    street.assert_recovers();
}

#[test]
fn runts_and_giants_are_counted_and_go_nowhere() {
    let mut street = Street::new();
    let header = [0; HEADER as usize];
    let whole = frame(street.near.mac, street.victim.mac, 1);
    for len in 0..HEADER as usize {
        street.refused(&header[..len], "not so much as a header");
    }
    for len in 0..14 {
        street.refused(&[&header, &whole[..len]].concat(), "a runt");
    }
    // A tag, and nothing behind it.
    let tagged = [&whole[..12], &[0x81, 0, 0, 7]].concat();
    street.refused(&[&header, &tagged[..]].concat(), "a tag without an end");
    let giant = |len: usize| {
        let mut giant = [&header[..], &whole].concat();
        giant.resize(HEADER as usize + len, 9);
        giant
    };
    for len in [1519, 2000, 9014, 65_535, 65_550, 65_551, 65_600, 200_000] {
        street.refused(&giant(len), "a giant");
    }
    assert_eq!(street.victim.totals().too_large, 8);
    street.guest().send_cut(0, &giant(1518), &[]);
    assert_eq!(
        street.near_guest.receive(PATIENCE).map(|it| it.len()),
        Some(1518)
    );
    street.assert_sends();
    street.assert_recovers();
}

/// Any header before a sound frame: it is sent or refused, once, and nothing else happens.
#[test]
fn headers_of_noise_are_sent_or_refused() {
    let mut street = Street::new();
    let long = tcp(street.near.mac, street.victim.mac, 1000);
    let before = street.victim.totals().tx_frames;
    let mut random = fastrand::Rng::with_seed(5);
    for count in 1..=400u64 {
        let mut header: [u8; 12] = std::array::from_fn(|_| random.u8(..));
        if count % 2 == 0 {
            // Nearly sound: one byte of it is not.
            let at = random.usize(..12);
            let byte = header[at];
            header = sound().to_bytes();
            header[at] = byte;
        }
        street
            .guest()
            .send_cut(0, &[&header, &long[..]].concat(), &[]);
        let totals = street.victim.totals();
        assert_eq!(
            totals.tx_frames - before + street.victim.errors(),
            count,
            "{header:x?}"
        );
        street.drain();
    }
    street.assert_recovers();
}

#[test]
fn frames_are_read_however_they_are_cut() {
    let mut street = Street::new();
    let whole = frame(street.near.mac, street.victim.mac, 1);
    let bytes = [&[0; HEADER as usize][..], &whole].concat();
    for at in 1..bytes.len() {
        street.guest().send_cut(0, &bytes, &[at]);
        street.near_guest.assert_receives(&whole);
    }
    // Each byte of the header by itself, and one buffer of nothing.
    let every: Vec<usize> = (1..=HEADER as usize).collect();
    street.guest().send_cut(0, &bytes, &every);
    street.near_guest.assert_receives(&whole);
    street.guest().send_cut(0, &bytes, &[0, 12, 12]);
    street.near_guest.assert_receives(&whole);
    assert_eq!(street.victim.errors(), 0);
    // The same with the header of a long one.
    let long = tcp(street.near.mac, street.victim.mac, 2000);
    let bytes = with(sound(), &long);
    for at in 1..HEADER as usize + 60 {
        street.guest().send_cut(0, &bytes, &[at]);
        let arrived = street.near_guest.receive(PATIENCE);
        assert_eq!(arrived.map(|it| it.len()), Some(long.len()), "cut at {at}");
    }
    street.assert_recovers();
}

/// Buffers to receive into, cut at every byte of the header and beyond.
#[test]
fn frames_are_written_however_the_buffers_are_cut() {
    for features in [features(), features() & !feature::MRG_RXBUF] {
        let mut street = Street::with(features);
        let memory = GuestMemory::new(8 * MIB).unwrap();
        let device = GuestDevice::new(&memory, 3, RING).unwrap();
        let half = RING / 2;
        street.attacker = None;
        let mut guest = NicGuest::connected(&street.victim, &device, features);
        for head in 0..half {
            let (at, first) = (guest.area(0) + u64::from(head) * 4096, u32::from(head) + 1);
            let ring = &guest.rings[0].ring;
            let flags = DESC_NEXT | DESC_WRITE;
            ring.write_desc(head, desc(at, first, flags, half + head));
            let rest = writable(at + u64::from(first), 4096 - first);
            ring.write_desc(half + head, rest);
        }
        guest.vmm.start(&device).unwrap();
        street.attacker = Some(guest);
        let sent = frame(street.victim.mac, street.near.mac, 3);
        for at in 0..half {
            street.near_guest.send(&sent);
            let arrived = street.guest().receive_on(0, PATIENCE).expect("it arrives");
            assert_eq!(arrived[..10], [0; 10], "cut at {}", at + 1);
            assert_eq!(arrived[12..], sent, "cut at {}", at + 1);
        }
        assert_eq!(street.victim.errors(), 0);
        street.assert_recovers();
    }
}

#[test]
fn chains_that_break_the_rules_are_given_back() {
    let mut street = Street::new();
    let at = street.guest().area(1);
    let whole = frame(street.near.mac, street.victim.mac, 1);
    let bytes = [&[0; HEADER as usize][..], &whole].concat();
    street.guest().memory.write(at, &bytes).unwrap();
    let len = bytes.len() as u32;
    let end = street.guest().memory.end();
    // Loops, ways out of the table, and a chain as long as can be.
    street.given_back(&[desc(at, len, DESC_NEXT, 0)]);
    street.given_back(&[desc(at, 12, DESC_NEXT, 1), desc(at + 12, 64, DESC_NEXT, 0)]);
    let ring: Vec<Desc> = (0..RING)
        .map(|it| desc(at, 1, DESC_NEXT, (it + 1) % RING))
        .collect();
    street.given_back(&ring);
    for next in [RING, RING + 1, 32767, u16::MAX] {
        street.given_back(&[desc(at, len, DESC_NEXT, next)]);
    }
    // Nothing to read, or after what is to be written.
    street.given_back(&[desc(at, len, DESC_WRITE, 0)]);
    street.given_back(&[desc(at, 12, DESC_WRITE | DESC_NEXT, 1), desc(at, len, 0, 0)]);
    // Outside the guest's memory, the header or what is behind it.
    for (addr, len) in [
        (0, 76),
        (end, 76),
        (end - 40, 76),
        (1 << 50, 76),
        (u64::MAX - 75, 76),
        (u64::MAX - 10, 76),
        (u64::MAX, 76),
        (at, u32::MAX),
    ] {
        street.given_back(&[desc(addr, len, 0, 0)]);
        street.given_back(&[desc(at, 12, DESC_NEXT, 1), desc(addr, len, 0, 0)]);
    }
    // Tables that are none.
    for (addr, len) in [
        (at, 0),
        (at, 15),
        (at, 17),
        (end, 32),
        (u64::MAX - 31, 32),
        (0, 32),
    ] {
        street.given_back(&[desc(addr, len, DESC_INDIRECT, 0)]);
    }
    let table = at + 8192;
    let own = desc(table, 32, DESC_INDIRECT, 0).to_bytes();
    street
        .guest()
        .memory
        .write(table, &[own, own].concat())
        .unwrap();
    street.given_back(&[desc(table, 32, DESC_INDIRECT, 0)]);
    let round = desc(at, 1, DESC_NEXT, 0).to_bytes();
    street
        .guest()
        .memory
        .write(table, &[round, round].concat())
        .unwrap();
    street.given_back(&[desc(table, 32, DESC_INDIRECT, 0)]);
    assert_eq!(street.victim.totals().malformed, street.victim.errors());
    street.assert_sends();
    street.assert_recovers();
}

/// Of the ring to receive by, and of the one to send by.
#[test]
fn indexes_that_jump_break_their_queue_only() {
    for ring in [0, 1] {
        for jump in [RING + 1, 1000, 32768, u16::MAX - RING] {
            let mut street = Street::new();
            street.assert_sends();
            let raw = &mut street.guest().rings[ring];
            raw.avail = raw.avail.wrapping_add(jump);
            raw.ring.publish(raw.avail);
            raw.kick();
            // A queue to receive by is looked at when something is to be received.
            let frame = frame(street.victim.mac, street.near.mac, 1);
            street.near_guest.send(&frame);
            street.assert_breaks(&format!("ring {ring}, jump {jump}"));
        }
    }
}

#[test]
fn heads_outside_the_table_break_their_queue_only() {
    for ring in [0, 1] {
        for head in [RING, 4096, u16::MAX] {
            let mut street = Street::new();
            let raw = &mut street.guest().rings[ring];
            if ring == 0 {
                raw.ring.set_avail(raw.used.wrapping_add(LOOKED_AT), head);
                street.reach_head();
            } else {
                raw.offer(head);
            }
            let frame = frame(street.victim.mac, street.near.mac, 1);
            street.near_guest.send(&frame);
            street.assert_breaks(&format!("ring {ring}, head {head}"));
        }
    }
}

#[test]
fn buffers_to_receive_into_that_are_none_break_their_queue_only() {
    let end = 1u64 << 50;
    let bad = [
        ("too small for a header", desc(0, 11, DESC_WRITE, 0)),
        ("empty", desc(0, 0, DESC_WRITE, 0)),
        ("not to be written", desc(0, 4096, 0, 0)),
        ("a loop", desc(0, 4096, DESC_WRITE | DESC_NEXT, 0)),
        (
            "out of the table",
            desc(0, 4096, DESC_WRITE | DESC_NEXT, RING),
        ),
        ("outside of memory", desc(end, 4096, DESC_WRITE, 0)),
        (
            "at the end of all",
            desc(u64::MAX - 4095, 4096, DESC_WRITE, 0),
        ),
        ("longer than memory", desc(0, u32::MAX, DESC_WRITE, 0)),
        ("no table", desc(0, 17, DESC_INDIRECT, 0)),
    ];
    for (what, bad) in bad {
        let mut street = Street::new();
        let place = street.guest().area(0);
        let head = street.next_head();
        let bad = Desc {
            addr: if bad.addr == 0 { place } else { bad.addr },
            next: if bad.next == 0 { head } else { bad.next },
            ..bad
        };
        street.guest().rings[0].ring.write_desc(head, bad);
        street.reach_head();
        let frame = frame(street.victim.mac, street.near.mac, 1);
        street.near_guest.send(&frame);
        street.assert_breaks(what);
    }
}

/// A frame that does not fit what its guest gives is lost, and nothing of it is written.
#[test]
fn frames_larger_than_the_buffers_are_counted() {
    let mut street = Street::with(features() & !feature::MRG_RXBUF);
    let (place, head) = (street.guest().area(0), street.next_head());
    let small = writable(place, 40);
    street.guest().rings[0].ring.write_desc(head, small);
    street.reach_head();
    let sent = frame(street.victim.mac, street.near.mac, 1);
    street.near_guest.send(&sent);
    assert!(street.guest().receive(REST).is_none());
    assert_eq!(
        (street.victim.totals().too_large, street.victim.errors()),
        (1, 1)
    );
    assert_eq!(street.near.errors(), 0);
    street.assert_recovers();
    // With buffers that may be merged it takes several.
    let mut street = Street::with(features());
    let (place, first) = (street.guest().area(0), street.next_head());
    for head in first..first + 4 {
        let at = place + u64::from(head) * 4096;
        street.guest().rings[0]
            .ring
            .write_desc(head, writable(at, 20));
    }
    street.reach_head();
    street.near_guest.send(&sent);
    let parts: Vec<Vec<u8>> = (0..4)
        .map(|_| street.guest().receive_on(0, PATIENCE).expect("four parts"))
        .collect();
    assert_eq!(parts[0][10..12], [4, 0], "as the header says");
    assert_eq!(parts.concat()[12..], sent);
    assert_eq!(street.victim.errors(), 0);
    street.assert_recovers();
}
