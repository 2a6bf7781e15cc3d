use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use crossbeam_channel::bounded;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::limits::CAPTURE_FRAMES;
use crate::net::features::Offloads;
use crate::net::header::Header;
use crate::net::limit::RateLimit;
use crate::net::queue::{Bytes, Fetched, FrameQueue, Put, Taken};
use crate::ring::Token;

const MS: u64 = 1_000_000;
const MTU: u16 = 1500;

/// What a guest has in its rings, and sees of them.
#[derive(Default)]
struct Guest {
    to_send: VecDeque<(Header, Vec<u8>)>,
    in_hand: Vec<(u32, Vec<u8>)>,
    given_back: u32,
    received: Vec<(Header, Vec<u8>)>,
    /// Buffers that are left to receive into.
    room: usize,
    /// Buffers that a frame takes besides one.
    more: usize,
    takes: Offloads,
    kick: Option<EventFd>,
    /// The device has asked for a kick since it last took something, as a driver that goes by the index
    /// sees it.
    wants_kick: bool,
}

type Shared = Arc<Mutex<Guest>>;

struct Tx(Shared);
struct Rx(Shared);

macro_rules! queue {
    ($name:ty, $work:expr, $offloads:expr) => {
        impl FrameQueue for $name {
            fn may_complete(&self) -> bool {
                true
            }
            fn publish(&mut self) {}
            fn has_work(&self) -> bool {
                $work(&self.0.lock().unwrap())
            }
            fn arm(&mut self) -> bool {
                self.0.lock().unwrap().wants_kick = true;
                self.has_work()
            }
            fn disarm(&mut self) {}
            fn kick_fd(&self) -> Option<RawFd> {
                let guest = self.0.lock().unwrap();
                guest.kick.as_ref().map(|kick| kick.as_raw_fd())
            }
            fn drain_kick(&self) {
                if let Some(kick) = &self.0.lock().unwrap().kick {
                    let _ = kick.read();
                }
            }
            fn offloads(&self) -> Offloads {
                $offloads(&self.0.lock().unwrap())
            }
        }
    };
}

queue!(
    Tx,
    |guest: &Guest| !guest.to_send.is_empty(),
    |_: &Guest| { Offloads::ALL }
);
queue!(Rx, |guest: &Guest| guest.room > 0, |guest: &Guest| guest
    .takes);

impl TxQueue for Tx {
    fn take(&mut self, taken: &mut Taken, bytes: &mut Segments) -> Fetched {
        let mut guest = self.0.lock().unwrap();
        let Some((header, frame)) = guest.to_send.pop_front() else {
            return Fetched::Empty;
        };
        guest.wants_kick = false;
        let (tag, len) = (
            guest.given_back + u32::try_from(guest.in_hand.len()).unwrap(),
            frame.len(),
        );
        guest.in_hand.push((tag, frame));
        let at = guest.in_hand.last_mut().unwrap();
        // SAFETY: the frame stays in `in_hand`, where it does not move, until `done`.
        #[allow(unsafe_code)]
        let segment = unsafe { crate::segments::Segment::new(at.1.as_mut_ptr(), len) };
        assert!(bytes.push(segment));
        let header = Some(header).filter(|it| !it.is_plain());
        *taken = Taken { tag, header, len };
        Fetched::Frame
    }

    fn put_back(&mut self, tag: u32) {
        let mut guest = self.0.lock().unwrap();
        let at = guest.in_hand.iter().position(|it| it.0 == tag).unwrap();
        let (_, frame) = guest.in_hand.remove(at);
        guest.to_send.push_front((Header::default(), frame));
    }

    fn done(&mut self, tag: u32) {
        let mut guest = self.0.lock().unwrap();
        let at = guest.in_hand.iter().position(|it| it.0 == tag);
        guest
            .in_hand
            .remove(at.expect("a frame is given back once"));
        guest.given_back += 1;
    }
}

