//! Taking disks up, by what their records say, and letting go of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::disk::{Disk, Service};
use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::destination::{self, DestinationHost, PreparedTarget, TargetBytes};
use ferry_migration::ids::{Claim, DiskId};
use ferry_migration::lease::chain;
use ferry_migration::lease::ownership::Applied;
use ferry_migration::lease::{
    FileStore, MemoryStore, Ownership, Record, RecordStore, Restart, identity,
};
use ferry_migration::phase::{Event, Phase};
use ferry_migration::source::{self, group::Look};
use ferry_vhost::blk::device::{BlkDevice, BlkOptions};
use ferry_vhost::session;
use uuid::Uuid;

use super::Daemon;
use super::disks::{Arrival, Served};
use super::kept::{self, Kept};
use super::place::{Place, follow};
use crate::config::DiskConfig;
use crate::error::{Done, Failure};

/// Permissions of a device's socket.
const SOCKET_MODE: u32 = 0o660;

/// How often a record may change under the hands of who reads it. More than once needs two others
/// who fight over the disk.
const ATTEMPTS_MAX: u32 = 3;

/// Who wants a disk added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The configuration, at the start.
    Configured,
    /// A file of an earlier run, at the start.
    Kept { unannounced: bool },
    /// `ferry disk add`.
    Command,
    /// A peer that moves it here unannounced.
    Peer,
}

impl Origin {
    pub fn is_start(self) -> bool {
        matches!(self, Origin::Configured | Origin::Kept { .. })
    }

    fn is_unannounced(self) -> bool {
        matches!(self, Origin::Peer | Origin::Kept { unannounced: true })
    }
}

/// What one disk uses, and no other disk of this daemon may.
pub struct Taken {
    path: Option<PathBuf>,
    socket: PathBuf,
}

/// Keeps a disk's name, place and socket while it is added.
struct Reservation<'d> {
    daemon: &'d Daemon,
    id: DiskId,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.daemon.taken().remove(&self.id);
        }
    }
}

/// What a disk begins with.
pub struct Opened {
    pub ownership: Arc<Ownership>,
    pub restart: Restart,
    pub backend: Backend,
    pub service: Service,
}

