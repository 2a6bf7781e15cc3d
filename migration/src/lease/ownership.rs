//! One disk's ownership in a running daemon: the record, and the one lock that decides.
//!
//! Every change is made durable before it is believed, and under one mutex, so an activation and a
//! hand-back that meet are ordered, and the loser sees the winner's state. When a store fails the
//! old state stays in memory. On disk the new one may stand; that is safe for each transition,
//! because nothing was answered and nothing served on the strength of it, and whatever the daemon
//! answers later it stores first.

use std::sync::Mutex;

use uuid::Uuid;

use super::{LeaseError, Peer, Record, RecordStore};
use crate::ids::{DaemonId, Member, MigrationId};
use crate::phase::{self, Event, Phase, Refusal, State};
use crate::sync::lock;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    /// The table says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be made durable.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// Whether an event did anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The state changed and is durable.
    Changed,
    /// It was so already.
    Repeated,
}

/// A disk's record and its store.
pub struct Ownership {
    daemon: DaemonId,
    inner: Mutex<Inner>,
}

struct Inner {
    record: Record,
    store: Box<dyn RecordStore>,
}

impl Ownership {
    /// Adopts what the store holds, or a vacant record for `disk_uuid` where it holds nothing.
    /// Whether a stored record of another daemon may be adopted is the caller's decision; see
    /// [`Ownership::record`].
    pub fn open(
        store: Box<dyn RecordStore>,
        disk_uuid: Uuid,
        daemon: DaemonId,
    ) -> Result<Ownership, LeaseError> {
        let record = store
            .load()?
            .unwrap_or_else(|| Record::vacant(disk_uuid, daemon));
        Ok(Ownership {
            daemon,
            inner: Mutex::new(Inner { record, store }),
        })
    }

    /// A copy of the record.
    pub fn record(&self) -> Record {
        lock(&self.inner).record.clone()
    }

    /// The disk's uuid.
    pub fn disk_uuid(&self) -> Uuid {
        lock(&self.inner).record.disk_uuid
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        lock(&self.inner).record.state.phase
    }

    /// Phase and refused ids now.
    pub fn state(&self) -> State {
        lock(&self.inner).record.state.clone()
    }

    /// The daemon that keeps this record.
    pub fn daemon(&self) -> DaemonId {
        self.daemon
    }

    /// Whether this host may serve the disk.
    pub fn may_serve(&self) -> bool {
        matches!(self.phase(), Phase::Serving { .. })
    }

    /// Applies one event, durably.
    pub fn apply(&self, event: Event) -> Result<Applied, OwnershipError> {
        self.apply_with(event, |_| ())
    }

    /// Source: gives the disk up to `peer`, together with `members`.
    pub fn release(
        &self,
        migration: MigrationId,
        peer: Peer,
        members: Vec<Member>,
    ) -> Result<Applied, OwnershipError> {
        self.apply_with(Event::Release { migration }, |record| {
            record.peer = Some(peer);
            record.members = members;
        })
    }

    /// Destination: a copy of the disk `disk_uuid` is about to arrive, together with `members`.
    pub fn accept(
        &self,
        migration: MigrationId,
        epoch: u64,
        disk_uuid: Uuid,
        peer: Peer,
        members: Vec<Member>,
    ) -> Result<Applied, OwnershipError> {
        self.apply_with(Event::Accept { migration, epoch }, |record| {
            record.disk_uuid = disk_uuid;
            record.peer = Some(peer);
            record.members = members;
        })
    }

    /// Destination: takes the disk, and keeps its device's state for a restart before activation.
    pub fn grant(
        &self,
        migration: MigrationId,
        epoch: u64,
        device_state: Vec<u8>,
    ) -> Result<Applied, OwnershipError> {
        self.apply_with(Event::Grant { migration, epoch }, |record| {
            record.device_state = Some(device_state);
        })
    }

    /// Writes the present record again, after a store that failed half-way.
    pub fn store_again(&self) -> Result<(), LeaseError> {
        let inner = &mut *lock(&self.inner);
        inner.store.store(&inner.record)
    }

    fn apply_with(
        &self,
        event: Event,
        edit: impl FnOnce(&mut Record),
    ) -> Result<Applied, OwnershipError> {
        let inner = &mut *lock(&self.inner);
        let state = phase::next(&inner.record.state, event)?;
        if state == inner.record.state {
            return Ok(Applied::Repeated);
        }
        let mut record = inner.record.clone();
        if !matches!(state.phase, Phase::Granted { .. }) {
            record.device_state = None;
        }
        if matches!(state.phase, Phase::Serving { .. }) {
            record.peer = None;
            record.members.clear();
        }
        record.state = state;
        record.owner = self.daemon;
        edit(&mut record);
        inner.store.store(&record)?;
        inner.record = record;
        Ok(Applied::Changed)
    }
}

impl std::fmt::Debug for Ownership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ownership")
            .field("record", &self.record())
            .finish_non_exhaustive()
    }
}