impl RxQueue for Rx {
    fn put(&mut self, header: Option<&Header>, bytes: &Bytes<'_>, len: usize) -> Put {
        let header = header.copied().unwrap_or_default();
        let mut guest = self.0.lock().unwrap();
        if guest.room <= guest.more {
            return Put::NoRoom;
        }
        guest.room -= 1 + guest.more;
        let mut frame = vec![0; len];
        assert_eq!(bytes.start(&mut frame), len);
        guest.received.push((header, frame));
        Put::Done
    }
}

/// A bridge with guests, driven by hand.
struct Rig {
    bridge: Bridge,
    ring: Ring,
    guests: Vec<Shared>,
    counters: Vec<Arc<PortCounters>>,
    now_ns: u64,
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// A frame of `len` bytes from one guest to an address.
fn frame(to: Mac, from: u8, mark: u8, len: usize) -> Vec<u8> {
    let mut bytes = [&to.0[..], &mac(from).0, &[0x88, 0xb5]].concat();
    bytes.resize(len, mark);
    bytes
}

impl Rig {
    fn new(kind: Kind, guests: u8) -> Rig {
        let mut rig = Rig {
            bridge: Bridge::new(kind),
            ring: Ring::new().unwrap(),
            guests: Vec::new(),
            counters: Vec::new(),
            now_ns: MS,
        };
        for n in 0..guests {
            let counters = Arc::new(PortCounters::default());
            let port = Port::guest(1, MTU, Some(mac(n)), counters.clone());
            let port = rig.bridge.add_port(port).unwrap();
            let guest = Shared::default();
            guest.lock().unwrap().room = usize::MAX;
            guest.lock().unwrap().takes = Offloads::ALL;
            rig.bridge.start_tx(port, 0, Box::new(Tx(guest.clone())));
            rig.bridge.start_rx(port, 0, Box::new(Rx(guest.clone())));
            rig.guests.push(guest);
            rig.counters.push(counters);
        }
        rig
    }

    /// A guest of several pairs more. Its queues are guests of the rig's, from the first that is said.
    fn add_pairs(&mut self, pairs: u16) -> (u16, usize) {
        let (counters, first) = (Arc::new(PortCounters::default()), self.guests.len());
        let port = Port::guest(pairs, MTU, None, counters.clone());
        let port = self.bridge.add_port(port).unwrap();
        for queue in 0..pairs {
            let guest = Shared::default();
            guest.lock().unwrap().room = usize::MAX;
            self.bridge
                .start_tx(port, queue, Box::new(Tx(guest.clone())));
            self.bridge
                .start_rx(port, queue, Box::new(Rx(guest.clone())));
            self.guests.push(guest);
            self.counters.push(counters.clone());
        }
        (port, first)
    }

    /// A tap that is a socket, whose other end is the answer: each message is a header and a frame.
    fn add_tap(&mut self, uso: bool) -> UnixDatagram {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let counters = Arc::new(PortCounters::default());
        let tap = Port::tap(Tap::of(ours.into(), uso), counters.clone());
        self.bridge.add_port(tap).unwrap();
        self.counters.push(counters);
        theirs
    }

    /// A turn, and what the kernel has done by then.
    fn turn_and_reap(&mut self) {
        self.turn();
        self.reap();
    }

    fn switch(guests: u8) -> Rig {
        Rig::new(Kind::Switch(Table::new(7)), guests)
    }

    fn send(&mut self, from: u8, to: Mac, mark: u8) {
        let frame = frame(to, from, mark, 60);
        self.send_raw(from, Header::default(), frame);
    }

    fn send_raw(&mut self, from: u8, header: Header, frame: Vec<u8>) {
        let mut guest = self.guests[usize::from(from)].lock().unwrap();
        guest.to_send.push_back((header, frame));
    }

    fn turn(&mut self) {
        self.now_ns += MS;
        self.bridge.turn(0, &mut self.ring, self.now_ns);
    }

