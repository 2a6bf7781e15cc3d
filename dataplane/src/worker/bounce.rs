//! Requests that go through bounce buffers, one chunk at a time.
//!
//! A read is copied to the guest afterwards. A write is copied from the guest once, so that the
//! disk and the mirror get the same bytes whatever the guest does to its buffer meanwhile. Where a
//! chunk covers only part of a block, the block is read first and written whole, and no other change
//! may touch it until then.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Core;
use super::io::is_partial;
use super::lane::of;
use crate::backend::Store;
use crate::buffer::AlignedBuf;
use crate::limits::{BOUNCE_BUFFERS, BOUNCE_BYTES, SLOTS_PER_WORKER};
use crate::request::{Op, Status};
use crate::ring::{Ring, Transfer};
use crate::slots::{Chunk, Slot, Stage};

/// The bounce buffers of a worker. One that is shared with a tap comes back when the tap is done
/// with it.
pub(super) struct BouncePool {
    free: Vec<Arc<AlignedBuf>>,
    lent: Vec<Arc<AlignedBuf>>,
    /// Slots that wait for a buffer, oldest first.
    waiting: VecDeque<u32>,
}

impl BouncePool {
    /// Makes the buffers and registers them, so that their pages are pinned.
    pub fn new(ring: &mut Ring) -> BouncePool {
        let mut buffers: Vec<_> = (0..BOUNCE_BUFFERS)
            .map(|_| AlignedBuf::new(BOUNCE_BYTES))
            .collect();
        ring.add_buffers(buffers.iter_mut());
        BouncePool {
            free: buffers.into_iter().map(Arc::new).collect(),
            lent: Vec::with_capacity(BOUNCE_BUFFERS),
            waiting: VecDeque::with_capacity(SLOTS_PER_WORKER),
        }
    }

    pub fn take(&mut self) -> Option<Arc<AlignedBuf>> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        let back = self
            .lent
            .iter_mut()
            .position(|buffer| Arc::get_mut(buffer).is_some())?;
        Some(self.lent.swap_remove(back))
    }

    pub fn give(&mut self, mut buffer: Arc<AlignedBuf>) {
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
    pub fn forsake_lent(&mut self, ring: &mut Ring) {
        for old in self.lent.drain(..) {
            let mut new = AlignedBuf::new(BOUNCE_BYTES);
            if let Some(index) = old.registered {
                ring.remove_memory(index);
                ring.add_buffers(std::iter::once(&mut new));
            }
            self.free.push(Arc::new(new));
        }
    }

    pub fn waiting(&self) -> impl Iterator<Item = &u32> {
        self.waiting.iter()
    }
}

impl Core {
    /// Gives buffers that came back to those who wait for one.
    pub(super) fn retry_waiting(&mut self) {
        while let Some(&id) = self.pool.waiting.front() {
            if !self.leaving.is_empty() && !self.pool.can_give() {
                // A VMM waits for its ring: do not make it wait for the network.
                self.pool.forsake_lent(&mut self.ring);
            }
            let Some(buffer) = self.pool.take() else {
                return;
            };
            self.pool.waiting.pop_front();
            self.slots.get_mut(id).bounce = Some(buffer);
            self.next_chunk(id);
        }
    }

    /// Goes on through bounce buffers, from `done_bytes`.
    pub(super) fn bounce(&mut self, id: u32) {
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
        let lane = of(&self.lanes, slot.lane);
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
        let block = of(&self.lanes, slot.lane).block_bytes;
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

    /// Begins a part of the chunk.
    fn chunk_io(&mut self, id: u32, chunk: Chunk) {
        let slot = self.slots.get_mut(id);
        slot.stage = Stage::Bounce(chunk);
        slot.part_bytes = 0;
        let lane = of(&self.lanes, slot.lane);
        let Some(mapping) = lane.backend.mapping() else {
            return self.chunk_push(id, chunk);
        };
        let (at, len) = chunk_extent(slot, chunk, lane.block_bytes);
        let offset = slot.io_offset + at as u64;
        let reads = reads(slot, chunk);
        let buffer = slot
            .bounce
            .as_mut()
            .expect("a bounced request holds its buffer");
        let copied = if reads {
            let buffer = Arc::get_mut(buffer).expect("not shared while it is read");
            mapping.read(offset, &mut buffer[at..at + len])
        } else {
            mapping.write(offset, &buffer[at..at + len])
        };
        match copied {
            Ok(()) => self.chunk_done(id, chunk),
            Err(_) => self.finish_inline(id, copied),
        }
    }

    /// Gives what is left of a part to the kernel.
    pub(super) fn chunk_push(&mut self, id: u32, chunk: Chunk) {
        let slot = self.slots.get_mut(id);
        let lane = of(&self.lanes, slot.lane);
        let kind = if reads(slot, chunk) {
            Transfer::Read
        } else {
            Transfer::Write
        };
        let (at, len) = chunk_extent(slot, chunk, lane.block_bytes);
        let (at, len) = (at + slot.part_bytes, len - slot.part_bytes);
        let offset = slot.io_offset + at as u64;
        match (lane.target, &lane.backend.store) {
            (Some(target), _) => {
                let pushed = self
                    .ring
                    .transfer_bounce((id, slot), target, kind, offset, (at, len));
                self.check_pushed(id, pushed);
            }
            (None, Store::Thin(image)) => {
                let image = image.clone();
                let reads = kind == Transfer::Read;
                self.thin_transfer(id, image, reads, offset, (at, len));
            }
            (None, Store::Null { .. }) => self.chunk_done(id, chunk),
            (None, _) => self.finish(id, Status::IoError),
        }
    }

    /// The kernel has transferred `result` bytes of a part, or failed.
    pub(super) fn chunk_moved(&mut self, id: u32, chunk: Chunk, result: i32) {
        let slot = self.slots.get_mut(id);
        let block = of(&self.lanes, slot.lane).block_bytes;
        let (_, len) = chunk_extent(slot, chunk, block);
        let moved = usize::try_from(result).unwrap_or(0);
        slot.part_bytes += moved;
        if slot.part_bytes == len {
            return self.chunk_done(id, chunk);
        }
        // Short: on from the last whole block.
        let whole = slot.part_bytes / block as usize * block as usize;
        let before = slot.part_bytes - moved;
        slot.part_bytes = whole;
        if whole > before {
            self.chunk_push(id, chunk);
        } else {
            self.note_failure(id, result);
            self.finish(id, Status::IoError);
        }
    }

    /// A part of a chunk has been transferred in full.
    pub(super) fn chunk_done(&mut self, id: u32, chunk: Chunk) {
        let slot = self.slots.get_mut(id);
        let block = of(&self.lanes, slot.lane).block_bytes;
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

/// Whether this part of the chunk is read from the disk.
fn reads(slot: &Slot, chunk: Chunk) -> bool {
    slot.request.op == Op::Read || chunk != Chunk::Transfer
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

/// A length within one request, which was bounded when it was parsed.
fn small(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within one request")
}
