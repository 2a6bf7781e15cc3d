//! The life of a request on its worker: admitted, started, advanced by CQEs, completed.
//!
//! A request whose memory and range suit direct I/O goes to the kernel as it is. Any other, and
//! every mirrored change, goes chunk by chunk through a bounce buffer: a read is copied to the
//! guest afterwards; a write is copied from the guest once, so that the disk and the mirror get
//! the same bytes whatever the guest does to its buffer meanwhile. Where a chunk covers only part
//! of a block, the block is read first and written whole, and no other change may touch it until
//! then.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use crate::backend::Store;
use crate::buffer::AlignedBuf;
use crate::limits::{BOUNCE_BUFFERS, BOUNCE_BYTES};
use crate::request::{Completion, Op, Status};
use crate::ring::Transfer;
use crate::slots::{Chunk, Slot, Stage};
use crate::sys;

/// The bounce buffers of a worker. One that is shared with a tap comes back when the tap is done
/// with it.
pub(super) struct BouncePool {
    free: Vec<Arc<AlignedBuf>>,
    lent: Vec<Arc<AlignedBuf>>,
    /// Slots that wait for a buffer, oldest first.
    waiting: std::collections::VecDeque<u32>,
}

impl BouncePool {
    pub fn new() -> BouncePool {
        // Untouched pages of these cost nothing.
        let free = (0..BOUNCE_BUFFERS)
            .map(|_| Arc::new(AlignedBuf::new(BOUNCE_BYTES)))
            .collect();
        BouncePool {
            free,
            lent: Vec::with_capacity(BOUNCE_BUFFERS),
            waiting: Default::default(),
        }
    }

    fn take(&mut self) -> Option<Arc<AlignedBuf>> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        let back = self
            .lent
            .iter_mut()
            .position(|buffer| Arc::get_mut(buffer).is_some())?;
        Some(self.lent.swap_remove(back))
    }

    fn give(&mut self, mut buffer: Arc<AlignedBuf>) {
        if Arc::get_mut(&mut buffer).is_some() {
            self.free.push(buffer);
        } else {
            self.lent.push(buffer);
        }
    }

    /// Whether a buffer can be had now.
    fn can_give(&mut self) -> bool {
        !self.free.is_empty()
            || self
                .lent
                .iter_mut()
                .any(|buffer| Arc::get_mut(buffer).is_some())
    }

    /// Whether someone waits who could go on.
    pub fn can_go_on(&mut self) -> bool {
        !self.waiting.is_empty() && self.can_give()
    }

    /// Whether buffers are with a tap.
    pub fn lends(&self) -> bool {
        !self.lent.is_empty()
    }

    /// A tap that failed may keep its buffers for long: replaces them.
    pub fn forsake_lent(&mut self) {
        for _ in self.lent.drain(..) {
            self.free.push(Arc::new(AlignedBuf::new(BOUNCE_BYTES)));
        }
    }

    pub fn waiting(&self) -> impl Iterator<Item = &u32> {
        self.waiting.iter()
    }
}

