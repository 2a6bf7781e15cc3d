//! A vhost-user device of whatever kind: what its front-end has said so far, and its rings.
//!
//! The front-end's side of a device is a state machine that does not know what the rings carry. A
//! ring starts when all is known of it and it is kicked and enabled, in whatever order the messages
//! came; it stops at GET_VRING_BASE, when it is disabled or moved, and when the front-end goes. What
//! happens with it in between is the [`Kind`]'s.
//!
//! # The lock
//!
//! All of it stands under one mutex, [`State`]'s, which a message holds to its end: no ring starts
//! while memory, features or the log change, and none of these is missed by one that does.

mod front_end;
mod kind;
mod messages;
mod rings;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use ferry_dataplane::lifecycle::LifecycleError;

use crate::inflight::OwnRegions;
pub use kind::{Kind, PROTOCOL_FEATURES};
pub use messages::Messages;
pub use state::{Ring, State};

/// Most of a configuration space that a front-end may read, in bytes.
pub const CONFIG_READ_MAX: usize = 256;

/// Feature bits that are the same for every kind: virtio's own, and vhost-user's.
#[allow(missing_docs)]
pub mod feature {
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// How requests in flight outlive the process, so that a successor can finish them.
#[derive(Debug, Clone, Default)]
pub struct Tracking {
    /// Front-ends may keep the region (INFLIGHT_SHMFD is offered).
    pub offered: bool,
    /// Where Ferry keeps one for those that do not; `None` to track nothing for them.
    pub own: Option<OwnRegions>,
}

/// A device of some kind.
pub struct Device<K: Kind> {
    pub(crate) kind: K,
    state: Mutex<State<K>>,
}

impl<K: Kind> Device<K> {
    /// A device without a front-end. `own` is what the kind keeps under the device's lock.
    pub(crate) fn without_front_end(kind: K, own: K::Own) -> Arc<Device<K>> {
        let state = State::new(kind.num_queues(), own);
        Arc::new(Device {
            kind,
            state: Mutex::new(state),
        })
    }

    /// Queues offered.
    pub fn num_queues(&self) -> u16 {
        self.kind.num_queues()
    }

    /// Whether a front-end has rings running. `None` while the device is busy with a message of its
    /// front-end, which may be waiting for what does not answer: who asks is not to wait too.
    pub fn attached(&self) -> Option<bool> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(state.rings.iter().any(|ring| ring.running))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something a front-end asked that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The device has fewer queues.
    #[error("there is no queue {0}")]
    NoQueue(u32),
    /// It makes no sense, or not here.
    #[error("{0}")]
    Invalid(String),
    /// A worker is gone, or has no room.
    #[error(transparent)]
    Worker(#[from] LifecycleError),
}

impl Refusal {
    pub(crate) fn invalid(what: impl std::fmt::Display) -> Refusal {
        Refusal::Invalid(what.to_string())
    }
}
