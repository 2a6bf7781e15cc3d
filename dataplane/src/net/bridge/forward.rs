//! A frame's way through a bridge.

use std::sync::Arc;

use super::capture::{Capture, Kept};
use super::{Bridge, End, Guest, Kind, RxPlace, TapEnd};
use crate::limits::{FETCH_BYTES, FRAME_BUDGET};
use crate::net::announce::{SPOKEN_BYTES, Spoken};
use crate::net::counters::{Cause, PortCounters};
use crate::net::features::Offloads;
use crate::net::frame::Start;
use crate::net::header::{HEAD_BYTES, HEADER_BYTES, Header};
use crate::net::offload::{Segmenter, Work, finish_checksum};
use crate::net::queue::{Bytes, Fetched, Put, Taken};
use crate::ring::Ring;
use crate::segments::Segments;

/// Addresses, two tags, and what is behind them.
const PLAIN_BYTES: usize = 32;

/// A frame on its way.
pub(super) struct Frame<'a> {
    /// What is left to do to it, if anything is.
    pub header: Option<&'a Header>,
    pub ether_type: u16,
    pub bytes: Bytes<'a>,
    pub len: usize,
    pub from: u16,
    pub queue: u16,
    /// How its guest knows it, while that waits for it.
    pub tag: Option<u32>,
}

impl Frame<'_> {
    fn said(&self) -> Header {
        self.header.copied().unwrap_or_default()
    }
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Its bytes are not needed any more.
    Done,
    /// The kernel has them.
    Lent,
}

impl Guest {
    /// Another station may have said that it has an address of the guest's.
    fn hear(&mut self, frame: &Frame<'_>) {
        let mut bytes = [0; SPOKEN_BYTES];
        // It says so to all.
        frame.bytes.start(&mut bytes[..1]);
        if bytes[0] & 1 == 0 {
            return;
        }
        let known = frame.bytes.start(&mut bytes).min(frame.len);
        let head = &bytes[..known];
        if let Some(start) = Start::parse(head)
            && Spoken::concerns(&start, head)
        {
            self.spoken.heard(&start, head);
        }
    }
}

impl Bridge {
    /// Takes what a port has and sends it on; true when there was something.
    pub(super) fn take_from(&mut self, id: u32, port: u16, ring: &mut Ring) -> bool {
        match self.ports[usize::from(port)].as_ref().map(|it| &it.end) {
            Some(End::Guest(guest)) => {
                if !guest.capture.is_empty() {
                    self.give_captured(port);
                }
                let (first, pairs) = self.queues_in_turn(port);
                let mut found = false;
                for queue in (first..pairs).chain(0..first) {
                    found |= self.take_from_guest(id, (port, queue), ring);
                }
                found
            }
            Some(End::Tap(_)) => self.take_from_tap(id, port, ring),
            None => false,
        }
    }

    /// The queue that a guest's frames are taken from first, and how many there are. Each is first in its
    /// turn, lest one use up the whole rate. A look that the rate forbids is nobody's turn.
    fn queues_in_turn(&mut self, port: u16) -> (u16, u16) {
        let now_ns = self.now_ns;
        let Some(there) = &mut self.ports[usize::from(port)] else {
            return (0, 0);
        };
        let over = there.is_over_rate(now_ns);
        let End::Guest(guest) = &mut there.end else {
            return (0, 0);
        };
        if over {
            return (0, 0);
        }
        let pairs = u16::try_from(guest.tx.len()).expect("few pairs");
        let first = guest.first_tx;
        guest.first_tx = if first + 1 < pairs { first + 1 } else { 0 };
        (first, pairs)
    }

    fn take_from_guest(&mut self, id: u32, (port, queue): (u16, u16), ring: &mut Ring) -> bool {
        let (mut bytes, mut head) = self.scratch.take().expect("put back below");
        let (mut found, mut left) = (false, FETCH_BYTES);
        let mut taken = Taken::default();
        for _ in 0..FRAME_BUDGET {
            bytes.clear();
            match self.take_one((port, queue), &mut taken, &mut bytes) {
                Fetched::Frame => found = true,
                Fetched::Malformed => {
                    found = true;
                    continue;
                }
                Fetched::Empty | Fetched::Broken => break,
            }
            left = left.saturating_sub(taken.len as u64);
            let sent = self.guest_sends(id, (port, queue), &taken, (&bytes, &mut head), ring);
            if sent == Sent::Done
                && let Some(place) = self.guest(port).and_then(|it| it.tx_at(queue))
            {
                place.queue.done(taken.tag);
            }
            if left == 0 {
                break;
            }
        }
        if found
            && let Some(place) = self.guest(port).and_then(|it| it.tx_at(queue))
            && !place.touched
        {
            place.touched = true;
            self.touched.push(port);
        }
        self.scratch = Some((bytes, head));
        found
    }

