//! Making a disk larger while it is served.

use std::io;

use super::{Backend, Store};

/// Why a disk is not made larger, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// What lies behind the new end would be lost.
    #[error(
        "the disk has {has} bytes, and a disk is never made smaller: what lies behind {wanted} would \
         be lost. Copy what is wanted to a new disk"
    )]
    Smaller {
        /// Its size in bytes.
        has: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// The size is not whole blocks.
    #[error("{wanted} bytes are not a multiple of the disk's block of {block}")]
    Ragged {
        /// What was asked for.
        wanted: u64,
        /// The block in bytes.
        block: u32,
    },
    /// The device under the disk is smaller.
    #[error("the device has {has} bytes; make it that large first, and resize the disk then")]
    Device {
        /// Its size in bytes.
        has: u64,
    },
    /// The disk is not to be changed.
    #[error("the disk is read-only; add it without --read-only")]
    ReadOnly,
    /// It is of a kind with a fixed size.
    #[error("{0}")]
    Fixed(&'static str),
    /// The other side has the old size.
    #[error("the disk is mirrored to another host, which has its old size; wait, or cancel that")]
    Mirrored,
    /// The image could not be made larger.
    #[error("the image cannot be made larger: {0}")]
    Io(#[from] io::Error),
}

impl Backend {
    /// Makes the disk `capacity_bytes` large, which it stays until it grows again. What is new
    /// reads as zeroes, but on a block device. Requests may be in flight. May block.
    pub(crate) fn grow(&self, capacity_bytes: u64) -> Result<(), GrowError> {
        let geometry = self.geometry();
        if self.read_only {
            return Err(GrowError::ReadOnly);
        }
        if capacity_bytes < geometry.capacity_bytes {
            return Err(GrowError::Smaller {
                has: geometry.capacity_bytes,
                wanted: capacity_bytes,
            });
        }
        if !capacity_bytes.is_multiple_of(geometry.block_bytes.into()) {
            return Err(GrowError::Ragged {
                wanted: capacity_bytes,
                block: geometry.block_bytes,
            });
        }
        match &self.store {
            Store::Image(image) => image.grow(capacity_bytes),
            Store::Thin(image) => Ok(image.grow(capacity_bytes)?),
            Store::Memory(_) => Err(GrowError::Fixed(
                "a disk in memory is mapped as large as it is, and keeps its size; add a larger one",
            )),
            Store::Null { .. } => Err(GrowError::Fixed(
                "a null disk keeps its size; add a larger one",
            )),
            Store::Pending { .. } => Err(GrowError::Fixed(
                "the disk is not here; resize it where it is served",
            )),
        }
    }
}
