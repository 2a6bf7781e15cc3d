//! The control queue, for front-ends that have it served here; and the link.

use ferry_bench::frontend::{DESC_NEXT, DESC_WRITE, Desc};
use ferry_vhost::net::config::feature;

use crate::nic_rig::{Kind, Lan, Nic, NicGuest, REST, features, frame, plain, tagged, was_told};
use crate::rig::{PATIENCE, eventually, writable};

const RX: u8 = 0;
const MAC: u8 = 1;
const VLAN: u8 = 2;
const ANNOUNCE: u8 = 3;
const MQ: u8 = 4;

const OK: u8 = 0;
const ERR: u8 = 1;

const LINK_UP: u16 = 1;
const ANNOUNCED: u16 = 2;

const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 9];
const STRANGER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x77];
const BROADCAST: [u8; 6] = [0xff; 6];

/// A guest whose control queue is attacked or used, and one that sends to it.
struct Pair {
    guest: NicGuest,
    sender: NicGuest,
    nic: Nic,
    other: Nic,
    _lan: Lan,
}

impl Pair {
    fn new(kind: Kind) -> Pair {
        Pair::with(kind, features())
    }

    fn with(kind: Kind, features: u64) -> Pair {
        let lan = Lan::new();
        let any = Kind {
            any_source: true,
            ..kind
        };
        let (nic, other) = (lan.nic(1, kind), lan.nic(2, any));
        Pair {
            guest: nic.guest_with(kind.pairs, features),
            sender: other.guest_with(kind.pairs, plain() | features & feature::MQ),
            nic,
            other,
            _lan: lan,
        }
    }

    /// Which of these the guest receives, of a frame to each.
    fn passes(&mut self, to: &[[u8; 6]]) -> Vec<bool> {
        let from = self.other.mac;
        let sent: Vec<_> = to
            .iter()
            .zip(1..)
            .map(|(to, seed)| frame(*to, from, seed))
            .collect();
        self.arrive(&sent)
    }

    fn arrive(&mut self, sent: &[Vec<u8>]) -> Vec<bool> {
        sent.iter().for_each(|frame| self.sender.send(frame));
        let found = self.guest.drain(&self.nic);
        sent.iter().map(|frame| found.contains(frame)).collect()
    }
}

fn table(macs: &[[u8; 6]]) -> Vec<u8> {
    [&(macs.len() as u32).to_le_bytes()[..], &macs.concat()].concat()
}

#[test]
fn the_receive_modes_decide_what_comes() {
    let mut pair = Pair::new(Kind::default());
    let all = [pair.nic.mac, STRANGER, GROUP, BROADCAST];
    assert_eq!(pair.passes(&all), [true; 4], "before it is said");
    assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
    assert_eq!(pair.passes(&all), [true, false, false, true]);
    assert_eq!(pair.nic.totals().filtered, 2);
    let modes = [
        (1, [true, false, true, true]),
        (2, [true, true, false, true]),
        (3, [true, false, false, true]),
        (4, [false, false, false, true]),
        (5, [true, false, false, false]),
    ];
    for (mode, expected) in modes {
        assert_eq!(pair.guest.command(RX, mode, &[1]), OK);
        assert_eq!(pair.passes(&all), expected, "mode {mode}");
        assert_eq!(pair.guest.command(RX, mode, &[0]), OK);
    }
    assert_eq!(pair.guest.command(RX, 0, &[1]), OK);
    assert_eq!(pair.passes(&all), [true; 4]);
    assert_eq!(pair.nic.errors(), 0);
}

