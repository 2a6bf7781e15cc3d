//! The life of a request on its worker: admitted, started, advanced by CQEs, completed.
//!
//! A request whose memory and range suit direct I/O goes to the kernel as it is. Any other, and
//! every mirrored change, goes through bounce buffers (`bounce.rs`).

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use super::Core;
use super::bounce::chunk_extent;
use super::lane::{of, of_mut};
use crate::backend::Store;
use crate::request::{Completion, Op, Status};
use crate::ring::Transfer;
use crate::slots::{Slot, Stage};
use crate::sys;

impl Core {
    /// Takes a request that was just popped.
    pub(super) fn admit(&mut self, id: u32) {
        let slot = self.slots.get(id);
        let (lane_id, op) = (slot.lane, slot.request.op);
        if op.changes() {
            let lane = of_mut(&mut self.lanes, lane_id);
            let partial = is_partial(slot, lane.block_bytes);
            if lane.backend.read_only {
                return self.finish(id, Status::IoError);
            }
            let lane = of_mut(&mut self.lanes, lane_id);
            if partial && !lane.tracking {
                lane.start_tracking(lane_id, &self.slots);
                self.tend(lane_id);
            }
            let lane = of_mut(&mut self.lanes, lane_id);
            if lane.tracking && lane.conflicts(id, &self.slots) {
                lane.conflicted.push_back(id);
                return;
            }
        }
        self.start(id);
    }

    /// Starts the changes that waited for a range, in the order in which they came.
    pub(super) fn retry_conflicted(&mut self, lane_id: u32) {
        if !std::mem::take(&mut self.lane(lane_id).retry) {
            return;
        }
        let mut at = 0;
        loop {
            let lane = of_mut(&mut self.lanes, lane_id);
            let Some(&id) = lane.conflicted.get(at) else {
                break;
            };
            if lane.conflicts(id, &self.slots) {
                at += 1;
            } else {
                lane.conflicted.remove(at);
                self.start(id);
            }
        }
    }

    fn start(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let (op, lane_id) = (slot.request.op, slot.lane);
        slot.started = op.changes();
        let lane = of_mut(&mut self.lanes, lane_id);
        let slot = self.slots.get_mut(id);
        let partial = is_partial(slot, lane.block_bytes);
        if op.changes() && lane.tracking {
            lane.started.push(id);
            lane.partial += u32::from(partial);
        }
        if op == Op::Flush {
            return self.start_flush(id);
        }
        let mirrored = op.changes() && lane.mirrors(slot);
        match op {
            Op::Read | Op::Write => match &lane.backend.store {
                _ if mirrored => self.bounce(id),
                Store::Memory(memory) => {
                    let (offset, segments) = (slot.request.offset_bytes, &slot.segments);
                    if op == Op::Read {
                        memory.read_segments(offset, segments);
                    } else {
                        memory.write_segments(offset, segments);
                    }
                    self.finish(id, Status::Ok);
                }
                Store::Null { .. } => self.finish(id, Status::Ok),
                Store::Pending { .. } => self.finish(id, Status::IoError),
                Store::Image(image) => {
                    let suits = !partial
                        && slot
                            .segments
                            .aligned(image.memory_align(), lane.block_bytes);
                    if suits {
                        self.direct(id);
                    } else {
                        self.bounce(id);
                    }
                }
            },
            Op::Discard | Op::WriteZeroes { .. } => {
                // Part of a block is mirrored as the block that is written.
                if mirrored && !partial && !self.tap_zero(id) {
                    self.fail_mirror(lane_id, "the mirror's queue is full");
                }
                self.start_zero(id, partial);
            }
            Op::Flush => unreachable!("answered above"),
        }
    }

    fn start_flush(&mut self, id: u32) {
        let lane_id = self.slots.get(id).lane;
        let lane = of(&self.lanes, lane_id);
        if lane.flush_failed.load(Ordering::Relaxed) {
            return self.finish(id, Status::IoError);
        }
        let Store::Image(image) = &lane.backend.store else {
            return self.finish(id, Status::Ok);
        };
        let fd = image.as_raw_fd();
        let slot = self.slots.get_mut(id);
        slot.stage = Stage::Flushing;
        let pushed = self.ring.flush((id, slot), fd);
        self.check_pushed(id, pushed);
    }

    fn start_zero(&mut self, id: u32, partial: bool) {
        let slot = self.slots.get_mut(id);
        let lane = of(&self.lanes, slot.lane);
        match &lane.backend.store {
            Store::Null { .. } => self.finish(id, Status::Ok),
            Store::Pending { .. } => self.finish(id, Status::IoError),
            Store::Memory(memory) => {
                let start = slot.request.offset_bytes;
                let done = memory.zero(start..start + slot.request.len_bytes);
                self.finish(
                    id,
                    if done.is_ok() {
                        Status::Ok
                    } else {
                        Status::IoError
                    },
                );
            }
            // Part of a block cannot be given back: zeroes are written as any data would be.
            Store::Image(_) if partial => self.bounce(id),
            Store::Image(image) => {
                let keep = slot.request.op == Op::WriteZeroes { unmap: false };
                let mode = if keep {
                    sys::ZERO_RANGE
                } else {
                    sys::PUNCH_HOLE
                };
                let fd = image.as_raw_fd();
                slot.stage = Stage::Zeroing;
                let pushed = self.ring.allocate((id, slot), fd, mode);
                self.check_pushed(id, pushed);
            }
        }
    }