    /// As long as it takes to stop looking at ports that are quiet.
    fn rest(&mut self) {
        self.turn();
        self.bridge.park_quiet(0, &mut self.ring, 0);
        self.reap();
    }

    fn reap(&mut self) {
        self.ring.submit().unwrap();
        let mut cqes = Vec::with_capacity(16);
        self.ring.reap(&mut cqes);
        for (token, result) in cqes {
            if let Token::Net(_, op) = token {
                self.bridge.ended(op, result);
            }
        }
    }

    /// The guest kicks if it was asked to.
    fn kick(&mut self, guest: u8) {
        let guest = self.guests[usize::from(guest)].lock().unwrap();
        if guest.wants_kick {
            guest.kick.as_ref().unwrap().write(1).unwrap();
        }
    }

    /// The marks of what a guest has received since it was last asked.
    fn received(&self, guest: u8) -> Vec<u8> {
        let mut guest = self.guests[usize::from(guest)].lock().unwrap();
        let frames = guest.received.drain(..);
        frames.map(|(_, frame)| frame[14]).collect()
    }
}

#[test]
fn a_switch_learns_and_floods_what_it_does_not_know() {
    let mut rig = Rig::switch(3);
    rig.send(0, mac(1), 1);
    rig.turn();
    assert_eq!(
        (rig.received(0), rig.received(1), rig.received(2)),
        (vec![], vec![1], vec![1])
    );
    rig.send(1, mac(0), 2);
    rig.turn();
    assert_eq!(
        (rig.received(0), rig.received(1), rig.received(2)),
        (vec![2], vec![], vec![])
    );
    rig.send(0, mac(1), 3);
    rig.send(0, Mac::BROADCAST, 4);
    rig.turn();
    assert_eq!((rig.received(1), rig.received(2)), (vec![3, 4], vec![4]));
    assert!(
        rig.guests
            .iter()
            .all(|it| it.lock().unwrap().in_hand.is_empty())
    );
    // What is behind the port that it comes from goes nowhere.
    rig.send(0, mac(0), 5);
    rig.turn();
    assert_eq!(
        (rig.received(0), rig.received(1), rig.received(2)),
        (vec![], vec![], vec![])
    );
}

#[test]
fn an_address_is_another_in_each_vlan() {
    let mut rig = Rig::switch(3);
    let tagged = |to: Mac, from: u8, vlan: u8, mark: u8| {
        let mut bytes = [&to.0[..], &mac(from).0, &[0x81, 0, 0, vlan, 0x88, 0xb5]].concat();
        bytes.resize(64, mark);
        bytes
    };
    rig.send_raw(1, Header::default(), tagged(mac(9), 1, 5, 1));
    rig.turn();
    let all = |rig: &Rig| {
        rig.guests
            .iter()
            .map(|it| it.lock().unwrap().received.drain(..).count())
            .collect::<Vec<_>>()
    };
    assert_eq!(all(&rig), [1, 0, 1]);
    rig.send_raw(0, Header::default(), tagged(mac(1), 0, 5, 2));
    rig.turn();
    assert_eq!(all(&rig), [0, 1, 0], "known in this one");
    rig.send_raw(0, Header::default(), tagged(mac(1), 0, 6, 3));
    rig.turn();
    assert_eq!(all(&rig), [0, 1, 1], "and not in that one");
}

#[test]
fn a_guest_sends_from_its_own_address_alone() {
    let mut rig = Rig::switch(2);
    let foreign = frame(mac(1), 7, 1, 60);
    rig.send_raw(0, Header::default(), foreign.clone());
    rig.turn();
    assert_eq!(rig.received(1), []);
    assert_eq!(rig.counters[0].totals().spoofed, 1);
    assert_eq!(
        rig.guests[0].lock().unwrap().given_back,
        1,
        "it is given back all the same"
    );
    rig.bridge.set_guard(0, None);
    rig.send_raw(0, Header::default(), foreign);
    rig.turn();
    assert_eq!(rig.received(1), [1]);
}

#[test]
fn what_is_no_frame_harms_its_sender_alone() {
    let mut rig = Rig::switch(2);
    let lies = |header: Header| (header, frame(mac(1), 0, 1, 60));
    let far = Header {
        flags: 1,
        csum_start: 60_000,
        csum_offset: 6,
        ..Header::default()
    };
    let no_gso = Header {
        gso_type: 1,
        gso_size: 0,
        flags: 1,
        csum_start: 34,
        csum_offset: 16,
        ..Header::default()
    };
    for (header, frame) in [lies(far), lies(no_gso), (Header::default(), vec![1; 13])] {
        rig.send_raw(0, header, frame);
    }
    rig.send_raw(
        0,
        Header::default(),
        frame(mac(1), 0, 1, usize::from(MTU) + 19),
    );
    rig.send(0, mac(1), 2);
    rig.turn();
    assert_eq!(rig.received(1), [2]);
    let totals = rig.counters[0].totals();
    assert_eq!(
        (totals.malformed, totals.too_large, totals.tx_frames),
        (3, 1, 1)
    );
}

#[test]
fn frames_for_queues_that_stand_still_come_first_and_in_order() {
    let mut rig = Rig::new(Kind::Wire, 2);
    assert!(rig.bridge.capture(1, true).is_empty());
    rig.bridge.stop_rx((0, 1, 0), &mut rig.ring).unwrap();
    for mark in 0..10 {
        rig.send(0, mac(1), mark);
    }
    rig.turn();
    assert_eq!(rig.received(1), []);
    let guest = rig.guests[1].clone();
    guest.lock().unwrap().room = 4;
    rig.bridge.start_rx(1, 0, Box::new(Rx(guest.clone())));
    rig.send(0, mac(1), 10);
    guest.lock().unwrap().room += 100;
    rig.turn();
    assert_eq!(rig.received(1), (0..=10).collect::<Vec<u8>>());
    assert_eq!(rig.counters[1].totals().capture_lost, 0);
}

#[test]
fn what_is_kept_for_a_guest_is_bounded_and_can_be_taken_away() {
    let mut rig = Rig::new(Kind::Wire, 2);
    rig.bridge.capture(1, true);
    rig.bridge.stop_rx((0, 1, 0), &mut rig.ring).unwrap();
    for _ in 0..CAPTURE_FRAMES + 7 {
        rig.send(0, mac(1), 1);
    }
    for _ in 0..CAPTURE_FRAMES {
        rig.turn();
    }
    assert_eq!(rig.counters[1].totals().capture_lost, 7);
    let kept = rig.bridge.capture(1, false);
    assert_eq!(kept.len(), CAPTURE_FRAMES);
    assert_eq!(&*kept[0].bytes, &frame(mac(1), 0, 1, 60));
    rig.send(0, mac(1), 1);
    rig.turn();
    assert!(
        rig.bridge.capture(1, false).is_empty(),
        "nothing is kept any more"
    );
    assert_eq!(rig.counters[1].totals().no_link, 1);
}

#[test]
fn a_guest_without_buffers_loses_frames_and_nobody_else_does() {
    let mut rig = Rig::switch(3);
    rig.send(1, Mac::BROADCAST, 0);
    rig.send(2, Mac::BROADCAST, 0);
    rig.turn();
    (0..3).for_each(|n| drop(rig.received(n)));
    rig.guests[1].lock().unwrap().room = 2;
    for mark in 1..=5 {
        rig.send(0, mac(1), mark);
        rig.send(0, mac(2), mark);
    }
    rig.turn();
    assert_eq!(
        (rig.received(1), rig.received(2)),
        (vec![1, 2], vec![1, 2, 3, 4, 5])
    );
    assert_eq!(rig.counters[1].totals().no_buffers, 3);
    assert_eq!(rig.guests[0].lock().unwrap().given_back, 10);
}

/// A second after it has moved it is like any other.
#[test]
fn frames_wait_for_the_buffers_of_a_guest_that_has_just_moved() {
    let mut rig = Rig::new(Kind::Wire, 2);
    let guest = rig.guests[1].clone();
    guest.lock().unwrap().kick = Some(EventFd::new(EFD_NONBLOCK).unwrap());
    rig.bridge.stop_rx((0, 1, 0), &mut rig.ring).unwrap();
    rig.bridge.arrive(1);
    rig.bridge.set_now(rig.now_ns);
    guest.lock().unwrap().room = 2;
    rig.bridge.start_rx(1, 0, Box::new(Rx(guest.clone())));
    rig.bridge.settle_arrival(1);
    rig.rest();
    for mark in 1..=5 {
        rig.send(0, mac(1), mark);
    }
    rig.rest();
    rig.rest();
    assert_eq!(rig.received(1), [1, 2]);
    guest.lock().unwrap().room = 2;
    rig.kick(1);
    rig.rest();
    rig.rest();
    assert_eq!(rig.received(1), [3, 4], "it is asked for a kick");
    guest.lock().unwrap().room = 1;
    rig.kick(1);
    rig.rest();
    rig.rest();
    assert_eq!(rig.received(1), [5]);
    assert_eq!(rig.counters[1].totals().no_buffers, 0);
    rig.now_ns += 1000 * MS;
    rig.send(0, mac(1), 6);
    rig.turn();
    assert_eq!(rig.counters[1].totals().no_buffers, 1);
}

#[test]
fn what_a_receiver_does_not_take_is_finished_for_it() {
    let mut rig = Rig::new(Kind::Wire, 2);
    // 3000 bytes of TCP over IPv4 in segments of 1000; the checksum's place holds the pseudo header's.
    let mut packet = [&mac(1).0[..], &mac(0).0, &[8, 0]].concat();
    packet.extend([
        0x45, 0, 0x0b, 0xe0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet.extend([
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ]);
    packet.resize(54 + 3000, 7);
    let header = Header {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    rig.send_raw(0, header, packet.clone());
    rig.turn();
    let taken = std::mem::take(&mut rig.guests[1].lock().unwrap().received);
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].0.gso_type, &taken[0].1), (1, &packet), "as it is");
    rig.guests[1].lock().unwrap().takes = Offloads::NONE;
    rig.send_raw(0, header, packet);
    rig.turn();
    let cut = std::mem::take(&mut rig.guests[1].lock().unwrap().received);
    let lens: Vec<usize> = cut.iter().map(|(_, frame)| frame.len()).collect();
    assert_eq!(lens, [1054, 1054, 1054]);
    assert!(cut.iter().all(|(header, _)| *header == Header::default()));
}

/// 3000 bytes of UDP over IPv4, to be cut into datagrams of 1000.
fn datagrams() -> (Header, Vec<u8>) {
    let mut packet = [&mac(1).0[..], &mac(0).0, &[8, 0]].concat();
    packet.extend([
        0x45, 0, 0x0b, 0xd4, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet.extend([0, 80, 0, 81, 0x0b, 0xc0, 0, 0]);
    packet.resize(42 + 3000, 7);
    let header = Header {
        flags: 1,
        gso_type: crate::net::header::GSO_UDP_L4,
        hdr_len: 42,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 6,
        num_buffers: 0,
    };
    (header, packet)
}

fn messages(from: &UnixDatagram) -> Vec<(Header, usize)> {
    let mut bytes = vec![0; 70_000];
    std::iter::from_fn(|| {
        let len = from.recv(&mut bytes).ok()?;
        let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
        Some((header, len - HEADER_BYTES))
    })
    .collect()
}

#[test]
fn what_a_tap_does_not_take_is_cut_for_it() {
    for uso in [true, false] {
        let mut rig = Rig::new(Kind::Wire, 1);
        let there = rig.add_tap(uso);
        let (header, packet) = datagrams();
        rig.send_raw(0, header, packet);
        rig.turn_and_reap();
        rig.turn_and_reap();
        let messages = messages(&there);
        if uso {
            assert_eq!(messages, [(header, 3042)]);
        } else {
            let checksum = Header {
                gso_type: 0,
                hdr_len: 0,
                gso_size: 0,
                ..header
            };
            assert_eq!(messages, [(checksum, 1042); 3]);
        }
        let totals = rig.counters[1].totals();
        assert_eq!(totals.rx_frames, if uso { 1 } else { 3 });
        assert_eq!(rig.guests[0].lock().unwrap().given_back, 1);
    }
}

/// A tap has verified the checksum, and says so to a guest that has asked for that.
#[test]
fn flags_that_a_guest_did_not_take_are_not_for_it() {
    let mut rig = Rig::new(Kind::Wire, 1);
    let there = rig.add_tap(true);
    let valid = Header {
        flags: crate::net::header::FLAG_DATA_VALID,
        ..Header::default()
    };
    let message = [&valid.to_bytes()[..], &frame(mac(0), 9, 1, 60)].concat();
    for (takes, flags) in [(Offloads::CSUM, valid.flags), (Offloads::NONE, 0)] {
        rig.guests[0].lock().unwrap().takes = takes;
        there.send(&message).unwrap();
        (0..5).for_each(|_| rig.turn_and_reap());
        let received = std::mem::take(&mut rig.guests[0].lock().unwrap().received);
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].0.flags, flags);
    }
}

#[test]
fn what_a_tap_refuses_is_counted() {
    let mut rig = Rig::new(Kind::Wire, 1);
    drop(rig.add_tap(true));
    for mark in 0..3 {
        rig.send(0, mac(1), mark);
    }
    rig.turn_and_reap();
    rig.turn_and_reap();
    let totals = rig.counters[1].totals();
    assert_eq!((totals.rx_frames, totals.no_buffers), (0, 3));
}

#[test]
fn a_rate_is_kept_and_nothing_is_lost_by_it() {
    let mut rig = Rig::new(Kind::Wire, 2);
    let limit = RateLimit {
        packets_per_s: Some(10_000),
        bits_per_s: None,
    };
    rig.bridge.set_limit(0, Some(limit), None);
    for _ in 0..2000 {
        rig.send(0, mac(1), 1);
    }
    for _ in 0..100 {
        rig.turn();
    }
    let first = rig.received(1).len();
    assert!((1000..=1150).contains(&first), "{first} in 0.1 s");
    for _ in 0..100 {
        rig.turn();
    }
    assert_eq!(first + rig.received(1).len(), 2000);
}

/// A link that is set, and with it the limit as it was, again and again.
#[test]
fn a_limit_that_is_set_again_does_not_begin_anew() {
    let mut rig = Rig::new(Kind::Wire, 2);
    let limit = RateLimit {
        packets_per_s: Some(1000),
        bits_per_s: None,
    };
    for _ in 0..1000 {
        rig.send(0, mac(1), 1);
    }
    for _ in 0..100 {
        rig.bridge.set_limit(0, Some(limit), None);
        rig.turn();
    }
    let count = rig.received(1).len();
    assert!((100..=150).contains(&count), "{count} in 0.1 s");
}

/// All of them have more to send than the rate allows.
#[test]
fn queues_of_a_nic_share_its_rate() {
    let mut rig = Rig::new(Kind::Wire, 1);
    let (port, first) = rig.add_pairs(4);
    let limit = RateLimit {
        packets_per_s: Some(1000),
        bits_per_s: None,
    };
    rig.bridge.set_limit(port, Some(limit), None);
    for queue in 0..4u8 {
        for _ in 0..1000 {
            rig.guests[first + usize::from(queue)]
                .lock()
                .unwrap()
                .to_send
                .push_back((Header::default(), frame(mac(0), 9, queue, 60)));
        }
    }
    for _ in 0..1000 {
        rig.turn();
    }
    let received = rig.received(0);
    for queue in 0..4 {
        let count = received.iter().filter(|mark| **mark == queue).count();
        assert!((200..=300).contains(&count), "{count} of queue {queue}");
    }
}

#[test]
fn a_queue_is_given_back_when_nothing_of_it_is_under_way() {
    let mut rig = Rig::new(Kind::Wire, 2);
    rig.send(0, mac(1), 1);
    rig.turn();
    let (to, from) = bounded(1);
    rig.bridge.stop_tx((0, 0, 0), &mut rig.ring, to);
    assert!(from.try_recv().is_ok());
    rig.send(0, mac(1), 2);
    rig.turn();
    assert_eq!(
        rig.received(1),
        [1],
        "a queue that is stopped is left alone"
    );
    let (to, gone) = bounded(1);
    rig.bridge.remove_port(0, 0, &mut rig.ring, to);
    assert!(gone.try_recv().is_ok());
    assert_eq!(
        rig.bridge
            .add_port(Port::guest(1, MTU, None, Arc::default())),
        Some(0)
    );
}

#[test]
fn a_quiet_port_is_heard_of_by_a_kick_however_it_was_woken() {
    let mut rig = Rig::new(Kind::Wire, 2);
    for guest in &rig.guests {
        guest.lock().unwrap().kick = Some(EventFd::new(EFD_NONBLOCK).unwrap());
    }
    rig.rest();
    assert!(rig.bridge.is_quiet());
    for mark in 0..5 {
        rig.send(0, mac(1), mark);
        // By something else than a kick, every other time; the poll from before stays in the ring.
        if mark % 2 == 1 {
            rig.bridge.with_tx(0, 0, |_| {});
            rig.turn();
            rig.rest();
            assert_eq!(rig.received(1), [mark]);
            rig.send(0, mac(1), mark);
        }
        rig.kick(0);
        rig.rest();
        rig.rest();
        assert_eq!(rig.received(1), [mark]);
        assert!(rig.bridge.is_quiet());
    }
}

#[test]
fn what_is_kept_waits_for_room_without_being_looked_at() {
    let mut rig = Rig::new(Kind::Wire, 2);
    for guest in &rig.guests {
        guest.lock().unwrap().kick = Some(EventFd::new(EFD_NONBLOCK).unwrap());
    }
    rig.bridge.capture(1, true);
    rig.bridge.stop_rx((0, 1, 0), &mut rig.ring).unwrap();
    rig.send(0, mac(1), 1);
    rig.turn();
    let guest = rig.guests[1].clone();
    guest.lock().unwrap().room = 0;
    rig.bridge.start_rx(1, 0, Box::new(Rx(guest.clone())));
    rig.rest();
    assert!(rig.bridge.is_quiet());
    guest.lock().unwrap().room = 1;
    rig.kick(1);
    rig.rest();
    rig.turn();
    assert_eq!(rig.received(1), [1]);
}

/// A frame is kept for a guest, which has no room for it.
fn kept(rig: &mut Rig, room: usize) -> Shared {
    for guest in &rig.guests {
        guest.lock().unwrap().kick = Some(EventFd::new(EFD_NONBLOCK).unwrap());
    }
    rig.bridge.capture(1, true);
    rig.bridge.stop_rx((0, 1, 0), &mut rig.ring).unwrap();
    rig.send(0, mac(1), 1);
    rig.turn();
    let guest = rig.guests[1].clone();
    (guest.lock().unwrap().room, guest.lock().unwrap().more) = (room, 1);
    rig.bridge.start_rx(1, 0, Box::new(Rx(guest.clone())));
    guest
}

#[test]
fn what_is_kept_for_a_guest_over_its_rate_is_given_when_it_has_room() {
    let mut rig = Rig::new(Kind::Wire, 2);
    let nothing = RateLimit {
        packets_per_s: Some(0),
        bits_per_s: None,
    };
    rig.bridge.set_limit(1, Some(nothing), None);
    let guest = kept(&mut rig, 0);
    rig.send(1, mac(0), 2);
    rig.rest();
    rig.rest();
    assert!(rig.bridge.is_quiet());
    guest.lock().unwrap().room = 2;
    rig.kick(1);
    rig.rest();
    rig.turn();
    assert_eq!(rig.received(1), [1]);
    assert_eq!(rig.received(0), []);
}

/// The guest has a buffer and gives no kick for the next; nobody looks all the time.
#[test]
fn what_takes_more_buffers_than_there_are_is_tried_again_later() {
    let mut rig = Rig::new(Kind::Wire, 2);
    let guest = kept(&mut rig, 1);
    rig.rest();
    rig.rest();
    assert!(rig.bridge.is_quiet());
    let due_ns = rig.bridge.next_event_ns().unwrap();
    assert!(due_ns > rig.now_ns && due_ns <= rig.now_ns + MS);
    guest.lock().unwrap().room = 2;
    rig.turn();
    assert_eq!(rig.received(1), [1]);
}

/// It waited for a kick of the first of two queues, and that stops.
#[test]
fn what_is_kept_is_given_by_another_queue_when_its_own_stops() {
    let mut rig = Rig::new(Kind::Wire, 1);
    let (port, first) = rig.add_pairs(2);
    for guest in &rig.guests {
        guest.lock().unwrap().kick = Some(EventFd::new(EFD_NONBLOCK).unwrap());
    }
    rig.bridge.capture(port, true);
    for queue in 0..2 {
        rig.bridge.stop_rx((0, port, queue), &mut rig.ring).unwrap();
    }
    rig.send(0, mac(9), 1);
    rig.turn();
    rig.guests[first].lock().unwrap().room = 0;
    for queue in 0..2u16 {
        let guest = rig.guests[first + usize::from(queue)].clone();
        rig.bridge.start_rx(port, queue, Box::new(Rx(guest)));
    }
    rig.rest();
    rig.rest();
    assert!(rig.bridge.is_quiet());
    rig.bridge.stop_rx((0, port, 0), &mut rig.ring).unwrap();
    rig.turn();
    assert_eq!(rig.received(u8::try_from(first).unwrap() + 1), [1]);
}

#[test]
fn a_nic_without_a_link_is_not_announced() {
    let mut rig = Rig::switch(2);
    let said = [frame(Mac::BROADCAST, 0, 1, 60)];
    for (link_up, received) in [(false, vec![]), (true, vec![1])] {
        let gate = Gate {
            link_up,
            ..Gate::OPEN
        };
        rig.bridge.set_gate(0, gate);
        rig.bridge.say(0, 0, &said, &mut rig.ring);
        assert_eq!(rig.received(1), received);
    }
}

#[test]
fn a_port_over_its_rate_is_looked_at_when_it_is_time() {
    let mut rig = Rig::new(Kind::Wire, 2);
    let limit = RateLimit {
        packets_per_s: Some(1000),
        bits_per_s: None,
    };
    rig.guests[1].lock().unwrap().kick = Some(EventFd::new(EFD_NONBLOCK).unwrap());
    rig.bridge.set_limit(0, Some(limit), None);
    for _ in 0..200 {
        rig.send(0, mac(1), 1);
    }
    rig.rest();
    rig.rest();
    assert!(rig.bridge.is_quiet());
    let due_ns = rig.bridge.next_event_ns().unwrap();
    assert!(due_ns > rig.now_ns && due_ns <= rig.now_ns + 2 * MS);
    let before = rig.received(1).len();
    rig.now_ns = due_ns;
    rig.turn();
    assert!(before > 0 && !rig.received(1).is_empty());
}
