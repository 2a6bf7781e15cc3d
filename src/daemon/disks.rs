//! A disk of the daemon: a device, its socket, and its ownership record.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_dataplane::backend::file::Image;
use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::lifecycle::{DiskLifecycle, LifecycleError};
use ferry_migration::ids::Claim;
use ferry_migration::lease::Ownership;
use ferry_migration::lease::shared::SharedDisk;
use ferry_migration::phase::Phase;
use ferry_vhost::blk::device::BlkDevice;
use ferry_vhost::session::Listening;
use serde_json::{Value, json};

use super::shared::SharedImage;
use super::sioc::Controlled;
use crate::config::DiskConfig;
use crate::qos::disk::DiskQos;

/// A copy that arrives.
pub struct Arrival {
    pub claim: Claim,
    /// The copy; a shared disk's image is no copy.
    pub image: Option<Arc<Image>>,
}

/// A disk of this daemon, served or not.
pub struct Served {
    pub config: DiskConfig,
    /// What it is to get of its datastore: at first what `config` says.
    qos: Mutex<DiskQos>,
    /// Where that is enforced, once it is taken up.
    controlled: Mutex<Option<Controlled>>,
    pub socket: PathBuf,
    pub device: Arc<BlkDevice>,
    pub ownership: Arc<Ownership>,
    /// Nobody added it: it is let go of when its copy is.
    pub unannounced: bool,
    /// Of a disk on a shared datastore.
    pub shared: Option<Arc<SharedImage>>,
    /// Its lock is held by whoever changes what is at the image's path.
    arrival: Mutex<Option<Arrival>>,
    /// Changed under the lock of `arrival`: this daemon has let go of the disk, and what is at its
    /// path is no business of this object any more.
    gone: AtomicBool,
    /// Held by whoever changes the size, and by whoever begins a move and needs it to stay.
    size: Mutex<()>,
    /// Dropped first: cuts the front-end.
    listening: Mutex<Option<Listening>>,
}

impl Served {
    /// A disk that does not listen yet.
    pub fn new(
        config: DiskConfig,
        socket: PathBuf,
        device: Arc<BlkDevice>,
        ownership: Arc<Ownership>,
        unannounced: bool,
        shared: Option<Arc<SharedImage>>,
    ) -> Served {
        Served {
            qos: Mutex::new(config.qos()),
            controlled: Mutex::new(None),
            config,
            socket,
            device,
            ownership,
            unannounced,
            shared,
            arrival: Mutex::new(None),
            gone: AtomicBool::new(false),
            size: Mutex::new(()),
            listening: Mutex::new(None),
        }
    }

    fn listening(&self) -> MutexGuard<'_, Option<Listening>> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is to get of its datastore. Its lock is held by whoever changes that.
    pub fn qos(&self) -> MutexGuard<'_, DiskQos> {
        self.qos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its configuration as it is by now.
    pub fn config_now(&self) -> DiskConfig {
        self.config.with_qos(self.qos().clone())
    }

    /// The datastore that it is on, and its control there.
    pub fn controlled(&self) -> MutexGuard<'_, Option<Controlled>> {
        self.controlled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the socket open.
    pub fn listens(&self, listening: Listening) {
        *self.listening() = Some(listening);
    }

    /// Cuts the front-end and closes the socket.
    pub fn hang_up(&self) {
        let listening = self.listening().take();
        drop(listening);
    }

    /// The disk keeps its size while this is held.
    pub fn keep_size(&self) -> MutexGuard<'_, ()> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the daemon has let go of it. Ask under the lock of [`Served::arrival`].
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The daemon lets go of it.
    pub fn leave(&self, _alone: &MutexGuard<'_, Option<Arrival>>) {
        self.gone.store(true, Ordering::Release);
    }

    pub fn lifecycle(&self) -> Arc<dyn DiskLifecycle> {
        self.device.clone()
    }

    /// Of a shared disk, as a migration sees it.
    pub fn on_shared(&self) -> Option<Arc<dyn SharedDisk>> {
        let shared = self.shared.clone()?;
        Some(shared)
    }

    pub fn arrival(&self) -> MutexGuard<'_, Option<Arrival>> {
        self.arrival.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image's path, where the disk has one.
    pub fn image_path(&self) -> Option<&Path> {
        self.config.path.path().map(PathBuf::as_path)
    }

    /// The image that the device is on, if it is on one.
    pub fn image(&self) -> Option<Arc<Image>> {
        match self.device.disk().backend().store {
            Store::Image(image) => Some(image),
            _ => None,
        }
    }

    /// A backend without bytes, of the size the disk has or will have.
    pub fn pending(&self) -> Backend {
        let geometry = self.device.disk().geometry();
        self.config.path.pending(geometry, self.config.usage())
    }

    /// Lets go of the image: nothing is served from it, no request waits to activate it, and its
    /// lock is free as soon as the threads that used it have ended.
    pub fn drop_image(&self) -> Result<(), LifecycleError> {
        // Held first: a gate that waits for a first request owns a hook, and the hook the image.
        self.device.disk().hold()?;
        self.device.disk().set_backend(&self.pending())
    }

