//! One TCP connection, one end of it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::pattern::{Pattern, Side};
use super::report::ConnectionReport;
use super::track::Silence;
use super::{Load, session::TICK};
use crate::rng::mix;

/// Most bytes written or read at once.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces read in a turn, so that every connection has its own.
const PIECES_MAX: usize = 4;
/// How far a sender that was held up may make good, in ticks.
const BEHIND_TICKS: u64 = 25;
/// A question and its answer have so many bytes.
const WORDS_BYTES: std::ops::Range<u64> = 16..1200;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The caller sends.
    Up,
    /// The server sends.
    Down,
    /// The caller asks, the server answers.
    Chat,
}

impl Kind {
    /// Of a connection by its number: a third of each.
    pub(super) fn of(connection: u16) -> Kind {
        match connection % 3 {
            0 => Kind::Up,
            1 => Kind::Down,
            _ => Kind::Chat,
        }
    }
}

/// What this end of it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Send,
    Receive,
    Ask,
    Answer,
}

/// Why a connection ended that should not have.
#[derive(Debug, Clone)]
enum Fault {
    /// The kernel says so.
    Broken(io::ErrorKind),
    /// At this offset.
    Mismatch(u64),
    /// The other end hung up.
    Closed,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    number: u16,
    kind: Kind,
    duty: Duty,
    sends: Pattern,
    receives: Pattern,
    /// Bytes sent, and how far it may go.
    sent: u64,
    allowed: u64,
    /// Bytes that a sender may send in a tick.
    tick_bytes: u64,
    received: u64,
    /// Where the question or answer ends that is awaited.
    awaited: u64,
    exchanges: u64,
    chat_pause: Duration,
    ask_at: Instant,
    silence: Silence,
    hung_up: bool,
    ended: bool,
    stopping: bool,
    fault: Option<Fault>,
}

/// How long question number `number`, and its answer, is.
fn words_bytes(connection: u16, number: u64) -> u64 {
    let spread = WORDS_BYTES.end - WORDS_BYTES.start;
    WORDS_BYTES.start + mix(u64::from(connection) << 48 ^ number) % spread
}

