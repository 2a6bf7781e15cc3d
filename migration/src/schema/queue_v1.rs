//! One virtqueue's state, version 1. Frozen: a change is a new file.

use serde::{Deserialize, Serialize};

/// As it is stored and sent. The rings' addresses are not here: the VMM carries those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueV1 {
    /// Which queue of the device.
    pub index: u16,
    /// Entries in its rings; a power of two.
    pub size: u16,
    /// The next available index the device would pop.
    pub next_avail: u16,
    /// The next used index the device would write.
    pub used_idx: u16,
    /// Whether the VMM has enabled it.
    pub enabled: bool,
    /// Whether VIRTIO_F_EVENT_IDX governs its notifications.
    pub event_idx: bool,
}
