//! What a queue asks of a backend, and how it is answered.

use crate::segments::Segments;

/// The kinds of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Disk to guest memory.
    Read,
    /// Guest memory to disk.
    Write,
    /// Make completed writes durable.
    Flush,
    /// The range is not needed; it reads as zeroes afterwards.
    Discard,
    /// The range reads as zeroes afterwards; `unmap` allows giving its space back.
    WriteZeroes {
        /// Whether the space may be given back.
        unmap: bool,
    },
}

impl Op {
    /// Whether the request changes the disk's bytes.
    pub fn changes(self) -> bool {
        !matches!(self, Op::Read | Op::Flush)
    }
}

/// A request whose range was checked against the disk by the queue that parsed it.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// First byte on the disk.
    pub offset_bytes: u64,
    /// Bytes of the range; for reads and writes also the bytes of its segments. 0 for a flush.
    pub len_bytes: u64,
    /// The write must be durable when it is completed (no volatile cache was negotiated).
    pub through: bool,
    /// The queue's own name for the request, handed back at completion.
    pub tag: u32,
}

/// How a request ended. A guest sees no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done, all of it.
    Ok,
    /// Failed, in part or whole.
    IoError,
    /// The backend cannot do this kind of request.
    Unsupported,
}

/// A request on its way back to its queue.
pub struct Completion<'a> {
    /// The queue's own name for it.
    pub tag: u32,
    /// What it was.
    pub op: Op,
    /// How it ended.
    pub status: Status,
    /// Its guest memory, still mapped.
    pub segments: &'a Segments,
}
