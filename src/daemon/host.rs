//! The daemon as the receiving end of a migration.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ferry_dataplane::backend::Store;
use ferry_dataplane::backend::file::Image;
use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::destination::{DestinationHost, PreparedTarget};
use ferry_migration::ids::{Claim, DiskId};
use ferry_migration::lease::Ownership;
use ferry_migration::negotiate::Hello;
use ferry_migration::phase::Phase;

use super::Daemon;
use super::disks::{Arrival, Served, set_aside};
use crate::config::DiskConfig;
use crate::qmp;

impl Daemon {
    /// The device that a disk is to arrive at; made now if disks may come unannounced.
    fn target(&self, hello: &Hello) -> Result<Arc<Served>, String> {
        let id = &hello.claim.disk;
        if let Ok(served) = self.disk(id) {
            return Ok(served);
        }
        let Some(dir) = &self.config.migration.incoming_dir else {
            return Err(format!(
                "no disk {id} is awaited there; announce it: ferry disk add {id} --incoming \
                 --path PATH --size {} --num-queues {}",
                hello.shape.capacity_bytes, hello.shape.num_queues
            ));
        };
        let path = dir.join(format!("{id}.raw")).display().to_string();
        self.add_disk(DiskConfig {
            id: id.clone(),
            path: path.parse()?,
            socket_path: None,
            num_queues: hello.shape.num_queues,
            read_only: false,
            incoming: true,
            size: Some(hello.shape.capacity_bytes),
        })
        .map_err(|error| error.to_string())
    }
}

/// What stands where the copy is to go, and may not be overwritten, is an error; what is void, or
/// was moved away, makes room.
fn make_room(path: &Path, phase: Phase) -> Result<(), String> {
    let failed = |error| format!("cannot make room at {}: {error}", path.display());
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    match phase {
        Phase::Moved { epoch, .. } => set_aside(path, epoch).map_err(failed),
        Phase::Incoming { .. } | Phase::Returned { .. } => fs::remove_file(path).map_err(failed),
        _ => Err(format!(
            "{} exists there and is not overwritten; remove it first",
            path.display()
        )),
    }
}

impl DestinationHost for Daemon {
    fn prepare(&self, hello: &Hello) -> Result<PreparedTarget, String> {
        let served = self.target(hello)?;
        let (id, phase) = (&served.config.id, served.ownership.phase());
        if matches!(
            phase,
            Phase::Serving { .. }
                | Phase::Released { .. }
                | Phase::Handed { .. }
                | Phase::Granted { .. }
        ) {
            return Err(format!(
                "disk {id} is {} there, and not awaited",
                phase.name()
            ));
        }
        let geometry = served.device.disk().geometry();
        if geometry.capacity_bytes != hello.shape.capacity_bytes {
            return Err(format!(
                "disk {id} is awaited there with {} bytes, and has {}; add it with --size {}",
                geometry.capacity_bytes, hello.shape.capacity_bytes, hello.shape.capacity_bytes
            ));
        }
        if served.config.num_queues != hello.shape.num_queues {
            return Err(format!(
                "disk {id} is awaited there with {} queues, and has {}; add it with --num-queues {}",
                served.config.num_queues, hello.shape.num_queues, hello.shape.num_queues
            ));
        }
        let path = served
            .image_path()
            .ok_or("a disk arrives at a path only")?
            .to_owned();
        let mut arrival = served.arrival();
        if arrival.is_some() {
            return Err(format!("another copy of disk {id} is arriving there"));
        }
        make_room(&path, phase)?;
        let image = Arc::new(
            Image::create(&path, hello.shape.capacity_bytes).map_err(|error| error.to_string())?,
        );
        *arrival = Some(Arrival {
            claim: hello.claim.clone(),
            image: image.clone(),
        });
        drop(arrival);
        Ok(PreparedTarget {
            image,
            ownership: served.ownership.clone(),
            disk: served.lifecycle(),
        })
    }

    fn install(&self, claim: &Claim, device_state: &[u8]) -> Result<(), String> {
        let served = self.disk(&claim.disk).map_err(|error| error.to_string())?;
        let image = match &*served.arrival() {
            Some(arrival) if arrival.claim == *claim => arrival.image.clone(),
            _ => return Err(format!("{claim}: no such copy arrived")),
        };
        let pending = served.pending();
        let backend = served.config.path.backend(Store::Image(image), false);
        served
            .device
            .disk()
            .set_backend(&backend)
            .map_err(|error| error.to_string())?;
        served.device.import(device_state).map_err(|error| {
            if let Err(error) = served.device.disk().set_backend(&pending) {
                tracing::error!(%claim, %error, "the copy could not be taken out again");
            }
            error.to_string()
        })
    }

    fn discard(&self, claim: &Claim, why: &str) {
        let Ok(served) = self.disk(&claim.disk) else {
            return;
        };
        let mut arrival = served.arrival();
        if arrival
            .as_ref()
            .is_none_or(|arrival| arrival.claim != *claim)
        {
            return;
        }
        tracing::info!(%claim, why, "the copy is discarded");
        if let Err(error) = served.device.disk().set_backend(&served.pending()) {
            tracing::error!(%claim, %error, "the copy could not be taken out");
        }
        if let Some(arrival) = arrival.take()
            && let Err(error) = fs::remove_file(arrival.image.path())
        {
            tracing::warn!(%claim, %error, "the void copy could not be removed");
        }
    }

    fn activated(&self, claim: &Claim) {
        if let Ok(served) = self.disk(&claim.disk) {
            // The device holds the image now.
            *served.arrival() = None;
        }
        tracing::info!(%claim, "the disk is served here");
    }

    fn ownership(&self, disk: &DiskId) -> Option<Arc<Ownership>> {
        self.disks()
            .get(disk)
            .map(|served| served.ownership.clone())
    }

    fn qmp(&self, socket: &Path, command: &str) -> Result<String, String> {
        if !self
            .config
            .migration
            .qmp
            .iter()
            .any(|allowed| allowed == socket)
        {
            return Err(format!(
                "{} may not be driven from another host; list it under qmp in [migration] of that \
                 host's configuration",
                socket.display()
            ));
        }
        qmp::raw(socket, command).map_err(|error| error.to_string())
    }
}