    fn direct(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let kind = if slot.request.op == Op::Read {
            Transfer::Read
        } else {
            Transfer::Write
        };
        let lane = of(&self.lanes, slot.lane);
        let Store::Image(image) = &lane.backend.store else {
            unreachable!("only an image is read and written directly")
        };
        let offset = slot.request.offset_bytes;
        slot.stage = Stage::Direct;
        let pushed = self
            .ring
            .transfer_segments((id, slot), image.as_raw_fd(), kind, offset);
        self.check_pushed(id, pushed);
    }

    /// A CQE of the request in slot `id` came.
    pub(super) fn advance(&mut self, id: u32, result: i32) {
        let slot = self.slots.get_mut(id);
        slot.in_kernel = false;
        let stage = slot.stage;
        let again = matches!(-result, libc::EAGAIN | libc::EINTR);
        match stage {
            Stage::Direct if again => self.direct(id),
            Stage::Direct => self.direct_done(id, result),
            Stage::Bounce(chunk) if again => self.chunk_io(id, chunk),
            Stage::Bounce(chunk) => {
                let lane = of(&self.lanes, slot.lane);
                let (_, len) = chunk_extent(slot, chunk, lane.block_bytes);
                if usize::try_from(result) == Ok(len) {
                    self.chunk_done(id, chunk);
                } else {
                    self.note_failure(id, result);
                    self.finish(id, Status::IoError);
                }
            }
            Stage::Flushing if again => self.start_flush(id),
            Stage::Flushing if result < 0 => {
                self.note_failure(id, result);
                let lane = self.slots.get(id).lane;
                self.lane(lane).flush_failed.store(true, Ordering::Relaxed);
                self.finish(id, Status::IoError);
            }
            // The kernel reports a lost write to one of several flushes alone.
            Stage::Flushing if self.flush_has_failed(id) => self.finish(id, Status::IoError),
            Stage::Flushing => self.finish(id, Status::Ok),
            Stage::Zeroing if again => self.start_zero(id, false),
            Stage::Zeroing => self.zero_done(id, result),
            other => {
                debug_assert!(false, "a CQE for a slot in stage {other:?}");
                tracing::error!(
                    ?other,
                    "a completion for a request that was not in the kernel"
                );
            }
        }
    }

    fn direct_done(&mut self, id: u32, result: i32) {
        let slot = self.slots.get_mut(id);
        let block = u64::from(of(&self.lanes, slot.lane).block_bytes);
        match u64::try_from(result) {
            Ok(bytes) if bytes == slot.request.len_bytes => self.finish(id, Status::Ok),
            // Short: the rest goes through a buffer, from the last whole block.
            Ok(bytes) if bytes >= block => {
                slot.done_bytes = bytes / block * block;
                self.bounce(id);
            }
            // Not aligned as this device wants it after all.
            Err(_) if -result == libc::EINVAL => self.bounce(id),
            _ => {
                self.note_failure(id, result);
                self.finish(id, Status::IoError);
            }
        }
    }

    fn zero_done(&mut self, id: u32, result: i32) {
        let slot = self.slots.get(id);
        let mirrored = slot.tap_seq > 0;
        match -result {
            // Deallocation has no flag that makes it durable.
            0 if slot.request.through => self.start_flush(id),
            0 => self.finish(id, Status::Ok),
            libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS => {
                // A discard is advice. A mirrored one must leave both sides alike.
                if slot.request.op == Op::Discard && !mirrored {
                    self.finish(id, Status::Ok);
                } else {
                    self.bounce(id);
                }
            }
            _ => {
                self.note_failure(id, result);
                self.finish(id, Status::IoError);
            }
        }
    }

    fn flush_has_failed(&self, id: u32) -> bool {
        let lane = self.lanes[self.slots.get(id).lane as usize].as_ref();
        lane.is_some_and(|lane| lane.flush_failed.load(Ordering::Relaxed))
    }

    fn note_failure(&self, id: u32, result: i32) {
        let request = &self.slots.get(id).request;
        let error = std::io::Error::from_raw_os_error(-result.min(0));
        tracing::warn!(
            op = ?request.op, offset = request.offset_bytes, len = request.len_bytes, result, %error,
            "a request failed"
        );
    }

    pub(super) fn check_pushed(&mut self, id: u32, pushed: std::io::Result<()>) {
        if let Err(error) = pushed {
            tracing::error!(%error, "a request could not be submitted");
            self.finish(id, Status::IoError);
        }
    }

