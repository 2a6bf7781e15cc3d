//! The device as the guest owns it: memory, rings and eventfds.
//!
//! It belongs to no server. A [`Vmm`](super::Vmm) shows it to one; after a stop
//! another may show it to the next, while the guest's threads go on filling the
//! rings. What a server did not pop waits in the rings for its successor.

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::GuestMemory;
use super::queue::{BlkQueue, QueueError, QueueOptions};
use super::ring::{RingLayout, SplitRing};

/// One queue's ring and eventfds.
#[derive(Debug, Clone)]
pub struct QueueParts {
    /// Where the ring is.
    pub layout: RingLayout,
    /// Guest to server.
    pub kick: Arc<EventFd>,
    /// Server to guest.
    pub call: Arc<EventFd>,
}

/// What the guest shares with whoever serves it. Clones share it.
#[derive(Debug, Clone)]
pub struct GuestDevice {
    memory: GuestMemory,
    queues: Vec<QueueParts>,
}

impl GuestDevice {
    /// Lays out `queues` rings of `size` descriptors in the memory.
    pub fn new(memory: &GuestMemory, queues: u16, size: u16) -> Result<Self, QueueError> {
        let part = |_| {
            Ok(QueueParts {
                layout: RingLayout::alloc(memory, size)?,
                kick: Arc::new(EventFd::new(EFD_NONBLOCK)?),
                call: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            })
        };
        let queues = (0..queues).map(part).collect::<Result<_, QueueError>>()?;
        Ok(Self {
            memory: memory.clone(),
            queues,
        })
    }

    /// The memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The queues, in order.
    pub fn queues(&self) -> &[QueueParts] {
        &self.queues
    }

    /// For tests that move a ring or give it an odd size.
    pub fn queues_mut(&mut self) -> &mut [QueueParts] {
        &mut self.queues
    }

    /// Field by field access to a queue's ring.
    pub fn ring(&self, queue: usize) -> Result<SplitRing, QueueError> {
        Ok(SplitRing::new(&self.memory, self.queues[queue].layout)?)
    }

    /// A driver for a queue. Make one per queue, and give it to one thread.
    pub fn blk_queue(
        &self,
        queue: usize,
        features: u64,
        options: QueueOptions,
    ) -> Result<BlkQueue, QueueError> {
        let parts = &self.queues[queue];
        let (kick, call) = (parts.kick.clone(), parts.call.clone());
        BlkQueue::new(
            &self.memory,
            self.ring(queue)?,
            kick,
            call,
            features,
            options,
        )
    }
}
