//! Taking disks up, by what their records say.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ferry_dataplane::disk::Disk;
use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::destination::{self, DestinationHost, PreparedTarget, TargetBytes};
use ferry_migration::ids::Claim;
use ferry_migration::lease::Restart;
use ferry_migration::source::{self, group::Look};
use ferry_vhost::blk::device::{BlkDevice, BlkOptions};
use ferry_vhost::session;

use super::Daemon;
use super::disks::{Arrival, Served};
use super::kept::{self, Kept};
use super::open::refuse_shared;
use super::place::Place;
use crate::config::DiskConfig;
use crate::error::{Done, Failure};

/// Permissions of a device's socket.
const SOCKET_MODE: u32 = 0o660;

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

impl Daemon {
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
        if let Some(group) = config.group.as_ref().filter(|_| !origin.is_start()) {
            self.sioc.has_group(&id, group)?;
        }
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
        let brought_up = self
            .control(&served)
            .and_then(|()| self.bring_up(&served, opened.restart, origin));
        if let Err(error) = brought_up {
            self.uncontrol(&served);
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
            disk: served.config_now(),
            unannounced: origin.is_unannounced(),
        };
        kept::store(&self.config.state_dir, &kept).inspect_err(|_| served.hang_up())
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
}

/// A group's number, by /etc/group.
pub fn group_id(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}
