//! Frames that are kept for a guest: while its queues stand still, and while its NIC is on its way from
//! one host to another.
//!
//! ```text
//!   source                                                destination
//!     Stays     queues stand still: kept
//!     Leaves    kept, and a copy goes with the NIC  ──►   Arrives   they are given first
//!       │ the guest runs here again: kept ones first        │ its own frames wait behind them
//!       │ it runs there                                     │ no more will come first
//!     Gone      not kept: only passed on            ──►   Stays
//! ```
//!
//! While a NIC arrives, and as long as stragglers follow, a frame may come both ways: by the host's own
//! network, and passed on by the source. That is so of groups, and of all frames in a network that has not
//! learned yet, or never does. Each is given once; two that say the same and come the same way are two.
//!
//! A guest that goes on has a blackout's frames to catch up with, all at once: for a second, what finds its
//! rings full waits as well, where a guest at rest would lose it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::limits::{
    CAPTURE_BYTES, CAPTURE_FRAMES, CAPTURE_TWINS, CATCH_UP, MOVE_CAPTURE_BYTES, MOVE_CAPTURE_FRAMES,
};
use crate::net::header::Header;
use crate::net::lifecycle::NicEvent;

/// How much sooner one of two that are the same may come. A station that says the same thing twice
/// waits longer.
const TWIN_NS: u64 = 50_000_000;
/// How long a source may pass stragglers on after the last of what had to be first.
const STRAGGLE_NS: u64 = 5_000_000_000;

/// Frames and bytes that are kept for a guest that stands still, for whatever reason and however long.
const STOPPED: (usize, usize) = (CAPTURE_FRAMES, CAPTURE_BYTES);
/// For one that moves: all that comes within its blackout.
const MOVED: (usize, usize) = (MOVE_CAPTURE_FRAMES, MOVE_CAPTURE_BYTES);

/// A frame for a guest whose queues stand still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Counts up by one with every frame that the port keeps or passes on.
    pub seq: u64,
    /// Its header, as the port gave it.
    pub header: Header,
    /// What is behind its addresses and tags.
    pub ether_type: u16,
    /// The frame.
    pub bytes: Arc<[u8]>,
}

/// What a NIC that leaves has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A frame that came here.
    Frame(Captured),
    /// Its guest runs here again and has what was kept: all that was told before is void.
    Resumed,
}

/// What became of a frame that could not be given at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is kept, or passed on.
    Yes,
    /// There was no room for it.
    Full,
    /// Nobody is there for it.
    NoLink,
    /// It is the other host's to give.
    Elsewhere,
}

/// Whom a port tells.
#[derive(Debug)]
pub(crate) struct Teller {
    /// Bounded, and never waited for.
    pub to: Sender<NicEvent>,
    /// What the port is called there.
    pub port: u16,
}

impl Teller {
    fn tell(&self, told: Told) -> bool {
        self.to.try_send(NicEvent::Told(self.port, told)).is_ok()
    }

    fn tell_within(&self, left: &mut usize, frame: Captured) -> bool {
        let room = left.checked_sub(frame.bytes.len());
        *left = room.unwrap_or(*left);
        room.is_some() && self.tell(Told::Frame(frame))
    }
}

/// Where the guest's NIC is.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Stays,
    Leaves(Leaving),
    Gone {
        to: Teller,
        /// Bytes that may yet be passed on.
        left: usize,
    },
    Arrives(Box<Arrival>),
}

/// A NIC that leaves.
#[derive(Debug)]
struct Leaving {
    to: Teller,
    /// All that is kept was told. What waits for a guest that runs is not: it may still have it here.
    told: bool,
}

impl Leaving {
    fn tell_all(&mut self, kept: &Frames) {
        if !std::mem::replace(&mut self.told, true) {
            for frame in &kept.frames {
                // Who is not there to hear it is told all of them later.
                self.to.tell(Told::Frame(frame.clone()));
            }
        }
    }
}