#[test]
fn the_tables_and_the_vlans_decide_what_comes() {
    let mut pair = Pair::new(Kind::default());
    assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
    let data = [table(&[STRANGER]), table(&[GROUP])].concat();
    assert_eq!(pair.guest.command(MAC, 0, &data), OK);
    let others = [0x52, 0x54, 0, 0, 0, 0x78];
    let groups = [1, 0, 0x5e, 0, 0, 8];
    let to = [STRANGER, GROUP, others, groups];
    assert_eq!(pair.passes(&to), [true, true, false, false]);
    // More than a table holds.
    let many = [table(&[STRANGER; 200]), table(&[])].concat();
    assert_eq!(pair.guest.command(MAC, 0, &many), OK);
    assert_eq!(pair.passes(&to), [true, false, true, false]);
    // The longest that is taken, and one that is longer.
    let most = |macs: usize| [table(&vec![STRANGER; macs]), table(&[])].concat();
    let longest = (65536 - 8) / 6;
    assert_eq!(pair.guest.command(MAC, 0, &most(longest)), OK);
    assert_eq!(pair.guest.command(MAC, 0, &most(longest + 1)), ERR);
    let (own, from) = (pair.nic.mac, pair.other.mac);
    let sent = [7, 8, 0].map(|vlan| tagged(own, from, vlan, 1));
    assert_eq!(pair.arrive(&sent), [false, false, true]);
    assert_eq!(pair.guest.command(VLAN, 0, &7u16.to_le_bytes()), OK);
    assert_eq!(pair.arrive(&sent), [true, false, true]);
    assert_eq!(pair.guest.command(VLAN, 1, &7u16.to_le_bytes()), OK);
    assert_eq!(pair.arrive(&sent), [false, false, true]);
    assert_eq!(pair.guest.command(VLAN, 0, &4096u16.to_le_bytes()), ERR);
    assert_eq!(pair.nic.errors(), 2);
}

#[test]
fn a_guest_gets_another_address_only_where_any_is_allowed() {
    for any_source in [false, true] {
        let kind = Kind {
            any_source,
            ..Kind::default()
        };
        let mut pair = Pair::new(kind);
        let own = pair.nic.mac;
        assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
        assert_eq!(pair.guest.command(MAC, 1, &own), OK, "its own");
        let answer = pair.guest.command(MAC, 1, &STRANGER);
        assert_eq!(answer, if any_source { OK } else { ERR });
        let now = if any_source { STRANGER } else { own };
        assert_eq!(pair.guest.config()[..6], now);
        assert_eq!(pair.passes(&[own, STRANGER]), [!any_source, any_source]);
        // Whatever it says, it does not get past the guard.
        pair.guest.send(&frame(pair.other.mac, STRANGER, 1));
        assert_eq!(pair.sender.receive(REST).is_some(), any_source);
        assert_eq!(pair.nic.totals().spoofed, u64::from(!any_source));
        for wrong in [[0; 6], GROUP] {
            assert_eq!(pair.guest.command(MAC, 1, &wrong), ERR);
        }
    }
}

#[test]
fn frames_come_by_the_pairs_that_are_in_use() {
    let kind = Kind {
        pairs: 3,
        ..Kind::default()
    };
    let mut pair = Pair::new(kind);
    // Sent by each of the sender's pairs; the guest's that they come by.
    let spread = |pair: &mut Pair| -> Vec<usize> {
        let frame = frame(pair.nic.mac, pair.other.mac, 1);
        let bytes = [&[0; 12][..], &frame].concat();
        let mut by = Vec::new();
        for from in 0..3 {
            pair.sender.send_cut(from, &bytes, &[]);
            let at = (0..3).find(|at| pair.guest.receive_on(*at, REST).is_some());
            by.push(at.expect("it arrives"));
        }
        by
    };
    assert_eq!(spread(&mut pair), [0, 0, 0], "until it is said");
    for (pairs, expected) in [(3u16, [0, 1, 2]), (2, [0, 1, 0]), (1, [0, 0, 0])] {
        assert_eq!(pair.guest.command(MQ, 0, &pairs.to_le_bytes()), OK);
        assert_eq!(spread(&mut pair), expected);
    }
    for wrong in [0u16, 4, u16::MAX] {
        assert_eq!(pair.guest.command(MQ, 0, &wrong.to_le_bytes()), ERR);
    }
    // A driver that knows of one pair alone has its control queue behind that.
    drop(pair.guest);
    let mut one = pair.nic.guest_with(1, features() & !feature::MQ);
    assert_eq!(one.command(RX, 1, &[1]), OK);
    assert_eq!(one.command(MQ, 0, &1u16.to_le_bytes()), ERR);
}

