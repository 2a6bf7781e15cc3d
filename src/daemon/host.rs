//! The daemon as the receiving end of a migration.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use ferry_dataplane::backend::Store;
use ferry_dataplane::backend::file::{Cache, Image};
use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_dataplane::net::lifecycle::NicLifecycle;
use ferry_migration::codec::NicHello;
use ferry_migration::destination::{DestinationHost, PreparedTarget, TargetBytes};
use ferry_migration::ids::{Claim, DiskId};
use ferry_migration::lease::{FileStore, Ownership, identity};
use ferry_migration::negotiate::{Hello, ImageKind};
use ferry_migration::phase::Phase;
use uuid::Uuid;

use super::Daemon;
use super::add::Origin;
use super::disks::{Arrival, Served, SetAside};
use super::place::follow;
use super::shared::SharedImage;
use crate::config::DiskConfig;
use crate::name::Name;
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
        let path = unannounced_path(dir, id).display().to_string();
        let config = DiskConfig {
            num_queues: hello.shape.num_queues,
            incoming: true,
            size: Some(hello.shape.capacity_bytes),
            ..DiskConfig::plain(id.clone(), path.parse()?)
        };
        self.add_disk_from(config, Origin::Peer)
            .map_err(|error| error.to_string())
    }

    fn prepare_target(
        &self,
        served: &Arc<Served>,
        hello: &Hello,
    ) -> Result<PreparedTarget, String> {
        let id = &served.config.id;
        let mut arrival = served.arrival();
        if served.is_gone() {
            return Err(format!("disk {id} was just removed there"));
        }
        let phase = served.ownership.phase();
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
        if arrival.is_some() {
            return Err(format!("another copy of disk {id} is arriving there"));
        }
        if let Some(shared) = shared_target(served, hello)? {
            if shared.taking.load(Ordering::Acquire) {
                return Err(format!("disk {id} is being taken over there; try again"));
            }
            *arrival = Some(Arrival {
                claim: hello.claim.clone(),
                image: None,
            });
            return Ok(PreparedTarget {
                bytes: TargetBytes::Shared(shared),
                ownership: served.ownership.clone(),
                disk: served.lifecycle(),
            });
        }
        let path = served
            .image_path()
            .ok_or("a disk arrives at a path only")?
            .to_owned();
        let (bytes, cache) = (hello.shape.capacity_bytes, served.config.cache.into());
        let kept = keep_copy(&path, hello, cache);
        let (moved, image) = match &kept {
            Some(image) => (None, image.clone()),
            None => {
                let moved = make_room(served, &arrival, &path)?;
                let image = create_copy(&path, hello.disk_uuid, bytes, cache)?;
                (moved, Arc::new(image))
            }
        };
        *arrival = Some(Arrival {
            claim: hello.claim.clone(),
            image: Some(image.clone()),
        });
        drop(arrival);
        if let Some(Err(error)) = moved.map(|moved| moved.remove_older()) {
            tracing::warn!(disk = %id, %error, "older images of the disk stay");
        }
        Ok(PreparedTarget {
            bytes: TargetBytes::Copy {
                image,
                kept: kept.is_some(),
            },
            ownership: served.ownership.clone(),
            disk: served.lifecycle(),
        })
    }

    /// What the record says of an unannounced disk that this daemon has let go of, before its last
    /// start perhaps.
    fn retired_ownership(&self, id: &DiskId) -> Option<Arc<Ownership>> {
        if let Some(ownership) = self.retired().get(id) {
            return Some(ownership.clone());
        }
        let dir = self.config.migration.incoming_dir.as_ref()?;
        let path = follow(&unannounced_path(dir, id)).ok()?;
        let store = Box::new(FileStore::beside(&path));
        let ownership = Ownership::open(store, Uuid::new_v4(), self.id).ok()?;
        // Only an end is safe to answer for by a second object: nothing changes it.
        matches!(ownership.phase(), Phase::Returned { .. }).then(|| Arc::new(ownership))
    }

    /// Lets go of a disk that nobody announced, when no copy of it is left.
    fn let_unannounced_go(&self, served: &Arc<Served>) {
        let id = &served.config.id;
        let void = matches!(
            served.ownership.phase(),
            Phase::Vacant | Phase::Returned { .. }
        );
        let arrival = served.arrival();
        if !served.unannounced || !void || arrival.is_some() || served.is_gone() {
            return;
        }
        if let Phase::Returned { .. } = served.ownership.phase() {
            self.retired().insert(id.clone(), served.ownership.clone());
        }
        if let Err(error) = self.let_go(served, arrival) {
            tracing::warn!(disk = %id, %error, "an unannounced disk stays");
        }
    }
}

/// Source and destination must mean the same: both a copy, or both this very disk.
fn shared_target(served: &Served, hello: &Hello) -> Result<Option<Arc<SharedImage>>, String> {
    let id = &served.config.id;
    match (hello.image, &served.shared) {
        (ImageKind::Raw, None) => Ok(None),
        (ImageKind::Shared, Some(shared)) if served.ownership.disk_uuid() == hello.disk_uuid => {
            Ok(Some(shared.clone()))
        }
        (ImageKind::Shared, Some(_)) => Err(format!(
            "what is awaited there as disk {id} is another shared disk, {}; add the right one",
            served.ownership.disk_uuid()
        )),
        (ImageKind::Shared, None) => Err(format!(
            "disk {id} is on a shared datastore and is awaited there as a copy; add it there with \
             --shared --incoming and the path of the same image"
        )),
        (ImageKind::Raw, Some(_)) => Err(format!(
            "disk {id} is awaited there on a shared datastore, and is not shared here; add it there \
             without --shared"
        )),
    }
}