/// A NIC that arrives.
#[derive(Debug, Default)]
struct Arrival {
    /// Frames that came here since its guest runs here. They wait for those that are to be first.
    own: Frames,
    /// Their prints.
    prints: VecDeque<u64>,
}

/// What came lately by one way and has not come by the other: when, and its print.
#[derive(Debug)]
struct Lately(VecDeque<(u64, u64)>);

impl Lately {
    fn push(&mut self, now_ns: u64, print: u64) {
        if self.0.len() == CAPTURE_TWINS {
            self.0.pop_front();
        }
        self.0.push_back((now_ns, print));
    }

    /// Takes the first that is the same, if there is one.
    fn take(&mut self, now_ns: u64, print: u64) -> bool {
        let is_old = |it: &(u64, u64)| now_ns.saturating_sub(it.0) >= TWIN_NS;
        while self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
        let at = self.0.iter().position(|it| it.1 == print);
        at.and_then(|at| self.0.remove(at)).is_some()
    }
}

/// Frames that come both ways, told by their prints.
#[derive(Debug)]
struct Twins {
    /// Chosen anew for each NIC that arrives: no station can make two frames that have the same print.
    hasher: RandomState,
    here: Lately,
    passed_on: Lately,
    /// Until when stragglers may come.
    until_ns: u64,
}

impl Twins {
    fn new() -> Twins {
        let lately = || Lately(VecDeque::with_capacity(CAPTURE_TWINS));
        Twins {
            hasher: RandomState::new(),
            here: lately(),
            passed_on: lately(),
            until_ns: u64::MAX,
        }
    }

    fn print(&self, bytes: &[u8]) -> u64 {
        self.hasher.hash_one(bytes)
    }
}

/// So many frames, of so many bytes.
#[derive(Debug, Default)]
struct Frames {
    frames: VecDeque<Captured>,
    bytes: usize,
}

impl Frames {
    fn push(&mut self, frame: Captured, (frames, bytes): (usize, usize)) -> bool {
        let full = self.frames.len() >= frames || self.bytes + frame.bytes.len() > bytes;
        if !full {
            self.bytes += frame.bytes.len();
            self.frames.push_back(frame);
        }
        !full
    }

    fn pop(&mut self) -> Option<Captured> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.bytes.len();
        Some(frame)
    }

    fn clear(&mut self) {
        *self = Frames::default();
    }

    fn remove(&mut self, at: usize) {
        if let Some(frame) = self.frames.remove(at) {
            self.bytes -= frame.bytes.len();
        }
    }
}

fn is_group(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first & 1 != 0)
}

/// What is kept for a guest.
#[derive(Debug, Default)]
pub(super) struct Capture {
    /// Frames are kept while no queue runs.
    on: bool,
    kept: Frames,
    next_seq: u64,
    place: Place,
    /// While frames may come both ways.
    twins: Option<Box<Twins>>,
    /// Until when a guest that has moved, or was about to, may be behind.
    behind_until_ns: u64,
}

impl Capture {
    /// Whether frames go to the guest as they come, while its queues run.
    pub fn is_direct(&self) -> bool {
        self.kept.frames.is_empty() && !matches!(self.place, Place::Arrives(_))
    }

    pub fn is_empty(&self) -> bool {
        self.kept.frames.is_empty()
    }

    /// Whether what finds no room waits for it.
    pub fn is_behind(&self, now_ns: u64) -> bool {
        now_ns < self.behind_until_ns
    }

    fn falls_behind(&mut self, now_ns: u64) {
        let catch_up_ns = u64::try_from(CATCH_UP.as_nanos()).expect("a short time");
        self.behind_until_ns = now_ns.saturating_add(catch_up_ns);
    }

    /// Whether frames that come here may come from the source as well.
    pub fn minds_twins(&mut self, now_ns: u64) -> bool {
        if self.twins.as_ref().is_some_and(|it| now_ns >= it.until_ns) {
            self.twins = None;
        }
        self.twins.is_some()
    }