    /// The next frame, unless it has to wait.
    fn take_one(&mut self, at: (u16, u16), taken: &mut Taken, bytes: &mut Segments) -> Fetched {
        let now_ns = self.now_ns;
        // A wire's frames wait where they are while its tap has its hands full.
        let full = matches!(self.kind, Kind::Wire)
            && self.ports.iter().flatten().any(|port| match &port.end {
                End::Tap(tap) => tap.is_full(),
                End::Guest(_) => false,
            });
        let Some(port) = &mut self.ports[usize::from(at.0)] else {
            return Fetched::Empty;
        };
        // Over its rate, frames wait in the guest's ring.
        if port.is_over_rate(now_ns) {
            return Fetched::Empty;
        }
        let End::Guest(guest) = &mut port.end else {
            return Fetched::Empty;
        };
        let Some(place) = guest.tx_at(at.1).filter(|_| !full) else {
            return Fetched::Empty;
        };
        if place.broken || place.leaving.is_some() {
            return Fetched::Empty;
        }
        let fetched = place.queue.take(taken, bytes);
        match fetched {
            Fetched::Frame => {
                let limit = port.limit.as_mut();
                if limit.is_some_and(|limit| !limit.admit(taken.len, now_ns)) {
                    place.queue.put_back(taken.tag);
                    port.counters.dropped(Cause::Limited, 1);
                    return Fetched::Empty;
                }
            }
            Fetched::Malformed => port.counters.dropped(Cause::Malformed, 1),
            Fetched::Empty => {}
            Fetched::Broken => {
                place.broken = true;
                port.counters.queue_broke();
            }
        }
        fetched
    }

    fn guest_sends(
        &mut self,
        id: u32,
        (port, queue): (u16, u16),
        taken: &Taken,
        (bytes, head): (&Segments, &mut [u8; HEAD_BYTES]),
        ring: &mut Ring,
    ) -> Sent {
        let Some(there) = &mut self.ports[usize::from(port)] else {
            return Sent::Done;
        };
        let End::Guest(guest) = &mut there.end else {
            return Sent::Done;
        };
        let Some(place) = guest.tx_at(queue) else {
            return Sent::Done;
        };
        // A plain frame asks for nothing, and is judged by its addresses and tags.
        let (known, allowed) = if taken.header.is_some() {
            (HEAD_BYTES, place.queue.offloads())
        } else if taken.len <= HEAD_BYTES {
            // In one copy rather than two.
            (taken.len, Offloads::NONE)
        } else {
            (PLAIN_BYTES, Offloads::NONE)
        };
        let known = bytes.copy_out(0, &mut head[..known]).min(taken.len);
        let head = &head[..known];
        let checked = match &taken.header {
            Some(header) => header.check(head, taken.len, allowed, there.mtu),
            None => Header::check_plain(head, taken.len, there.mtu),
        };
        let addresses = match checked {
            Ok(addresses) => addresses,
            Err(error) => {
                there.counters.dropped(error.into(), 1);
                return Sent::Done;
            }
        };
        if there.guard.is_some_and(|own| own != addresses.source) {
            there.counters.dropped(Cause::Spoofed, 1);
            return Sent::Done;
        }
        if there.gate.as_ref().is_some_and(|gate| !gate.link_up) {
            there.counters.dropped(Cause::NoLink, 1);
            return Sent::Done;
        }
        there.counters.sent(1, taken.len as u64);
        if Spoken::concerns(&addresses, head) {
            let mut start = [0; SPOKEN_BYTES];
            let known = bytes.copy_out(0, &mut start).min(taken.len);
            guest.spoken.learn(&addresses, &start[..known], self.now_ns);
        }
        let passed_on = taken.header.as_ref().map(Header::passed_on);
        let frame = Frame {
            header: passed_on.as_ref().filter(|it| !it.is_plain()),
            ether_type: addresses.ether_type,
            bytes: Bytes::Guest { head, all: bytes },
            len: taken.len,
            from: port,
            queue,
            tag: Some(taken.tag),
        };
        self.forward(id, &frame, &addresses, ring)
    }

