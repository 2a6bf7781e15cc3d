//! A disk and the control of its datastore.

use std::sync::Arc;

use super::{Disk, ask};
use crate::lifecycle::LifecycleError;
use crate::qos::domain::DiskControl;
use crate::worker::command::Command;

impl Disk {
    /// Puts the disk under the control of a datastore, or takes it out; while it serves as well. The
    /// datastore must have been made for the workers that the disk is on.
    pub fn set_qos(&self, control: Option<&Arc<DiskControl>>) -> Result<(), LifecycleError> {
        for (at, (worker, &lane)) in self.workers.iter().zip(&self.lanes).enumerate() {
            let control = control.cloned();
            ask(worker, |reply| Command::SetQos {
                lane,
                control,
                worker: at,
                reply,
            })?;
        }
        Ok(())
    }

    /// Has its workers look at what was changed, if they sleep.
    pub fn wake(&self) {
        self.workers
            .iter()
            .for_each(crate::worker::WorkerHandle::wake);
    }

    /// Requests that its guest has made available and that were not taken yet. Asks the workers, so not
    /// for anything that must not wait.
    pub fn backlog(&self) -> Result<u64, LifecycleError> {
        let (to, from) = crossbeam_channel::unbounded();
        for index in 0..self.loads.len() {
            let to = to.clone();
            self.with_queue(index, move |queue| {
                let _ = to.send(queue.backlog());
            })?;
        }
        drop(to);
        Ok(from.iter().sum())
    }
}
