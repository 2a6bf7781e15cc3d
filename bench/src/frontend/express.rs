//! The data side for plain load: as little work per request as a driver can do.
//!
//! A slot is a request that is used over and over: its buffer, its descriptors
//! and its place in memory are laid out once. What is written per request is the
//! header, in a cache line that it shares with the status byte as in Linux's
//! driver; the ring is a [`LaidRing`].

use super::blk::{Op, Status};
use super::device::GuestDevice;
use super::laid::LaidRing;
use super::memory::View;
use super::queue::{QueueError, Segment};
use super::ring::{DESC_NEXT, DESC_WRITE, Desc};

/// Header and status byte of a slot: one cache line.
const SLOT_BYTES: usize = 64;
const STATUS_AT: usize = 16;

/// Driver of one split virtqueue that never sleeps, for reads and writes of one
/// size.
#[derive(Debug)]
pub struct ExpressQueue {
    ring: LaidRing,
    /// What each slot's descriptors are made for.
    ops: Vec<Op>,
    buffers: Vec<Vec<Segment>>,
    area: View,
    area_addr: u64,
}

/// Shape of an [`ExpressQueue`].
#[derive(Debug, Clone, Copy)]
pub struct ExpressOptions {
    /// Most requests in flight.
    pub depth: u16,
    /// Bytes of every request.
    pub block_bytes: u32,
    /// Largest segment that the server takes.
    pub segment_bytes_max: u32,
}

impl ExpressOptions {
    /// Descriptors of a request.
    pub fn descriptors(&self) -> u16 {
        let segments = self.block_bytes.div_ceil(self.segment_bytes_max.max(1));
        u16::try_from(segments)
            .unwrap_or(u16::MAX)
            .saturating_add(2)
    }

    /// Guest memory that a queue of this shape takes, its ring aside.
    pub fn bytes(&self) -> u64 {
        let depth = u64::from(self.depth);
        let slots = (depth * SLOT_BYTES as u64).next_multiple_of(4096);
        slots + 4096 + depth * u64::from(self.block_bytes).next_multiple_of(4096)
    }
}

impl ExpressQueue {
    /// A driver for a ring that nothing was put into yet. `features` are those
    /// negotiated with the server.
    pub fn new(
        device: &GuestDevice,
        queue: usize,
        features: u64,
        options: ExpressOptions,
    ) -> Result<Self, QueueError> {
        let memory = device.memory();
        let (size, depth) = (device.ring(queue)?.layout().size, options.depth);
        let chain = options.descriptors();
        if depth == 0 || u32::from(depth) * u32::from(chain) > u32::from(size) {
            return Err(QueueError::Depth { depth, size });
        }
        let bytes = SLOT_BYTES as u64 * u64::from(depth);
        let area_addr = memory.alloc(bytes, 4096)?;
        let mut buffers = Vec::with_capacity(usize::from(depth));
        for slot in 0..depth {
            let addr = memory.alloc(u64::from(options.block_bytes), 4096)?;
            // Touched now, and no two alike, so that no page is taken or shared under load.
            let fill = vec![(slot % 251 + 1).to_le_bytes()[0]; options.block_bytes as usize];
            memory.write(addr, &fill)?;
            buffers.push(Segment::cut(
                addr,
                options.block_bytes,
                options.segment_bytes_max,
            ));
        }
        let queue = Self {
            ring: LaidRing::new(device, queue, features, (depth, chain))?,
            ops: vec![Op::Read; usize::from(depth)],
            buffers,
            area: memory.view(area_addr, bytes)?,
            area_addr,
        };
        for slot in 0..depth {
            queue.lay_out(slot, Op::Read);
        }
        Ok(queue)
    }

    /// Most requests in flight.
    pub fn depth(&self) -> u16 {
        self.ring.count()
    }

    /// Requests put and not yet taken.
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Puts a read or a write of a free slot into the ring. The device learns of
    /// it at [`commit`](Self::commit).
    #[inline]
    pub fn put(&mut self, slot: u16, op: Op, sector: u64) {
        let index = usize::from(slot);
        if self.ops[index] != op {
            self.lay_out(slot, op);
            self.ops[index] = op;
        }
        let mut line = [0; STATUS_AT + 1];
        line[..4].copy_from_slice(&op.code().to_le_bytes());
        line[8..16].copy_from_slice(&sector.to_le_bytes());
        line[STATUS_AT] = Status::UNWRITTEN;
        self.area.write(index * SLOT_BYTES, &line);
        self.ring.put(slot);
    }

    /// Publishes what was put and kicks if the device wants it.
    #[inline]
    pub fn commit(&mut self) -> Result<(), QueueError> {
        self.ring.commit()
    }

    /// How many completions can be taken now.
    #[inline]
    pub fn ready(&mut self) -> Result<u16, QueueError> {
        self.ring.ready()
    }

    /// The next completion, of those that [`ready`](Self::ready) counted.
    #[inline]
    pub fn take(&mut self) -> Result<(u16, Status), QueueError> {
        let (slot, _) = self.ring.take()?;
        let mut status = [0];
        let at = usize::from(slot) * SLOT_BYTES + STATUS_AT;
        self.area.read(at, &mut status);
        Ok((slot, Status::parse(status[0])))
    }

    fn lay_out(&self, slot: u16, op: Op) {
        let place = self.area_addr + u64::from(slot) * SLOT_BYTES as u64;
        let mut index = self.ring.head(slot);
        let mut put = |addr, len, flags| {
            let next = if flags & DESC_NEXT == 0 { 0 } else { index + 1 };
            let desc = Desc {
                addr,
                len,
                flags,
                next,
            };
            self.ring.ring.write_desc(index, desc);
            index += 1;
        };
        put(place, 16, DESC_NEXT);
        let write = if op.device_writes() { DESC_WRITE } else { 0 };
        for data in &self.buffers[usize::from(slot)] {
            put(data.addr, data.len, DESC_NEXT | write);
        }
        put(place + STATUS_AT as u64, 1, DESC_WRITE);
    }
}