    /// A frame comes here; true when the source has passed it on already. Said once of each.
    pub fn has_come(&mut self, now_ns: u64, bytes: &[u8]) -> bool {
        let Some(twins) = &mut self.twins else {
            return false;
        };
        let print = twins.print(bytes);
        let has = twins.passed_on.take(now_ns, print);
        if !has {
            twins.here.push(now_ns, print);
        }
        has
    }

    /// Keeps a frame that cannot be given now, unless the source has passed it on. `running` when queues do
    /// run, and others are first.
    pub fn keep(
        &mut self,
        running: bool,
        now_ns: u64,
        said: (Header, u16),
        bytes: Arc<[u8]>,
    ) -> Kept {
        if running && self.minds_twins(now_ns) && self.has_come(now_ns, &bytes) {
            return Kept::Yes;
        }
        self.keep_first(running, now_ns, said, bytes)
    }

    /// As [`Capture::keep`], a frame that the source has not passed on.
    pub fn keep_first(
        &mut self,
        running: bool,
        now_ns: u64,
        (header, ether_type): (Header, u16),
        bytes: Arc<[u8]>,
    ) -> Kept {
        let frame = Captured {
            seq: self.next_seq,
            header,
            ether_type,
            bytes,
        };
        let group = is_group(&frame.bytes);
        let bound = if self.is_behind(now_ns) {
            MOVED
        } else {
            STOPPED
        };
        let done = match &mut self.place {
            Place::Gone { to, left } if !running => {
                // Those to groups reach the guest by the network of the host that it is at.
                if group {
                    return Kept::Elsewhere;
                }
                to.tell_within(left, frame)
            }
            // The source has it as well.
            Place::Arrives(_) if !running => return Kept::Elsewhere,
            Place::Arrives(arrival) => {
                let print = self.twins.as_ref().map(|it| it.print(&frame.bytes));
                let kept = arrival.own.push(frame, MOVED);
                if kept {
                    arrival.prints.push_back(print.unwrap_or_default());
                }
                kept
            }
            _ if !self.on && !running => return Kept::NoLink,
            Place::Leaves(leaving) if !running => {
                leaving.tell_all(&self.kept);
                let kept = self.kept.push(frame.clone(), MOVED);
                if kept {
                    leaving.to.tell(Told::Frame(frame));
                }
                kept
            }
            _ => self.kept.push(frame, bound),
        };
        if done {
            self.next_seq += 1;
            Kept::Yes
        } else {
            Kept::Full
        }
    }

    /// The first of those that wait.
    pub fn first(&self) -> Option<&Captured> {
        self.kept.frames.front()
    }

    /// It was given.
    pub fn given(&mut self) {
        self.kept.pop();
    }

    /// A queue runs again.
    pub fn resumed(&mut self, now_ns: u64) {
        self.on = true;
        match &mut self.place {
            Place::Leaves(leaving) => {
                if std::mem::take(&mut leaving.told) {
                    leaving.to.tell(Told::Resumed);
                }
                self.falls_behind(now_ns);
            }
            _ if !self.kept.frames.is_empty() => self.falls_behind(now_ns),
            Place::Gone { .. } | Place::Stays | Place::Arrives(_) => {}
        }
        match self.place {
            // It came back by a way that nobody announced.
            Place::Gone { .. } => self.place = Place::Stays,
            Place::Stays | Place::Leaves(_) | Place::Arrives(_) => {}
        }
    }

    /// No queue runs any more.
    pub fn stopped(&mut self) {
        if let Place::Leaves(leaving) = &mut self.place {
            leaving.tell_all(&self.kept);
        }
    }

    /// Whether frames are kept while the queues stand still. What was kept is given out when that ends.
    pub fn set(&mut self, on: bool) -> Vec<Captured> {
        self.on = on;
        if on {
            return Vec::new();
        }
        (self.place, self.twins) = (Place::Stays, None);
        std::mem::take(&mut self.kept).frames.into()
    }

