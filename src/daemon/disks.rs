//! The daemon's disks: each a device, its socket, and its ownership record.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_dataplane::backend::file::Image;
use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::disk::{Disk, Service};
use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::destination::{self, DestinationHost, PreparedTarget};
use ferry_migration::ids::{Claim, DiskId};
use ferry_migration::lease::{FileStore, MemoryStore, Ownership, RecordStore, Restart};
use ferry_migration::phase::{Event, Phase};
use ferry_migration::source;
use ferry_vhost::blk::device::{BlkDevice, BlkOptions};
use ferry_vhost::session::{self, Listening};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Daemon;
use crate::config::DiskConfig;
use crate::error::{Done, Failure};

/// Permissions of a device's socket.
const SOCKET_MODE: u32 = 0o660;

/// A copy that arrives.
pub struct Arrival {
    pub claim: Claim,
    pub image: Arc<Image>,
}

/// A disk of this daemon, served or not.
pub struct Served {
    pub config: DiskConfig,
    pub socket: PathBuf,
    pub device: Arc<BlkDevice>,
    pub ownership: Arc<Ownership>,
    arrival: Mutex<Option<Arrival>>,
    /// Dropped first: cuts the front-end.
    listening: Mutex<Option<Listening>>,
}

impl Served {
    pub fn lifecycle(&self) -> Arc<dyn DiskLifecycle> {
        self.device.clone()
    }

    pub fn arrival(&self) -> MutexGuard<'_, Option<Arrival>> {
        self.arrival.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image's path, where the disk has one.
    pub fn image_path(&self) -> Option<&Path> {
        self.config.path.path().map(PathBuf::as_path)
    }

    /// The image that the device is on, if it is on one.
    fn image(&self) -> Option<Arc<Image>> {
        match self.device.disk().backend().store {
            Store::Image(image) => Some(image),
            _ => None,
        }
    }

    /// A backend without bytes, of the size the disk has or will have.
    pub fn pending(&self) -> Backend {
        let geometry = self.device.disk().geometry();
        self.config.path.backend(
            Store::Pending {
                capacity_bytes: geometry.capacity_bytes,
                block_bytes: geometry.block_bytes,
            },
            self.config.read_only,
        )
    }

    /// The disk was served elsewhere since: lets go of the image here and sets it aside.
    pub fn set_aside(&self) -> io::Result<()> {
        if let Err(error) = self.device.disk().set_backend(&self.pending()) {
            return Err(io::Error::other(error));
        }
        match self.image_path() {
            Some(path) => set_aside(path, self.ownership.phase().epoch()),
            None => Ok(()),
        }
    }

    /// One line of `ferry disk list`.
    pub fn line(&self) -> Value {
        let geometry = self.device.disk().geometry();
        let totals = self.device.disk().totals();
        let state = self.ownership.state();
        json!({
            "id": self.config.id,
            "path": self.config.path,
            "socket": self.socket,
            "bytes": geometry.capacity_bytes,
            "block_bytes": geometry.block_bytes,
            "num_queues": self.config.num_queues,
            "read_only": self.config.read_only,
            "phase": state.phase.name(),
            "epoch": state.phase.epoch(),
            "attached": self.device.rings_running(),
            "reads": totals.reads,
            "writes": totals.writes,
            "read_bytes": totals.read_bytes,
            "written_bytes": totals.written_bytes,
            "errors": totals.errors,
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The front-end goes before its rings.
        drop(
            self.listening
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}

/// Renames an image that was moved away, `NAME` to `NAME.moved.<epoch>`, and removes older ones of
/// the same name: the newest is enough to look back at.
pub fn set_aside(path: &Path, epoch: u64) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|there| there.is_file()) {
        return Ok(()); // a block device stays where it is
    }
    let prefix = format!(
        "{}.moved.",
        path.file_name().unwrap_or_default().to_string_lossy()
    );
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let old = name
            .to_string_lossy()
            .strip_prefix(&prefix)
            .and_then(|n| n.parse::<u64>().ok());
        if old.is_some_and(|old| old < epoch) {
            fs::remove_file(entry.path())?;
        }
    }
    fs::rename(path, dir.join(format!("{prefix}{epoch}")))
}

impl Daemon {
    /// Takes a disk up: served, held or awaited, as its record says.
    pub fn add_disk(&self, config: DiskConfig) -> Done<Arc<Served>> {
        config.check()?;
        if self.disks().contains_key(&config.id) {
            return Err(Failure::Failed(format!(
                "there is a disk {} already",
                config.id
            )));
        }
        let ownership = self.open_record(&config)?;
        let restart = ownership.record().at_restart();
        let (backend, service) = self.backend_for(&config, &ownership, &restart)?;
        let disk = Disk::new(
            &backend,
            &self.workers(),
            self.next_home(),
            config.num_queues.into(),
            service,
        )?;
        let options = BlkOptions {
            name: config.id.to_string(),
            num_queues: config.num_queues,
            serial: config.id.to_string(),
        };
        let device = BlkDevice::new(Arc::new(disk), &options);
        let socket = config
            .socket_path
            .clone()
            .unwrap_or_else(|| self.socket_of(&config.id));
        let served = Arc::new(Served {
            config,
            socket: socket.clone(),
            device: device.clone(),
            ownership,
            arrival: Mutex::new(None),
            listening: Mutex::new(None),
        });
        self.take_up(&served, restart)?;
        let listening = session::listen(device, &socket, SOCKET_MODE)?;
        self.give_to_group(&socket);
        *served
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(listening);
        self.disks()
            .insert(served.config.id.clone(), served.clone());
        tracing::info!(disk = %served.config.id, socket = %socket.display(),
            phase = served.ownership.phase().name(), "disk added");
        Ok(served)
    }

