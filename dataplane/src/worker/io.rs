//! The life of a request on its worker: admitted, started, advanced by CQEs, completed.
//!
//! A request whose memory and range suit direct I/O goes to the kernel as it is. Any other, and
//! every mirrored change, goes through bounce buffers (`bounce.rs`).

use super::Core;
use super::lane::{of, of_mut};
use crate::backend::Store;
use crate::backend::thin::pool::Work;
use crate::limits::ZERO_INLINE_BYTES;
use crate::metrics::LastError;
use crate::request::{Completion, Op, Status};
use crate::ring::Transfer;
use crate::slots::{Slot, Stage};
use crate::sys;

impl Core {
    /// Takes a request that may go on.
    pub(super) fn enter(&mut self, id: u32) {
        let slot = self.slots.get(id);
        let (lane_id, op) = (slot.lane, slot.request.op);
        if op.changes() {
            let lane = of_mut(&mut self.lanes, lane_id);
            let partial = is_partial(slot, lane.block_bytes);
            if lane.backend.read_only {
                return self.finish(id, Status::IoError);
            }
            // Through the page cache a write's own flag may miss its error: the disk's flushes do not.
            let slot = self.slots.get_mut(id);
            let cached = matches!(&lane.backend.store, Store::Image(image) if image.is_cached());
            slot.buffered = cached;
            lane.buffered_writes += u32::from(cached);
            if cached && slot.request.through {
                (slot.request.through, slot.flush_after) = (false, true);
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

    /// Has the processor fetch the start of what a request of a mapped disk will copy, while those
    /// before it are copied.
    pub(super) fn look_ahead(&self, id: u32) {
        let slot = self.slots.get(id);
        if matches!(slot.request.op, Op::Read | Op::Write)
            && let Some(mapping) = of(&self.lanes, slot.lane).backend.mapping()
        {
            mapping.prefetch(&slot.range());
        }
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
        if let Some(device) = &lane.backend.bottleneck {
            let len_bytes = slot.request.len_bytes;
            slot.due_ns = device.serve(self.now_ns, lane.backend.delay_ns, op, len_bytes);
        }
        if op == Op::Flush {
            return self.start_flush(id);
        }
        let mirrored = op.changes() && lane.mirrors(slot);
        match op {
            Op::Read | Op::Write if mirrored => self.bounce(id),
            Op::Read | Op::Write => {
                if let Some(mapping) = lane.backend.mapping() {
                    let (offset, segments) = (slot.request.offset_bytes, &slot.segments);
                    let copied = if op == Op::Read {
                        mapping.read_segments(offset, segments)
                    } else {
                        mapping.write_segments(offset, segments)
                    };
                    return self.finish_inline(id, copied);
                }
                match &lane.backend.store {
                    Store::Image(image) if !partial && image.takes(&slot.segments) => {
                        self.direct(id);
                    }
                    Store::Image(_) | Store::Thin(_) => self.bounce(id),
                    Store::Null { .. } => self.finish(id, Status::Ok),
                    Store::Memory(_) | Store::Pending { .. } => self.finish(id, Status::IoError),
                }
            }
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

    fn start_zero(&mut self, id: u32, partial: bool) {
        let slot = self.slots.get_mut(id);
        let lane = of(&self.lanes, slot.lane);
        let range = slot.range();
        let keep = slot.request.op == Op::WriteZeroes { unmap: false };
        if let Some(mapping) = lane.backend.mapping() {
            if slot.request.len_bytes <= ZERO_INLINE_BYTES {
                let done = match &lane.backend.store {
                    Store::Image(_) if keep => mapping.write_zeroes(range),
                    _ => mapping.zero(range),
                };
                return self.finish_inline(id, done);
            }
            mapping.forget(&range);
        }
        // tmpfs cannot zero in place: what is to be kept is taken again afterwards.
        let mode = if keep && lane.backend.mapping().is_none() {
            sys::ZERO_RANGE
        } else {
            sys::PUNCH_HOLE
        };
        match &lane.backend.store {
            Store::Null { .. } => self.finish(id, Status::Ok),
            Store::Pending { .. } => self.finish(id, Status::IoError),
            // Part of a block cannot be given back: zeroes are written as any data would be.
            Store::Image(_) | Store::Thin(_) if partial => self.bounce(id),
            Store::Thin(image) => {
                let image = image.clone();
                slot.stage = Stage::Zeroing;
                self.thin_work(id, image, Work::Zero { unmap: !keep });
            }
            Store::Image(_) | Store::Memory(_) => self.allocate(id, Stage::Zeroing, mode),
        }
    }

    fn allocate(&mut self, id: u32, stage: Stage, mode: i32) {
        let slot = self.slots.get_mut(id);
        let Some(target) = of(&self.lanes, slot.lane).target else {
            return self.finish(id, Status::IoError);
        };
        slot.stage = stage;
        let pushed = self.ring.allocate((id, slot), target, mode);
        self.check_pushed(id, pushed);
    }

    /// What was done inside the call.
    pub(super) fn finish_inline(&mut self, id: u32, done: std::io::Result<()>) {
        if let Err(error) = &done {
            self.note_error(id, error);
        }
        let status = if done.is_ok() {
            Status::Ok
        } else {
            Status::IoError
        };
        self.finish(id, status);
    }

    fn direct(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let kind = if slot.request.op == Op::Read {
            Transfer::Read
        } else {
            Transfer::Write
        };
        let lane = of(&self.lanes, slot.lane);
        let Some(target) = lane.target else {
            unreachable!("only an image is read and written directly")
        };
        let offset = slot.request.offset_bytes;
        slot.stage = Stage::Direct;
        let memory = self.pieces.holding(&slot.segments);
        let pushed = self
            .ring
            .transfer_segments((id, slot), target, kind, offset, memory);
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
            Stage::Bounce(chunk) if again => self.chunk_push(id, chunk),
            Stage::Bounce(chunk) => self.chunk_moved(id, chunk, result),
            Stage::Flushing if again => self.push_flush(id),
            Stage::Flushing => self.flushed(id, result),
            Stage::Zeroing if again => self.start_zero(id, false),
            Stage::Zeroing => self.zero_done(id, result),
            Stage::Keeping if again => self.allocate(id, Stage::Keeping, sys::KEEP_SIZE),
            Stage::Keeping => self.keep_done(id, result),
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
        let mapping = of(&self.lanes, slot.lane).backend.mapping();
        if let Some(mapping) = mapping {
            // A write may have come between.
            mapping.forget(&slot.range());
        }
        let keep = slot.request.op == Op::WriteZeroes { unmap: false };
        match -result {
            0 if keep && mapping.is_some() => self.allocate(id, Stage::Keeping, sys::KEEP_SIZE),
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

    fn keep_done(&mut self, id: u32, result: i32) {
        if result < 0 {
            self.note_failure(id, result);
        }
        let status = if result < 0 {
            Status::IoError
        } else {
            Status::Ok
        };
        self.finish(id, status);
    }

    pub(super) fn note_failure(&self, id: u32, result: i32) {
        let error = match result {
            0.. => std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
            _ => std::io::Error::from_raw_os_error(-result),
        };
        self.note_error(id, &error);
    }

    fn note_error(&self, id: u32, error: &std::io::Error) {
        let slot = self.slots.get(id);
        let request = &slot.request;
        let counters = &of(&self.lanes, slot.lane).counters;
        counters.note_error(LastError {
            os_error: error.raw_os_error().unwrap_or(libc::EIO),
            offset_bytes: request.offset_bytes,
            at_ns: self.now_ns,
        });
        tracing::warn!(
            op = ?request.op, offset = request.offset_bytes, len = request.len_bytes, %error,
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
        if std::mem::take(&mut slot.flush_after) && status == Status::Ok {
            return self.start_flush(id);
        }
        slot.status = status;
        if let Some(buffer) = slot.bounce.take() {
            self.pool.give(buffer);
        }
        let lane_id = slot.lane;
        if slot.request.op.changes() {
            self.landed(lane_id, id);
        }
        if self.slots.get(id).at_device && of(&self.lanes, lane_id).backend.delay_ns == 0 {
            self.device_ended(id);
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
            slot.due_ns = match lane.backend.bottleneck {
                Some(_) => slot.due_ns.max(now_ns),
                None => now_ns + lane.backend.delay_ns,
            };
            lane.delays.hold(slot.due_ns, id);
            let lane = slot.lane;
            self.tend(lane);
            return;
        }
        self.device_ended(id);
        self.deliver(id);
    }

    fn deliver(&mut self, id: u32) {
        let (now_ns, spin_ns) = (self.now_ns, self.spin_ns);
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
        Core::judge_wait(entry, now_ns, spin_ns);
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
        lane.buffered_writes -= u32::from(std::mem::take(&mut slot.buffered));
        lane.counters
            .count(slot.request.op, slot.request.len_bytes, slot.status);
        if slot.cost > 0 {
            Core::guest_ended(lane, now_ns, slot.popped_ns);
        }
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
                self.complete(slot);
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