#[test]
fn an_announcement_is_asked_for_and_acknowledged() {
    let mut pair = Pair::new(Kind::default());
    let channel = pair.guest.listen();
    assert_eq!(pair.guest.status(), LINK_UP);
    assert_eq!(pair.guest.command(ANNOUNCE, 0, &[]), ERR, "nobody asked");
    assert!(pair.nic.device.announce());
    assert!(was_told(&channel));
    assert_eq!(pair.guest.status(), LINK_UP | ANNOUNCED);
    assert_eq!(pair.guest.command(ANNOUNCE, 0, &[]), OK);
    assert_eq!(pair.guest.status(), LINK_UP);
    // Its VMM keeps the control queue, as QEMU does, or it does not know how.
    assert!(!pair.other.device.announce());
    for without in [feature::CTRL_VQ, feature::GUEST_ANNOUNCE] {
        drop(pair.guest);
        pair.guest = pair.nic.guest_with(1, features() & !without);
        assert!(!pair.nic.device.announce());
        assert_eq!(pair.guest.status(), LINK_UP);
    }
}

#[test]
fn nothing_passes_a_link_that_is_down() {
    let mut pair = Pair::new(Kind::default());
    let channel = pair.guest.listen();
    let (to, from) = (pair.nic.mac, pair.other.mac);
    pair.nic.device.set_link(false).unwrap();
    assert!(was_told(&channel));
    assert_eq!(pair.guest.status(), 0);
    assert_eq!(pair.passes(&[to]), [false]);
    pair.guest.send(&frame(from, to, 1));
    assert!(pair.sender.receive(REST).is_none());
    assert_eq!(pair.nic.totals().no_link, 2);
    pair.nic.device.set_link(false).unwrap();
    assert!(!was_told(&channel), "nothing has changed");
    pair.nic.device.set_link(true).unwrap();
    assert!(was_told(&channel));
    assert_eq!(pair.passes(&[to]), [true]);
    pair.guest.send(&frame(from, to, 1));
    pair.sender.assert_receives(&frame(from, to, 1));
}

/// What is set holds over a pause, and ends with the driver.
#[test]
fn settings_outlive_a_pause_and_no_driver() {
    let mut pair = Pair::new(Kind::default());
    let to = [pair.nic.mac, STRANGER];
    assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
    let device = pair.guest.device.clone();
    let bases = pair.guest.vmm.stop().unwrap();
    pair.guest.vmm.start_at(&device, &bases).unwrap();
    assert_eq!(pair.passes(&to), [true, false]);
    assert_eq!(pair.guest.command(VLAN, 0, &7u16.to_le_bytes()), OK);
    // Another driver, of one front-end and of another.
    drop(pair.guest);
    eventually("it is gone", || pair.nic.device.attached() == Some(false));
    assert!(
        pair.nic.device.control_settings().is_some(),
        "for who moves it"
    );
    pair.guest = pair.nic.guest();
    assert_eq!(pair.passes(&to), [true, true]);
    assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
    drop(pair.guest);
    pair.guest = pair.nic.guest_with(1, plain());
    assert_eq!(pair.passes(&to), [true, true], "a VMM that keeps the queue");
}