impl Stream {
    pub(super) fn new(
        socket: TcpStream,
        side: Side,
        session: u64,
        number: u16,
        load: &Load,
        now: Instant,
    ) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let kind = Kind::of(number);
        let duty = match (kind, side) {
            (Kind::Up, Side::Caller) | (Kind::Down, Side::Server) => Duty::Send,
            (Kind::Up, Side::Server) | (Kind::Down, Side::Caller) => Duty::Receive,
            (Kind::Chat, Side::Caller) => Duty::Ask,
            (Kind::Chat, Side::Server) => Duty::Answer,
        };
        let ticks = 1000 / TICK.as_millis().max(1);
        let ticks = u64::try_from(ticks).unwrap_or(1);
        // Not all at once: a fresh one asks at a time of its own.
        let first = Duration::from_millis(load.chat_ms * u64::from(number % 32) / 32);
        Ok(Self {
            socket,
            number,
            kind,
            duty,
            sends: Pattern::new(session, number, side),
            receives: Pattern::new(session, number, side.other()),
            sent: 0,
            allowed: 0,
            tick_bytes: load.bulk_bytes_per_second.div_ceil(ticks),
            received: 0,
            awaited: match duty {
                Duty::Answer => words_bytes(number, 0),
                _ => 0,
            },
            exchanges: 0,
            chat_pause: Duration::from_millis(load.chat_ms),
            ask_at: now + first,
            silence: Silence::since(now),
            hung_up: false,
            ended: false,
            stopping: false,
            fault: None,
        })
    }

    pub(super) fn has_to_send(&self) -> bool {
        !self.hung_up && self.fault.is_none() && self.sent < self.allowed
    }

    pub(super) fn may_receive(&self) -> bool {
        !self.ended && self.fault.is_none()
    }

    /// Bytes so far, of one that only sends or receives.
    pub(super) fn carried(&self) -> Option<u64> {
        match self.duty {
            Duty::Send => Some(self.sent),
            Duty::Receive => Some(self.received),
            Duty::Ask | Duty::Answer => None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.fault.is_some() || self.hung_up && self.ended
    }

    /// No more questions, and no more than what was begun.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = true;
        if self.may_receive() && (self.duty == Duty::Receive || !self.is_at_rest()) {
            self.silence.end(now);
        }
        if self.duty == Duty::Send {
            self.allowed = self.sent;
        }
    }

    /// So many ticks have gone by.
    pub(super) fn tick(&mut self, ticks: u64, now: Instant) {
        if self.stopping {
            return;
        }
        match self.duty {
            Duty::Send => {
                let most = self.sent + BEHIND_TICKS * self.tick_bytes;
                self.allowed = (self.allowed + ticks * self.tick_bytes).min(most);
            }
            Duty::Ask if self.is_at_rest() && now >= self.ask_at => {
                let bytes = words_bytes(self.number, self.exchanges);
                self.allowed = self.sent + bytes;
                self.awaited = self.received + bytes;
                self.silence.begin(now);
            }
            Duty::Ask | Duty::Receive | Duty::Answer => {}
        }
    }

    /// All that was asked is answered.
    fn is_at_rest(&self) -> bool {
        self.sent == self.allowed && self.received == self.awaited
    }

    /// Reads and writes what there is, and hangs up when that is due.
    pub(super) fn turn(&mut self, readable: bool, now: Instant) {
        if self.is_done() {
            return;
        }
        if readable && !self.ended {
            self.noting(|it| it.read(now));
        }
        if self.has_to_send() {
            self.noting(Stream::write);
        }
        if !self.hung_up && self.fault.is_none() && self.is_over() {
            self.noting(|it| {
                it.hung_up = true;
                it.socket.shutdown(Shutdown::Write)
            });
        }
        if self.fault.is_some() {
            // The other end is not to wait for what will not come.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether this end has no more to say.
    fn is_over(&self) -> bool {
        match self.duty {
            Duty::Send => self.stopping && self.sent == self.allowed,
            Duty::Ask => self.stopping && self.is_at_rest(),
            Duty::Receive | Duty::Answer => self.ended && self.sent == self.allowed,
        }
    }

    fn noting(&mut self, act: impl FnOnce(&mut Self) -> io::Result<()>) {
        match act(self) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.fault = Some(Fault::Broken(error.kind())),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let mut piece = [0; PIECE_BYTES];
        while self.sent < self.allowed {
            let left = usize::try_from(self.allowed - self.sent).unwrap_or(usize::MAX);
            let piece = &mut piece[..left.min(PIECE_BYTES)];
            self.sends.fill(self.sent, piece);
            self.sent += self.socket.write(piece)? as u64;
        }
        Ok(())
    }

    fn read(&mut self, now: Instant) -> io::Result<()> {
        let mut piece = [0; PIECE_BYTES];
        for _ in 0..PIECES_MAX {
            let count = self.socket.read(&mut piece)?;
            if count == 0 {
                self.ended = true;
                self.judge_end();
                return Ok(());
            }
            let bytes = &piece[..count];
            if let Some(at) = self.receives.differs(self.received, bytes) {
                self.fault = Some(Fault::Mismatch(at));
                return Ok(());
            }
            self.received += count as u64;
            self.silence.end(now);
            self.exchange(now);
        }
        Ok(())
    }

    /// The caller says when it is over. The server cannot tell: that a connection ends may be seen
    /// before the word on another.
    fn judge_end(&mut self) {
        let early = match (self.duty, self.kind) {
            (Duty::Ask, _) => !self.is_at_rest() || !self.stopping,
            (Duty::Receive, Kind::Down) | (Duty::Send, Kind::Up) => !self.stopping,
            _ => false,
        };
        if early {
            self.fault = Some(Fault::Closed);
        }
    }

    /// A question or an answer may have come whole.
    fn exchange(&mut self, now: Instant) {
        match self.duty {
            Duty::Answer => {
                while self.received >= self.awaited {
                    self.allowed += words_bytes(self.number, self.exchanges);
                    self.exchanges += 1;
                    self.awaited += words_bytes(self.number, self.exchanges);
                }
            }
            Duty::Ask if self.received >= self.awaited => {
                self.exchanges += 1;
                self.ask_at = now + self.chat_pause;
            }
            Duty::Ask | Duty::Send | Duty::Receive => {}
        }
    }

    pub(super) fn report(&self) -> ConnectionReport {
        // One that answers cannot tell a pause from a silence.
        let hears = matches!(self.duty, Duty::Receive | Duty::Ask);
        let fault = match &self.fault {
            Some(Fault::Broken(kind)) => Some(format!("broken: {kind}")),
            Some(Fault::Mismatch(at)) => Some(format!("another byte than was sent at {at}")),
            Some(Fault::Closed) => Some("closed by the other end".to_owned()),
            None if !self.is_done() => Some("did not come to its end".to_owned()),
            None => None,
        };
        ConnectionReport {
            number: self.number,
            kind: self.kind,
            sent_bytes: self.sent,
            received_bytes: self.received,
            exchanges: self.exchanges,
            longest_silence_ms: hears.then(|| self.silence.longest_ms()),
            reset: matches!(self.fault, Some(Fault::Broken(_) | Fault::Closed)),
            mismatch: matches!(self.fault, Some(Fault::Mismatch(_))),
            stuck: self.fault.is_none() && !self.is_done(),
            fault,
        }
    }
}