impl Core {
    /// Takes a request that was just popped.
    pub(super) fn admit(&mut self, id: u32) {
        let slot = self.slots.get(id);
        let (lane_id, op) = (slot.lane, slot.request.op);
        if op.changes() {
            let lane = self.lanes[lane_id as usize]
                .as_mut()
                .expect("a slot's lane stays");
            let partial = is_partial(slot, lane.block_bytes);
            if lane.backend.read_only {
                return self.finish(id, Status::IoError);
            }
            let lane = self.lanes[lane_id as usize]
                .as_mut()
                .expect("a slot's lane stays");
            if partial && !lane.tracking {
                lane.start_tracking(lane_id, &self.slots);
                self.list_tended();
            }
            let lane = self.lanes[lane_id as usize]
                .as_mut()
                .expect("a slot's lane stays");
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
            let lane = self.lanes[lane_id as usize]
                .as_mut()
                .expect("the caller's lane");
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

    /// Gives buffers that came back to those who wait for one.
    pub(super) fn retry_waiting(&mut self) {
        while let Some(&id) = self.pool.waiting.front() {
            if !self.leaving.is_empty() && !self.pool.can_give() {
                // A VMM waits for its ring: do not make it wait for the network.
                self.pool.forsake_lent();
            }
            let Some(buffer) = self.pool.take() else {
                return;
            };
            self.pool.waiting.pop_front();
            self.slots.get_mut(id).bounce = Some(buffer);
            self.next_chunk(id);
        }
    }

    fn start(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let (op, lane_id) = (slot.request.op, slot.lane);
        slot.started = op.changes();
        let lane = self.lanes[lane_id as usize]
            .as_mut()
            .expect("a slot's lane stays");
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
        let lane = self.lanes[lane_id as usize]
            .as_ref()
            .expect("a slot's lane stays");
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
        let lane = self.lanes[slot.lane as usize]
            .as_ref()
            .expect("a slot's lane stays");
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
        let lane = self.lanes[slot.lane as usize]
            .as_ref()
            .expect("a slot's lane stays");
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

    /// Goes on through bounce buffers, from `done_bytes`.
    fn bounce(&mut self, id: u32) {
        let now_ns = self.now_ns;
        let slot = self.slots.get_mut(id);
        slot.stage = Stage::Waiting;
        match self.pool.take() {
            Some(buffer) if self.pool.waiting.is_empty() => {
                slot.bounce = Some(buffer);
                self.next_chunk(id);
            }
            taken => {
                if let Some(buffer) = taken {
                    self.pool.give(buffer);
                }
                slot.tapped_ns = now_ns;
                self.pool.waiting.push_back(id);
            }
        }
    }

    fn next_chunk(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let lane = self.lanes[slot.lane as usize]
            .as_ref()
            .expect("a slot's lane stays");
        let block = u64::from(lane.block_bytes);
        let position = slot.request.offset_bytes + slot.done_bytes;
        let left = slot.request.len_bytes - slot.done_bytes;
        let head = position % block;
        slot.chunk_bytes = left.min(BOUNCE_BYTES as u64 - head);
        slot.io_offset = position - head;
        let io_bytes = (head + slot.chunk_bytes).next_multiple_of(block);
        slot.io_bytes = usize::try_from(io_bytes).expect("a chunk fits its buffer");
        let whole_tail = (head + slot.chunk_bytes).is_multiple_of(block);
        if slot.request.op == Op::Read {
            self.chunk_io(id, Chunk::Transfer);
        } else if head > 0 {
            self.chunk_io(id, Chunk::ReadHead);
        } else if !whole_tail {
            self.chunk_io(id, Chunk::ReadTail);
        } else {
            self.write_chunk(id);
        }
    }

    /// Fills the buffer from the guest, once, tells the mirror, and writes.
    fn write_chunk(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        let block = self.lanes[slot.lane as usize]
            .as_ref()
            .expect("a slot's lane stays")
            .block_bytes;
        let buffer = slot
            .bounce
            .as_mut()
            .and_then(Arc::get_mut)
            .expect("not shared before it is filled");
        fill(
            &slot.request,
            &slot.segments,
            slot.done_bytes,
            slot.chunk_bytes,
            block,
            buffer,
        );
        // Whole blocks of zeroes were told to the mirror as a range.
        let told = slot.request.op != Op::Write && !is_partial(slot, block);
        let tapped = told || self.tap_write(id);
        if !tapped {
            let lane = self.slots.get(id).lane;
            self.fail_mirror(lane, "the mirror's queue is full");
        }
        self.chunk_io(id, Chunk::Transfer);
    }

    fn chunk_io(&mut self, id: u32, chunk: Chunk) {
        let slot = self.slots.get_mut(id);
        let lane = self.lanes[slot.lane as usize]
            .as_ref()
            .expect("a slot's lane stays");
        let reads = slot.request.op == Op::Read || chunk != Chunk::Transfer;
        let kind = if reads {
            Transfer::Read
        } else {
            Transfer::Write
        };
        slot.stage = Stage::Bounce(chunk);
        let (at, len) = chunk_extent(slot, chunk, lane.block_bytes);
        let offset = slot.io_offset + at as u64;
        match &lane.backend.store {
            Store::Image(image) => {
                let fd = image.as_raw_fd();
                let pushed = self
                    .ring
                    .transfer_bounce((id, slot), fd, kind, offset, (at, len));
                self.check_pushed(id, pushed);
            }
            Store::Memory(memory) => {
                let buffer = slot
                    .bounce
                    .as_mut()
                    .expect("a bounced request holds its buffer");
                match kind {
                    Transfer::Write => memory.write(offset, &buffer[at..at + len]),
                    Transfer::Read => {
                        let buffer = Arc::get_mut(buffer).expect("not shared while it is read");
                        memory.read(offset, &mut buffer[at..at + len]);
                    }
                }
                self.chunk_done(id, chunk);
            }
            Store::Null { .. } => self.chunk_done(id, chunk),
            Store::Pending { .. } => self.finish(id, Status::IoError),
        }
    }

    /// A part of a chunk has been transferred in full.
    fn chunk_done(&mut self, id: u32, chunk: Chunk) {
        let slot = self.slots.get_mut(id);
        let block = self.lanes[slot.lane as usize]
            .as_ref()
            .expect("a slot's lane stays")
            .block_bytes;
        match chunk {
            Chunk::ReadHead => {
                let end = slot.io_offset + slot.io_bytes as u64;
                let position = slot.request.offset_bytes + slot.done_bytes + slot.chunk_bytes;
                // One block holds head and tail alike: it has just been read.
                if position < end && slot.io_bytes > block as usize {
                    self.chunk_io(id, Chunk::ReadTail);
                } else {
                    self.write_chunk(id);
                }
            }
            Chunk::ReadTail => self.write_chunk(id),
            Chunk::Transfer => {
                if slot.request.op == Op::Read {
                    let buffer = slot
                        .bounce
                        .as_ref()
                        .expect("a bounced request holds its buffer");
                    let head = slot.request.offset_bytes + slot.done_bytes - slot.io_offset;
                    let (head, len) = (small(head), small(slot.chunk_bytes));
                    slot.segments
                        .copy_in(small(slot.done_bytes), &buffer[head..head + len]);
                }
                slot.done_bytes += slot.chunk_bytes;
                let more = slot.done_bytes < slot.request.len_bytes;
                if let Some(buffer) = slot.bounce.take() {
                    self.pool.give(buffer);
                }
                if more {
                    self.bounce(id);
                } else {
                    self.finish(id, Status::Ok);
                }
            }
        }
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
                let lane = self.lanes[slot.lane as usize]
                    .as_ref()
                    .expect("a slot's lane stays");
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
        let block = u64::from(
            self.lanes[slot.lane as usize]
                .as_ref()
                .expect("a slot's lane stays")
                .block_bytes,
        );
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

    fn check_pushed(&mut self, id: u32, pushed: std::io::Result<()>) {
        if let Err(error) = pushed {
            tracing::error!(%error, "a request could not be submitted");
            self.finish(id, Status::IoError);
        }
    }

    /// All local work of a request is over.
    fn finish(&mut self, id: u32, status: Status) {
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
        let lane = self.lanes[lane_id as usize]
            .as_mut()
            .expect("a slot's lane stays");
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
        let lane = self.lanes[slot.lane as usize]
            .as_mut()
            .expect("a slot's lane stays");
        if lane.backend.delay_ns > 0 && slot.stage != Stage::Delayed {
            slot.stage = Stage::Delayed;
            slot.due_ns = now_ns + lane.backend.delay_ns;
            lane.delays.hold(slot.due_ns, id);
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
        let (queue, lane_id) = (slot.queue, slot.lane);
        if !entry.touched {
            entry.touched = true;
            self.touched.push(queue);
        }
        let lane = self.lanes[lane_id as usize]
            .as_ref()
            .expect("a slot's lane stays");
        lane.counters
            .count(slot.request.op, slot.request.len_bytes, slot.status);
        self.slots.release(id);
        let open = matches!(self.lane(lane_id).gate, super::lane::Gate::Open);
        if open && matches!(self.queue(queue).mode, super::Mode::Armed(_)) {
            self.poll_queue(queue); // its next request is likely soon
        }
    }

    /// Tries the completions again that could not write guest memory; those of `queue` alone, if
    /// one is named.
    pub(super) fn deliver_held(&mut self, queue: Option<u32>) {
        if self.held.is_empty() {
            return;
        }
        for id in std::mem::take(&mut self.held) {
            let of = self.slots.get(id).queue;
            if queue.is_none_or(|queue| queue == of) {
                self.deliver(id);
            } else {
                self.held.push(id);
            }
        }
    }

    /// Lists the lanes that want something done in every turn; the others cost nothing.
    pub(super) fn list_tended(&mut self) {
        self.tended.clear();
        let ids = (0u32..).zip(&self.lanes);
        self.tended.extend(ids.filter_map(|(id, lane)| {
            let lane = lane.as_ref()?;
            let wants = lane.tracking || lane.backend.delay_ns > 0 || !lane.drains.is_empty();
            wants.then_some(id)
        }));
    }

    /// What each lane wants done once a turn.
    pub(super) fn tend_lanes(&mut self) {
        self.deliver_held(None);
        for at in 0..self.tended.len() {
            let id = self.tended[at];
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
            if !self.lane(id).drains.is_empty() && !self.lane_in_flight(id) {
                for drained in std::mem::take(&mut self.lane(id).drains) {
                    let _ = drained.send(());
                }
            }
        }
    }
}

/// Puts the request's bytes of this chunk where they belong in the buffer.
fn fill(
    request: &crate::request::Request,
    segments: &crate::segments::Segments,
    done_bytes: u64,
    chunk_bytes: u64,
    block_bytes: u32,
    buffer: &mut AlignedBuf,
) {
    let head = small((request.offset_bytes + done_bytes) % u64::from(block_bytes));
    let into = &mut buffer[head..head + small(chunk_bytes)];
    if request.op == Op::Write {
        segments.copy_out(small(done_bytes), into);
    } else {
        into.fill(0);
    }
}

/// Where in the buffer a part of the chunk lies, and its length.
fn chunk_extent(slot: &Slot, chunk: Chunk, block_bytes: u32) -> (usize, usize) {
    let block = block_bytes as usize;
    match chunk {
        Chunk::ReadHead => (0, block),
        Chunk::ReadTail => (slot.io_bytes - block, block),
        Chunk::Transfer => (0, slot.io_bytes),
    }
}

/// Whether the request changes part of a block.
fn is_partial(slot: &Slot, block_bytes: u32) -> bool {
    let block = u64::from(block_bytes);
    slot.request.op.changes()
        && !(slot.request.offset_bytes.is_multiple_of(block)
            && slot.request.len_bytes.is_multiple_of(block))
}

/// A length within one request, which was bounded when it was parsed.
fn small(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within one request")
}
