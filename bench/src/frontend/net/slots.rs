//! Slots of a ring of frames, laid out once.
//!
//! A slot is a buffer with its descriptors, used over and over. Per use only the
//! entry of the available ring is written, and that only if another slot stands
//! there; while a device completes in order, none ever does. A buffer larger than
//! a page is a chain of pages, or a table of them where INDIRECT is in force.
//!
//! The server is not trusted: what it writes into the used ring is checked before
//! it is used as an index.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::device::GuestDevice;
use super::super::memory::{GuestMemory, MemoryError, View};
use super::super::queue::{QueueError, Segment};
use super::super::ring::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, SplitRing};
use super::{PIECE_BYTES, feature};

/// Asked for calls this long ago, in completions, is far from being passed.
const RENEW_EVERY: u16 = 1 << 14;
const LINE_BYTES: u32 = 64;

/// What the slots of a queue look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of a buffer.
    pub bytes: u32,
    /// Whether the device writes it.
    pub device_writes: bool,
    /// Put chains into tables, if the feature was negotiated.
    pub indirect: bool,
}

impl Shape {
    /// Pieces of a buffer.
    fn pieces(self) -> u16 {
        u16::try_from(self.bytes.div_ceil(PIECE_BYTES)).unwrap_or(u16::MAX)
    }

    /// Descriptors of the ring that a slot takes.
    fn descs(self) -> u16 {
        if self.indirect { 1 } else { self.pieces() }
    }

    /// An odd number of cache lines, so that the starts of the buffers, which
    /// every frame touches, do not all fall into the same few sets of the cache.
    fn stride(self) -> u32 {
        (self.bytes.div_ceil(LINE_BYTES) | 1) * LINE_BYTES
    }

    /// Slots of a ring of this size.
    fn slots(self, ring_size: u16) -> u16 {
        ring_size / self.descs()
    }

    /// Guest memory of a queue, the ring with it.
    pub fn memory_bytes(self, ring_size: u16) -> u64 {
        let slots = u64::from(self.slots(ring_size));
        let per_slot = u64::from(self.stride()) + u64::from(self.pieces()) * DESC_BYTES;
        slots * per_slot + u64::from(ring_size) * 26 + 6 * 4096
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    ring: SplitRing,
    kick: Arc<EventFd>,
    /// Slot by head descriptor.
    slot_of: Vec<Option<u16>>,
    /// By slot.
    heads: Vec<u16>,
    busy: Vec<bool>,
    buffers: View,
    stride: usize,
    next_avail: u16,
    published: u16,
    last_used: u16,
    renewed: u16,
    event_idx: bool,
}

impl Slots {
    /// Slots for a ring that nothing was put into yet.
    pub fn new(
        device: &GuestDevice,
        queue: usize,
        features: u64,
        shape: Shape,
    ) -> Result<Self, QueueError> {
        let (memory, ring) = (device.memory(), device.ring(queue)?);
        let size = ring.layout().size;
        let shape = Shape {
            indirect: shape.indirect && features & feature::INDIRECT != 0 && shape.pieces() > 1,
            ..shape
        };
        let count = shape.slots(size);
        if count == 0 {
            return Err(QueueError::Segments {
                got: usize::from(shape.descs()),
                max: usize::from(size),
            });
        }
        let bytes = u64::from(count) * u64::from(shape.stride());
        let addr = memory.alloc(bytes, 4096)?;
        let mut slot_of = vec![None; usize::from(size)];
        for slot in 0..count {
            slot_of[usize::from(slot * shape.descs())] = Some(slot);
        }
        lay_out(memory, &ring, shape, count, addr)?;
        let slots = Self {
            kick: device.queues()[queue].kick.clone(),
            slot_of,
            heads: (0..count).map(|slot| slot * shape.descs()).collect(),
            busy: vec![false; usize::from(count)],
            buffers: memory.view(addr, bytes)?,
            stride: shape.stride() as usize,
            next_avail: ring.avail_index(),
            published: ring.avail_index(),
            last_used: ring.used_index(),
            renewed: ring.used_index(),
            event_idx: features & feature::EVENT_IDX != 0,
            ring,
        };
        slots.ring.want_calls(false);
        slots.want_no_calls();
        Ok(slots)
    }

