//! The handover, phase by phase.

use serde::Serialize;

/// What a release cost. Times are microseconds on the source's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HandoverReport {
    /// Taking the disk out of service.
    pub quiesce_us: u64,
    /// Sending what was not yet acknowledged, until the destination had it durably.
    pub tail_flush_us: u64,
    /// Exporting the device's state.
    pub export_us: u64,
    /// Making `released` durable.
    pub release_durable_us: u64,
    /// From the grant to its acknowledgement, the destination's fsyncs included.
    pub grant_round_trip_us: u64,
    /// The whole release.
    pub total_us: u64,
    /// Bytes of data sent in the migration, copies and mirrored writes.
    pub bytes_sent: u64,
    /// The disk's epoch from now on.
    pub epoch: u64,
}