impl Daemon {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<DiskId, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the slow work, so that two that are added at once cannot share anything.
    fn reserve(&self, id: &DiskId, place: Option<&Place>, socket: &Path) -> Done<Reservation<'_>> {
        // A directory that is not there is found out by listening.
        let plain = |path: &Path| follow(path).unwrap_or_else(|_| path.to_owned());
        let new = Taken {
            path: place.map(|place| place.path.clone()),
            socket: plain(socket),
        };
        if new.socket == plain(&self.config.control_socket()) {
            return Err(Failure::Usage(format!(
                "disk {id}: its socket would be the daemon's own, {}; choose another id, or set \
                 socket_path (--socket-path)",
                socket.display()
            )));
        }
        let mut taken = self.taken();
        if taken.contains_key(id) {
            return Err(Failure::Failed(format!("there is a disk {id} already")));
        }
        for (other, used) in &*taken {
            let what = if new.path.is_some() && new.path == used.path {
                new.path.as_deref().unwrap_or(socket)
            } else if new.socket == used.socket {
                socket
            } else {
                continue;
            };
            return Err(Failure::Failed(format!(
                "{} is used by disk {other} of this daemon; choose another, or first: ferry disk \
                 remove {other}",
                what.display()
            )));
        }
        taken.insert(id.clone(), new);
        Ok(Reservation {
            daemon: self,
            id: id.clone(),
            kept: false,
        })
    }

    /// Takes a disk up for `ferry disk add`: served, held or awaited, as its record says.
    pub fn add_disk(&self, config: DiskConfig) -> Done<Arc<Served>> {
        self.add_disk_from(config, Origin::Command)
    }

    /// Takes a disk up.
    pub fn add_disk_from(&self, mut config: DiskConfig, origin: Origin) -> Done<Arc<Served>> {
        config.check()?;
        let id = config.id.clone();
        let place = Place::of(&config.path)?;
        if config.new_identity && (config.read_only || place.as_ref().is_none_or(|it| it.is_device))
        {
            return Err(Failure::Usage(format!(
                "disk {id}: --new-identity is for an image that is a file, and that may be written"
            )));
        }
        if let Some(place) = &place {
            if place.is_device && config.incoming {
                return Err(Failure::Failed(format!(
                    "disk {id}: {} is a block device, and a disk cannot arrive on one yet; give the \
                     path of an image file that is not there",
                    config.path
                )));
            }
            config.path = place.settle(config.path);
        }
        let socket = config
            .socket_path
            .clone()
            .unwrap_or_else(|| self.socket_of(&id));
        let mut reservation = self.reserve(&id, place.as_ref(), &socket)?;
        let (opened, shared) = if config.shared {
            let opened = self.open_shared(&config, place.as_ref(), origin)?;
            (opened.opened, Some(opened.shared))
        } else {
            let image = place.as_ref().map(|place| &place.path);
            refuse_shared(&id, image)?;
            (self.open_settled(&config, place.as_ref(), origin)?, None)
        };
        config.new_identity = false; // it has one now
        let disk = Disk::new(
            &opened.backend,
            &self.workers(),
            self.next_home(),
            config.num_queues.into(),
            opened.service,
        )?;
        let options = BlkOptions {
            name: id.to_string(),
            num_queues: config.num_queues,
            serial: id.to_string(),
            tracking: config
                .inflight
                .tracking(&self.config.run_dir, &id.to_string()),
        };
        let device = BlkDevice::new(Arc::new(disk), &options);
        let unannounced = origin.is_unannounced();
        let served = Arc::new(Served::new(
            config,
            socket,
            device,
            opened.ownership,
            unannounced,
            shared,
        ));
        if let Some(shared) = &served.shared {
            shared.belongs_to(&served);
            // Until there is a lease.
            served.device.disk().suspend(true)?;
        }
        if let Err(error) = self.bring_up(&served, opened.restart, origin) {
            // What goes on by itself holds the image: a question to the peer, or a hook that waits
            // for the first request.
            self.migrations.forget(&id);
            *served.arrival() = None;
            if let Err(error) = served.drop_image() {
                tracing::error!(disk = %id, %error, "a disk that was not added keeps its image");
            }
            return Err(error);
        }
        self.disks().insert(id.clone(), served.clone());
        if let Some(shared) = &served.shared {
            shared.datastore.look_now();
        }
        self.retired().remove(&id);
        reservation.kept = true;
        tracing::info!(disk = %id, socket = %served.socket.display(),
            phase = served.ownership.phase().name(), "disk added");
        Ok(served)
    }

    /// What can fail when the device is there; in the end its socket is open.
    fn bring_up(&self, served: &Arc<Served>, restart: Restart, origin: Origin) -> Done {
        self.take_up(served, restart)?;
        let socket = &served.socket;
        served.listens(session::listen(served.device.clone(), socket, SOCKET_MODE)?);
        self.give_to_group(socket);
        if origin.is_start() {
            return Ok(());
        }
        let kept = Kept {
            disk: served.config.clone(),
            unannounced: origin.is_unannounced(),
        };
        kept::store(&self.config.state_dir, &kept).inspect_err(|_| served.hang_up())
    }

    fn record_of(&self, place: &Place) -> FileStore {
        place.record(&self.config.state_dir)
    }

    fn open_record(&self, place: Option<&Place>) -> Done<Ownership> {
        let store: Box<dyn RecordStore> = match place {
            Some(place) => Box::new(self.record_of(place)),
            None => Box::new(MemoryStore::default()),
        };
        Ok(Ownership::open(store, Uuid::new_v4(), self.id)?)
    }

    /// Opens what the record says. Whether to open is read before the image's lock is held, and
    /// opening waits for whoever serves the image: the record counts only if it is the same after.
    fn open_settled(
        &self,
        config: &DiskConfig,
        place: Option<&Place>,
        origin: Origin,
    ) -> Done<Opened> {
        for _ in 0..ATTEMPTS_MAX {
            let ownership = self.open_record(place)?;
            let read = ownership.record();
            let restart = read.at_restart();
            self.check_owner(place, &read)?;
            let image = place.filter(|place| !place.is_device && opens(config, &restart));
            if let Some(place) = image {
                self.check_identity(config, place, &read)?;
                if restart == Restart::New && identity::is_copy(&place.path) {
                    return Err(Failure::Failed(format!(
                        "{} is what a migration that failed left of a copy, and no disk; remove it, or \
                         receive the disk again: --incoming",
                        place.path.display()
                    )));
                }
            }
            let (backend, service) = self.backend_for(config, &read, &restart, origin)?;
            if let Some(place) = place
                && !same(&read, self.record_of(place).load()?.as_ref())
            {
                continue;
            }
            if let Some(place) = image.filter(|_| config.new_identity) {
                // First: with a record of its own it would be taken for a stranger at every start.
                identity::remove(&place.path).map_err(|error| {
                    Failure::Failed(format!(
                        "disk {}: its image cannot be given another identity: {error}",
                        config.id
                    ))
                })?;
            }
            // Durable before anything is served.
            match restart {
                Restart::New if service == Service::Open => ownership.apply(Event::Create)?,
                Restart::DiscardCopy { migration } => {
                    ownership.apply(Event::Discard { migration })?
                }
                _ => Applied::Repeated,
            };
            if let Some(place) = image.filter(|_| !config.read_only) {
                identify(&place.path, &ownership);
            }
            return Ok(Opened {
                ownership: Arc::new(ownership),
                restart,
                backend,
                service,
            });
        }
        Err(Failure::Failed(format!(
            "the ownership record of disk {} keeps changing: another program serves or moves the \
             disk; stop it there, and add the disk again",
            config.id
        )))
    }

    /// What a disk begins with, by its record.
    fn backend_for(
        &self,
        config: &DiskConfig,
        record: &Record,
        restart: &Restart,
        origin: Origin,
    ) -> Done<(Backend, Service)> {
        let id = &config.id;
        let epoch = record.state.phase.epoch();
        let refused = |why: String| Err(Failure::Failed(why));
        match restart {
            Restart::New
            | Restart::DiscardCopy { .. }
            | Restart::Void
            | Restart::Elsewhere { .. }
                if config.incoming =>
            {
                let capacity_bytes = config.size.unwrap_or_default();
                let store = Store::Pending {
                    capacity_bytes,
                    block_bytes: 512,
                };
                Ok((config.path.backend(store, config.usage()), Service::Held))
            }
            Restart::Serve if config.incoming && !origin.is_start() => refused(format!(
                "disk {id} is here already, at epoch {epoch}; add it without --incoming"
            )),
            Restart::New | Restart::Serve => {
                if config.incoming {
                    tracing::info!(disk = %id, epoch, "the disk has arrived before, and is served");
                }
                Ok((config.path.open(config.usage())?, Service::Open))
            }
            Restart::AwaitActivation { .. } | Restart::Resolve => {
                Ok((config.path.open(config.usage())?, Service::Held))
            }
            Restart::Elsewhere { address } => refused(format!(
                "disk {id} was moved to {} (epoch {epoch}) and is served there; use it there, or \
                 move it back: ferry disk add {id} --incoming ...",
                if address.is_empty() {
                    "another host"
                } else {
                    address
                }
            )),
            Restart::DiscardCopy { .. } | Restart::Void => refused(format!(
                "what is at {} is an unfinished or refused copy, not the disk; the disk is where it \
                 came from. To receive it again: ferry disk add {id} --incoming ...",
                config.path
            )),
        }
    }

    /// A record of another daemon means that the image was carried here by other means. What it
    /// says is that daemon's to go on with, unless the disk is not there any more.
    fn check_owner(&self, place: Option<&Place>, record: &Record) -> Done {
        let phase = record.state.phase;
        let (Some(place), false) = (place, record.owner == self.id) else {
            return Ok(());
        };
        if matches!(phase, Phase::Moved { .. } | Phase::Returned { .. }) {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "{} is recorded as {} by another daemon ({}, this one is {}); stop it there for good, \
             remove {}, and add the disk again with --new-identity",
            place.path.display(),
            phase.name(),
            record.owner,
            self.id,
            self.record_of(place).path().display()
        )))
    }

    /// An image that says which disk it is must be the one that its record is about.
    fn check_identity(&self, config: &DiskConfig, place: &Place, record: &Record) -> Done {
        match (config.new_identity, record.state.phase) {
            (false, _) => {}
            (true, Phase::Vacant) => return Ok(()),
            (true, phase) => {
                return Err(Failure::Failed(format!(
                    "{} is a disk with a record already, and {}; add it without --new-identity, or \
                     remove {} first if that belongs to another disk",
                    place.path.display(),
                    phase.name(),
                    self.record_of(place).path().display()
                )));
            }
        }
        identity::check(&place.path, record, self.record_of(place).path())
            .map_err(|error| Failure::Failed(error.to_string()))
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
                let bytes = match (served.on_shared(), served.image()) {
                    (Some(shared), _) => TargetBytes::Shared(shared),
                    (None, Some(image)) => TargetBytes::Copy { image, kept: false },
                    (None, None) => {
                        return Err(Failure::Failed(format!(
                            "{claim} is granted, and has no image"
                        )));
                    }
                };
                served.device.import(&device_state)?;
                *served.arrival() = Some(Arrival {
                    claim: claim.clone(),
                    image: match &bytes {
                        TargetBytes::Copy { image, .. } => Some(image.clone()),
                        TargetBytes::Shared(_) => None,
                    },
                });
                let host: Arc<dyn DestinationHost> = self.own();
                let target = PreparedTarget {
                    bytes,
                    ownership: served.ownership.clone(),
                    disk: served.lifecycle(),
                };
                destination::await_activation(&target, &host, &claim)?;
            }
            Restart::Resolve => {
                let handle = source::resolve(
                    &served.lifecycle(),
                    served.ownership.clone(),
                    id.clone(),
                    served.on_shared(),
                    self.look(),
                )?;
                self.migrations.adopt(id, handle, served.clone(), true);
            }
            _ => {}
        }
        Ok(())
    }

    /// How a disk stands here, for one that was given up together with it.
    pub fn look(&self) -> Look {
        let own = self.own.clone();
        Arc::new(move |id| {
            let served = own.upgrade()?.disks().get(id).cloned()?;
            Some(served.ownership.state())
        })
    }

    /// Lets the VMM's group use the socket, where this process may.
    pub fn give_to_group(&self, socket: &Path) {
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
        let served = match self.disk(id) {
            Ok(served) => served,
            // One that could not be taken up at the start is not tried again at the next.
            Err(_) if kept::is_kept(&self.config.state_dir, id) && !self.is_taken(id) => {
                return kept::remove(&self.config.state_dir, id);
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

    fn is_taken(&self, id: &DiskId) -> bool {
        self.taken().contains_key(id)
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
        served.device.forget_in_flight();
        self.migrations.forget(id);
        if let Err(error) = served.drop_image() {
            tracing::error!(disk = %id, %error, "a removed disk keeps its image");
        }
        let forgotten = kept::remove(&self.config.state_dir, id);
        self.taken().remove(id);
        tracing::info!(disk = %id, "disk removed");
        if let Some(Err(error)) = moved.map(|moved| moved.remove_older()) {
            tracing::warn!(disk = %id, %error, "older images of the disk stay");
        }
        forgotten
    }
}

/// An image that several hosts see is served by none of them as its own.
fn refuse_shared(id: &DiskId, image: Option<&PathBuf>) -> Done {
    match image {
        Some(image) if chain::shared_disk(image)?.is_some() => Err(Failure::Failed(format!(
            "disk {id}: {} is a disk that hosts share; add it with --shared",
            image.display()
        ))),
        _ => Ok(()),
    }
}

/// Whether what is at the disk's path is opened as the disk.
fn opens(config: &DiskConfig, restart: &Restart) -> bool {
    match restart {
        Restart::New => !config.incoming,
        Restart::Serve | Restart::AwaitActivation { .. } | Restart::Resolve => true,
        Restart::DiscardCopy { .. } | Restart::Void | Restart::Elsewhere { .. } => false,
    }
}

/// Has the image say which disk it is, if it does not yet.
fn identify(image: &Path, ownership: &Ownership) {
    let disk = ownership.disk_uuid();
    if identity::read(image).is_ok_and(|said| said == Some(disk)) {
        return;
    }
    if let Err(error) = identity::write(image, disk) {
        tracing::warn!(image = %image.display(), %error, "the image does not say which disk it is");
    }
}

/// Whether a store still holds what was read. A disk that was never here has no record yet.
fn same(read: &Record, stored: Option<&Record>) -> bool {
    stored.map_or(read.state.phase == Phase::Vacant, |stored| stored == read)
}

/// A group's number, by /etc/group.
fn group_id(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}
