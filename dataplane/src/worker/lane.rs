//! A disk as one worker sees it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;

use super::flush::{FlushQueue, Flushes};
use super::throttle::LaneQos;
use crate::backend::delay::DelayLine;
use crate::backend::{Backend, Store};
use crate::lifecycle::WriteTap;
use crate::limits::{SECTOR_BYTES, SLOTS_PER_WORKER};
use crate::metrics::Counters;
use crate::ring::Target;
use crate::slots::{Slot, SlotTable, Stage};

/// Whether a disk is served.
pub(crate) enum Gate {
    /// Yes.
    Open,
    /// No: nothing is popped.
    Held,
    /// Not yet: the first request that waits is reported here.
    Armed(Sender<()>),
}

/// How often a lane with unacknowledged requests looks at their age.
const PATIENCE_CHECK_NS: u64 = 50_000_000;

/// The tap of a mirrored disk.
pub(crate) struct Mirror {
    pub tap: WriteTap,
    /// Last sequence number that the other side has applied.
    pub acked: Arc<AtomicU64>,
    /// Last sequence number given out.
    pub seq: u64,
    /// Writes that begin below this go to both sides.
    pub mirrored_below: u64,
    /// Requests done here, not there.
    pub unacknowledged: Vec<u32>,
}

impl Mirror {
    pub fn new(tap: WriteTap, acked: Arc<AtomicU64>) -> Mirror {
        Mirror {
            tap,
            acked,
            seq: 0,
            mirrored_below: 0,
            unacknowledged: Vec::with_capacity(SLOTS_PER_WORKER),
        }
    }

    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }
}

/// A range that the copier reads, or wants to.
pub(crate) struct RangeLock {
    pub range: Range<u64>,
    /// Told when what was in flight has landed; taken then.
    pub waiting: Option<Sender<()>>,
}

/// One disk on one worker.
pub(crate) struct Lane {
    pub backend: Backend,
    pub block_bytes: u32,
    /// Reads and writes end within the call.
    pub instant: bool,
    /// The backend's file, as its requests name it on this worker's ring.
    pub target: Option<Target>,
    pub gate: Gate,
    /// Its queues on this worker.
    pub queues: Vec<u32>,
    /// Those of them that are polled; while there are any, the lane is in the worker's list of
    /// active ones, at `active_at`.
    pub polled: Vec<u32>,
    pub active_at: usize,
    /// Which of the polled ones is asked first.
    pub next: usize,
    /// Requests in slots.
    pub in_flight: u32,
    /// Changes of these that go through the page cache, where a kernel thread does them. Those that
    /// wait for something else meanwhile are counted as well.
    pub buffered_writes: u32,
    /// It is in the worker's list of lanes that want something done in every turn.
    pub tended: bool,
    pub mirror: Option<Mirror>,
    pub lock: Option<RangeLock>,
    /// Ranges of changes are watched for overlap: while mirrored or locked, and while a request
    /// changes part of a block.
    pub tracking: bool,
    /// Changes under way, while tracking.
    pub started: Vec<u32>,
    /// Changes that wait for a range, oldest first.
    pub conflicted: VecDeque<u32>,
    /// Something was finished or unlocked: look at `conflicted` again.
    pub retry: bool,
    /// Requests that change part of a block, in flight.
    pub partial: u32,
    pub delays: DelayLine,
    pub drains: Vec<Sender<()>>,
    pub counters: Arc<Counters>,
    /// The turn to flush, shared with the disk's other lanes.
    pub flushes: Arc<Flushes>,
    pub flush: FlushQueue,
    /// Its part in the control of its datastore, if that is under any.
    pub qos: Option<LaneQos>,
}

impl Lane {
    pub fn new(
        backend: Backend,
        gate: Gate,
        counters: Arc<Counters>,
        flushes: Arc<Flushes>,
    ) -> Lane {
        let block_bytes = backend.geometry().block_bytes;
        let mut lane = Lane {
            backend,
            block_bytes,
            instant: false,
            target: None,
            gate,
            queues: Vec::new(),
            polled: Vec::new(),
            active_at: 0,
            next: 0,
            in_flight: 0,
            buffered_writes: 0,
            tended: false,
            mirror: None,
            lock: None,
            tracking: false,
            started: Vec::new(),
            conflicted: VecDeque::new(),
            retry: false,
            partial: 0,
            delays: DelayLine::default(),
            drains: Vec::new(),
            counters,
            flushes,
            flush: FlushQueue::default(),
            qos: None,
        };
        lane.reserve();
        lane
    }

