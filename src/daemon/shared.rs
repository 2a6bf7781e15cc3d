//! A disk on a datastore that other hosts serve disks from too.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

use ferry_dataplane::disk::Service;
use ferry_dataplane::lifecycle::{DiskLifecycle, Geometry};
use ferry_migration::ids::{DaemonId, MigrationId};
use ferry_migration::lease::chain::{self, Dir, Link, Shelf};
use ferry_migration::lease::ownership::Applied;
use ferry_migration::lease::shared::{self, ClaimError, SharedDisk};
use ferry_migration::lease::{FileStore, Ownership, Restart, identity};
use ferry_migration::phase::{Event, Phase};
use uuid::Uuid;

use super::Daemon;
use super::add::Origin;
use super::datastore::Datastore;
use super::disks::Served;
use super::open::Opened;
use super::place::Place;
use crate::config::DiskConfig;
use crate::error::{Done, Failure};

/// The image and the claims of one shared disk.
pub struct SharedImage {
    pub datastore: Arc<Datastore>,
    pub claims: Dir,
    me: Link,
    served: OnceLock<Weak<Served>>,
    /// Not served for want of a lease.
    pub lapsed: AtomicBool,
    /// A takeover is under way.
    pub taking: AtomicBool,
    /// No takeover by itself before that, after one that failed.
    pub again_ns: AtomicU64,
    /// When its claims were last read, and were this daemon's.
    pub looked_ns: AtomicU64,
    /// Of those who had it before this epoch, the newest, who is known to be off: by a fence or a word.
    pub off: Mutex<(u64, Vec<DaemonId>)>,
    turn: Mutex<()>,
}

impl SharedImage {
    /// The disk it is the image of, once there is one.
    pub fn belongs_to(&self, served: &Arc<Served>) {
        let _ = self.served.set(Arc::downgrade(served));
    }

    fn served(&self) -> Result<Arc<Served>, String> {
        let served = self.served.get().and_then(Weak::upgrade);
        served.ok_or_else(|| "the disk was just removed".to_owned())
    }

    /// The newest epoch and whose it is.
    pub fn newest(&self) -> std::io::Result<Option<(u64, Link)>> {
        let Some(epoch) = self.claims.newest()? else {
            return Ok(None);
        };
        Ok(self.claims.read(epoch)?.map(|link| (epoch, link)))
    }

    /// As [`SharedDisk::alone`], if nobody else wants the disk at the moment.
    pub fn try_alone(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(alone) => Some(alone),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether a daemon is known to be off.
    pub fn is_off(&self, newest: u64, link: &Link) -> bool {
        let off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        off.0 == newest && off.1.contains(&link.owner)
    }

    /// A daemon is off while `newest` is the newest epoch.
    pub fn remember_off(&self, newest: u64, owner: DaemonId) {
        let mut off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        if off.0 != newest {
            *off = (newest, Vec::new());
        }
        if !off.1.contains(&owner) {
            off.1.push(owner);
        }
    }

    /// This daemon, as it signs its claims.
    pub fn me(&self) -> &Link {
        &self.me
    }

    pub fn is_mine(&self, link: &Link) -> bool {
        link.owner == self.me.owner
    }
}

impl SharedDisk for SharedImage {
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(
        &self,
        epoch: u64,
        through: Option<MigrationId>,
        peer: Option<DaemonId>,
    ) -> Result<(), ClaimError> {
        let me = Link {
            through,
            ..self.me.clone()
        };
        shared::claim(&self.claims, epoch, &me, peer)
    }

    fn take(&self) -> Result<(), String> {
        let served = self.served()?;
        if served.image().is_some() {
            return Ok(());
        }
        // It may wait long for whoever has the lock, so nobody waits for this meanwhile.
        let backend = served.config.path.open(served.config.usage());
        let backend = backend.map_err(|error| error.to_string())?;
        let _arrival = served.arrival();
        if served.is_gone() {
            return Err("the disk was just removed".into());
        }
        let put = served.device.disk().set_backend(&backend);
        put.map_err(|error| error.to_string())
    }

