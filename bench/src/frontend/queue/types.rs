//! The words of a queue: requests, completions, errors.

use std::io;

use super::super::blk::Status;
use super::super::memory::MemoryError;

/// A piece of a request's data in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

impl Segment {
    /// Cuts a buffer into segments of at most `most` bytes, whole sectors each.
    pub fn cut(addr: u64, bytes: u32, most: u32) -> Vec<Segment> {
        let step = (most / 512 * 512).max(512);
        (0..bytes.div_ceil(step))
            .map(|i| Segment {
                addr: addr + u64::from(i * step),
                len: step.min(bytes - i * step),
            })
            .collect()
    }
}

/// Names a request from submit to completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub(super) slot: u16,
    pub(super) serial: u32,
}

impl Token {
    /// Below the queue's depth, and nobody else's while the request is in
    /// flight: an index for the caller's own table.
    pub fn slot(self) -> usize {
        usize::from(self.slot)
    }
}

/// A request that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Which one.
    pub token: Token,
    /// How it ended.
    pub status: Status,
    /// Bytes that the device says it wrote, the status byte included.
    pub written: u32,
}

/// How a queue is driven.
#[derive(Debug, Clone, Copy)]
pub struct QueueOptions {
    /// Most requests in flight.
    pub depth: u16,
    /// Most data segments of a request.
    pub segments_max: u16,
    /// Put each chain into a table of its own, if the feature was negotiated.
    pub indirect: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            depth: 32,
            segments_max: 8,
            indirect: false,
        }
    }
}

impl QueueOptions {
    /// The same with another depth.
    pub fn with_depth(self, depth: u16) -> Self {
        Self { depth, ..self }
    }
}

/// What can go wrong on a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// All slots or descriptors are taken: poll, then submit again.
    #[error("the queue is full")]
    Full,
    /// More segments or ranges than the queue was laid out for, or none where
    /// some are needed.
    #[error("a request of {got} segments on a queue laid out for 1 to {max}")]
    Segments {
        /// What the request has.
        got: usize,
        /// What the queue takes.
        max: usize,
    },
    /// Depth zero, or a ring that cannot hold the depth.
    #[error("a depth of {depth} does not fit a ring of {size} descriptors; use 1 to {size}")]
    Depth {
        /// What was asked for.
        depth: u16,
        /// The ring's size.
        size: u16,
    },
    /// The server completed something that was not in flight.
    #[error("the server returned descriptor {id}, which is not in flight; its used ring is broken")]
    NotInFlight {
        /// The descriptor head.
        id: u32,
    },
    /// The server's used index moved by more than is in flight.
    #[error(
        "the server moved the used index by {moved} with {in_flight} in flight; its used ring is broken"
    )]
    UsedJump {
        /// By how much.
        moved: u16,
        /// How many requests it could have completed.
        in_flight: u16,
    },
    /// The server says that it wrote more than the buffer holds.
    #[error("the server wrote {written} bytes to a buffer of {room}; its used ring is broken")]
    Overrun {
        /// What it says.
        written: u32,
        /// What the buffer holds.
        room: usize,
    },
    /// A frame's header says that it lies in an impossible number of buffers.
    #[error("the server put a frame into {buffers} buffers; its frame headers are broken")]
    Merged {
        /// What it says.
        buffers: u16,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An eventfd or epoll failed.
    #[error("the host's event descriptors failed: {0}")]
    Event(#[from] io::Error),
}