    /// All local work of a request is over.
    pub(super) fn finish(&mut self, id: u32, status: Status) {
        let slot = self.slots.get_mut(id);
        slot.status = status;
        if let Some(buffer) = slot.bounce.take() {
            self.pool.give(buffer);
        }
        let lane_id = slot.lane;
        if slot.request.op.changes() {
            self.landed(lane_id, id);
        }
        let slot = self.slots.get(id);
        let waits = slot.tap_seq > 0
            && self.queue(slot.queue).leaving.is_none()
            && self.await_acknowledgement(lane_id, id);
        if !waits {
            self.complete(id);
        }
    }

    /// A change has landed, or failed: its range is free.
    fn landed(&mut self, lane_id: u32, id: u32) {
        let lane = of_mut(&mut self.lanes, lane_id);
        let slot = self.slots.get_mut(id);
        slot.started = false;
        if lane.tracking {
            if let Some(at) = lane.started.iter().position(|&other| other == id) {
                lane.started.swap_remove(at);
                lane.partial -= u32::from(is_partial(slot, lane.block_bytes));
            }
            lane.retry = true;
            lane.settle_lock(&self.slots);
        }
        if self.slots.get(id).status != Status::Ok {
            self.tap_dirty(lane_id, id);
        }
    }

    /// Passes the delay, if any, on the way to the guest.
    pub(super) fn complete(&mut self, id: u32) {
        let now_ns = self.now_ns;
        let slot = self.slots.get_mut(id);
        let lane = of_mut(&mut self.lanes, slot.lane);
        if lane.backend.delay_ns > 0 && slot.stage != Stage::Delayed {
            slot.stage = Stage::Delayed;
            slot.due_ns = now_ns + lane.backend.delay_ns;
            lane.delays.hold(slot.due_ns, id);
            let lane = slot.lane;
            self.tend(lane);
            return;
        }
        self.deliver(id);
    }

    fn deliver(&mut self, id: u32) {
        let now_ns = self.now_ns;
        let slot = self.slots.get_mut(id);
        let entry = self.queues[slot.queue as usize]
            .as_mut()
            .expect("a slot's queue stays");
        if !entry.queue.may_complete() && entry.leaving.is_none() {
            slot.stage = Stage::Held;
            self.held.push(id);
            return;
        }
        entry.queue.complete(&Completion {
            tag: slot.request.tag,
            op: slot.request.op,
            status: slot.status,
            segments: &slot.segments,
        });
        entry.in_flight -= 1;
        entry.last_active_ns = now_ns;
        entry.load.count(slot.request.len_bytes);
        self.load.ended();
        let (queue, lane_id) = (slot.queue, slot.lane);
        if !entry.touched {
            entry.touched = true;
            self.touched.push(queue);
        }
        let lane = of_mut(&mut self.lanes, lane_id);
        lane.in_flight -= 1;
        lane.counters
            .count(slot.request.op, slot.request.len_bytes, slot.status);
        self.slots.release(id);
        self.poll_again(queue);
    }

    /// Tries the completions again that could not write guest memory; those of `queue` alone, if
    /// one is named.
    pub(super) fn deliver_held(&mut self, queue: Option<u32>) {
        if self.held.is_empty() {
            return;
        }
        let mut at = 0;
        while let Some(&id) = self.held.get(at) {
            let of = self.slots.get(id).queue;
            let entry = self.queue(of);
            let may = entry.queue.may_complete() || entry.leaving.is_some();
            if may && queue.is_none_or(|queue| queue == of) {
                self.held.swap_remove(at);
                self.deliver(id);
            } else {
                at += 1;
            }
        }
    }

    /// Lists a lane among those that want something done in every turn. The others cost nothing.
    pub(super) fn tend(&mut self, lane_id: u32) {
        let lane = of_mut(&mut self.lanes, lane_id);
        if !std::mem::replace(&mut lane.tended, true) {
            self.tended.push(lane_id);
        }
    }

    /// What each lane wants done once a turn.
    pub(super) fn tend_lanes(&mut self) {
        self.deliver_held(None);
        let mut at = 0;
        while let Some(&id) = self.tended.get(at) {
            let now_ns = self.now_ns;
            while let Some(slot) = self.lane(id).delays.take_due(now_ns) {
                self.deliver(slot);
            }
            if self.lane(id).tracking {
                self.take_acknowledged(id);
                self.check_patience(id);
                self.retry_conflicted(id);
                self.lane(id).stop_tracking();
            }
            if self.lane(id).wants_tending() {
                at += 1;
            } else {
                self.lane(id).tended = false;
                self.tended.swap_remove(at);
            }
        }
    }
}

/// Whether the request changes part of a block.
pub(super) fn is_partial(slot: &Slot, block_bytes: u32) -> bool {
    let block = u64::from(block_bytes);
    slot.request.op.changes()
        && !(slot.request.offset_bytes.is_multiple_of(block)
            && slot.request.len_bytes.is_multiple_of(block))
}
