//! Requests of thin disks: their chunks, flushes and zeroes go to the pool's threads and come back
//! here, where they go on as if a CQE had come.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use super::Core;
use super::command::Wake;
use crate::backend::thin::ThinImage;
use crate::backend::thin::pool::{self, Done, Job, Port, Work};
use crate::limits::SLOTS_PER_WORKER;

/// What a worker has with the pool.
pub(super) struct ThinPort {
    port: Arc<Port>,
    done: Receiver<Done>,
    /// Jobs that found the pool's queue full, oldest first.
    waiting: VecDeque<Job>,
}

impl ThinPort {
    pub fn new(wake: Arc<Wake>) -> ThinPort {
        let (sender, done) = bounded(SLOTS_PER_WORKER);
        ThinPort {
            port: Arc::new(Port { done: sender, wake }),
            done,
            waiting: VecDeque::new(),
        }
    }

    /// Whether there is something to do now.
    pub fn has_work(&self) -> bool {
        !self.done.is_empty()
    }

    /// Whether jobs wait for room in the pool's queue, which nobody announces.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn submit(&mut self, job: Job) {
        let job = if self.waiting.is_empty() {
            pool::submit(job).err()
        } else {
            Some(job) // behind the others
        };
        self.waiting.extend(job);
    }

    fn retry(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            if let Err(job) = pool::submit(job) {
                self.waiting.push_front(job);
                return;
            }
        }
    }
}

impl Core {
    /// Reads or writes part of the slot's bounce buffer, `len` bytes from `at`.
    pub(super) fn thin_transfer(
        &mut self,
        id: u32,
        image: Arc<ThinImage>,
        reads: bool,
        offset_bytes: u64,
        (at, len): (usize, usize),
    ) {
        let slot = self.slots.get_mut(id);
        let work = if reads {
            Work::Read
        } else {
            Work::Write {
                through: slot.request.through,
            }
        };
        // Lent until it comes back with the answer.
        let buffer = slot.bounce.take();
        self.thin_submit(id, image, work, offset_bytes, len as u64, buffer, at);
    }

    /// Flushes, or zeroes the slot's whole range.
    pub(super) fn thin_work(&mut self, id: u32, image: Arc<ThinImage>, work: Work) {
        let request = &self.slots.get(id).request;
        let (offset, len) = (request.offset_bytes, request.len_bytes);
        self.thin_submit(id, image, work, offset, len, None, 0);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one job")]
    fn thin_submit(
        &mut self,
        id: u32,
        image: Arc<ThinImage>,
        work: Work,
        offset_bytes: u64,
        len_bytes: u64,
        buffer: Option<Arc<crate::buffer::AlignedBuf>>,
        at: usize,
    ) {
        // As with the kernel: the slot stays until the answer has come.
        self.slots.get_mut(id).in_kernel = true;
        self.thin.submit(Job {
            image,
            work,
            offset_bytes,
            len_bytes,
            buffer,
            at,
            slot: id,
            port: self.thin.port.clone(),
        });
    }

    /// Takes the pool's answers, and hands it what waited.
    pub(super) fn reap_thin(&mut self) {
        while let Ok(done) = self.thin.done.try_recv() {
            self.worked = true;
            self.slots.get_mut(done.slot).bounce = done.buffer;
            self.advance(done.slot, done.result);
        }
        self.thin.retry();
    }
}
