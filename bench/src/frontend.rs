//! A vhost-user front-end: what a VMM and the driver in its guest do.
//!
//! ```text
//!   GuestMemory    memfds, mapped here and by the server
//!   GuestDevice    rings and eventfds in that memory; outlives any server
//!   Vmm            control: one connection to one server; start, stop, dirty log
//!   BlkQueue       data: one ring, one owner thread; submit, commit, pop, wait
//!   net            data of a NIC: a ring of frames to send, one of frames received
//! ```
//!
//! A live migration is modelled by two `Vmm`s and one `GuestDevice`: stop at the
//! first, start at the second with the indices that the first returned. Threads
//! that own a `BlkQueue` need not pause: they only see completions pause.
//!
//! For tests of hostile guests, [`SplitRing`] places any descriptor and index,
//! and [`Vmm::raw_request`] sends any message.

mod blk;
mod device;
mod error;
mod express;
mod laid;
mod log;
mod memory;
pub mod net;
mod options;
mod pool;
mod queue;
mod raw;
mod ring;
mod state;
mod vmm;
mod watch;

pub use blk::{BlkConfig, Op, Range, SECTOR_BYTES, Status, feature};
pub use device::{GuestDevice, QueueParts};
pub use error::VmmError;
pub use express::{ExpressOptions, ExpressQueue};
pub use log::{DirtyLog, LOG_PAGE};
pub use memory::{DEFAULT_BASE, GuestMemory, MemoryError, View};
pub use options::{DeviceKind, InflightRegion, VmmOptions};
pub use pool::BufferPool;
pub use queue::{BlkQueue, Completion, QueueError, QueueOptions, RANGES_MAX, Segment, Token};
pub use raw::RawReply;
pub use ring::{
    DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, RingLayout, SplitRing, passes,
};
pub use vmm::Vmm;
pub use watch::PeerWatch;
