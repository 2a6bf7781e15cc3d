//! Slots of a ring of frames, laid out once.
//!
//! A slot is a buffer with its descriptors, used over and over ([`LaidRing`]). A buffer larger than a
//! page is a chain of pages, or a table of them where INDIRECT is in force.

use super::super::device::GuestDevice;
use super::super::laid::LaidRing;
use super::super::memory::{GuestMemory, MemoryError, View};
use super::super::queue::{QueueError, Segment};
use super::super::ring::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, SplitRing};
use super::{PIECE_BYTES, feature};

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
    pub ring: LaidRing,
    buffers: View,
    addr: u64,
    stride: usize,
    pieces: u16,
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
        lay_out(memory, &ring, shape, count, addr)?;
        Ok(Self {
            ring: LaidRing::new(device, queue, features, (count, shape.descs()))?,
            buffers: memory.view(addr, bytes)?,
            addr,
            stride: shape.stride() as usize,
            pieces: shape.pieces(),
        })
    }

    #[inline]
    pub fn write(&self, slot: u16, at: usize, bytes: &[u8]) {
        let start = usize::from(slot) * self.stride;
        self.buffers.write(start + at, bytes);
    }

    /// Has the device read so many bytes of a free slot's buffer, which must be of one piece.
    pub fn set_bytes(&self, slot: u16, bytes: u32) {
        assert_eq!(self.pieces, 1, "a chain's length is fixed");
        let desc = Desc {
            addr: self.addr + u64::from(slot) * self.stride as u64,
            len: bytes,
            flags: 0,
            next: 0,
        };
        self.ring.ring.write_desc(self.ring.head(slot), desc);
    }

    #[inline]
    pub fn read(&self, slot: u16, at: usize, out: &mut [u8]) {
        let start = usize::from(slot) * self.stride;
        self.buffers.read(start + at, out);
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
