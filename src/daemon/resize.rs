//! Disks that grow while they are served.

use ferry_migration::ids::DiskId;
use ferry_migration::phase::Phase;
use serde_json::{Value, json};

use super::Daemon;
use crate::error::{Done, Failure};

impl Daemon {
    /// Makes a disk larger. Not while it is on its way, nor where it is not served: the other side
    /// has, or will have, the size that it was told.
    pub fn resize_disk(&self, id: &DiskId, bytes: u64) -> Done<Value> {
        let served = self.disk(id)?;
        let refused = |why: String| Err(Failure::Failed(format!("disk {id}: {why}")));
        let arrival = served.arrival();
        let _size = served.keep_size();
        if self.migrations.is_active(id) {
            return refused(format!(
                "it is being moved, and keeps its size meanwhile; wait, or first: ferry migrate \
                 cancel {id}"
            ));
        }
        let phase = served.ownership.phase();
        if served.is_gone() || arrival.is_some() || !matches!(phase, Phase::Serving { .. }) {
            return refused(format!(
                "it is {} here; resize it where it is served",
                phase.name()
            ));
        }
        match served.device.resize(bytes) {
            Ok(told) => {
                tracing::info!(disk = %id, bytes, told, "disk resized");
                Ok(json!({ "id": id, "bytes": bytes, "told": told }))
            }
            Err(error) => refused(error.to_string()),
        }
    }
}