    fn take_from_tap(&mut self, id: u32, port: u16, ring: &mut Ring) -> bool {
        let mut found: u16 = 0;
        while let Some((index, bytes)) = self.tap(port).and_then(|tap| tap.ready.pop_front()) {
            found += 1;
            let buffer = self
                .tap(port)
                .and_then(|tap| tap.buffers[usize::from(index)].take());
            let buffer = buffer.expect("what was read is in its place");
            self.tap_gives(id, port, &buffer[..bytes], ring);
            if let Some(tap) = self.tap(port) {
                tap.buffers[usize::from(index)] = Some(buffer);
            }
        }
        if let Some(tap) = self.tap(port)
            && tap.reading == 0
        {
            tap.batch = if found >= tap.batch {
                tap.batch.saturating_mul(2).min(crate::limits::TAP_BATCH)
            } else {
                found.max(1)
            };
            if let Err(error) = tap.post(id, port, ring) {
                tracing::error!(tap = tap.tap.name(), %error, "a tap cannot be read");
            }
        }
        found > 0
    }

    fn tap_gives(&mut self, id: u32, port: u16, read: &[u8], ring: &mut Ring) {
        let (header, bytes) = read.split_at(HEADER_BYTES);
        let header = Header::parse(header.try_into().expect("split there"));
        if let Some(Some(there)) = self.ports.get(usize::from(port)) {
            there.counters.sent(1, bytes.len() as u64);
        }
        let Some(addresses) = Start::parse(bytes) else {
            return;
        };
        let frame = Frame {
            header: Some(&header).filter(|it| !it.is_plain()),
            ether_type: addresses.ether_type,
            bytes: Bytes::Own(bytes),
            len: bytes.len(),
            from: port,
            queue: 0,
            tag: None,
        };
        let sent = self.forward(id, &frame, &addresses, ring);
        debug_assert!(sent == Sent::Done, "a buffer of the worker's is copied");
    }

    /// Sends a frame to the port, or the ports, that it is for.
    pub(super) fn forward(
        &mut self,
        id: u32,
        frame: &Frame<'_>,
        start: &Start,
        ring: &mut Ring,
    ) -> Sent {
        let now_ns = self.now_ns;
        if let Kind::Switch(table) = &mut self.kind {
            let Some(Some(port)) = self.ports.get_mut(usize::from(frame.from)) else {
                return Sent::Done;
            };
            if let Some(to) = port.path.find(table, start, frame.from, now_ns) {
                if to == frame.from {
                    return Sent::Done; // it is behind the same port
                }
                return self.deliver(id, to, frame, true, ring);
            }
        }
        // What goes to several is copied for each: one alone may be lent.
        let others = || {
            (0u16..)
                .zip(&self.ports)
                .filter(|(at, it)| it.is_some() && *at != frame.from)
        };
        let lend = others().count() == 1;
        let mut sent = Sent::Done;
        for to in 0..u16::try_from(self.ports.len()).expect("few ports") {
            if to != frame.from {
                let one = self.deliver(id, to, frame, lend, ring);
                sent = if one == Sent::Lent { one } else { sent };
            }
        }
        sent
    }

    fn deliver(
        &mut self,
        id: u32,
        to: u16,
        frame: &Frame<'_>,
        lend: bool,
        ring: &mut Ring,
    ) -> Sent {
        match self
            .ports
            .get(usize::from(to))
            .and_then(Option::as_ref)
            .map(|it| &it.end)
        {
            Some(End::Guest(_)) => {
                self.reach_guest(to, frame);
                Sent::Done
            }
            Some(End::Tap(_)) => self.reach_tap(id, to, frame, lend, ring),
            None => Sent::Done,
        }
    }

