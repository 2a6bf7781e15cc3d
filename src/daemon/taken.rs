//! What each disk uses, and no other disk of this daemon may: its name, its image, its socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use ferry_migration::ids::DiskId;

use super::Daemon;
use super::place::{Place, follow};
use crate::error::{Done, Failure};

/// What one disk uses, and no other disk of this daemon may.
pub struct Taken {
    path: Option<PathBuf>,
    socket: PathBuf,
}

/// Keeps a disk's name, place and socket while it is added.
pub(super) struct Reservation<'d> {
    daemon: &'d Daemon,
    id: DiskId,
    pub(super) kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.daemon.give_free(&self.id);
        }
    }
}

impl Daemon {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<DiskId, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the slow work, so that two that are added at once cannot share anything.
    pub(super) fn reserve(
        &self,
        id: &DiskId,
        place: Option<&Place>,
        socket: &Path,
    ) -> Done<Reservation<'_>> {
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

    pub(super) fn is_taken(&self, id: &DiskId) -> bool {
        self.taken().contains_key(id)
    }

    /// The disk is gone, and others may use what it used.
    pub(super) fn give_free(&self, id: &DiskId) {
        self.taken().remove(id);
    }
}
