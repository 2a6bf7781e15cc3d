//! What a connection negotiates, and what it leaves behind.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserInflight;

use super::blk::{BlkConfig, feature};
use super::net::{self, NetConfig};

/// The kind of device behind the socket, where the control side has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A disk, whose configuration space must be readable.
    Blk,
    /// A NIC: rings in pairs, and perhaps a configuration space.
    Net,
}

impl DeviceKind {
    /// Bytes of the configuration space that are read.
    pub(super) fn config_bytes(self) -> u32 {
        match self {
            DeviceKind::Blk => BlkConfig::BYTES,
            DeviceKind::Net => NetConfig::BYTES,
        }
    }
}

/// What to negotiate and how.
#[derive(Debug, Clone)]
pub struct VmmOptions {
    /// What the server serves.
    pub kind: DeviceKind,
    /// Virtio features to accept where offered (LOG_ALL is handled apart).
    pub features: u64,
    /// Virtio features without which `connect` fails; what the driver already
    /// uses, when it moves here from another server.
    pub required: u64,
    /// Protocol features to accept where offered.
    pub protocol: VhostUserProtocolFeatures,
    /// Hand memory over region by region (ADD_MEM_REG) where that is negotiated.
    pub memory_by_slots: bool,
    /// Kick every ring once after a start, as VMMs do. Off in tests of servers
    /// that must look at the rings by themselves.
    pub kick_on_start: bool,
    /// How long any one answer may take.
    pub reply_timeout: Duration,
}

impl Default for VmmOptions {
    fn default() -> Self {
        use VhostUserProtocolFeatures as P;
        Self {
            kind: DeviceKind::Blk,
            features: feature::VERSION_1
                | feature::EVENT_IDX
                | feature::INDIRECT
                | feature::SIZE_MAX
                | feature::SEG_MAX
                | feature::RO
                | feature::BLK_SIZE
                | feature::FLUSH
                | feature::TOPOLOGY
                | feature::MQ
                | feature::DISCARD
                | feature::WRITE_ZEROES,
            required: 0,
            protocol: P::MQ
                | P::CONFIG
                | P::REPLY_ACK
                | P::CONFIGURE_MEM_SLOTS
                | P::LOG_SHMFD
                | P::INFLIGHT_SHMFD,
            memory_by_slots: false,
            kick_on_start: true,
            reply_timeout: Duration::from_secs(10),
        }
    }
}

impl VmmOptions {
    /// For a NIC. Nothing of its rings is kept for a successor: what was in
    /// flight is lost, as frames may be.
    pub fn net() -> Self {
        use VhostUserProtocolFeatures as P;
        Self {
            kind: DeviceKind::Net,
            features: net::feature::VERSION_1
                | net::feature::EVENT_IDX
                | net::feature::INDIRECT
                | net::feature::MRG_RXBUF
                | net::feature::MAC
                | net::feature::MQ,
            protocol: P::MQ | P::CONFIG | P::REPLY_ACK | P::DEVICE_STATE,
            ..Self::default()
        }
    }
}

/// The region in which a server keeps what is in flight, so that its successor
/// after a crash can do it again.
#[derive(Clone)]
pub struct InflightRegion {
    /// Size, place and shape.
    pub shape: VhostUserInflight,
    /// The memory.
    pub file: Arc<File>,
}

impl std::fmt::Debug for InflightRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Packed fields are copied out, never borrowed.
        let (bytes, queues, size) = (
            self.shape.mmap_size,
            self.shape.num_queues,
            self.shape.queue_size,
        );
        write!(
            f,
            "InflightRegion({bytes} bytes, {queues} queues of {size})"
        )
    }
}
