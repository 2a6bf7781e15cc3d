//! A disk on a shared datastore, as a handover and a takeover see it.

use std::io;
use std::sync::MutexGuard;

use super::chain::{self, Claimed, Link, Shelf};
use crate::ids::{DaemonId, MigrationId};

/// Why an epoch is not this daemon's.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon has it, or a later one.
    #[error("epoch {epoch} of the disk is daemon {}'s at {}", .link.owner, .link.address)]
    Taken {
        /// The newest epoch.
        epoch: u64,
        /// Its owner.
        link: Link,
    },
    /// The claims cannot be read or made.
    #[error("cannot claim epoch {epoch} on the datastore: {source}")]
    Failed {
        /// What was to be claimed.
        epoch: u64,
        /// The system's reason.
        source: io::Error,
    },
}

/// The disk's image and its chain of claims. Every call may block.
pub trait SharedDisk: Send + Sync {
    /// Held around the steps of a handover, a takeover or a return, and by whoever compares the record
    /// with the claims: there are several who may want the disk at the same time.
    fn alone(&self) -> MutexGuard<'_, ()>;

    /// Claims an epoch for this daemon, which comes to it through a move or a takeover; that `peer`
    /// has it through the same move will do as well.
    fn claim(
        &self,
        epoch: u64,
        through: Option<MigrationId>,
        peer: Option<DaemonId>,
    ) -> Result<(), ClaimError>;

    /// Puts the image under the device, which is held: opens it with its lock. An error while
    /// another process has the lock, after the time that requests of a dead one take to land.
    fn take(&self) -> Result<(), String>;

    /// Takes the image out from under the device, which is held and drained, and frees its lock.
    fn let_go(&self) -> Result<(), String>;
}

/// [`SharedDisk::claim`], on a shelf of claims.
pub fn claim(
    shelf: &impl Shelf,
    epoch: u64,
    me: &Link,
    peer: Option<DaemonId>,
) -> Result<(), ClaimError> {
    match chain::claim(shelf, epoch, me) {
        Ok(Claimed::Mine) => Ok(()),
        Ok(Claimed::Lost {
            epoch: newest,
            link,
        }) if newest == epoch && Some(link.owner) == peer && link.through == me.through => Ok(()),
        Ok(Claimed::Lost { epoch, link }) => Err(ClaimError::Taken { epoch, link }),
        Err(source) => Err(ClaimError::Failed { epoch, source }),
    }
}