    fn open_record(&self, config: &DiskConfig) -> Done<Arc<Ownership>> {
        let store: Box<dyn RecordStore> = match config.path.path() {
            Some(path) if is_device(path) => Box::new(FileStore::at(
                self.config.state_dir.join(format!("{}.ferry", config.id)),
            )),
            Some(path) => Box::new(FileStore::beside(path)),
            None => Box::new(MemoryStore::default()),
        };
        Ok(Arc::new(Ownership::open(store, Uuid::new_v4(), self.id)?))
    }

    /// What a disk begins with, by its record.
    fn backend_for(
        &self,
        config: &DiskConfig,
        ownership: &Ownership,
        restart: &Restart,
    ) -> Done<(Backend, Service)> {
        let id = &config.id;
        let refused = |why: String| Err(Failure::Failed(why));
        match restart {
            Restart::New
            | Restart::DiscardCopy { .. }
            | Restart::Void
            | Restart::Elsewhere { .. }
                if config.incoming =>
            {
                if let Restart::DiscardCopy { migration } = *restart {
                    ownership.apply(Event::Discard { migration })?;
                }
                let capacity_bytes = config.size.unwrap_or_default();
                let store = Store::Pending {
                    capacity_bytes,
                    block_bytes: 512,
                };
                Ok((config.path.backend(store, config.read_only), Service::Held))
            }
            Restart::Serve if config.incoming => refused(format!(
                "disk {id} is here already, at epoch {}; add it without --incoming",
                ownership.phase().epoch()
            )),
            Restart::New | Restart::Serve => {
                self.check_owner(config, ownership)?;
                let backend = config.path.open(config.read_only)?;
                // Durable before anything is served.
                if *restart == Restart::New {
                    ownership.apply(Event::Create)?;
                }
                Ok((backend, Service::Open))
            }
            Restart::AwaitActivation { .. } | Restart::Resolve => {
                Ok((config.path.open(config.read_only)?, Service::Held))
            }
            Restart::Elsewhere { address } => refused(format!(
                "disk {id} was moved to {} (epoch {}) and is served there; use it there, or move it \
                 back: ferry disk add {id} --incoming ...",
                if address.is_empty() {
                    "another host"
                } else {
                    address
                },
                ownership.phase().epoch()
            )),
            Restart::DiscardCopy { .. } | Restart::Void => refused(format!(
                "what is at {} is an unfinished or refused copy, not the disk; the disk is where it \
                 came from. To receive it again: ferry disk add {id} --incoming ...",
                config.path
            )),
        }
    }

    /// A record of another daemon means that the image was carried here by other means.
    fn check_owner(&self, config: &DiskConfig, ownership: &Ownership) -> Done {
        let owner = ownership.record().owner;
        if owner == self.id {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "{} is recorded as served by another daemon ({owner}, this one is {}); stop it there \
             for good, remove {}.ferry, and add the disk again",
            config.path, self.id, config.path
        )))
    }

    /// Goes on with a handover that a restart has interrupted.
    fn take_up(&self, served: &Arc<Served>, restart: Restart) -> Done {
        let id = served.config.id.clone();
        match restart {
            Restart::AwaitActivation {
                migration,
                epoch,
                device_state,
            } => {
                let claim = Claim {
                    migration,
                    disk: id,
                    epoch,
                };
                let Some(image) = served.image() else {
                    return Err(Failure::Failed(format!(
                        "{claim} is granted, and has no image"
                    )));
                };
                served.device.import(&device_state)?;
                *served.arrival() = Some(Arrival {
                    claim: claim.clone(),
                    image: image.clone(),
                });
                let host: Arc<dyn DestinationHost> = self.own();
                let target = PreparedTarget {
                    image,
                    ownership: served.ownership.clone(),
                    disk: served.lifecycle(),
                };
                destination::await_activation(&target, &host, &claim)?;
            }
            Restart::Resolve => {
                let handle =
                    source::resolve(&served.lifecycle(), served.ownership.clone(), id.clone())?;
                self.migrations.adopt(id, handle, served.clone());
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets the VMM's group use the socket, where this process may.
    fn give_to_group(&self, socket: &Path) {
        let name = self.config.group.as_deref().unwrap_or("kvm");
        let result = match group_id(name) {
            Some(gid) => std::os::unix::fs::chown(socket, None, Some(gid)),
            None if self.config.group.is_none() => return,
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no such group")),
        };
        if let Err(error) = result {
            tracing::warn!(group = name, socket = %socket.display(), %error,
                "the socket keeps its group");
        }
    }

    /// Lets go of a disk. What is being moved is not let go.
    pub fn remove_disk(&self, id: &DiskId) -> Done {
        let served = self.disk(id)?;
        if self.migrations.is_active(id) {
            return Err(Failure::Failed(format!(
                "disk {id} is being moved; cancel that first: ferry migrate cancel {id}"
            )));
        }
        if let Phase::Incoming { .. } = served.ownership.phase() {
            return Err(Failure::Failed(format!(
                "disk {id} is arriving; cancel that at its source first"
            )));
        }
        self.migrations.forget(id);
        self.disks().remove(id);
        tracing::info!(disk = %id, "disk removed");
        Ok(())
    }
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|there| there.file_type().is_block_device())
}

/// A group's number, by /etc/group.
fn group_id(name: &str) -> Option<u32> {
    let text = fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}