    fn reach_guest(&mut self, to: u16, frame: &Frame<'_>) {
        let now_ns = self.now_ns;
        let Some(there) = &mut self.ports[usize::from(to)] else {
            return;
        };
        let End::Guest(guest) = &mut there.end else {
            return;
        };
        let mut used = usize::MAX;
        if let Some(gate) = &there.gate {
            if let Err(cause) = gate.admit(&frame.bytes) {
                there.counters.dropped(cause, 1);
                return;
            }
            used = gate.rx_queues.into();
        }
        if !guest.spoken.is_empty() && Spoken::may_concern(frame.ether_type) {
            guest.hear(frame);
        }
        let used = used.min(guest.rx.len());
        let rx = &mut guest.rx[..used];
        let running = rx.iter().flatten().filter(|it| !it.broken).count();
        // Behind those that wait already, so that none overtakes another.
        if running == 0 || !guest.capture.is_direct() {
            let now = (running > 0, now_ns);
            keep(&mut guest.capture, frame, now, &there.counters);
            return;
        }
        if guest.capture.minds_twins(now_ns) {
            let bytes = &mut self.whole[..frame.len];
            frame.bytes.start(bytes);
            if guest.capture.has_come(now_ns, bytes) {
                return;
            }
        }
        // The queue that it came from, as the guest at the other end spreads its flows.
        let mut queues = rx.iter_mut().flatten().filter(|it| !it.broken);
        let nth = match running {
            1 => 0, // as nearly always, and a division takes as long as the rest
            _ => usize::from(frame.queue) % running,
        };
        let Some(place) = queues.nth(nth) else {
            return;
        };
        let (put, part) = give(place, frame, &mut self.whole, &mut self.piece);
        let mut waits = false;
        match put {
            Put::Done => there.counters.received(1, frame.len as u64),
            // In part it would come twice.
            Put::NoRoom if !part && guest.capture.is_behind(now_ns) => {
                keep_first(&mut guest.capture, frame, now_ns, &there.counters);
                waits = true;
            }
            Put::NoRoom => there.counters.dropped(Cause::NoBuffers, 1),
            Put::TooLarge => there.counters.dropped(Cause::TooLarge, 1),
            Put::Broken => {
                place.broken = true;
                there.counters.queue_broke();
            }
        }
        if !place.touched {
            place.touched = true;
            self.touched.push(to);
        }
        if waits {
            self.wake(to);
        }
    }

    /// Gives a guest what was captured for it, as far as it has buffers.
    pub(super) fn give_captured(&mut self, to: u16) {
        let Some(Some(there)) = self.ports.get_mut(usize::from(to)) else {
            return;
        };
        let End::Guest(guest) = &mut there.end else {
            return;
        };
        let Some(place) = guest.rx.iter_mut().flatten().find(|it| !it.broken) else {
            return;
        };
        guest.short = false;
        while let Some(first) = guest.capture.first() {
            let frame = Frame {
                header: Some(&first.header).filter(|it| !it.is_plain()),
                ether_type: first.ether_type,
                bytes: Bytes::Own(&first.bytes),
                len: first.bytes.len(),
                from: to,
                queue: 0,
                tag: None,
            };
            let (put, part) = give(place, &frame, &mut self.whole, &mut self.piece);
            if !place.touched {
                place.touched = true;
                self.touched.push(to);
            }
            match put {
                Put::Done => there.counters.received(1, frame.len as u64),
                // It would come twice.
                Put::NoRoom if part => there.counters.dropped(Cause::NoBuffers, 1),
                Put::NoRoom => {
                    guest.short = true;
                    break;
                }
                Put::TooLarge => there.counters.dropped(Cause::TooLarge, 1),
                Put::Broken => {
                    place.broken = true;
                    there.counters.queue_broke();
                    break;
                }
            }
            guest.capture.given();
        }
    }

    fn reach_tap(
        &mut self,
        id: u32,
        to: u16,
        frame: &Frame<'_>,
        lend: bool,
        ring: &mut Ring,
    ) -> Sent {
        let Some(there) = &mut self.ports[usize::from(to)] else {
            return Sent::Done;
        };
        let End::Tap(tap) = &mut there.end else {
            return Sent::Done;
        };
        let takes = tap.tap.takes();
        let work = frame
            .header
            .map(|header| (header, Work::of(header, frame.ether_type, takes)));
        if let Some((header, work)) = work.filter(|it| it.1 != Work::Nothing) {
            let put = finish(
                (frame, header),
                work,
                takes,
                (&mut self.whole, &mut self.piece),
                |header, bytes| tap.put_copy((id, to), header, bytes, ring),
            );
            match put {
                Put::Done => {}
                Put::NoRoom | Put::Broken => there.counters.dropped(Cause::NoBuffers, 1),
                Put::TooLarge => there.counters.dropped(Cause::TooLarge, 1),
            }
            return Sent::Done;
        }
        let Some(index) = tap.free_writes.pop() else {
            there.counters.dropped(Cause::NoBuffers, 1);
            return Sent::Done;
        };
        let op = (id, to, index);
        let (from, written) = match (&frame.bytes, frame.tag, lend) {
            (Bytes::Guest { head, all }, Some(tag), true) => {
                let from = (frame.from, frame.queue, tag);
                (Some(from), tap.write(op, frame.said(), (head, all), ring))
            }
            (bytes, ..) => (None, tap.copy(op, frame.said(), (bytes, frame.len), ring)),
        };
        if !written {
            tap.free_writes.push(index);
            there.counters.dropped(Cause::TooLarge, 1);
            return Sent::Done;
        }
        tap.writes[usize::from(index)].from = from;
        if from.is_none() {
            return Sent::Done;
        }
        if let Some(place) = self.guest(frame.from).and_then(|it| it.tx_at(frame.queue)) {
            place.in_flight += 1;
        }
        Sent::Lent
    }