fn unannounced_path(dir: &Path, id: &DiskId) -> PathBuf {
    dir.join(format!("{id}.raw"))
}

/// What an earlier attempt left of this very disk, and what of it is right is found out.
fn keep_copy(path: &Path, hello: &Hello, cache: Cache) -> Option<Arc<Image>> {
    let bytes = fs::symlink_metadata(path).ok()?.len();
    if bytes != hello.shape.capacity_bytes || identity::copy_of(path) != Some(hello.disk_uuid) {
        return None;
    }
    let image = Image::open_with(path, false, cache).ok()?;
    // Whoever had its lock may have done something to it.
    (identity::copy_of(path) == Some(hello.disk_uuid)).then(|| Arc::new(image))
}

/// A fresh image, which says that it is a copy before it has a size.
fn create_copy(path: &Path, disk: Uuid, bytes: u64, cache: Cache) -> Result<Image, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot make {}: {error}", path.display());
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o660);
    let file = options.open(path).map_err(|error| failed(&error))?;
    let made = identity::mark_copy(path, disk)
        .and_then(|()| file.set_len(bytes))
        .map_err(|error| failed(&error))
        .and_then(|()| Image::open_with(path, false, cache).map_err(|error| error.to_string()));
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

/// What stands where the copy is to go, and may not be overwritten, is an error; what is void, or
/// was moved away, makes room.
fn make_room(
    served: &Served,
    arrival: &MutexGuard<'_, Option<Arrival>>,
    path: &Path,
) -> Result<Option<SetAside>, String> {
    let failed = |error| format!("cannot make room at {}: {error}", path.display());
    let empty = fs::symlink_metadata(path).is_ok_and(|it| it.is_file() && it.len() == 0);
    if empty || identity::is_copy(path) {
        // The daemon died before the record of its arrival was made.
        served.drop_image().map_err(|error| error.to_string())?;
        fs::remove_file(path).map_err(failed)?;
    }
    // The migration that moved it away may not have come to that yet.
    let moved = served.put_away(arrival).map_err(failed)?;
    if moved.is_some() || fs::symlink_metadata(path).is_err() {
        return Ok(moved);
    }
    match served.ownership.phase() {
        Phase::Incoming { .. } | Phase::Returned { .. } => {
            fs::remove_file(path).map_err(failed)?;
            Ok(None)
        }
        _ => Err(format!(
            "{} exists there and is not overwritten; remove it first",
            path.display()
        )),
    }
}

impl DestinationHost for Daemon {
    fn prepare(&self, hello: &Hello) -> Result<PreparedTarget, String> {
        let served = self.target(hello)?;
        let prepared = self.prepare_target(&served, hello);
        if prepared.is_err() {
            self.let_unannounced_go(&served);
        }
        prepared
    }

    fn nic(&self, hello: &NicHello) -> Result<Arc<dyn NicLifecycle>, String> {
        let id = Name::from_str(hello.nic.as_str())?;
        let Ok(device) = Daemon::nic(self, &id) else {
            return Err(format!(
                "no NIC {id} is awaited there; add it first: ferry nic add {id} --mac MAC --tap NAME, or \
                 --switch NAME"
            ));
        };
        Ok(device)
    }

    fn install(&self, claim: &Claim, device_state: &[u8]) -> Result<(), String> {
        let served = self.disk(&claim.disk).map_err(|error| error.to_string())?;
        // To the end: a hand-back on another connection discards before this or after it.
        let arrival = served.arrival();
        let image = match &*arrival {
            Some(arrival) if arrival.claim == *claim => arrival.image.clone(),
            _ => return Err(format!("{claim}: no such copy arrived")),
        };
        let Some(image) = image else {
            let imported = served.device.import(device_state);
            return imported.map_err(|error| error.to_string());
        };
        let unmarked = identity::unmark_copy(image.path());
        unmarked.map_err(|error| format!("the copy cannot be made the disk: {error}"))?;
        if let Err(error) = identity::write(image.path(), served.ownership.disk_uuid()) {
            tracing::warn!(%claim, %error, "the copy does not say which disk it is");
        }
        let pending = served.pending();
        let backend = served
            .config
            .path
            .backend(Store::Image(image), served.config.usage())
            .map_err(|error| error.to_string())?;
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

    fn discard(&self, claim: &Claim, wanted: bool, why: &str) {
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
        if let Err(error) = served.drop_image() {
            tracing::error!(%claim, %error, "the copy could not be taken out");
        }
        let image = arrival.take().and_then(|arrival| arrival.image);
        // Of a disk that is announced, as only that may come back. A granted one is a copy again.
        let kept = image.as_ref().is_some_and(|image| {
            let disk = served.ownership.disk_uuid();
            wanted && !served.unannounced && identity::mark_copy(image.path(), disk).is_ok()
        });
        if let Some(image) = image
            && !kept
            && let Err(error) = fs::remove_file(image.path())
        {
            tracing::warn!(%claim, %error, "the void copy could not be removed");
        }
        drop(arrival);
        self.let_unannounced_go(&served);
    }

    fn activated(&self, claim: &Claim) {
        if let Ok(served) = self.disk(&claim.disk) {
            // The device holds the image now.
            *served.arrival() = None;
        }
        tracing::info!(%claim, "the disk is served here");
    }

    fn ownership(&self, disk: &DiskId) -> Option<Arc<Ownership>> {
        let known = self.disks().get(disk).map(|it| it.ownership.clone());
        known.or_else(|| self.retired_ownership(disk))
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
