//! What a block device offers: features and configuration space.

use ferry_dataplane::lifecycle::Geometry;
use ferry_dataplane::limits::SECTOR_BYTES;

use crate::device::feature::{EVENT_IDX, INDIRECT_DESC, LOG_ALL, PROTOCOL, VERSION_1};

/// Longest segment, in bytes.
pub const SIZE_MAX: u32 = 4 << 20;
/// Data segments of one request.
pub const SEG_MAX: u32 = 126;
/// Sectors of one discard.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// Sectors of one write-zeroes; smaller, because where the backend cannot zero a range the zeroes
/// are written.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 17;
/// Bytes of data of one request; the kernel takes less than 2 GiB at a time.
pub const REQUEST_BYTES_MAX: u64 = 1 << 30;

/// Where `writeback` is in the configuration space.
pub const WRITEBACK_OFFSET: usize = 32;
/// Bytes of the configuration space that mean something.
pub const CONFIG_BYTES: usize = 60;

/// The block device's feature bits.
#[allow(missing_docs)]
pub mod feature {
    pub const BLK_SIZE_MAX: u64 = 1 << 1;
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    pub const BLK_RO: u64 = 1 << 5;
    pub const BLK_BLK_SIZE: u64 = 1 << 6;
    pub const BLK_FLUSH: u64 = 1 << 9;
    pub const BLK_TOPOLOGY: u64 = 1 << 10;
    pub const BLK_CONFIG_WCE: u64 = 1 << 11;
    pub const BLK_MQ: u64 = 1 << 12;
    pub const BLK_DISCARD: u64 = 1 << 13;
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
}

/// The features a disk offers.
pub fn features(read_only: bool) -> u64 {
    use feature::{
        BLK_BLK_SIZE, BLK_CONFIG_WCE, BLK_DISCARD, BLK_FLUSH, BLK_MQ, BLK_RO, BLK_SEG_MAX,
        BLK_SIZE_MAX, BLK_TOPOLOGY, BLK_WRITE_ZEROES,
    };
    let always = BLK_SIZE_MAX
        | BLK_SEG_MAX
        | BLK_BLK_SIZE
        | BLK_FLUSH
        | BLK_TOPOLOGY
        | BLK_CONFIG_WCE
        | BLK_MQ
        | LOG_ALL
        | INDIRECT_DESC
        | EVENT_IDX
        | PROTOCOL
        | VERSION_1;
    always
        | if read_only {
            BLK_RO
        } else {
            BLK_DISCARD | BLK_WRITE_ZEROES
        }
}

/// The configuration space, `struct virtio_blk_config`, little-endian.
pub fn space(geometry: Geometry, num_queues: u16, writeback: bool) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let sectors = u64::from(geometry.block_bytes) / SECTOR_BYTES;
    // A discard of less than a page gives nothing back on a file.
    let discard_align = u32::try_from(sectors.max(8)).unwrap_or(8);
    put(0, &(geometry.capacity_bytes / SECTOR_BYTES).to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &geometry.block_bytes.to_le_bytes());
    put(24, &[0, 0]); // one logical block to a physical one, aligned
    put(26, &1u16.to_le_bytes()); // least sensible request, in blocks
    put(WRITEBACK_OFFSET, &[u8::from(writeback)]);
    put(34, &num_queues.to_le_bytes());
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &1u32.to_le_bytes());
    put(44, &discard_align.to_le_bytes());
    put(48, &WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
    put(52, &1u32.to_le_bytes());
    put(56, &[1]); // zeroed ranges may be given back
    space
}