    fn let_go(&self) -> Result<(), String> {
        let served = self.served()?;
        let _arrival = served.arrival();
        served.drop_image().map_err(|error| error.to_string())
    }
}

/// What a shared disk begins with.
pub struct OpenedShared {
    pub opened: Opened,
    pub shared: Arc<SharedImage>,
}

impl Daemon {
    /// Opens a shared disk, if its record and the chain of claims say that it is served here; else
    /// it waits here, held.
    pub fn open_shared(
        &self,
        config: &DiskConfig,
        place: Option<&Place>,
        origin: Origin,
    ) -> Done<OpenedShared> {
        let id = &config.id;
        let refused = |why: String| Err(Failure::Failed(format!("disk {id}: {why}")));
        let Some(place) = place.filter(|place| !place.is_device) else {
            return refused("only raw image files are shared between hosts (--shared)".into());
        };
        let disk = self.shared_uuid(config, place)?;
        let datastore = self.datastores.of(self, &place.path)?;
        let claims = Dir::new(datastore.root(), disk)?;
        let store = FileStore::at(self.config.state_dir.join(format!("shared-{disk}.ferry")));
        let ownership = Ownership::open(Box::new(store), disk, self.id)?;
        // Two that find each other's takeovers unfinished do not both fence at once.
        let again_ns = datastore.first_takeover_ns(self.id);
        let shared = Arc::new(SharedImage {
            datastore,
            claims,
            me: Link {
                owner: self.id,
                address: self.config.migration.listen.clone(),
                through: None,
            },
            served: OnceLock::new(),
            lapsed: AtomicBool::new(true),
            taking: AtomicBool::new(false),
            again_ns: AtomicU64::new(again_ns),
            looked_ns: AtomicU64::new(0),
            off: Mutex::default(),
            turn: Mutex::default(),
        });
        let restart = settle(&ownership, &shared, config)?;
        let backend = match restart {
            // Whoever has the lock may be about to take it over, or fail to: it is tried again.
            Restart::Serve | Restart::AwaitActivation { .. } => {
                match config.path.open(config.usage()) {
                    Ok(backend) => backend,
                    Err(error) => {
                        tracing::warn!(disk = %id, %error, "the disk is not served yet");
                        pending(config, place)?
                    }
                }
            }
            Restart::Resolve => pending(config, place)?,
            _ if config.incoming || origin.is_start() => pending(config, place)?,
            _ => {
                let owner = shared.newest()?;
                let owner = owner.map_or("another host".into(), |(epoch, link)| {
                    format!("daemon {} at {} (epoch {epoch})", link.owner, link.address)
                });
                return refused(format!(
                    "{} is {owner}'s; to wait here until it is moved here or taken over, add it \
                     with --incoming",
                    place.path.display()
                ));
            }
        };
        let service = match restart {
            Restart::Serve => Service::Open,
            _ => Service::Held,
        };
        let opened = Opened {
            ownership: Arc::new(ownership),
            restart,
            backend,
            service,
        };
        Ok(OpenedShared { opened, shared })
    }

