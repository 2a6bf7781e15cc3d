//! The daemon's outgoing migrations: of disks, and of whole machines.

mod machine;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_migration::ids::{DaemonId, DiskId, MigrationId};
use ferry_migration::source::{self, SourceError, SourceHandle, SourceParams, SourcePhase};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::error::{Done, Failure};
pub use machine::{MachineMove, MachineRequest};

/// How long a release may take before the caller hears that it is still under way. The VM is
/// stopped meanwhile.
pub const RELEASE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a machine that is being moved may keep the daemon from ending.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// The largest disk that is moved: its extents are accounted for in memory.
const MOVED_BYTES_MAX: u64 = 1 << 46;

/// How often the end of a migration is looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

struct Outgoing {
    handle: Arc<SourceHandle>,
    peer: String,
}

/// All migrations of a daemon, by disk; the last one of each is kept to be asked about.
#[derive(Default)]
pub struct Migrations {
    disks: Mutex<BTreeMap<DiskId, Outgoing>>,
    machines: Mutex<Vec<Arc<MachineMove>>>,
}

impl Migrations {
    fn disks(&self) -> MutexGuard<'_, BTreeMap<DiskId, Outgoing>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machines(&self) -> MutexGuard<'_, Vec<Arc<MachineMove>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The migration of a disk, running or ended.
    pub fn handle(&self, id: &DiskId) -> Done<Arc<SourceHandle>> {
        self.disks().get(id).map(|out| out.handle.clone()).ok_or_else(|| {
            Failure::Failed(format!(
                "disk {id} is not being moved; start with: ferry migrate disk {id} --to HOST:PORT"
            ))
        })
    }

    /// Whether a migration of the disk is under way.
    pub fn is_active(&self, id: &DiskId) -> bool {
        self.disks()
            .get(id)
            .is_some_and(|out| !ended(out.handle.status().phase))
    }

    /// Drops the memory of an ended migration.
    pub fn forget(&self, id: &DiskId) {
        let out = self.disks().remove(id);
        drop(out);
    }