    /// A suspended disk lets go of its image until it is served again.
    pub fn release_lapsed(&self) -> Result<(), LifecycleError> {
        self.device.disk().drain()?;
        if let Some(image) = self.image() {
            image.flush()?;
        }
        self.device.disk().set_backend(&self.pending())
    }

    /// Has its image again, with the lock, if it let go of it.
    pub fn retake(&self) -> Result<(), String> {
        match &self.shared {
            Some(shared) if self.ownership.may_serve() => shared.take(),
            _ => Ok(()),
        }
    }

    /// The disk was served elsewhere since: lets go of the image here and sets it aside. Does
    /// nothing when the disk is back, or on its way, or no disk of this daemon any more.
    pub fn set_aside(&self, keep: bool) -> io::Result<()> {
        let arrival = self.arrival();
        if self.is_gone() {
            return Ok(());
        }
        let moved = self.put_away(&arrival)?;
        drop(arrival);
        match moved {
            Some(moved) if keep => moved.remove_older(),
            Some(moved) => moved.remove_older().and_then(|()| moved.remove()),
            None => Ok(()),
        }
    }

    /// Makes the path of a disk that was moved away free. Whoever comes first does it: the watcher
    /// of the migration, or the next copy that arrives here.
    pub fn put_away(
        &self,
        arrival: &MutexGuard<'_, Option<Arrival>>,
    ) -> io::Result<Option<SetAside>> {
        let Phase::Moved { epoch, .. } = self.ownership.phase() else {
            return Ok(None);
        };
        if arrival.is_some() {
            return Ok(None);
        }
        self.drop_image().map_err(io::Error::other)?;
        match self.image_path() {
            // It is the other host's now, where it is.
            _ if self.shared.is_some() => Ok(None),
            Some(path) => SetAside::rename(path, epoch),
            None => Ok(None),
        }
    }

    /// One line of `ferry disk list`.
    pub fn line(&self) -> Value {
        let geometry = self.device.disk().geometry();
        let totals = self.device.disk().totals();
        let placed = self.device.disk().placed();
        let workers: Vec<Value> = placed
            .iter()
            .map(|placed| json!({ "queue": placed.queue, "worker": placed.worker }))
            .collect();
        let state = self.ownership.state();
        let qos = self.qos().clone();
        let home = self.controlled().as_ref().map(|it| it.datastore.home());
        let mut line = json!({
            "id": self.config.id,
            "path": self.config.path,
            "socket": self.socket,
            "bytes": geometry.capacity_bytes,
            "block_bytes": geometry.block_bytes,
            "num_queues": self.config.num_queues,
            "read_only": self.config.read_only,
            "cache": self.config.cache,
            "pin_guest_memory": self.config.pin_guest_memory,
            "phase": state.phase.name(),
            "epoch": state.phase.epoch(),
            "placed": workers,
            "shared": self.shared.is_some(),
            "lapsed": self.lapses() && self.ownership.may_serve(),
            "attached": self.device.attached(),
            "reads": totals.reads,
            "writes": totals.writes,
            "read_bytes": totals.read_bytes,
            "written_bytes": totals.written_bytes,
            "errors": totals.errors,
            "shares": qos.shares(),
            "limit_iops": qos.limit_iops,
            "limit_mbps": qos.limit_mbps,
            "reservation": qos.reservation,
            "group": qos.group,
        });
        if let Some((path, sioc)) = home.flatten() {
            line["datastore"] = json!(path);
            line["sioc"] = json!(sioc);
        }
        line
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The front-end goes before its rings.
        self.hang_up();
    }
}

/// An image that was moved away and bears its new name, `NAME.moved.<epoch>`.
pub struct SetAside {
    path: PathBuf,
    epoch: u64,
}

impl SetAside {
    /// Renames the image at `path`; `None` when there is none.
    fn rename(path: &Path, epoch: u64) -> io::Result<Option<SetAside>> {
        if !fs::symlink_metadata(path).is_ok_and(|there| there.is_file()) {
            return Ok(None); // a block device stays where it is
        }
        let aside = SetAside {
            path: path.to_owned(),
            epoch,
        };
        let name = aside.name();
        if fs::symlink_metadata(&name).is_ok() {
            return Err(io::Error::other(format!(
                "{} was set aside already, and what is at {} now is not the disk; remove one of them",
                name.display(),
                path.display()
            )));
        }
        fs::rename(path, name)?;
        Ok(Some(aside))
    }

    /// Removes it, as nobody wants to look back.
    fn remove(&self) -> io::Result<()> {
        fs::remove_file(self.name())
    }