    /// The disk's uuid, by the mark beside its image; an image without a record becomes shared now.
    fn shared_uuid(&self, config: &DiskConfig, place: &Place) -> Done<Uuid> {
        if let Some(disk) = chain::shared_disk(&place.path)? {
            return Ok(disk);
        }
        let path = place.path.display();
        if config.incoming {
            return Err(Failure::Failed(format!(
                "{path} is not a shared disk yet; add it with --shared at the host that serves it \
                 first"
            )));
        }
        if !place.path.exists() {
            return Err(Failure::Failed(format!(
                "{path} does not exist; make it first: ferry disk create {path} SIZE"
            )));
        }
        let record = place.record(&self.config.state_dir);
        if record.path().exists() {
            return Err(Failure::Failed(format!(
                "{path} is a disk of one host, by its record {}; remove the disk there and then the \
                 record, and add it with --shared",
                record.path().display()
            )));
        }
        let known = if config.new_identity {
            None
        } else {
            identity::read(&place.path)?
        };
        let disk = chain::share(&place.path, known.unwrap_or_else(Uuid::new_v4))?;
        if let Err(error) = identity::write(&place.path, disk) {
            tracing::warn!(image = %path, %error, "the image does not say which disk it is");
        }
        Ok(disk)
    }
}

/// A device that waits has the size of the image, which it does not open.
fn pending(
    config: &DiskConfig,
    place: &Place,
) -> std::io::Result<ferry_dataplane::backend::Backend> {
    let geometry = Geometry {
        capacity_bytes: fs::metadata(&place.path)?.len(),
        block_bytes: 512,
    };
    Ok(config.path.pending(geometry, config.usage()))
}

/// Brings the record in line with the claims, which have the last word.
fn settle(ownership: &Ownership, shared: &SharedImage, config: &DiskConfig) -> Done<Restart> {
    let newest = shared.newest()?;
    let phase = ownership.phase();
    let apply = |event| ownership.apply(event).map(|_: Applied| ());
    match (&newest, phase) {
        (None, Phase::Vacant) if !config.incoming => {
            match shared.claim(1, None, None) {
                Ok(()) => apply(Event::Create)?,
                Err(error @ ClaimError::Failed { .. }) => return Err(Failure::of(error)),
                // Another host was faster.
                Err(ClaimError::Taken { .. }) => {}
            }
        }
        (None, phase) if phase != Phase::Vacant => {
            return Err(Failure::Failed(format!(
                "disk {} is {} by its record, and its claims are not on the datastore: bring {} back",
                config.id,
                phase.name(),
                shared.datastore.root().join(chain::DIR).display()
            )));
        }
        // The end came between the claim and the record.
        (Some((1, link)), Phase::Vacant) if shared.is_mine(link) => apply(Event::Create)?,
        (Some((epoch, link)), Phase::Serving { epoch: at, .. })
        | (Some((epoch, link)), Phase::Granted { epoch: at, .. })
            if *epoch != at || !shared.is_mine(link) =>
        {
            tracing::warn!(disk = %config.id, epoch, owner = %link.owner,
                "the disk was taken over while this daemon was away");
            apply(Event::TakenOver { epoch: *epoch })?;
        }
        (_, Phase::Incoming { migration, .. }) => apply(Event::Discard { migration })?,
        _ => {}
    }
    let restart = ownership.record().at_restart();
    Ok(match restart {
        // Nothing of its own is at its path.
        Restart::New | Restart::DiscardCopy { .. } | Restart::Void => Restart::Elsewhere {
            address: newest.map(|(_, link)| link.address).unwrap_or_default(),
        },
        other => other,
    })
}

impl Served {
    /// Another host has taken the disk over: this one serves it no more.
    pub fn taken_over(&self, epoch: u64, link: &Link) {
        let id = &self.config.id;
        tracing::error!(disk = %id, epoch, owner = %link.owner, address = link.address,
            "another host has taken the disk over; its rings stay unserved here");
        let (name, address) = (id.clone(), link.address.clone());
        let on_restart = Box::new(move || {
            tracing::error!(disk = %name, address,
                "the rings of a disk that another host took over were started; they stay unserved");
        });
        // Before the record, so that nothing is served on the strength of the old one.
        if let Err(error) = self.device.quiesce(on_restart) {
            tracing::error!(disk = %id, %error, "a disk that was taken over is not held");
        }
        if let Err(error) = self.ownership.apply(Event::TakenOver { epoch }) {
            // It is held, and looked at again at the next beat.
            tracing::error!(disk = %id, %error, "the takeover is not recorded");
            return;
        }
        let _arrival = self.arrival();
        if let Err(error) = self.drop_image() {
            tracing::error!(disk = %id, %error, "a disk that was taken over keeps its image");
        }
    }

    /// Whether it is served, or would be but for the lease.
    pub fn lapses(&self) -> bool {
        self.shared
            .as_ref()
            .is_some_and(|shared| shared.lapsed.load(Ordering::Acquire))
    }
}
