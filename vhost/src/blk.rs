//! The virtio block device (virtio 1.2, section 5.2).

pub mod config;
pub mod device;
mod expected;
mod lifecycle;
pub mod parse;
pub mod qos;
pub mod queue;
pub mod resize;
