//! A block device's state, version 1. Frozen: a change is a new file.

use serde::{Deserialize, Serialize};

/// As it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkV1 {
    /// Size of the disk in bytes.
    pub capacity_bytes: u64,
    /// What the guest sees in `blk_size`.
    pub block_bytes: u32,
    /// Queues the device has.
    pub num_queues: u16,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Virtio features the driver accepted.
    pub acked_features: u64,
    /// The `writeback` field of the device's configuration: 1 while the guest's cache is on.
    pub writeback: bool,
    /// What VIRTIO_BLK_T_GET_ID answers.
    pub serial: [u8; 20],
}
