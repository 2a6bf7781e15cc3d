//! Which queue should move to which worker, decided from what was measured. No clock and no worker
//! in here: time and loads come as arguments.
//!
//! Every look finds the busiest worker and the idlest. A move is proposed only if the busiest has
//! little time left, and only if the busier of the two would then be clearly less busy than the
//! busiest is now. It has to be found in two looks in a row, one move is made at a time, and both
//! the workers and what was moved are then left alone for a while. So a load that stays as it is
//! comes to rest: each move lowers the maximum, and a move back would raise it.

use std::collections::HashMap;

/// The busiest worker has little time left above this share of it, in percent.
const CROWDED_PERCENT: u64 = 50;

/// A move must better the maximum by this share of a worker's time, in percent.
const MARGIN_PERCENT: u64 = 10;

/// Looks in a row that must find a move.
const LOOKS: u32 = 2;

/// After a move nothing moves for so long, in nanoseconds: its effect must be measured first.
const COOL_NS: u64 = 3_000_000_000;

/// What was moved stays for so long, in nanoseconds.
const STAY_NS: u64 = 30_000_000_000;

/// What moves as one: a queue, or all queues of a disk that must be together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Unit {
    /// The disk, by [`crate::disk::Disk::number`].
    pub disk: u64,
    /// The queue; `None` for all of them.
    pub queue: Option<usize>,
}

/// What a unit took of its worker's time since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// What.
    pub unit: Unit,
    /// The worker it is on.
    pub worker: usize,
    /// Its share of that worker's busy time, in nanoseconds.
    pub busy_ns: u64,
}

/// A move to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// What.
    pub unit: Unit,
    /// From that worker.
    pub from: usize,
    /// To that worker.
    pub to: usize,
}

/// Remembers what was moved, and when.
#[derive(Debug, Default)]
pub struct Placement {
    found: u32,
    cool_until_ns: u64,
    stays_until_ns: HashMap<Unit, u64>,
}

impl Placement {
    /// Takes a look: `busy_ns` of each worker in the last `period_ns`, and the loads it was made of.
    /// Whoever gets a move makes it, or lets it be.
    pub fn look(
        &mut self,
        now_ns: u64,
        period_ns: u64,
        busy_ns: &[u64],
        loads: &[Load],
    ) -> Option<Move> {
        self.stays_until_ns.retain(|_, until| *until > now_ns);
        if now_ns < self.cool_until_ns {
            return None;
        }
        let Some(found) = self.best(period_ns, busy_ns, loads) else {
            self.found = 0;
            return None;
        };
        self.found += 1;
        if self.found < LOOKS {
            return None;
        }
        self.found = 0;
        self.cool_until_ns = now_ns + COOL_NS;
        self.stays_until_ns.insert(found.unit, now_ns + STAY_NS);
        Some(found)
    }

    /// The move that makes the busier of the two workers least busy.
    fn best(&self, period_ns: u64, busy_ns: &[u64], loads: &[Load]) -> Option<Move> {
        let workers = || busy_ns.iter().copied().enumerate();
        let (from, most) = workers().max_by_key(|&(_, busy)| busy)?;
        let (to, least) = workers().min_by_key(|&(_, busy)| busy)?;
        let percent = |percent: u64| period_ns / 100 * percent;
        if from == to || most < percent(CROWDED_PERCENT) {
            return None;
        }
        let after = |load: &Load| most.saturating_sub(load.busy_ns).max(least + load.busy_ns);
        let best = loads
            .iter()
            .filter(|load| load.worker == from && !self.stays_until_ns.contains_key(&load.unit))
            .min_by_key(|load| after(load))?;
        (after(best) + percent(MARGIN_PERCENT) <= most).then_some(Move {
            unit: best.unit,
            from,
            to,
        })
    }
}

#[cfg(test)]
mod tests;
