//! The daemon's outgoing migrations: of disks, and of whole machines.

mod machine;
pub mod nics;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_migration::ids::{DaemonId, DiskId, MEMBERS_MAX, Member, MigrationId};
use ferry_migration::source::group::{Group, Meeting};
use ferry_migration::source::{self, SourceError, SourceHandle, SourceParams, SourcePhase};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::error::{Done, Failure};
use crate::name::Name;
pub use machine::{MachineMove, MachineRequest};
use nics::NicMoves;

/// How long a release may take before the caller hears that it is still under way. The VM is
/// stopped meanwhile.
pub const RELEASE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a machine that is being moved may keep the daemon from ending.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// The largest disk that is moved: its extents are accounted for in memory.
const MOVED_BYTES_MAX: u64 = 1 << 46;

/// How often the end of a migration is looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Disks to be moved, as one.
#[derive(Debug, Clone, Deserialize)]
pub struct MoveDisks {
    pub ids: Vec<DiskId>,
    /// The other daemon.
    pub to: String,
    /// Whether the image stays here, under another name.
    #[serde(default = "yes")]
    pub keep_source: bool,
}

/// Unless it is said otherwise.
pub fn yes() -> bool {
    true
}

struct Outgoing {
    handle: Arc<SourceHandle>,
    peer: String,
    /// The disks that move as one, this one included, and where they meet.
    together: Vec<DiskId>,
    meeting: Option<Arc<Meeting>>,
}

