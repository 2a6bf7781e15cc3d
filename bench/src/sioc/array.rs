//! A storage array in virtual time: it is told the time, keeps its own chance, and does no I/O.
//!
//! Requests wait in the order in which they came, in one queue for all spindles or in one for each.
//! A spindle works on one at a time. What a request takes is a fixed time and one for its bytes, by
//! direction, made longer or shorter by chance; while the array rebuilds, the work goes slower, and
//! while it collects garbage it stands still. Hits of the cache take a short time and no spindle.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use ferry_dataplane::qos::UNIT_BYTES;

use crate::rng::Rng;

/// What a request takes on a spindle, in the mean.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Whatever its size, in nanoseconds.
    pub begin_ns: f64,
    /// For each [`UNIT_BYTES`], in nanoseconds.
    pub unit_ns: f64,
}

/// Where requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// In one queue: an array that puts the work where there is room for it.
    Shared,
    /// At a spindle that chance chooses, as an address does.
    PerSpindle,
}

/// A time of slower work.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// From here.
    pub from_ns: u64,
    /// To here.
    pub to_ns: u64,
    /// So many times the work; infinity: none is done.
    pub factor: f64,
}

/// Pauses that come again and again: garbage collection.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// From one to the next, in nanoseconds.
    pub every_ns: u64,
    /// Length, in nanoseconds.
    pub pause_ns: u64,
    /// One spindle after the other; all at once if not.
    pub in_turn: bool,
}

/// A cache in front of the spindles.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cache {
    /// Reads that it has, of 100.
    pub read_percent: u64,
    /// Writes that it takes, of 100.
    pub write_percent: u64,
    /// How long a hit takes, in nanoseconds.
    pub hit_ns: u64,
}

/// What an array is like.
#[derive(Debug, Clone)]
pub struct ArraySpec {
    /// Requests that it works on at a time.
    pub spindles: u32,
    /// Where the others wait.
    pub queues: Queues,
    /// What a read takes.
    pub read: Service,
    /// What a write takes.
    pub write: Service,
    /// How much of the time is chance: 0 none, 1 all of it, exponentially distributed.
    pub chance: f64,
    /// Its cache.
    pub cache: Cache,
    /// When the cache has what is asked for; at other times it hits nothing.
    pub cached_ns: std::ops::Range<u64>,
    /// Rebuilds.
    pub slow: Vec<Slow>,
    /// Garbage collection.
    pub pauses: Option<Pauses>,
    /// Of its chance.
    pub seed: u64,
}

impl ArraySpec {
    /// An array that does so many reads of so many bytes in a second when it is busy, and no fewer of
    /// 32 KiB than of less: one whose time goes into seeking. Writes take as long.
    pub fn seeking(spindles: u32, iops: f64) -> ArraySpec {
        let each = Service {
            begin_ns: f64::from(spindles) * 1e9 / iops,
            unit_ns: 0.0,
        };
        ArraySpec {
            spindles,
            queues: Queues::Shared,
            read: each,
            write: each,
            chance: 0.3,
            cache: Cache::default(),
            cached_ns: 0..u64::MAX,
            slow: Vec::new(),
            pauses: None,
            seed: 1,
        }
    }

    /// What a request takes on a spindle in the mean, in nanoseconds.
    pub fn mean_ns(&self, bytes: u64, write: bool) -> f64 {
        let service = if write { self.write } else { self.read };
        #[allow(clippy::cast_precision_loss)] // sizes of requests
        let units = bytes as f64 / UNIT_BYTES as f64;
        service.begin_ns + units * service.unit_ns
    }
}

/// A request at the array, named by whoever sent it.
pub type Ticket = u32;

#[derive(Debug, Clone, Copy)]
struct Waiting {
    ticket: Ticket,
    work_ns: f64,
}

#[derive(Debug, Default)]
struct Spindle {
    busy: bool,
    queue: VecDeque<Waiting>,
}

/// When it ends, in what order that was known, which it is, and at which spindle; none: in the cache.
type End = (u64, u64, Ticket, Option<u32>);

/// See the module.
#[derive(Debug)]
pub struct Array {
    spec: ArraySpec,
    rng: Rng,
    spindles: Vec<Spindle>,
    idle: Vec<u32>,
    shared: VecDeque<Waiting>,
    ends: BinaryHeap<Reverse<End>>,
    begun: u64,
}

impl Array {
    /// One with nothing to do.
    pub fn new(spec: ArraySpec) -> Array {
        Array {
            rng: Rng::new(spec.seed),
            spindles: (0..spec.spindles).map(|_| Spindle::default()).collect(),
            idle: (0..spec.spindles).rev().collect(),
            shared: VecDeque::new(),
            ends: BinaryHeap::new(),
            begun: 0,
            spec,
        }
    }

