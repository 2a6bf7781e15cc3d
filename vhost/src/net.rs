//! The virtio network device (virtio 1.2, section 5.1).

mod arrival;
pub mod config;
pub mod control;
pub mod device;
pub mod lifecycle;
pub mod queue;
mod transfer;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Whether a frame to this address is for many, the broadcast included.
pub(crate) fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}