    /// Takes charge of a migration, and of what follows its end.
    pub fn adopt(&self, id: DiskId, handle: SourceHandle, served: Arc<Served>) {
        let handle = Arc::new(handle);
        let peer = served
            .ownership
            .record()
            .peer
            .map(|peer| peer.address)
            .unwrap_or_default();
        self.disks().insert(
            id,
            Outgoing {
                handle: handle.clone(),
                peer,
            },
        );
        let watched = Arc::downgrade(&handle);
        let served = Arc::downgrade(&served);
        drop(handle);
        let spawned = std::thread::Builder::new().name("ferry-moved".into()).spawn(move || {
            loop {
                let Some(handle) = watched.upgrade() else { return };
                let status = handle.wait_end(WATCH_INTERVAL);
                drop(handle);
                match status {
                    Ok(status) if status.phase == SourcePhase::Moved => break,
                    Ok(_) => return,
                    Err(_) => {}
                }
            }
            if let Some(served) = served.upgrade()
                && let Err(error) = served.set_aside()
            {
                tracing::warn!(disk = %served.config.id, %error, "the moved image stays where it was");
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "the end of a migration will go unnoticed");
        }
    }

    /// Starts moving a disk; one under way to the same peer is joined.
    pub fn start(&self, daemon: &Daemon, id: &DiskId, peer: &str) -> Done<Arc<SourceHandle>> {
        let served = daemon.disk(id)?;
        if let Some(out) = self.disks().get(id)
            && !ended(out.handle.status().phase)
        {
            if out.peer == peer {
                return Ok(out.handle.clone());
            }
            return Err(Failure::Failed(format!(
                "disk {id} is being moved to {}; cancel that first: ferry migrate cancel {id}",
                out.peer
            )));
        }
        check_movable(&served)?;
        self.forget(id);
        let kept = served.clone();
        let _size = kept.keep_size();
        let handle = source::start(SourceParams {
            disk: served.lifecycle(),
            ownership: served.ownership.clone(),
            disk_id: id.clone(),
            migration: MigrationId::random(),
            peer: peer.to_owned(),
            shape: served.device.shape(),
            patience: Duration::from_millis(daemon.config.migration.patience_ms),
            shared: served.on_shared(),
        })?;
        self.adopt(id.clone(), handle, served);
        if let Some(out) = self.disks().get_mut(id) {
            peer.clone_into(&mut out.peer);
        }
        self.handle(id)
    }

    /// Cancels a disk's migration.
    pub fn cancel(&self, id: &DiskId) -> Done {
        // A machine's move that has this disk is to stop as well, not to go on without it.
        self.machines()
            .iter()
            .filter(|machine| machine.moves(id))
            .for_each(|m| m.cancel());
        Ok(self.handle(id)?.cancel()?)
    }

    /// A person's word that the peer is off: a disk in doubt is served here again.
    pub fn resolve(&self, id: &DiskId, fenced: DaemonId) -> Done {
        Ok(self.handle(id)?.resolve(fenced, RELEASE_PATIENCE)?)
    }

    /// Hands a disk over.
    pub fn release(&self, id: &DiskId) -> Done<Value> {
        let report = self.handle(id)?.release(RELEASE_PATIENCE)?;
        serde_json::to_value(report).map_err(Failure::of)
    }

    /// Starts moving a machine; the disks first.
    pub fn start_machine(
        &self,
        daemon: Arc<Daemon>,
        request: MachineRequest,
    ) -> Done<Arc<MachineMove>> {
        let mut machines = self.machines();
        machines
            .retain(|other| !other.is_over() || !request.disks.iter().any(|id| other.moves(id)));
        if let Some(id) = request
            .disks
            .iter()
            .find(|id| machines.iter().any(|m| m.moves(id)))
        {
            return Err(Failure::Failed(format!(
                "the machine with disk {id} is being moved already; see ferry migrate status, or \
                 cancel it: ferry migrate cancel {id}"
            )));
        }
        let machine = machine::start(daemon, request)?;
        machines.push(machine.clone());
        Ok(machine)
    }

    /// Everything under way, and the last of each disk.
    pub fn status(&self) -> Value {
        let disks: Vec<Value> = self.disks().iter().map(|(id, out)| line(id, out)).collect();
        let machines: Vec<Value> = self
            .machines()
            .iter()
            .map(|machine| machine.line())
            .collect();
        json!({ "disks": disks, "machines": machines })
    }

    /// Cancels what can be cancelled, for the end of the daemon. Machines first: each is brought
    /// back to life here with its disks, as nobody would do it later.
    pub fn stop(&self) {
        let machines = std::mem::take(&mut *self.machines());
        machines.iter().for_each(|machine| machine.cancel());
        machines
            .iter()
            .for_each(|machine| machine.wait_over(STOP_PATIENCE));
        let disks = std::mem::take(&mut *self.disks());
        for out in disks.values() {
            // Refused after a release: the record says the rest, to the next daemon.
            let _ = out.handle.cancel();
        }
    }
}

fn check_movable(served: &Served) -> Done {
    use std::os::unix::fs::FileTypeExt;
    let id = &served.config.id;
    let device = |path: &std::path::Path| {
        std::fs::metadata(path).is_ok_and(|there| there.file_type().is_block_device())
    };
    if served.image_path().is_some_and(device) {
        return Err(Failure::Failed(format!(
            "disk {id} is a block device, and those are not moved yet; only images are"
        )));
    }
    let bytes = served.device.disk().geometry().capacity_bytes;
    if bytes > MOVED_BYTES_MAX {
        return Err(Failure::Failed(format!(
            "disk {id} has {bytes} bytes; at most {MOVED_BYTES_MAX} are moved"
        )));
    }
    Ok(())
}

fn line(id: &DiskId, out: &Outgoing) -> Value {
    let mut line = serde_json::to_value(out.handle.status()).unwrap_or_default();
    line["id"] = json!(id);
    line["to"] = json!(out.peer);
    line
}

/// Whether a migration is over, one way or the other.
pub fn ended(phase: SourcePhase) -> bool {
    use SourcePhase::{Cancelled, Detached, Failed, Moved, Returned, Taken};
    matches!(
        phase,
        Moved | Returned | Taken | Cancelled | Failed | Detached
    )
}

/// Waits until both sides have every byte.
pub fn wait_in_sync(handle: &SourceHandle, cancelled: &dyn Fn() -> bool) -> Done {
    loop {
        match handle.wait_in_sync(Duration::from_millis(200)) {
            Ok(()) => return Ok(()),
            Err(SourceError::TimedOut(_)) if !cancelled() => {}
            Err(SourceError::TimedOut(_)) => return Err(Failure::Failed("cancelled".into())),
            Err(error) => return Err(error.into()),
        }
    }
}
