//! Service time added to the requests of a disk: a constant for each, or what a [`Bottleneck`] takes
//! that the disk shares with others.
//!
//! A request waits out its time after its real I/O. Where the time is a constant, requests leave in
//! the order in which they came here. A bottleneck is asked when the request starts, and the I/O of
//! one that started later may end earlier.

pub mod bottleneck;
mod words;

use std::collections::VecDeque;

use crate::limits::SLOTS_PER_WORKER;

pub use bottleneck::Bottleneck;

/// Finished requests that wait out their delay, the next one due first.
#[derive(Debug, Default)]
pub(crate) struct DelayLine {
    waiting: VecDeque<(u64, u32)>,
}

impl DelayLine {
    /// Takes room for every request that a worker may have in hand.
    pub fn reserve(&mut self) {
        self.waiting.reserve(SLOTS_PER_WORKER);
    }

    /// Holds slot `id` until `due_ns`. They come almost in order, so that little is moved.
    pub fn hold(&mut self, due_ns: u64, id: u32) {
        let at = self.waiting.partition_point(|&(due, _)| due <= due_ns);
        self.waiting.insert(at, (due_ns, id));
    }

    /// The next slot whose time has come.
    pub fn take_due(&mut self, now_ns: u64) -> Option<u32> {
        let &(due_ns, id) = self.waiting.front()?;
        if due_ns > now_ns {
            return None;
        }
        self.waiting.pop_front();
        Some(id)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the next one is due.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.waiting.front().map(|&(due_ns, _)| due_ns)
    }
}

#[cfg(test)]
mod tests;
