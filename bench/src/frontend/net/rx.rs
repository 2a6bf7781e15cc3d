//! A receive queue: buffers lent to the device, looked at, and lent again.

use super::super::device::GuestDevice;
use super::super::queue::QueueError;
use super::HEADER_BYTES;
use super::slots::{Shape, Slots};

/// Data bytes of a buffer where a frame may take several.
const MERGED_BYTES: u32 = 2048;
/// Most buffers of a frame: 64 KiB in the smallest, and one for the header.
const BUFFERS_MAX: usize = 34;
/// Where their number stands in the header.
const BUFFERS_AT: usize = 10;

/// Shape of an [`RxQueue`].
#[derive(Debug, Clone, Copy)]
pub struct RxOptions {
    /// Bytes of the largest frame to be taken.
    pub frame_bytes_max: u32,
    /// Frames may take several buffers: MRG_RXBUF is in force.
    pub mergeable: bool,
    /// Put buffers of several pages into indirect tables, if the feature was negotiated.
    pub indirect: bool,
}

impl RxOptions {
    fn shape(self) -> Shape {
        let data = if self.mergeable {
            MERGED_BYTES
        } else {
            self.frame_bytes_max
        };
        Shape {
            bytes: data + u32::try_from(HEADER_BYTES).unwrap_or(0),
            device_writes: true,
            indirect: self.indirect,
        }
    }

    /// Guest memory that a queue of this shape takes, its ring with it.
    pub fn memory_bytes(self, ring_size: u16) -> u64 {
        self.shape().memory_bytes(ring_size)
    }
}

/// Driver of one receive queue that never sleeps. One owner thread.
#[derive(Debug)]
pub struct RxQueue {
    slots: Slots,
    buffer_bytes: usize,
    mergeable: bool,
    /// Slot and bytes of each buffer of the frame in hand.
    parts: [(u16, usize); BUFFERS_MAX],
}

impl RxQueue {
    /// A driver for a ring that nothing was put into yet, which lends all its
    /// buffers at once. `features` are those negotiated.
    pub fn new(
        device: &GuestDevice,
        queue: usize,
        features: u64,
        options: RxOptions,
    ) -> Result<Self, QueueError> {
        let shape = options.shape();
        let mut slots = Slots::new(device, queue, features, shape)?;
        let blank = vec![0; shape.bytes as usize];
        for slot in 0..slots.ring.count() {
            // Touched now, so that no page is taken under load.
            slots.write(slot, 0, &blank);
            slots.ring.put(slot);
        }
        slots.ring.commit()?;
        Ok(Self {
            slots,
            buffer_bytes: shape.bytes as usize,
            mergeable: options.mergeable,
            parts: [(0, 0); BUFFERS_MAX],
        })
    }

    /// Shows what has arrived, at most `most` frames, and lends their buffers
    /// again. Returns how many frames there were.
    #[inline]
    pub fn poll(
        &mut self,
        most: usize,
        mut see: impl FnMut(&Frame<'_>),
    ) -> Result<usize, QueueError> {
        let mut ready = self.slots.ring.ready()?;
        let mut frames = 0;
        while ready > 0 && frames < most {
            let Some((buffers, bytes)) = self.next_frame(ready)? else {
                break;
            };
            see(&Frame {
                slots: &self.slots,
                parts: &self.parts[..usize::from(buffers)],
                bytes: bytes.saturating_sub(HEADER_BYTES),
            });
            for _ in 0..buffers {
                let (slot, _) = self.slots.ring.take()?;
                self.slots.ring.put(slot);
            }
            ready -= buffers;
            frames += 1;
        }
        self.slots.ring.commit()?;
        Ok(frames)
    }

    /// Buffers and bytes, header included, of the frame that comes next; nothing
    /// while some of its buffers are still to come.
    #[inline]
    fn next_frame(&mut self, ready: u16) -> Result<Option<(u16, usize)>, QueueError> {
        let mut bytes = self.part(0)?;
        if !self.mergeable {
            return Ok(Some((1, bytes)));
        }
        let mut count = [0; 2];
        self.slots.read(self.parts[0].0, BUFFERS_AT, &mut count);
        let buffers = u16::from_le_bytes(count);
        if buffers == 0 || usize::from(buffers) > BUFFERS_MAX {
            return Err(QueueError::Merged { buffers });
        }
        if buffers > ready {
            return Ok(None);
        }
        for i in 1..buffers {
            bytes += self.part(i)?;
        }
        Ok(Some((buffers, bytes)))
    }

    /// Notes a buffer of the next frame; returns its bytes.
    #[inline]
    fn part(&mut self, ahead: u16) -> Result<usize, QueueError> {
        let (slot, written) = self.slots.ring.peek(ahead)?;
        let (bytes, room) = (written as usize, self.buffer_bytes);
        if bytes > room {
            return Err(QueueError::Overrun { written, room });
        }
        self.parts[usize::from(ahead)] = (slot, bytes);
        Ok(bytes)
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Frame<'a> {
    slots: &'a Slots,
    parts: &'a [(u16, usize)],
    bytes: usize,
}

impl Frame<'_> {
    /// Bytes of the frame, without the header before it.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies bytes of the frame out, from this offset on; they must be inside it.
    #[inline]
    pub fn read(&self, at: usize, mut out: &mut [u8]) {
        assert!(at + out.len() <= self.bytes, "a read past a frame's end");
        let mut at = at + HEADER_BYTES;
        for &(slot, bytes) in self.parts {
            if at >= bytes {
                at -= bytes;
                continue;
            }
            let (now, rest) = out.split_at_mut(out.len().min(bytes - at));
            self.slots.read(slot, at, now);
            if rest.is_empty() {
                return;
            }
            (at, out) = (0, rest);
        }
    }
}
