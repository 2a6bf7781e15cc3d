//! The other end of the stream: the screen, which takes the frames and sends the keys.
//!
//! It trusts nothing: from the seed and the keys it plays the same game by itself, and what arrives
//! must be that game, frame by frame.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::cable::Hub;
use super::guest::NAP;
use super::record::{RECORD_BYTES, Record, key_bytes};
use super::stack::{End, Stack};
use super::table::{Table, autopilot};
use super::{SECTORS, Shared};
use crate::error::Done;

/// Frames between two presses of the autopilot for the same fall of the ball.
const REST: u64 = 6;
/// What is told of what did not fit, at most.
const FINDINGS: usize = 10;
/// The last acknowledgement is given so long to leave.
const GOODBYE: Duration = Duration::from_millis(50);
/// No frame for so long is the end of the game.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the screen has to tell at the end.
#[derive(Default)]
pub struct Seen {
    pub frames: u64,
    pub longest_gap: Duration,
    pub reset: bool,
    pub keys_sent: u32,
    pub score: u32,
    pub balls: u16,
    /// Frames that did not arrive whole, in order, and as the game is.
    pub mismatches: u64,
    /// Some of them, in words.
    pub findings: Vec<String>,
    /// Frames that the cable between the hosts had no room for.
    pub cable_dropped: u64,
    /// By frame, modulo the disk's sectors.
    pub records: Vec<[u8; RECORD_BYTES]>,
}

/// The screen's end.
pub struct Player {
    hub: Hub,
    stack: Stack,
    inbox: Vec<u8>,
    shadow: Table,
    run: u32,
    seen: Seen,
    last: Option<Instant>,
    /// The frame of the autopilot's last press.
    pressed: u64,
    shared: Arc<Shared>,
}

impl Player {
    pub fn new(seed: u64, run: u32, hub: Hub, shared: Arc<Shared>) -> Done<Player> {
        Ok(Player {
            hub,
            stack: Stack::new(End::Screen)?,
            inbox: Vec::new(),
            shadow: Table::new(seed),
            run,
            seen: Seen::default(),
            last: None,
            pressed: 0,
            shared,
        })
    }

    /// Watches until the guest ends the stream, or it breaks off.
    pub fn watch(mut self) -> Done<Seen> {
        let mut quiet = Instant::now();
        while !self.stack.is_finished() && !self.shared.over.load(Ordering::Acquire) {
            if self.stack.is_reset() {
                self.seen.reset = true;
                break;
            }
            if self.turn()? {
                quiet = Instant::now();
            }
            if quiet.elapsed() > PATIENCE {
                self.finding(format!("no frame came for {} s", PATIENCE.as_secs()));
                break;
            }
            thread::sleep(NAP);
        }
        if !self.inbox.is_empty() {
            self.finding("the stream ended within a frame".into());
        }
        self.stack.close();
        let began = Instant::now();
        while began.elapsed() < GOODBYE {
            self.turn()?;
            thread::sleep(NAP);
        }
        self.seen.cable_dropped = self.hub.dropped();
        self.shared.over.store(true, Ordering::Release);
        Ok(self.seen)
    }

    /// True when a frame came.
    fn turn(&mut self) -> Done<bool> {
        self.hub.turn(&mut self.stack)?;
        self.stack.poll();
        self.stack.receive(&mut self.inbox);
        let mut came = false;
        while let Some((record, rest)) = self.inbox.split_first_chunk::<RECORD_BYTES>() {
            let record = *record;
            self.inbox = rest.to_vec();
            self.take(&record);
            came = true;
        }
        let keys = self.shared.keys.swap(0, Ordering::AcqRel);
        if keys != 0 {
            self.press(keys);
        }
        self.stack.poll();
        self.hub.turn(&mut self.stack)?;
        Ok(came)
    }

    fn press(&mut self, keys: u8) {
        // A key for which the stream has no room is a key that was not pressed.
        if self.stack.send(&key_bytes(self.seen.keys_sent, keys)) {
            self.seen.keys_sent += 1;
        }
    }

    fn take(&mut self, raw: &[u8; RECORD_BYTES]) {
        let now = Instant::now();
        let gap = self.last.replace(now).map(|last| now - last);
        let gap = gap.unwrap_or_default();
        self.seen.longest_gap = self.seen.longest_gap.max(gap);
        let number = self.seen.frames;
        self.seen.frames += 1;
        let at = usize::try_from(number % SECTORS).unwrap_or(0);
        match self.seen.records.get_mut(at) {
            Some(place) => *place = *raw,
            None => self.seen.records.push(*raw),
        }
        let Some(record) = Record::parse(raw) else {
            self.finding(format!("frame {number} is damaged"));
            return;
        };
        self.check(number, &record);
        (self.seen.score, self.seen.balls) = (record.score, record.balls);
        if !self.shared.keyed.load(Ordering::Relaxed) && number >= self.pressed + REST {
            let keys = autopilot(record.ball, record.speed.1);
            if keys != 0 {
                self.pressed = number;
                self.press(keys);
            }
        }
        self.shared.scene().frame(record, gap);
    }

    fn check(&mut self, number: u64, record: &Record) {
        if record.frame != number {
            self.finding(format!(
                "frame {} came where {number} should be",
                record.frame
            ));
            return;
        }
        self.shadow.frame(record.keys);
        if record.heard > self.seen.keys_sent {
            self.finding(format!("frame {number} tells of keys that were not sent"));
        }
        let told = (record.heard, self.run);
        if *record != Record::of(&self.shadow, number, record.keys, told) {
            self.finding(format!("frame {number} is not of this game"));
        }
    }

    fn finding(&mut self, what: String) {
        self.seen.mismatches += 1;
        if self.seen.findings.len() < FINDINGS {
            self.seen.findings.push(what);
        }
    }
}
