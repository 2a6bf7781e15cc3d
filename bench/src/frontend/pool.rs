//! Data buffers.

use super::memory::{GuestMemory, MemoryError};
use super::queue::Segment;

/// Equal buffers in guest memory, lent and given back.
#[derive(Debug)]
pub struct BufferPool {
    memory: GuestMemory,
    bytes: u32,
    free: Vec<u64>,
}

impl BufferPool {
    /// Takes `count` buffers of `bytes` each from guest memory, page-aligned.
    pub fn new(memory: &GuestMemory, count: usize, bytes: u32) -> Result<Self, MemoryError> {
        let take = |_| memory.alloc(u64::from(bytes), 4096);
        let mut free = (0..count).map(take).collect::<Result<Vec<_>, _>>()?;
        free.reverse();
        Ok(Self {
            memory: memory.clone(),
            bytes,
            free,
        })
    }

    /// Lends a buffer, if one is left.
    pub fn take(&mut self) -> Option<Segment> {
        self.free.pop().map(|addr| Segment {
            addr,
            len: self.bytes,
        })
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Segment) {
        self.free.push(buffer.addr);
    }

    /// The memory the buffers lie in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}
