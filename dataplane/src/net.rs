//! Frames between guests and taps. What is known of a frame and what is decided about it is pure
//! logic, without I/O, clock or virtqueue, that allocates nothing once it is made; [`bridge`] carries
//! the frames, [`queue`] is the seam to the virtqueues, [`nic`] the side that control sees.
//!
//! ```text
//!   sending guest: [virtio-net header][frame]
//!        │
//!        ▼
//!   Header::check      every word of the header against the frame      ─► dropped: malformed
//!        │
//!   Start::parse       addresses, VLAN, what is behind them            ─► dropped: spoofed
//!        │
//!   Bucket::admit      packets and bits a second                       ─► waits in its ring
//!        │
//!   Table::learn, find which port has the source, which the destination ─► all ports, if unknown
//!        │
//!   Work::of           what the receiver cannot do by itself
//!        ├ nothing     header and frame as they came
//!        ├ checksum    finish_checksum
//!        └ segments    Segmenter: frames of the receiver's size
//!        ▼
//!   receiving guest, PortCounters on both sides
//! ```
//!
//! A guest may change its memory at any time. What was checked holds for a copy of the bytes only;
//! [`offload`] therefore looks again at what it works on, and never writes outside it.

pub mod announce;
pub mod bridge;
mod checksum;
pub mod counters;
pub mod features;
pub mod filter;
pub mod frame;
mod gso;
pub mod header;
pub mod lifecycle;
pub mod limit;
pub mod nic;
pub mod offload;
mod packet;
pub mod queue;
#[cfg(test)]
mod sample;
pub mod table;
pub mod tap;
