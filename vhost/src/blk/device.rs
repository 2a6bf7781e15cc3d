//! A block device: what its front-end has said so far, and its rings.

mod front_end;
mod rings;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use ferry_dataplane::disk::Disk;
use ferry_dataplane::lifecycle::LifecycleError;

use super::config;
use super::parse::ID_BYTES;
use crate::inflight::OwnRegions;
pub(super) use rings::ExpectedBases;
pub(super) use state::{Ring, State};

/// What a device is made of.
#[derive(Debug, Clone)]
pub struct BlkOptions {
    /// Name, for messages and as the guest's GET_ID unless `serial` says otherwise.
    pub name: String,
    /// Virtqueues offered.
    pub num_queues: u16,
    /// What GET_ID answers; cut at 20 bytes.
    pub serial: String,
    /// How requests in flight outlive the process.
    pub tracking: Tracking,
}

/// How requests in flight outlive the process, so that a successor can finish them.
#[derive(Debug, Clone, Default)]
pub struct Tracking {
    /// Front-ends may keep the region (INFLIGHT_SHMFD is offered).
    pub offered: bool,
    /// Where Ferry keeps one for those that do not; `None` to track nothing for them.
    pub own: Option<OwnRegions>,
}

/// A block device on a disk.
pub struct BlkDevice {
    pub(super) name: Arc<str>,
    pub(super) disk: Arc<Disk>,
    pub(super) num_queues: u16,
    pub(super) tracking: Tracking,
    state: Mutex<State>,
    /// Where an imported device's rings have to begin, until it is activated.
    pub(super) expected: Arc<Mutex<Option<ExpectedBases>>>,
}

impl BlkDevice {
    /// A device on `disk`, without a front-end.
    pub fn new(disk: Arc<Disk>, options: &BlkOptions) -> Arc<BlkDevice> {
        let mut serial = [0; ID_BYTES];
        let bytes = options.serial.as_bytes();
        let len = bytes.len().min(ID_BYTES);
        serial[..len].copy_from_slice(&bytes[..len]);
        let rings = (0..options.num_queues).map(|_| Ring::default()).collect();
        let state = State {
            rings,
            writeback: options
                .tracking
                .own
                .as_ref()
                .is_none_or(OwnRegions::writeback),
            serial,
            ..State::default()
        };
        Arc::new(BlkDevice {
            name: options.name.as_str().into(),
            disk,
            num_queues: options.num_queues,
            tracking: options.tracking.clone(),
            state: Mutex::new(state),
            expected: Arc::default(),
        })
    }

    /// The disk under it.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Queues offered.
    pub fn num_queues(&self) -> u16 {
        self.num_queues
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn try_state(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn offered(&self) -> u64 {
        config::features(self.disk.read_only())
    }

    /// The configuration space as the guest sees it now.
    pub(super) fn config_space(&self, state: &State) -> [u8; config::CONFIG_BYTES] {
        config::space(self.disk.geometry(), self.num_queues, state.writeback)
    }

    /// Nobody will ask for what was in flight: the disk is gone for good.
    pub fn forget_in_flight(&self) {
        if let Some(own) = &self.tracking.own {
            (0..usize::from(self.num_queues)).for_each(|queue| own.forget(queue));
            own.keep_writeback(true);
        }
    }
}

/// Something a front-end asked that cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no queue {0}")]
    NoQueue(u32),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Worker(#[from] LifecycleError),
}

fn invalid(what: impl std::fmt::Display) -> Refusal {
    Refusal::Invalid(what.to_string())
}