    pub fn set_backend(&mut self, backend: Backend) {
        self.block_bytes = backend.geometry().block_bytes;
        self.backend = backend;
        self.reserve();
        self.flushes.forgive();
    }

    /// Takes the memory that requests may come to need, so that none is allocated for them, and notes how
    /// they end.
    fn reserve(&mut self) {
        let null = matches!(self.backend.store, Store::Null { .. });
        self.instant = self.backend.delay_ns == 0 && (null || self.backend.mapping().is_some());
        if u64::from(self.block_bytes) > SECTOR_BYTES {
            self.reserve_tracking();
        }
        if self.backend.delay_ns > 0 {
            self.delays.reserve();
        }
    }

    fn reserve_tracking(&mut self) {
        self.started.reserve(SLOTS_PER_WORKER);
        self.conflicted.reserve(SLOTS_PER_WORKER);
    }

    /// Whether the gate waits for the first request.
    pub fn is_armed(&self) -> bool {
        matches!(self.gate, Gate::Armed(_))
    }

    /// Whether something is to be done once a turn, or at a time.
    pub fn wants_tending(&self) -> bool {
        self.tracking || !self.delays.is_empty() || !self.drains.is_empty()
    }

    /// Whether a change must wait: its range is locked, or overlaps one under way, or one that has
    /// waited longer.
    pub fn conflicts(&self, id: u32, slots: &SlotTable) -> bool {
        let range = slots.get(id).changed_range(self.block_bytes);
        let hits =
            |other: &u32| overlap(&slots.get(*other).changed_range(self.block_bytes), &range);
        self.lock
            .as_ref()
            .is_some_and(|lock| overlap(&lock.range, &range))
            || self.started.iter().any(hits)
            || self
                .conflicted
                .iter()
                .take_while(|&&other| other != id)
                .any(hits)
    }

    /// Begins to watch ranges, with what is in flight already.
    pub fn start_tracking(&mut self, lane: u32, slots: &SlotTable) {
        if self.tracking {
            return;
        }
        self.tracking = true;
        self.reserve_tracking();
        let in_flight = slots.iter().filter(|(_, s)| s.lane == lane && s.started);
        self.started.clear();
        self.started.extend(in_flight.map(|(id, _)| id));
    }

    /// Stops watching when nothing asks for it.
    pub fn stop_tracking(&mut self) {
        let needed = self.mirror.is_some()
            || self.lock.is_some()
            || self.partial > 0
            || !self.conflicted.is_empty();
        if !needed {
            self.tracking = false;
            self.started.clear();
        }
    }

    /// Answers a waiting lock once nothing in flight touches its range.
    pub fn settle_lock(&mut self, slots: &SlotTable) {
        let Some(lock) = &mut self.lock else { return };
        if lock.waiting.is_none() {
            return;
        }
        let busy = self
            .started
            .iter()
            .any(|&id| overlap(&slots.get(id).changed_range(self.block_bytes), &lock.range));
        if !busy && let Some(waiting) = lock.waiting.take() {
            let _ = waiting.send(());
        }
    }

    /// Whether the change goes to the other side too.
    pub fn mirrors(&self, slot: &Slot) -> bool {
        let start = slot.changed_range(self.block_bytes).start;
        self.mirror
            .as_ref()
            .is_some_and(|mirror| start < mirror.mirrored_below)
    }

    /// When this lane needs its worker next, if at all.
    pub fn next_event_ns(&self, now_ns: u64) -> Option<u64> {
        let patience = self.mirror.as_ref().map(|_| now_ns + PATIENCE_CHECK_NS);
        [self.delays.next_due_ns(), patience]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn has_acknowledged(&self, slots: &SlotTable) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| {
            let acked = mirror.acked();
            mirror.unacknowledged.iter().any(|&id| {
                let slot = slots.get(id);
                slot.stage == Stage::Unacknowledged && slot.tap_seq <= acked
            })
        })
    }
}

/// A lane by its id. A function of the lanes alone, so that the worker's other parts stay free to
/// be borrowed.
pub(crate) fn of(lanes: &[Option<Lane>], id: u32) -> &Lane {
    lanes[id as usize]
        .as_ref()
        .expect("a queue's lane stays until the queue has left")
}

/// As [`of`], to change it.
pub(crate) fn of_mut(lanes: &mut [Option<Lane>], id: u32) -> &mut Lane {
    lanes[id as usize]
        .as_mut()
        .expect("a queue's lane stays until the queue has left")
}

/// Whether two ranges share a byte.
pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests;