    fn name(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".moved.{}", self.epoch));
        name.into()
    }

    /// Removes what was set aside before: the newest is enough to look back at. It may take long.
    pub fn remove_older(&self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        let prefix = format!("{}.moved.", name.to_string_lossy());
        let dir = self.path.parent().unwrap_or(Path::new("."));
        for entry in fs::read_dir(dir)?.flatten() {
            let name = entry.file_name();
            let old = name
                .to_string_lossy()
                .strip_prefix(&prefix)
                .and_then(|n| n.parse::<u64>().ok());
            if old.is_some_and(|old| old < self.epoch) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ferry_dataplane::disk::{Disk, Service};
    use ferry_dataplane::worker::Worker;
    use ferry_migration::ids::{DaemonId, MigrationId};
    use ferry_migration::lease::{MemoryStore, Peer};
    use ferry_migration::phase::Event;
    use ferry_vhost::blk::device::BlkOptions;
    use uuid::Uuid;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A disk at `path` that was moved away at epoch 2, and that nobody has set aside yet.
    fn moved(path: &Path, worker: &Worker) -> Served {
        let (daemon, migration, epoch) = (DaemonId::random(), MigrationId::random(), 2);
        let store = Box::new(MemoryStore::default());
        let ownership = Ownership::open(store, Uuid::new_v4(), daemon).unwrap();
        let peer = Peer {
            address: "peer:1".into(),
            daemon,
        };
        ownership.apply(Event::Create).unwrap();
        ownership.release(migration, peer, vec![]).unwrap();
        ownership
            .apply(Event::ActivatedThere { migration, epoch })
            .unwrap();
        let spec = path.display().to_string().parse().unwrap();
        let config = DiskConfig::plain("d".parse().unwrap(), spec);
        let backend = config.path.backend(
            Store::Image(Image::create(path, MIB).unwrap().into()),
            config.usage(),
        );
        let backend = backend.unwrap();
        let disk = Disk::new(&backend, &[worker.handle()], 0, 1, Service::Held).unwrap();
        let options = BlkOptions {
            name: "d".into(),
            num_queues: 1,
            serial: "d".into(),
            tracking: Default::default(),
        };
        let device = BlkDevice::new(Arc::new(disk), &options);
        let socket = path.with_extension("sock");
        Served::new(config, socket, device, Arc::new(ownership), false, None)
    }

    fn aside(path: &Path, epoch: u64) -> PathBuf {
        path.with_file_name(format!("image.moved.{epoch}"))
    }

    #[test]
    fn a_moved_image_is_set_aside_once_and_its_lock_is_free() {
        let (dir, worker) = (tempfile::tempdir().unwrap(), Worker::start("w").unwrap());
        let path = dir.path().join("image");
        let served = moved(&path, &worker);
        fs::write(aside(&path, 1), b"older").unwrap();
        served.set_aside(true).unwrap();
        assert!(!path.exists() && aside(&path, 2).exists() && !aside(&path, 1).exists());
        Image::open(&aside(&path, 2), false).unwrap();
        // What comes to the path later is not the disk.
        fs::write(&path, b"mine").unwrap();
        assert!(served.set_aside(true).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_late_watcher_leaves_a_disk_alone_that_is_on_its_way_back() {
        let (dir, worker) = (tempfile::tempdir().unwrap(), Worker::start("w").unwrap());
        let path = dir.path().join("image");
        let served = moved(&path, &worker);
        let mut arrival = served.arrival();
        // The next copy comes first, and makes its own room.
        assert!(served.put_away(&arrival).unwrap().is_some());
        let claim = Claim {
            migration: MigrationId::random(),
            disk: "d".parse().unwrap(),
            epoch: 3,
        };
        let image: Arc<Image> = Image::create(&path, MIB).unwrap().into();
        fs::remove_file(aside(&path, 2)).unwrap();
        *arrival = Some(Arrival {
            claim: claim.clone(),
            image: Some(image.clone()),
        });
        drop(arrival);
        served.set_aside(true).unwrap();
        assert!(path.exists(), "the copy that arrives was set aside");

        // It was granted, installed and activated: the record says so, and the image is live.
        let (migration, epoch) = (claim.migration, claim.epoch);
        let peer = Peer {
            address: String::new(),
            daemon: DaemonId::random(),
        };
        let uuid = served.ownership.disk_uuid();
        let ownership = &served.ownership;
        ownership
            .accept(migration, epoch, uuid, peer, vec![])
            .unwrap();
        let backend = served
            .config
            .path
            .backend(Store::Image(image), served.config.usage())
            .unwrap();
        served.device.disk().set_backend(&backend).unwrap();
        ownership.grant(migration, epoch, Vec::new()).unwrap();
        ownership
            .apply(Event::Activate { migration, epoch })
            .unwrap();
        *served.arrival() = None;
        served.set_aside(true).unwrap();
        assert!(path.exists(), "the live image was set aside");
        assert!(served.image().is_some(), "the live image was taken away");
    }

    #[test]
    fn a_late_watcher_leaves_the_path_of_a_removed_disk_alone() {
        let (dir, worker) = (tempfile::tempdir().unwrap(), Worker::start("w").unwrap());
        let path = dir.path().join("image");
        let served = moved(&path, &worker);
        served.leave(&served.arrival());
        served.set_aside(true).unwrap();
        assert!(path.exists());
    }
}