/// What one NIC was told goes to another, as at a move.
#[test]
fn settings_go_from_one_nic_to_another() {
    let mut pair = Pair::new(Kind::default());
    assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
    let data = [table(&[STRANGER]), table(&[GROUP])].concat();
    assert_eq!(pair.guest.command(MAC, 0, &data), OK);
    assert_eq!(pair.guest.command(VLAN, 0, &7u16.to_le_bytes()), OK);
    assert!(pair.nic.device.announce());
    let device = pair.guest.device.clone();
    let bases = pair.guest.vmm.stop().unwrap();
    let (negotiated, settings) = pair.nic.device.control_settings().unwrap();
    drop(pair.guest);
    // The destination is the same NIC, whose front-end is another.
    let mut moved = NicGuest::connected(&pair.nic, &device, features());
    pair.nic
        .device
        .take_over_settings(negotiated, settings.clone())
        .unwrap();
    assert_eq!(
        pair.nic.device.control_settings(),
        Some((negotiated, settings.clone()))
    );
    moved.vmm.start_at(&device, &bases).unwrap();
    pair.guest = moved;
    assert_eq!(pair.guest.status(), LINK_UP | ANNOUNCED);
    let to = [pair.nic.mac, STRANGER, GROUP, [1, 0, 0, 0, 0, 1]];
    assert_eq!(pair.passes(&to), [true, true, true, false]);
    assert_eq!(pair.guest.command(ANNOUNCE, 0, &[]), OK);
    // What the NIC cannot be is refused.
    let mut wrong = settings.clone();
    wrong.mac = STRANGER;
    assert!(
        pair.nic
            .device
            .take_over_settings(negotiated, wrong)
            .is_err()
    );
    let mut wrong = settings;
    wrong.pairs = 2;
    assert!(
        pair.nic
            .device
            .take_over_settings(negotiated, wrong)
            .is_err()
    );
}

#[test]
fn commands_are_read_however_they_are_cut() {
    let mut pair = Pair::new(Kind::default());
    let data = [table(&[STRANGER]), table(&[GROUP])].concat();
    let command = [&[MAC, 0][..], &data].concat();
    for at in 0..=command.len() {
        assert_eq!(pair.guest.command_cut(&command, &[at]), OK, "cut at {at}");
    }
    let every: Vec<usize> = (1..command.len()).collect();
    assert_eq!(pair.guest.command_cut(&command, &every), OK);
    // Ended at every byte.
    for len in 0..command.len() {
        assert_eq!(
            pair.guest.command_cut(&command[..len], &[]),
            ERR,
            "{len} bytes"
        );
    }
    assert_eq!(pair.nic.errors(), command.len() as u64);
}

