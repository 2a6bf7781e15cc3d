//! Where a disk's bytes go.
//!
//! A backend is an enum, not a trait object: the worker's path through it is decided once for each
//! request, by a branch. The contract, for each kind:
//!
//! - Ranges and lengths were checked against [`Backend::geometry`] before; a backend may assume
//!   them.
//! - Requests on a file or device go through the worker's ring and complete later; a thin disk's go
//!   to threads that may block, and complete later too. What is mapped, memory and files on tmpfs,
//!   and null complete inside the call.
//! - A failure is a status of that request alone.

pub mod delay;
pub mod file;
pub mod grow;
pub mod mapped;
pub mod memory;
pub mod thin;

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crate::buffer::AlignedBuf;
use crate::lifecycle::Geometry;
use delay::Bottleneck;
use file::Image;
use mapped::Mapping;
use memory::MemoryDisk;
use thin::ThinImage;

/// What holds a disk's bytes.
#[derive(Debug, Clone)]
pub enum Store {
    /// A file or block device.
    Image(Arc<Image>),
    /// A qcow2 image, as a rule an overlay on a base; served off the worker's thread.
    Thin(Arc<ThinImage>),
    /// Anonymous memory of this daemon; gone with it.
    Memory(Arc<MemoryDisk>),
    /// Nothing: writes vanish, reads leave the guest's buffer as it was.
    Null {
        /// Size of the disk in bytes.
        capacity_bytes: u64,
    },
    /// A disk that is to come: it has a size, and its requests are held until a store replaces it.
    Pending {
        /// Size of the disk in bytes.
        capacity_bytes: u64,
        /// Block of the disk in bytes.
        block_bytes: u32,
    },
}

/// A store and how it is used.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where the bytes are.
    pub store: Store,
    /// Service time added to every request, in nanoseconds; for tests.
    pub delay_ns: u64,
    /// With it, that time is one of a server's, for each 32 KiB: requests queue for those.
    pub bottleneck: Option<Arc<Bottleneck>>,
    /// Writes are refused.
    pub read_only: bool,
    /// Guest memory is registered with the ring, and so pinned: less work for each request. A guest
    /// that gives pages back (a balloon, free page reporting) loses data by it.
    pub pin_guest_memory: bool,
}

impl Backend {
    /// A backend on `store` that adds no delay.
    pub fn new(store: Store, read_only: bool) -> Backend {
        Backend {
            store,
            delay_ns: 0,
            bottleneck: None,
            read_only,
            pin_guest_memory: false,
        }
    }

    /// The disk's shape.
    pub fn geometry(&self) -> Geometry {
        match &self.store {
            Store::Image(image) => image.geometry(),
            Store::Thin(image) => image.geometry(),
            Store::Memory(memory) => Geometry {
                capacity_bytes: memory.capacity_bytes(),
                block_bytes: 512,
            },
            Store::Null { capacity_bytes } => Geometry {
                capacity_bytes: *capacity_bytes,
                block_bytes: 512,
            },
            Store::Pending {
                capacity_bytes,
                block_bytes,
            } => Geometry {
                capacity_bytes: *capacity_bytes,
                block_bytes: *block_bytes,
            },
        }
    }

    /// The bytes, where they are mapped in this process.
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        match &self.store {
            Store::Memory(memory) => Some(memory.mapping()),
            Store::Image(image) => image.mapping(),
            Store::Thin(_) | Store::Null { .. } | Store::Pending { .. } => None,
        }
    }

    /// The description that the ring's requests are made on.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        match &self.store {
            Store::Memory(memory) => Some(memory.mapping().file().as_raw_fd()),
            Store::Image(image) => Some(image.as_raw_fd()),
            Store::Thin(_) | Store::Null { .. } | Store::Pending { .. } => None,
        }
    }

    /// Reads `buf[..len]` at `offset_bytes` on the calling thread.
    pub fn read_at(&self, offset_bytes: u64, buf: &mut AlignedBuf, len: usize) -> io::Result<()> {
        match &self.store {
            Store::Image(image) => image.read_at(offset_bytes, buf, len),
            Store::Thin(image) => image.read_at(offset_bytes, buf, len),
            Store::Memory(memory) => memory.mapping().read(offset_bytes, &mut buf[..len]),
            Store::Null { .. } => {
                buf[..len].fill(0);
                Ok(())
            }
            Store::Pending { .. } => Err(not_there()),
        }
    }

    /// The first run of data at or after `offset_bytes`; `None` when only holes follow.
    pub fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        match &self.store {
            Store::Image(image) => image.next_data(offset_bytes),
            Store::Thin(image) => image.next_data(offset_bytes),
            Store::Memory(memory) => memory.mapping().next_data(offset_bytes),
            Store::Null { .. } => Ok(None),
            Store::Pending { .. } => Err(not_there()),
        }
    }
}

/// A disk that is to come must not be taken for one of zeroes.
fn not_there() -> io::Error {
    io::Error::other("the disk is not here")
}
