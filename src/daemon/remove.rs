//! Letting go of disks.

use std::sync::{Arc, MutexGuard};

use ferry_migration::ids::DiskId;
use ferry_migration::phase::Phase;

use super::Daemon;
use super::disks::{Arrival, Served};
use super::kept::{self, Kept};
use crate::error::{Done, Failure};

impl Daemon {
    /// Lets go of a disk. What is being moved is not let go.
    pub fn remove_disk(&self, id: &DiskId) -> Done {
        let served = match self.disk(id) {
            Ok(served) => served,
            // One that could not be taken up at the start is not tried again at the next.
            Err(_) if kept::is_kept::<Kept>(&self.config.state_dir, id) && !self.is_taken(id) => {
                return kept::remove::<Kept>(&self.config.state_dir, id);
            }
            Err(error) => return Err(error),
        };
        if self.migrations.is_active(id) {
            return Err(Failure::Failed(format!(
                "disk {id} is being moved; cancel that first: ferry migrate cancel {id}"
            )));
        }
        let arrival = served.arrival();
        let phase = served.ownership.phase();
        let arriving = match phase {
            Phase::Incoming { .. } => true,
            Phase::Granted { .. } | Phase::Serving { .. } => false,
            // Its record is about to say so.
            _ => arrival.is_some(),
        };
        if arriving {
            return Err(Failure::Failed(format!(
                "disk {id} is arriving; cancel that at its source first"
            )));
        }
        self.let_go(&served, arrival)
    }

    /// Lets go of a disk: its front-end, its image, its name. The record stays as it is.
    pub(super) fn let_go(
        &self,
        served: &Arc<Served>,
        mut arrival: MutexGuard<'_, Option<Arrival>>,
    ) -> Done {
        let id = &served.config.id;
        if served.is_gone() || self.disks().remove(id).is_none() {
            return Err(Failure::Failed(format!("disk {id} was just removed")));
        }
        // The watcher of its migration may not have come to that yet, and may not later.
        let moved = served.put_away(&arrival).unwrap_or_else(|error| {
            tracing::warn!(disk = %id, %error, "the moved image stays where it was");
            None
        });
        served.leave(&arrival);
        *arrival = None;
        drop(arrival);
        // Held before the front-end goes, and so before the gate's hook could be left with the
        // image and its lock for ever.
        if let Err(error) = served.device.disk().hold() {
            tracing::error!(disk = %id, %error, "a removed disk could not be held");
        }
        served.hang_up();
        self.uncontrol(served);
        served.device.forget_in_flight();
        self.migrations.forget(id);
        if let Err(error) = served.drop_image() {
            tracing::error!(disk = %id, %error, "a removed disk keeps its image");
        }
        let forgotten = kept::remove::<Kept>(&self.config.state_dir, id);
        self.give_free(id);
        tracing::info!(disk = %id, "disk removed");
        if let Some(Err(error)) = moved.map(|moved| moved.remove_older()) {
            tracing::warn!(disk = %id, %error, "older images of the disk stay");
        }
        forgotten
    }
}