/// All migrations of a daemon, by disk; the last one of each is kept to be asked about.
#[derive(Default)]
pub struct Migrations {
    disks: Mutex<BTreeMap<DiskId, Outgoing>>,
    machines: Mutex<Vec<Arc<MachineMove>>>,
    pub nics: NicMoves,
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
    pub fn adopt(&self, id: DiskId, handle: SourceHandle, served: Arc<Served>, keep_source: bool) {
        let handle = Arc::new(handle);
        let peer = served
            .ownership
            .record()
            .peer
            .map(|peer| peer.address)
            .unwrap_or_default();
        let together = vec![id.clone()];
        self.disks().insert(
            id,
            Outgoing {
                handle: handle.clone(),
                peer,
                together,
                meeting: None,
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
                && let Err(error) = served.set_aside(keep_source)
            {
                tracing::warn!(disk = %served.config.id, %error, "the moved image stays where it was");
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "the end of a migration will go unnoticed");
        }
    }

    /// Starts moving disks that the other host is to have all or none of; those under way together
    /// to the same peer are joined. Says which were.
    pub fn start(
        &self,
        daemon: &Daemon,
        wanted: &MoveDisks,
    ) -> Done<Vec<(Arc<SourceHandle>, bool)>> {
        let (mut ids, peer) = (wanted.ids.clone(), wanted.to.as_str());
        ids.sort();
        ids.dedup();
        if ids.is_empty() || ids.len() > MEMBERS_MAX {
            return Err(Failure::Usage(format!(
                "name 1 to {MEMBERS_MAX} disks that are to move together"
            )));
        }
        if let Some(joined) = self.joined(&ids, peer)? {
            return Ok(joined.into_iter().map(|handle| (handle, true)).collect());
        }
        // All that can be refused is, before anything begins.
        let mut members = Vec::new();
        for id in &ids {
            let served = daemon.disk(id)?;
            check_movable(&served)?;
            let epoch = served.ownership.phase().epoch().saturating_add(1);
            let disk = id.clone();
            members.push(Member { disk, epoch });
        }
        let migration = MigrationId::random();
        let meeting = (ids.len() > 1).then(|| Meeting::of(ids.len()));
        let mut started: Vec<(Arc<SourceHandle>, bool)> = Vec::new();
        for id in &ids {
            let others = members.iter().filter(|member| member.disk != *id).cloned();
            let group = meeting.clone().map(|meeting| Group {
                members: others.collect(),
                meeting: Some(meeting),
                look: daemon.look(),
            });
            match self.start_one(daemon, id, wanted, migration, group) {
                Ok(handle) => started.push((handle, false)),
                Err(error) => {
                    for (handle, _) in &started {
                        let _ = handle.cancel();
                    }
                    return Err(error);
                }
            }
        }
        for id in &ids {
            if let Some(out) = self.disks().get_mut(id) {
                out.together.clone_from(&ids);
                out.meeting.clone_from(&meeting);
            }
        }
        Ok(started)
    }

    /// The migrations of these disks, if they are under way together already.
    fn joined(&self, ids: &[DiskId], peer: &str) -> Done<Option<Vec<Arc<SourceHandle>>>> {
        let disks = self.disks();
        let under_way = |id: &DiskId| {
            let out = disks.get(id)?;
            (!ended(out.handle.status().phase)).then_some(out)
        };
        let Some((id, first)) = ids.iter().find_map(|id| Some((id, under_way(id)?))) else {
            return Ok(None);
        };
        if first.peer != peer {
            return Err(Failure::Failed(format!(
                "disk {id} is being moved to {}; cancel that first: ferry migrate cancel {id}",
                first.peer
            )));
        }
        if first.together != ids {
            let names: Vec<_> = first.together.iter().map(DiskId::as_str).collect();
            return Err(Failure::Failed(format!(
                "{} is being moved already, and not together with the same disks; cancel that \
                 first: ferry migrate cancel {id}",
                names.join(" "),
            )));
        }
        let handles = ids.iter().filter_map(under_way);
        Ok(Some(handles.map(|out| out.handle.clone()).collect()))
    }

    fn start_one(
        &self,
        daemon: &Daemon,
        id: &DiskId,
        wanted: &MoveDisks,
        migration: MigrationId,
        group: Option<Group>,
    ) -> Done<Arc<SourceHandle>> {
        let served = daemon.disk(id)?;
        let peer = wanted.to.as_str();
        self.forget(id);
        let kept = served.clone();
        let _size = kept.keep_size();
        let handle = source::start(SourceParams {
            disk: served.lifecycle(),
            ownership: served.ownership.clone(),
            disk_id: id.clone(),
            migration,
            peer: peer.to_owned(),
            shape: served.device.shape(),
            patience: Duration::from_millis(daemon.config.migration.patience_ms),
            shared: served.on_shared(),
            group,
        })?;
        self.adopt(id.clone(), handle, served, wanted.keep_source);
        if let Some(out) = self.disks().get_mut(id) {
            peer.clone_into(&mut out.peer);
        }
        if kept.is_gone() {
            self.forget(id);
            return Err(Failure::Failed(format!("disk {id} was just removed")));
        }
        self.handle(id)
    }

    /// The disks that move as one with this one.
    fn together(&self, id: &DiskId) -> Vec<DiskId> {
        let together = self.disks().get(id).map(|out| out.together.clone());
        together.unwrap_or_else(|| vec![id.clone()])
    }

    /// Cancels a disk's migration, and of those that move with it.
    pub fn cancel(&self, id: &DiskId) -> Done {
        // A machine's move that has this disk is to stop as well, not to go on without it.
        self.machines()
            .iter()
            .filter(|machine| machine.moves(id))
            .for_each(|m| m.cancel());
        let mut cancelled = Ok(());
        for id in self.together(id) {
            let done = self.handle(&id).and_then(|handle| Ok(handle.cancel()?));
            cancelled = cancelled.and(done);
        }
        cancelled
    }

    /// Calls a NIC's move off, and that of its machine.
    pub fn cancel_nic(&self, id: &Name) -> Done {
        let machines = self.machines().clone();
        let mut of_machine = machines
            .iter()
            .filter(|it| !it.is_over() && it.moves_nic(id));
        if let Some(machine) = of_machine.next() {
            machine.cancel();
            return Ok(());
        }
        self.nics.cancel(id)
    }

    /// A person's word that the peer is off: a disk in doubt is served here again.
    pub fn resolve(&self, id: &DiskId, fenced: DaemonId) -> Done {
        Ok(self.handle(id)?.resolve(fenced, RELEASE_PATIENCE)?)
    }

    /// Hands a disk over, and those that move with it: all go, or none. The report of each.
    pub fn release(&self, id: &DiskId) -> Done<Vec<Value>> {
        let ids = self.together(id);
        let handles = ids.iter().map(|id| self.handle(id));
        self.release_together(id, &handles.collect::<Done<Vec<_>>>()?)
    }

    /// Releases the disks that move together with `id` at the same time; the first error, if there
    /// is one.
    fn release_together(&self, id: &DiskId, handles: &[Arc<SourceHandle>]) -> Done<Vec<Value>> {
        let meeting = self.disks().get(id).and_then(|out| out.meeting.clone());
        if let Some(meeting) = meeting {
            meeting.begin();
        }
        let reports: Vec<_> = std::thread::scope(|scope| {
            let release = |handle: &Arc<SourceHandle>| {
                let handle = handle.clone();
                scope.spawn(move || handle.release(RELEASE_PATIENCE))
            };
            let running: Vec<_> = handles.iter().map(release).collect();
            let ended = running.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended.collect()
        });
        let mut values = Vec::new();
        for report in reports {
            let gone = |_| Failure::Failed("a release ended early; this is a defect".into());
            values.push(serde_json::to_value(report.map_err(gone)??).map_err(Failure::of)?);
        }
        Ok(values)
    }

    /// Starts moving a machine; the disks first.
    pub fn start_machine(
        &self,
        daemon: Arc<Daemon>,
        request: MachineRequest,
    ) -> Done<Arc<MachineMove>> {
        let mut machines = self.machines();
        machines.retain(|other| !other.is_over() || !request.shares_with(other.request()));
        if let Some(other) = machines
            .iter()
            .find(|other| request.shares_with(other.request()))
        {
            let of = other.request();
            let (disk, nic) = (of.disks.first(), of.nics.first());
            let (of, cancel) = match (disk, nic) {
                (Some(disk), _) => (format!("disk {disk}"), disk.to_string()),
                (None, Some(nic)) => (format!("nic {nic}"), format!("--nic {nic}")),
                (None, None) => unreachable!("a machine has one of them"),
            };
            return Err(Failure::Failed(format!(
                "the machine with {of} is being moved already; see ferry migrate status, or cancel \
                 it: ferry migrate cancel {cancel}"
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
        json!({ "disks": disks, "nics": self.nics.lines(), "machines": machines })
    }

    /// Cancels what can be cancelled, for the end of the daemon. Machines first: each is brought
    /// back to life here with its disks, as nobody would do it later.
    pub fn stop(&self) {
        let machines = std::mem::take(&mut *self.machines());
        machines.iter().for_each(|machine| machine.cancel());
        machines
            .iter()
            .for_each(|machine| machine.wait_over(STOP_PATIENCE));
        self.nics.stop();
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
    line["together"] = json!(out.together);
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