#[test]
fn commands_that_make_no_sense_change_nothing() {
    let mut pair = Pair::new(Kind::default());
    assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
    let before = pair.nic.device.control_settings();
    let mut count = 0;
    let mut refused = |pair: &mut Pair, class: u8, command: u8, data: &[u8]| {
        assert_eq!(
            pair.guest.command(class, command, data),
            ERR,
            "{class} {command} {data:x?}"
        );
        count += 1;
        assert_eq!(pair.nic.errors(), count);
    };
    for class in [0u8, 1, 2, 3, 4, 5, 6, 77, 255] {
        for command in [0u8, 1, 2, 3, 4, 5, 6, 77, 255] {
            refused(&mut pair, class, command, &[0xff; 3]);
            refused(&mut pair, class, command, &[0xff; 40]);
        }
    }
    refused(&mut pair, RX, 0, &[2]);
    refused(&mut pair, RX, 0, &[]);
    refused(&mut pair, MAC, 0, &[0xff; 8]);
    refused(&mut pair, MAC, 0, &[1, 0, 0, 0, 2, 2, 2, 2, 2, 2]);
    assert_eq!(pair.nic.device.control_settings(), before);
    let to = [pair.nic.mac, STRANGER];
    assert_eq!(pair.passes(&to), [true, false]);
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
fn chains_that_are_no_command_are_given_back() {
    let mut pair = Pair::new(Kind::default());
    let at = pair.guest.area(2);
    pair.guest.memory.write(at, &[RX, 0, 0]).unwrap();
    let answer = at + 4096;
    let w = DESC_WRITE;
    let end = pair.guest.memory.end();
    let chains: Vec<Vec<Desc>> = vec![
        // No place for an answer, or none in the guest's memory.
        vec![desc(at, 3, 0, 0)],
        vec![desc(at, 3, DESC_NEXT, 1), desc(answer, 0, w, 0)],
        vec![desc(at, 3, DESC_NEXT, 1), desc(end, 1, w, 0)],
        vec![desc(at, 3, DESC_NEXT, 1), desc(u64::MAX, 1, w, 0)],
        // Loops, and a way out of the table.
        vec![desc(at, 3, DESC_NEXT, 0)],
        vec![desc(at, 3, DESC_NEXT, 1), desc(answer, 1, w | DESC_NEXT, 1)],
        vec![desc(at, 3, DESC_NEXT, 64)],
        vec![desc(at, 3, DESC_NEXT, u16::MAX)],
        // The answer first.
        vec![desc(answer, 1, w | DESC_NEXT, 1), desc(at, 3, 0, 0)],
    ];
    let before = pair.nic.device.control_settings();
    for (count, chain) in (1..).zip(&chains) {
        let ring = pair.guest.control();
        for (at, desc) in (0u16..).zip(chain) {
            ring.ring.write_desc(at, *desc);
        }
        ring.offer(0);
        assert_eq!(ring.next_used(PATIENCE), Some((0, 0)), "{chain:?}");
        assert_eq!(pair.nic.errors(), count);
    }
    // A command that is not in memory has a place for its answer.
    for (addr, len) in [(end, 3), (end - 1, 3), (u64::MAX, 3), (at, u32::MAX)] {
        pair.guest.memory.write(answer, &[0xee]).unwrap();
        let chain = [desc(addr, len, 0, 0), writable(answer, 1)];
        assert_eq!(pair.guest.control().ask(&chain), 1);
        assert_eq!(pair.guest.control().byte(answer), ERR, "{addr:#x} {len}");
    }
    assert_eq!(pair.nic.device.control_settings(), before);
    assert_eq!(pair.guest.command(RX, 1, &[1]), OK, "it is served still");
    assert_eq!(pair.other.errors(), 0);
}

#[test]
fn a_control_queue_that_breaks_harms_nobody() {
    for jump in [65u16, 1000, u16::MAX] {
        let mut pair = Pair::new(Kind::default());
        let ring = pair.guest.control();
        ring.avail = ring.avail.wrapping_add(jump);
        ring.ring.publish(ring.avail);
        ring.kick();
        eventually("it is noticed", || pair.nic.errors() == 1);
        // The NIC goes on without, for its guest and for the next.
        let to = [pair.nic.mac, STRANGER];
        assert_eq!(pair.passes(&to), [true, true]);
        drop(pair.guest);
        pair.guest = pair.nic.guest();
        assert_eq!(pair.guest.command(RX, 0, &[0]), OK);
        assert_eq!(pair.passes(&to), [true, false]);
        assert_eq!(pair.other.errors(), 0);
    }
}

/// A whole ring of nonsense, time and again, while others talk.
#[test]
fn a_control_queue_full_of_nonsense_disturbs_nobody() {
    let mut pair = Pair::new(Kind::default());
    let third = pair._lan.nic(3, Kind::default());
    let mut third_guest = third.guest_with(1, plain());
    let at = pair.guest.area(2);
    let noise: Vec<u8> = (0..4096u32)
        .map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    pair.guest.memory.write(at, &noise).unwrap();
    let heads = 64u16;
    for round in 0..4u16 {
        let ring = pair.guest.control();
        for head in (0..heads).step_by(2) {
            let piece = at + u64::from(round * heads + head) * 7;
            // Of no class that there is, and of any.
            ring.ring
                .write_desc(head, desc(piece, u32::from(head) + 3, DESC_NEXT, head + 1));
            ring.ring.write_desc(head + 1, writable(at + 8192, 1));
            ring.ring.set_avail(ring.avail, head);
            ring.avail = ring.avail.wrapping_add(1);
        }
        ring.ring.publish(ring.avail);
        ring.kick();
        let frame = frame(third.mac, pair.other.mac, round as u8);
        pair.sender.send(&frame);
        third_guest.assert_receives(&frame);
        for _ in 0..heads / 2 {
            assert!(pair.guest.control().next_used(PATIENCE).is_some());
        }
    }
    assert!(pair.nic.errors() > 100, "{}", pair.nic.errors());
    assert_eq!((pair.other.errors(), third.errors()), (0, 0));
    let totals = pair.nic.totals();
    assert_eq!(totals.malformed + totals.broken_queues, 0);
}
