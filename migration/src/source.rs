//! The sending end.

use std::sync::Arc;
use std::time::Duration;

use ferry_dataplane::lifecycle::DiskLifecycle;
use serde::Serialize;

use crate::ids::{DiskId, MigrationId};
use crate::lease::Ownership;
use crate::report::HandoverReport;
use crate::schema::blk_v1::BlkV1;

/// What to move and where.
#[derive(Clone)]
pub struct SourceParams {
    /// The disk, serving.
    pub disk: Arc<dyn DiskLifecycle>,
    /// Its record.
    pub ownership: Arc<Ownership>,
    /// Its name on both hosts.
    pub disk_id: DiskId,
    /// A fresh id.
    pub migration: MigrationId,
    /// The destination daemon's `host:port`.
    pub peer: String,
    /// The device as it is now.
    pub shape: BlkV1,
    /// How long a mirrored write may wait for the destination before the mirror is given up.
    pub patience: Duration,
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourcePhase {
    /// Talking to the destination.
    Connecting,
    /// The bulk copy runs; writes behind the cursor are mirrored.
    Copying,
    /// Both sides have every byte, and every write goes to both.
    InSync,
    /// The handover runs; it can still be undone.
    Releasing,
    /// Given up, and not known to be taken: neither side serves.
    InDoubt,
    /// The destination owns it, and has not served it yet.
    Granted,
    /// The destination serves it.
    Moved,
    /// The destination gave it back; the source serves.
    Returned,
    /// Cancelled; the source serves.
    Cancelled,
    /// Failed; the source serves.
    Failed,
    /// The daemon let go of the handle after the release; the record says the rest.
    Detached,
}

/// A migration at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Where it stands.
    pub phase: SourcePhase,
    /// Bytes of the disk copied or known to be holes.
    pub bytes_done: u64,
    /// Bytes of the disk.
    pub bytes_total: u64,
    /// Bytes of data sent, copies and mirrored writes.
    pub bytes_sent: u64,
    /// Mean of the copy so far.
    pub bytes_per_second: u64,
    /// At that rate; `None` while nothing is known.
    pub eta_seconds: Option<u64>,
    /// Whether a release may be asked now.
    pub in_sync: bool,
    /// Why it failed, or what it waits for.
    pub reason: Option<String>,
}

/// Why a call on a migration did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The disk is not in a state to be moved.
    #[error("{0}")]
    Refused(String),
    /// The migration failed; the source serves on.
    #[error("migration failed: {0}; the disk is served here as before")]
    Failed(String),
    /// Someone cancelled it; the source serves on.
    #[error("migration cancelled; the disk is served here as before")]
    Cancelled,
    /// It did not happen in time and goes on.
    #[error("not within {0:?}; the migration goes on")]
    TimedOut(Duration),
    /// The disk is given up and the destination has not confirmed.
    #[error(
        "in doubt: the disk was released and the destination has not confirmed ({0}); neither side \
         serves it until the two daemons can talk, which is tried every second"
    )]
    InDoubt(String),
}

/// A running migration. Dropping it cancels what can be cancelled and joins every thread.
pub struct SourceHandle {}

/// Starts moving a disk. Returns at once; see [`SourceHandle::wait_in_sync`].
pub fn start(params: SourceParams) -> Result<SourceHandle, SourceError> {
    drop(params);
    Err(SourceError::Refused("not yet".into()))
}

/// For a daemon that starts and finds `released` or `handed` in a record: keeps the disk out of
/// service and finds out who owns it.
pub fn resolve(
    disk: Arc<dyn DiskLifecycle>,
    ownership: Arc<Ownership>,
    disk_id: DiskId,
) -> Result<SourceHandle, SourceError> {
    drop((disk, ownership, disk_id));
    Err(SourceError::Refused("not yet".into()))
}

impl SourceHandle {
    /// Where it stands.
    pub fn status(&self) -> SourceStatus {
        unreachable!()
    }

    /// Waits until both sides have every byte.
    pub fn wait_in_sync(&self, timeout: Duration) -> Result<(), SourceError> {
        Err(SourceError::TimedOut(timeout))
    }

    /// Ends it before the release; returns when the tap is detached and the threads are joined.
    pub fn cancel(&self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Hands the disk over. Its rings must be stopped.
    pub fn release(&self, timeout: Duration) -> Result<HandoverReport, SourceError> {
        Err(SourceError::TimedOut(timeout))
    }

    /// Waits until it is over: moved, returned, cancelled or failed.
    pub fn wait_end(&self, timeout: Duration) -> Result<SourceStatus, SourceError> {
        Err(SourceError::TimedOut(timeout))
    }
}
