//! A transmit queue: one frame, sent over and over with a few bytes changed, or frames of any length.

use std::collections::VecDeque;

use super::super::device::GuestDevice;
use super::super::queue::QueueError;
use super::HEADER_BYTES;
use super::slots::{Shape, Slots};

/// Shape of a [`TxQueue`].
#[derive(Debug, Clone, Copy)]
pub struct TxOptions {
    /// Bytes of a frame.
    pub frame_bytes: u32,
    /// Put frames of several pages into indirect tables, if the feature was negotiated.
    pub indirect: bool,
}

impl TxOptions {
    fn shape(self) -> Shape {
        Shape {
            bytes: self.frame_bytes + u32::try_from(HEADER_BYTES).unwrap_or(0),
            device_writes: false,
            indirect: self.indirect,
        }
    }

    /// Guest memory that a queue of this shape takes, its ring with it.
    pub fn memory_bytes(self, ring_size: u16) -> u64 {
        self.shape().memory_bytes(ring_size)
    }
}

/// Driver of one transmit queue that never sleeps. One owner thread.
#[derive(Debug)]
pub struct TxQueue {
    slots: Slots,
    /// First out, first in again, so that slots stay in the ring's order.
    free: VecDeque<u16>,
    frame_bytes_max: usize,
}

impl TxQueue {
    /// A driver for a ring that nothing was put into yet, with the header and the
    /// frame in every buffer. `features` are those negotiated; the frame is as
    /// long as the options say.
    pub fn new(
        device: &GuestDevice,
        queue: usize,
        features: u64,
        options: TxOptions,
        header: &[u8; HEADER_BYTES],
        frame: &[u8],
    ) -> Result<Self, QueueError> {
        let slots = Slots::new(device, queue, features, options.shape())?;
        for slot in 0..slots.ring.count() {
            slots.write(slot, 0, header);
            slots.write(slot, HEADER_BYTES, frame);
        }
        Ok(Self {
            free: (0..slots.ring.count()).collect(),
            slots,
            frame_bytes_max: options.frame_bytes as usize,
        })
    }

    /// Most frames in flight.
    pub fn slots(&self) -> usize {
        usize::from(self.slots.ring.count())
    }

    /// How many frames can be put now, with nothing taken back.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Frames put and not yet reclaimed.
    pub fn in_flight(&self) -> u16 {
        self.slots.ring.in_flight()
    }

    /// Takes back what the device has sent; returns how many frames can be put now.
    #[inline]
    pub fn reclaim(&mut self) -> Result<usize, QueueError> {
        for _ in 0..self.slots.ring.ready()? {
            let (slot, _) = self.slots.ring.take()?;
            self.free.push_back(slot);
        }
        Ok(self.free.len())
    }

    /// Puts the next frame into the ring after `change` had its say; false if
    /// there is no room. The device learns of it at [`commit`](Self::commit).
    #[inline]
    pub fn put(&mut self, change: impl FnOnce(&TxFrame<'_>)) -> bool {
        let Some(slot) = self.free.pop_front() else {
            return false;
        };
        change(&TxFrame {
            slots: &self.slots,
            slot,
        });
        self.slots.ring.put(slot);
        true
    }

    /// Puts a frame of any length into the ring, up to what the options say, which must be less than a
    /// page; false if there is no room. The device learns of it at [`commit`](Self::commit).
    pub fn put_frame(&mut self, frame: &[u8]) -> bool {
        let Some(slot) = self.free.pop_front() else {
            return false;
        };
        assert!(
            frame.len() <= self.frame_bytes_max,
            "a frame that is too long"
        );
        self.slots.write(slot, HEADER_BYTES, frame);
        let bytes = u32::try_from(HEADER_BYTES + frame.len()).unwrap_or(u32::MAX);
        self.slots.set_bytes(slot, bytes);
        self.slots.ring.put(slot);
        true
    }

    /// Publishes what was put and kicks if the device wants it.
    #[inline]
    pub fn commit(&mut self) -> Result<(), QueueError> {
        self.slots.ring.commit()
    }
}

/// A frame about to be sent.
#[derive(Debug)]
pub struct TxFrame<'a> {
    slots: &'a Slots,
    slot: u16,
}

impl TxFrame<'_> {
    /// Writes bytes of the frame, from this offset on.
    #[inline]
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.slots.write(self.slot, HEADER_BYTES + at, bytes);
    }
}
