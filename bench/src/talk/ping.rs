//! Echo requests: what the other kernel answers, whatever its programs do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::datagrams::Rate;
use super::report::PingReport;
use super::track::Track;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ICMP_BYTES: usize = 8;
/// The ICMP header, then session and number.
const BYTES: usize = ICMP_BYTES + 16;
/// Most answers taken in a turn.
const BATCH: usize = 64;

/// Echo requests at a fixed rate.
#[derive(Debug)]
pub(super) struct Ping {
    /// No UDP: the standard library has no other type that sends and receives messages.
    pub(super) socket: UdpSocket,
    /// Whether the IP header comes with what is received.
    raw: bool,
    session: u64,
    rate: Rate,
    sent: u64,
    refused: u64,
    /// When each was sent.
    sent_at: Vec<Instant>,
    track: Track,
    rtt_us: Histogram<u64>,
    stopping: bool,
}

impl Ping {
    /// Needs CAP_NET_RAW, or a group in `net.ipv4.ping_group_range`.
    pub(super) fn new(to: Ipv4Addr, session: u64, pps: u32, now: Instant) -> io::Result<Self> {
        let open = |kind| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::INET, kind, flags, Some(ipproto::ICMP))
        };
        let (fd, raw) = match open(SocketType::RAW) {
            Ok(fd) => (fd, true),
            Err(_) => (open(SocketType::DGRAM)?, false),
        };
        let socket = UdpSocket::from(fd);
        socket.connect(SocketAddr::from((to, 0)))?;
        Ok(Self {
            socket,
            raw,
            session,
            rate: Rate::new(pps, now),
            sent: 0,
            refused: 0,
            sent_at: Vec::new(),
            track: Track::new(now),
            // From a microsecond to ten minutes.
            rtt_us: Histogram::new_with_bounds(1, 600_000_000, 2).map_err(io::Error::other)?,
            stopping: false,
        })
    }

    pub(super) fn next(&self) -> Option<Instant> {
        (!self.stopping).then(|| self.rate.next())
    }

    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = true;
        self.track.stop(now);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.track.received() >= self.sent
    }

    pub(super) fn turn(&mut self, readable: bool, now: Instant) {
        if readable {
            self.receive(now);
        }
        while self.next().is_some_and(|next| now >= next) {
            self.rate.step(now);
            let message = self.message();
            match self.socket.send(&message) {
                Ok(_) => {
                    self.sent += 1;
                    self.sent_at.push(Instant::now());
                }
                Err(_) => self.refused += 1,
            }
        }
    }

    fn message(&self) -> [u8; BYTES] {
        let mut message = [0; BYTES];
        let [.., session_high, session_low] = self.session.to_be_bytes();
        let [.., high, low] = self.sent.to_be_bytes();
        message[0] = ECHO_REQUEST;
        message[4..8].copy_from_slice(&[session_high, session_low, high, low]);
        message[8..16].copy_from_slice(&self.session.to_be_bytes());
        message[16..].copy_from_slice(&self.sent.to_be_bytes());
        let checksum = checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        message
    }

    fn receive(&mut self, now: Instant) {
        let mut bytes = [0; 256];
        for _ in 0..BATCH {
            let Ok(count) = self.socket.recv(&mut bytes) else {
                return;
            };
            self.take(&bytes[..count], now);
        }
    }

    fn take(&mut self, bytes: &[u8], now: Instant) {
        let header = match bytes.first() {
            Some(first) if self.raw => usize::from(first & 15) * 4,
            _ => 0,
        };
        let Some(message) = bytes.get(header..) else {
            return;
        };
        if message.len() != BYTES || message[0] != ECHO_REPLY {
            return;
        }
        let word = |at: usize| {
            let bytes = message[at..at + 8].try_into().unwrap_or([0; 8]);
            u64::from_be_bytes(bytes)
        };
        let (session, number) = (word(8), word(16));
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(sent_at) = self.sent_at.get(at) else {
            return;
        };
        if session == self.session && self.track.note(number, now) {
            let us = now.saturating_duration_since(*sent_at).as_micros();
            self.rtt_us
                .saturating_record(u64::try_from(us).unwrap_or(u64::MAX));
        }
    }

    pub(super) fn report(&self) -> PingReport {
        let ms = |us: u64| us as f64 / 1000.0;
        PingReport {
            answers: self.track.numbers(self.sent),
            refused: self.refused,
            p50_ms: ms(self.rtt_us.value_at_quantile(0.5)),
            p99_ms: ms(self.rtt_us.value_at_quantile(0.99)),
            max_ms: ms(self.rtt_us.max()),
        }
    }
}

/// The Internet checksum; `bytes` are even.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    u16::from_be_bytes([high, low])
}
