//! Numbered datagrams, both ways, at a fixed rate.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::Load;
use super::pattern::{Pattern, Side};
use super::report::UdpReport;
use super::track::Track;

/// Session and number.
const HEADER_BYTES: usize = 16;
/// Most datagrams received in a turn.
const BATCH: usize = 256;
/// The pattern's connection: no stream has this number.
const CONNECTION: u16 = u16::MAX;

/// When the next of a steady row is due.
#[derive(Debug)]
pub(super) struct Rate {
    period: Duration,
    next: Instant,
}

impl Rate {
    /// Most that one who was held up makes good.
    const BEHIND: u32 = 16;

    /// `pps` is not zero.
    pub(super) fn new(pps: u32, now: Instant) -> Self {
        Self {
            period: Duration::from_secs(1) / pps.max(1),
            next: now,
        }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    fn restart(&mut self, now: Instant) {
        self.next = now;
    }

    /// One was sent.
    pub(super) fn step(&mut self, now: Instant) {
        let earliest = now.checked_sub(self.period * Self::BEHIND);
        self.next = (self.next + self.period).max(earliest.unwrap_or(self.next));
    }
}

/// One end of the datagrams.
#[derive(Debug)]
pub(super) struct Datagrams {
    pub(super) socket: UdpSocket,
    /// The other end; a server learns it from the first datagram.
    peer: Option<SocketAddr>,
    session: u64,
    bytes: usize,
    sends: Pattern,
    receives: Pattern,
    rate: Rate,
    sent: u64,
    refused: u64,
    corrupted: u64,
    track: Track,
    stopping: bool,
}

impl Datagrams {
    pub(super) fn new(
        socket: UdpSocket,
        peer: Option<SocketAddr>,
        side: Side,
        session: u64,
        load: &Load,
        now: Instant,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            peer,
            session,
            bytes: usize::from(load.udp_bytes),
            sends: Pattern::new(session, CONNECTION, side),
            receives: Pattern::new(session, CONNECTION, side.other()),
            rate: Rate::new(load.udp_pps, now),
            sent: 0,
            refused: 0,
            corrupted: 0,
            track: Track::new(now),
            stopping: false,
        })
    }

    /// When there is something to send.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.stopping && self.peer.is_some()).then(|| self.rate.next())
    }

    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = true;
        self.track.stop(now);
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn received(&self) -> u64 {
        self.track.received()
    }

    /// Sends what is due, takes what has come.
    pub(super) fn turn(&mut self, readable: bool, now: Instant) {
        if readable {
            self.receive(now);
        }
        while self.next().is_some_and(|next| now >= next) {
            self.rate.step(now);
            self.send();
        }
    }

    fn send(&mut self) {
        let Some(peer) = self.peer else { return };
        let mut bytes = vec![0; self.bytes];
        bytes[..8].copy_from_slice(&self.session.to_le_bytes());
        bytes[8..HEADER_BYTES].copy_from_slice(&self.sent.to_be_bytes());
        let offset = self.sent * self.bytes as u64;
        self.sends.fill(offset, &mut bytes[HEADER_BYTES..]);
        match self.socket.send_to(&bytes, peer) {
            Ok(_) => self.sent += 1,
            // Its number is the next one's: what the kernel does not take was not sent.
            Err(_) => self.refused += 1,
        }
    }

    fn receive(&mut self, now: Instant) {
        let mut bytes = [0; 2048];
        for _ in 0..BATCH {
            // An error is what the network says about one sent earlier.
            let Ok((count, from)) = self.socket.recv_from(&mut bytes) else {
                return;
            };
            self.take(&bytes[..count], from, now);
        }
    }

    fn take(&mut self, bytes: &[u8], from: SocketAddr, now: Instant) {
        let Some((head, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
            return;
        };
        let word = |at: usize| head[at..at + 8].try_into().unwrap_or([0; 8]);
        if u64::from_le_bytes(word(0)) != self.session {
            return;
        }
        let number = u64::from_be_bytes(word(8));
        let offset = number.wrapping_mul(self.bytes as u64);
        let whole = bytes.len() == self.bytes && self.receives.differs(offset, rest).is_none();
        if !whole || !self.track.note(number, now) {
            self.corrupted += 1;
            return;
        }
        if self.peer.is_none() {
            self.rate.restart(now);
            self.peer = Some(from);
        }
    }

    /// What was received of the `sent` that the other end sent.
    pub(super) fn report(&self, sent: u64) -> UdpReport {
        UdpReport {
            sent: self.sent,
            refused: self.refused,
            corrupted: self.corrupted,
            received: self.track.numbers(sent),
        }
    }
}