    /// Drops what is kept; how many there were.
    pub fn drop_kept(&mut self) -> usize {
        std::mem::take(&mut self.kept).frames.len()
    }

    /// What is kept, and stays so.
    pub fn in_hand(&self) -> Vec<Captured> {
        self.kept.frames.iter().cloned().collect()
    }

    /// The NIC is to leave: while no queue is `running`, what is kept, and what comes, is told as well.
    pub fn leave(&mut self, running: bool, to: Teller, now_ns: u64) {
        self.settle(now_ns);
        let mut leaving = Leaving { to, told: false };
        if !running {
            leaving.tell_all(&self.kept);
        }
        self.place = Place::Leaves(leaving);
    }

    /// It has left: frames are passed on and not kept, as many as could have been.
    pub fn gone(&mut self) {
        self.place = match std::mem::take(&mut self.place) {
            Place::Leaves(Leaving { to, .. }) => {
                self.kept.clear();
                let left = MOVE_CAPTURE_BYTES;
                Place::Gone { to, left }
            }
            other => other,
        };
    }

    /// It does not leave, or nothing more is passed on.
    pub fn stay(&mut self) {
        match self.place {
            Place::Leaves(_) => self.place = Place::Stays,
            Place::Gone { .. } => (self.place, self.on) = (Place::Stays, false),
            Place::Stays | Place::Arrives(_) => {}
        }
    }

    /// A NIC is to arrive, and what is here is another's.
    pub fn arrive(&mut self) {
        self.kept.clear();
        self.place = Place::Arrives(Box::default());
        self.twins = Some(Box::new(Twins::new()));
    }

    /// A frame from the host that the NIC comes from; false when there is no room for it.
    pub fn deliver(&mut self, mut frame: Captured, now_ns: u64) -> bool {
        if self.is_given(now_ns, &frame.bytes) {
            return true;
        }
        frame.seq = self.next_seq;
        self.next_seq += 1;
        match &mut self.place {
            // It is on its way to a third host already.
            Place::Gone { to, left } => to.tell_within(left, frame),
            Place::Leaves(leaving) if leaving.told => {
                let kept = self.kept.push(frame.clone(), MOVED);
                if kept {
                    leaving.to.tell(Told::Frame(frame));
                }
                kept
            }
            _ => self.kept.push(frame, MOVED),
        }
    }

    /// The source passes a frame on; whether it came here, and is the guest's already. One that waits here
    /// gives its place up.
    fn is_given(&mut self, now_ns: u64, bytes: &[u8]) -> bool {
        if !self.minds_twins(now_ns) {
            return false;
        }
        let Some(twins) = &mut self.twins else {
            return false;
        };
        let print = twins.print(bytes);
        let came = twins.here.take(now_ns, print);
        if let Place::Arrives(arrival) = &mut self.place {
            let at = arrival.prints.iter().position(|it| *it == print);
            if let Some(at) = at {
                arrival.prints.remove(at);
                arrival.own.remove(at);
            } else {
                twins.passed_on.push(now_ns, print);
            }
            return false;
        }
        if !came {
            twins.passed_on.push(now_ns, print);
        }
        came
    }

    /// No more is to be given before what came here. True when something waits.
    pub fn settle(&mut self, now_ns: u64) -> bool {
        if let Place::Arrives(arrival) = &mut self.place {
            let own = std::mem::take(&mut arrival.own);
            self.place = Place::Stays;
            if let Some(twins) = &mut self.twins {
                twins.until_ns = now_ns.saturating_add(STRAGGLE_NS);
            }
            self.falls_behind(now_ns);
            // One bound for both: each was kept within it.
            self.kept.bytes += own.bytes;
            self.kept.frames.extend(own.frames);
        }
        !self.is_empty()
    }
}

#[cfg(test)]
mod tests;
