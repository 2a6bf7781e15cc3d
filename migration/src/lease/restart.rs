//! What a daemon that starts does with a record it finds.

use super::Record;
use crate::ids::MigrationId;
use crate::phase::Phase;

/// The record's meaning at a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restart {
    /// Never recorded: apply [`crate::phase::Event::Create`], then serve.
    New,
    /// Serve.
    Serve,
    /// A copy that was being received and is worth nothing: apply
    /// [`crate::phase::Event::Discard`], then remove the image.
    DiscardCopy {
        /// The attempt.
        migration: MigrationId,
    },
    /// The image here is void: do not serve it; it may be removed and the record kept.
    Void,
    /// Granted and not activated: give the device its image, import the state, then
    /// [`crate::destination::await_activation`].
    AwaitActivation {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
        /// For [`ferry_dataplane::lifecycle::DiskLifecycle::import`].
        device_state: Vec<u8>,
    },
    /// Given up and not known to be served elsewhere: hold the rings, then
    /// [`crate::source::resolve`].
    Resolve,
    /// Served by the peer: refuse to serve, and say where it went.
    Elsewhere {
        /// The peer's address.
        address: String,
    },
}

impl Record {
    /// What to do with the disk after a restart.
    pub fn at_restart(&self) -> Restart {
        match self.state.phase {
            Phase::Vacant => Restart::New,
            Phase::Serving { .. } => Restart::Serve,
            Phase::Incoming { migration, .. } => Restart::DiscardCopy { migration },
            Phase::Returned { .. } => Restart::Void,
            Phase::Granted { migration, epoch } => Restart::AwaitActivation {
                migration,
                epoch,
                device_state: self.device_state.clone().unwrap_or_default(),
            },
            Phase::Released { .. } | Phase::Handed { .. } => Restart::Resolve,
            Phase::Moved { .. } | Phase::Taken { .. } => Restart::Elsewhere {
                address: self
                    .peer
                    .as_ref()
                    .map(|p| p.address.clone())
                    .unwrap_or_default(),
            },
        }
    }
}
