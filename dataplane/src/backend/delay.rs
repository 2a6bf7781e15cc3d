//! Service time added to every request of a disk. The delay is one constant for the disk, so the
//! requests leave in the order in which they came, and a queue is all it takes.

use std::collections::VecDeque;

use crate::limits::SLOTS_PER_WORKER;

/// Finished requests that wait out their delay.
#[derive(Debug, Default)]
pub(crate) struct DelayLine {
    waiting: VecDeque<(u64, u32)>,
}

impl DelayLine {
    /// Takes room for every request that a worker may have in hand.
    pub fn reserve(&mut self) {
        self.waiting.reserve(SLOTS_PER_WORKER);
    }

    /// Holds slot `id` until `due_ns`, which never goes back within one disk.
    pub fn hold(&mut self, due_ns: u64, id: u32) {
        self.waiting.push_back((due_ns, id));
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
