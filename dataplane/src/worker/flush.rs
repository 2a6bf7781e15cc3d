//! Flushes: one of a disk is in the kernel at a time.
//!
//! The kernel reports a lost write once for each open file description. Of two flushes that run at
//! the same time, on one worker or on two, one may be told of the loss and the other succeed; and
//! the one that succeeded may be reaped first. So a disk has one turn for all its workers: whoever
//! has it flushes for every request that waits on that worker, and notes a failure before the turn
//! is free again. A flush that failed fails all later ones, as the data it covered is gone.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Core;
use super::lane::{of, of_mut};
use crate::backend::Store;
use crate::backend::thin::pool::Work;
use crate::request::Status;
use crate::slots::{SlotList, Stage};

/// How often a worker that would sleep looks whether the turn is free, in nanoseconds.
pub(super) const TURN_CHECK_NS: u64 = 50_000;

/// The flushes of one disk, over all its workers.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    taken: AtomicBool,
    failed: AtomicBool,
}

impl Flushes {
    fn take_turn(&self) -> bool {
        !self.taken.swap(true, Ordering::Acquire)
    }

    fn end_turn(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// Another store is under the disk: what was lost was the other's.
    pub fn forgive(&self) {
        self.failed.store(false, Ordering::Relaxed);
    }
}

/// One lane's part in the flushes of its disk.
#[derive(Debug, Default)]
pub(crate) struct FlushQueue {
    /// Requests that the flush in the kernel is for; the first one carries it.
    served: SlotList,
    /// Requests for the next one.
    waiting: SlotList,
}

impl Core {
    /// Makes what was written so far durable, for the request in slot `id`.
    pub(super) fn start_flush(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let lane_id = slot.lane;
        let lane = of_mut(&mut self.lanes, lane_id);
        if let Some(mapping) = lane.backend.mapping() {
            let intact = mapping.flush();
            return self.finish_inline(id, intact);
        }
        if !matches!(lane.backend.store, Store::Image(_) | Store::Thin(_)) {
            return self.finish(id, Status::Ok);
        }
        slot.stage = Stage::Waiting;
        self.slots.append(&mut lane.flush.waiting, id);
        self.next_flush(lane_id);
    }

    /// Flushes for those who wait, if the turn can be had.
    fn next_flush(&mut self, lane_id: u32) {
        let lane = of_mut(&mut self.lanes, lane_id);
        let Some(carrier) = lane.flush.waiting.first() else {
            return;
        };
        if !lane.flush.served.is_empty() {
            return;
        }
        if !lane.flushes.take_turn() {
            if !self.flush_later.contains(&lane_id) {
                self.flush_later.push(lane_id);
            }
            return;
        }
        std::mem::swap(&mut lane.flush.waiting, &mut lane.flush.served);
        if lane.flushes.failed.load(Ordering::Relaxed) {
            return self.end_flush(lane_id, Status::IoError);
        }
        self.slots.get_mut(carrier).stage = Stage::Flushing;
        self.push_flush(carrier);
    }

    pub(super) fn push_flush(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let lane_id = slot.lane;
        let lane = of(&self.lanes, lane_id);
        if let Store::Thin(image) = &lane.backend.store {
            let image = image.clone();
            return self.thin_work(id, image, Work::Flush);
        }
        let Some(target) = lane.target else {
            return self.end_flush(lane_id, Status::IoError);
        };
        if let Err(error) = self.ring.flush((id, slot), target) {
            tracing::error!(%error, "a flush could not be submitted");
            self.end_flush(lane_id, Status::IoError);
        }
    }

    /// The flush that slot `id` carries has ended.
    pub(super) fn flushed(&mut self, id: u32, result: i32) {
        let lane_id = self.slots.get(id).lane;
        if result < 0 {
            self.note_failure(id, result);
            // Before the turn is free: the next one that takes it sees this.
            let lane = of(&self.lanes, lane_id);
            lane.flushes.failed.store(true, Ordering::Relaxed);
            return self.end_flush(lane_id, Status::IoError);
        }
        self.end_flush(lane_id, Status::Ok);
    }

    fn end_flush(&mut self, lane_id: u32, status: Status) {
        let lane = of_mut(&mut self.lanes, lane_id);
        lane.flushes.end_turn();
        let mut served = std::mem::take(&mut lane.flush.served);
        while let Some(id) = self.slots.pop(&mut served) {
            self.finish(id, status);
        }
        self.next_flush(lane_id);
    }

    /// Tries again to take turns that another worker had.
    pub(super) fn retry_flushes(&mut self) {
        let mut at = 0;
        while let Some(&lane_id) = self.flush_later.get(at) {
            let lane = of(&self.lanes, lane_id);
            // Only looked at: whoever sees it free may find it taken again, and waits on.
            if lane.flushes.taken.load(Ordering::Relaxed) {
                at += 1;
            } else {
                self.flush_later.swap_remove(at);
                self.next_flush(lane_id);
            }
        }
    }
}