    /// What it is like.
    pub fn spec(&self) -> &ArraySpec {
        &self.spec
    }

    /// A request comes.
    pub fn submit(&mut self, now_ns: u64, ticket: Ticket, bytes: u64, write: bool) {
        let cache = self.spec.cache;
        let percent = if write {
            cache.write_percent
        } else {
            cache.read_percent
        };
        let warm = self.spec.cached_ns.contains(&now_ns);
        if warm && percent > 0 && self.rng.percent(percent) {
            return self.ends_at(now_ns + cache.hit_ns, ticket, None);
        }
        let chance = self.spec.chance;
        let drawn = 1.0 - chance + chance * exponential(&mut self.rng);
        let request = Waiting {
            ticket,
            work_ns: self.spec.mean_ns(bytes, write) * drawn,
        };
        match self.spec.queues {
            Queues::Shared => match self.idle.pop() {
                Some(spindle) => self.begin(now_ns, spindle, request),
                None => self.shared.push_back(request),
            },
            Queues::PerSpindle => {
                let drawn = self.rng.below(u64::from(self.spec.spindles));
                let spindle = u32::try_from(drawn).unwrap_or(0);
                if self.spindles[spindle as usize].busy {
                    self.spindles[spindle as usize].queue.push_back(request);
                } else {
                    self.begin(now_ns, spindle, request);
                }
            }
        }
    }

    fn begin(&mut self, now_ns: u64, spindle: u32, request: Waiting) {
        self.spindles[spindle as usize].busy = true;
        let end = self.worked_off_ns(now_ns, spindle, request.work_ns);
        self.ends_at(end, request.ticket, Some(spindle));
    }

    fn ends_at(&mut self, end_ns: u64, ticket: Ticket, spindle: Option<u32>) {
        self.begun += 1;
        self.ends
            .push(Reverse((end_ns, self.begun, ticket, spindle)));
    }

    /// When the next request ends.
    pub fn next_ns(&self) -> Option<u64> {
        self.ends.peek().map(|end| end.0.0)
    }

    /// A request that has ended by now.
    pub fn take(&mut self, now_ns: u64) -> Option<Ticket> {
        self.next_ns().filter(|&end| end <= now_ns)?;
        let Reverse((end_ns, _, ticket, spindle)) = self.ends.pop()?;
        if let Some(spindle) = spindle {
            let own = self.spindles[spindle as usize].queue.pop_front();
            match own.or_else(|| self.shared.pop_front()) {
                Some(next) => self.begin(end_ns, spindle, next),
                None => {
                    self.spindles[spindle as usize].busy = false;
                    self.idle.push(spindle);
                }
            }
        }
        Some(ticket)
    }

    /// When work that begins now is done.
    fn worked_off_ns(&self, now_ns: u64, spindle: u32, work_ns: f64) -> u64 {
        let (mut at, mut left) = (now_ns, work_ns);
        loop {
            let (factor, until) = self.pace(at, spindle);
            #[allow(clippy::cast_precision_loss)]
            let room = (until - at) as f64 / factor;
            if left <= room {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                return at + ((left * factor) as u64).max(1);
            }
            left -= room;
            at = until;
        }
    }

    /// How many times as long work takes at a time, and until when that holds.
    fn pace(&self, at_ns: u64, spindle: u32) -> (f64, u64) {
        let (mut factor, mut until) = (1.0, at_ns + (1 << 50));
        for slow in &self.spec.slow {
            if at_ns < slow.from_ns {
                until = until.min(slow.from_ns);
            } else if at_ns < slow.to_ns {
                factor *= slow.factor;
                until = until.min(slow.to_ns);
            }
        }
        if let Some(pauses) = self.spec.pauses {
            let turn = if pauses.in_turn {
                u64::from(spindle)
            } else {
                0
            };
            let shift = pauses.every_ns / u64::from(self.spec.spindles) * turn;
            // The first comes at the end of a round: an array does not begin with one.
            let into = (at_ns + shift) % pauses.every_ns;
            let work = pauses.every_ns - pauses.pause_ns;
            if into < work {
                until = until.min(at_ns + work - into);
            } else {
                factor = f64::INFINITY;
                until = until.min(at_ns + pauses.every_ns - into);
            }
        }
        (factor, until)
    }
}

/// Exponentially distributed, with a mean of one.
fn exponential(rng: &mut Rng) -> f64 {
    #[allow(clippy::cast_precision_loss)] // 53 bits fit
    let uniform = ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln()
}

#[cfg(test)]
mod tests;