    pub fn count(&self) -> u16 {
        u16::try_from(self.heads.len()).unwrap_or(u16::MAX)
    }

    /// Put and not yet taken.
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.last_used)
    }

    #[inline]
    pub fn write(&self, slot: u16, at: usize, bytes: &[u8]) {
        let start = usize::from(slot) * self.stride;
        self.buffers.write(start + at, bytes);
    }

    #[inline]
    pub fn read(&self, slot: u16, at: usize, out: &mut [u8]) {
        let start = usize::from(slot) * self.stride;
        self.buffers.read(start + at, out);
    }

    /// Puts a free slot into the ring. The device learns of it at `commit`.
    #[inline]
    pub fn put(&mut self, slot: u16) {
        let index = usize::from(slot);
        debug_assert!(!self.busy[index], "slot {slot} put twice");
        self.busy[index] = true;
        self.ring.renew_avail(self.next_avail, self.heads[index]);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes what was put and kicks if the device wants it.
    #[inline]
    pub fn commit(&mut self) -> Result<(), QueueError> {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return Ok(());
        }
        let wanted = self.ring.offer(old, new, self.event_idx);
        self.published = new;
        if wanted {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// How many completions can be taken now.
    #[inline]
    pub fn ready(&mut self) -> Result<u16, QueueError> {
        let moved = self.ring.used_index().wrapping_sub(self.last_used);
        let in_flight = self.published.wrapping_sub(self.last_used);
        if moved > in_flight {
            return Err(QueueError::UsedJump { moved, in_flight });
        }
        if self.last_used.wrapping_sub(self.renewed) >= RENEW_EVERY {
            self.renewed = self.last_used;
            self.want_no_calls();
        }
        Ok(moved)
    }

    /// The slot of the completion `ahead` of the next one, left where it is, and
    /// the bytes that the device says it wrote. Of those that `ready` counted.
    #[inline]
    pub fn peek(&self, ahead: u16) -> Result<(u16, u32), QueueError> {
        let (id, written) = self.ring.used(self.last_used.wrapping_add(ahead));
        let slot = usize::try_from(id)
            .ok()
            .and_then(|i| *self.slot_of.get(i)?)
            .filter(|slot| self.busy[usize::from(*slot)]);
        let slot = slot.ok_or(QueueError::NotInFlight { id })?;
        Ok((slot, written))
    }

    /// The next completion, of those that `ready` counted.
    #[inline]
    pub fn take(&mut self) -> Result<(u16, u32), QueueError> {
        let taken = self.peek(0)?;
        self.last_used = self.last_used.wrapping_add(1);
        self.busy[usize::from(taken.0)] = false;
        Ok(taken)
    }

    fn want_no_calls(&self) {
        if self.event_idx {
            // Just passed, so not passed again for 65,536 completions.
            self.ring.set_used_event(self.last_used.wrapping_sub(1));
        }
    }
}

fn lay_out(
    memory: &GuestMemory,
    ring: &SplitRing,
    shape: Shape,
    count: u16,
    addr: u64,
) -> Result<(), MemoryError> {
    let write = if shape.device_writes { DESC_WRITE } else { 0 };
    let table_bytes = u64::from(shape.pieces()) * DESC_BYTES;
    for slot in 0..count {
        let buffer = addr + u64::from(slot) * u64::from(shape.stride());
        let pieces = Segment::cut(buffer, shape.bytes, PIECE_BYTES);
        let head = slot * shape.descs();
        let base = if shape.indirect { 0 } else { head };
        let mut table = Vec::new();
        for (i, piece) in (base..).zip(&pieces) {
            let more = i + 1 < base + shape.pieces();
            let desc = Desc {
                addr: piece.addr,
                len: piece.len,
                flags: write | if more { DESC_NEXT } else { 0 },
                next: if more { i + 1 } else { 0 },
            };
            if shape.indirect {
                table.extend_from_slice(&desc.to_bytes());
            } else {
                ring.write_desc(i, desc);
            }
        }
        if shape.indirect {
            let addr = memory.alloc(table_bytes, 16)?;
            memory.write(addr, &table)?;
            let desc = Desc {
                addr,
                len: u32::try_from(table_bytes).unwrap_or(u32::MAX),
                flags: DESC_INDIRECT,
                next: 0,
            };
            ring.write_desc(head, desc);
        }
    }
    Ok(())
}
