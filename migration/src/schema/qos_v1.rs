//! What a disk is to get of its datastore, version 1. Frozen: a change is a new file.

use serde::{Deserialize, Serialize};

/// As it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QosV1 {
    /// Its part under congestion, in proportion to the others'.
    pub shares: u32,
    /// No more than so many I/Os a second.
    pub limit_iops: Option<u64>,
    /// No more than so many bytes a second.
    pub limit_bytes: Option<u64>,
    /// At least so many I/Os a second; 0 for none.
    pub reservation_iops: u64,
    /// What is left of its burst, as the time in which its limit gives as much, in nanoseconds.
    pub credit_ns: u64,
    /// The group whose limit it is under besides.
    pub group: Option<String>,
}