    pub(super) fn guest(&mut self, port: u16) -> Option<&mut Guest> {
        match &mut self.ports.get_mut(usize::from(port))?.as_mut()?.end {
            End::Guest(guest) => Some(guest),
            End::Tap(_) => None,
        }
    }

    pub(super) fn tap(&mut self, port: u16) -> Option<&mut TapEnd> {
        match &mut self.ports.get_mut(usize::from(port))?.as_mut()?.end {
            End::Tap(tap) => Some(tap),
            End::Guest(_) => None,
        }
    }
}

/// Keeps a copy of a frame for a guest whose queues may be `running`.
fn keep(
    capture: &mut Capture,
    frame: &Frame<'_>,
    (running, now_ns): (bool, u64),
    counters: &PortCounters,
) {
    let said = (frame.said(), frame.ether_type);
    let kept = capture.keep(running, now_ns, said, copy_of(frame));
    count(kept, counters);
}

/// As [`keep`], for a guest whose queues run and one that has not come by another way.
fn keep_first(capture: &mut Capture, frame: &Frame<'_>, now_ns: u64, counters: &PortCounters) {
    let said = (frame.said(), frame.ether_type);
    let kept = capture.keep_first(true, now_ns, said, copy_of(frame));
    count(kept, counters);
}

fn copy_of(frame: &Frame<'_>) -> Arc<[u8]> {
    let mut bytes = vec![0; frame.len];
    frame.bytes.start(&mut bytes);
    bytes.into()
}

fn count(kept: Kept, counters: &PortCounters) {
    match kept {
        Kept::Yes | Kept::Elsewhere => {}
        Kept::Full => counters.capture_lost(1),
        Kept::NoLink => counters.dropped(Cause::NoLink, 1),
    }
}

/// Gives a frame to a guest's queue, finished as far as the guest does not do that itself. Whether some of
/// its segments were given, whatever became of the rest, is said besides.
fn give(place: &mut RxPlace, frame: &Frame<'_>, whole: &mut [u8], piece: &mut [u8]) -> (Put, bool) {
    let Some(header) = frame.header else {
        return (place.queue.put(None, &frame.bytes, frame.len), false);
    };
    let takes = place.queue.offloads();
    let work = Work::of(header, frame.ether_type, takes);
    if work == Work::Nothing {
        let header = header.taken_with(takes);
        let said = Some(&header).filter(|it| !it.is_plain());
        return (place.queue.put(said, &frame.bytes, frame.len), false);
    }
    let mut part = false;
    let put = finish(
        (frame, header),
        work,
        takes,
        (whole, piece),
        |header, bytes| {
            let header = header.filter(|it| !it.is_plain());
            let put = place.queue.put(header, &Bytes::Own(bytes), bytes.len());
            part |= put == Put::Done;
            put
        },
    );
    (put, part)
}

/// Finishes in software what the receiver does not take, and gives each frame of it to `put`.
fn finish(
    (frame, header): (&Frame<'_>, &Header),
    work: Work,
    takes: Offloads,
    (whole, piece): (&mut [u8], &mut [u8]),
    mut put: impl FnMut(Option<&Header>, &[u8]) -> Put,
) -> Put {
    let Some(whole) = whole.get_mut(..frame.len) else {
        return Put::TooLarge;
    };
    frame.bytes.start(whole);
    if work == Work::Checksum {
        finish_checksum(whole, header);
        return put(None, whole);
    }
    let Ok(mut segments) = Segmenter::new(whole, header, takes, piece.len()) else {
        return Put::TooLarge;
    };
    let header = segments.header();
    while let Some(len) = segments.next_into(piece) {
        let last = put(Some(&header), &piece[..len]);
        if last != Put::Done {
            return last;
        }
    }
    Put::Done
}
