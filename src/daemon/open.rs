//! What a disk begins with, by its record: opened, held, or refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferry_dataplane::backend::Backend;
use ferry_dataplane::disk::Service;
use ferry_dataplane::lifecycle::Geometry;
use ferry_migration::ids::DiskId;
use ferry_migration::lease::chain;
use ferry_migration::lease::ownership::Applied;
use ferry_migration::lease::{
    FileStore, MemoryStore, Ownership, Record, RecordStore, Restart, identity,
};
use ferry_migration::phase::{Event, Phase};
use uuid::Uuid;

use super::Daemon;
use super::add::Origin;
use super::place::Place;
use crate::config::DiskConfig;
use crate::error::{Done, Failure};

/// How often a record may change under the hands of who reads it. More than once needs two others
/// who fight over the disk.
const ATTEMPTS_MAX: u32 = 3;

/// What a disk begins with.
pub struct Opened {
    pub ownership: Arc<Ownership>,
    pub restart: Restart,
    pub backend: Backend,
    pub service: Service,
}

impl Daemon {
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
    pub(super) fn open_settled(
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
                let geometry = Geometry {
                    capacity_bytes,
                    block_bytes: 512,
                };
                let pending = config.path.pending(geometry, config.usage());
                Ok((pending, Service::Held))
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
}

/// An image that several hosts see is served by none of them as its own.
pub(super) fn refuse_shared(id: &DiskId, image: Option<&PathBuf>) -> Done {
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
