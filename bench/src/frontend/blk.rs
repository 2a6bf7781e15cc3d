//! What the virtio-blk device says of itself, and the words of its requests.

use virtio_bindings::bindings::{virtio_blk as vb, virtio_config as vc, virtio_ring as vr};

/// Bytes of a sector, whatever the device's block size.
pub const SECTOR_BYTES: u64 = 512;

/// Feature bits, as masks.
pub mod feature {
    use super::{vb, vc, vr};

    /// Largest segment is limited.
    pub const SIZE_MAX: u64 = 1 << vb::VIRTIO_BLK_F_SIZE_MAX;
    /// Number of segments is limited.
    pub const SEG_MAX: u64 = 1 << vb::VIRTIO_BLK_F_SEG_MAX;
    /// The disk is read-only.
    pub const RO: u64 = 1 << vb::VIRTIO_BLK_F_RO;
    /// The block size is told.
    pub const BLK_SIZE: u64 = 1 << vb::VIRTIO_BLK_F_BLK_SIZE;
    /// FLUSH is served.
    pub const FLUSH: u64 = 1 << vb::VIRTIO_BLK_F_FLUSH;
    /// Physical block size and optimal sizes are told.
    pub const TOPOLOGY: u64 = 1 << vb::VIRTIO_BLK_F_TOPOLOGY;
    /// More than one queue.
    pub const MQ: u64 = 1 << vb::VIRTIO_BLK_F_MQ;
    /// DISCARD is served.
    pub const DISCARD: u64 = 1 << vb::VIRTIO_BLK_F_DISCARD;
    /// WRITE_ZEROES is served.
    pub const WRITE_ZEROES: u64 = 1 << vb::VIRTIO_BLK_F_WRITE_ZEROES;
    /// Tables of descriptors.
    pub const INDIRECT: u64 = 1 << vr::VIRTIO_RING_F_INDIRECT_DESC;
    /// Kicks and calls by index.
    pub const EVENT_IDX: u64 = 1 << vr::VIRTIO_RING_F_EVENT_IDX;
    /// Virtio 1.
    pub const VERSION_1: u64 = 1 << vc::VIRTIO_F_VERSION_1;
    /// vhost-user: every write to guest memory is logged.
    pub const LOG_ALL: u64 = 1 << 26;
    /// vhost-user: protocol features exist.
    pub const PROTOCOL: u64 = 1 << 30;
}

/// The device's configuration space. Fields of features that were not
/// negotiated hold whatever the server put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlkConfig {
    /// Size of the disk in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Largest segment in bytes.
    pub size_max: u32,
    /// Most data segments of a request.
    pub seg_max: u32,
    /// Block size in bytes.
    pub blk_size: u32,
    /// Number of queues.
    pub num_queues: u16,
    /// Most sectors of one discard range.
    pub max_discard_sectors: u32,
    /// Most ranges of a discard.
    pub max_discard_seg: u32,
    /// Discards want to start and end on a multiple of this.
    pub discard_sector_alignment: u32,
    /// Most sectors of one write-zeroes range.
    pub max_write_zeroes_sectors: u32,
    /// Most ranges of a write-zeroes.
    pub max_write_zeroes_seg: u32,
}

impl BlkConfig {
    /// Bytes of the configuration space, up to and with the write-zeroes part.
    pub const BYTES: u32 = 60;

    /// Most bytes of a segment, if these features limit it; whole sectors.
    pub fn segment_bytes_max(&self, features: u64) -> u32 {
        let limited = features & feature::SIZE_MAX != 0 && self.size_max >= 512;
        if limited {
            self.size_max / 512 * 512
        } else {
            u32::MAX
        }
    }

    /// Most data segments of a request; one if the server does not tell.
    pub fn segments_max(&self, features: u64) -> u16 {
        let told = features & feature::SEG_MAX != 0;
        let max = u16::try_from(self.seg_max).unwrap_or(u16::MAX);
        if told { max.max(1) } else { 1 }
    }

    /// Reads the fields; what is missing at the end reads as zero.
    pub fn parse(raw: &[u8]) -> Self {
        Self {
            capacity_sectors: u64::from_le_bytes(bytes_at(raw, 0)),
            size_max: u32::from_le_bytes(bytes_at(raw, 8)),
            seg_max: u32::from_le_bytes(bytes_at(raw, 12)),
            blk_size: u32::from_le_bytes(bytes_at(raw, 20)),
            num_queues: u16::from_le_bytes(bytes_at(raw, 34)),
            max_discard_sectors: u32::from_le_bytes(bytes_at(raw, 36)),
            max_discard_seg: u32::from_le_bytes(bytes_at(raw, 40)),
            discard_sector_alignment: u32::from_le_bytes(bytes_at(raw, 44)),
            max_write_zeroes_sectors: u32::from_le_bytes(bytes_at(raw, 48)),
            max_write_zeroes_seg: u32::from_le_bytes(bytes_at(raw, 52)),
        }
    }
}

fn bytes_at<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(part) = raw.get(at..at + N) {
        out.copy_from_slice(part);
    }
    out
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Disk to guest memory.
    Read,
    /// Guest memory to disk.
    Write,
    /// Make completed writes durable.
    Flush,
    /// The disk's name, at most 20 bytes.
    GetId,
    /// The range may lose its contents.
    Discard,
    /// The range becomes zero.
    WriteZeroes {
        /// The space may be given back too.
        unmap: bool,
    },
}

impl Op {
    /// The request type on the wire.
    pub fn code(self) -> u32 {
        match self {
            Op::Read => vb::VIRTIO_BLK_T_IN,
            Op::Write => vb::VIRTIO_BLK_T_OUT,
            Op::Flush => vb::VIRTIO_BLK_T_FLUSH,
            Op::GetId => vb::VIRTIO_BLK_T_GET_ID,
            Op::Discard => vb::VIRTIO_BLK_T_DISCARD,
            Op::WriteZeroes { .. } => vb::VIRTIO_BLK_T_WRITE_ZEROES,
        }
    }

    /// Whether the device writes the data segments.
    pub fn device_writes(self) -> bool {
        matches!(self, Op::Read | Op::GetId)
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Failed.
    IoErr,
    /// The device does not know this request.
    Unsupported,
    /// The request came back with its status byte untouched.
    Unwritten,
    /// A byte that the standard does not know.
    Other(u8),
}

impl Status {
    /// What stands in the status byte until the device writes it.
    pub const UNWRITTEN: u8 = 0xff;

    /// Reads the status byte.
    pub fn parse(raw: u8) -> Self {
        match u32::from(raw) {
            vb::VIRTIO_BLK_S_OK => Status::Ok,
            vb::VIRTIO_BLK_S_IOERR => Status::IoErr,
            vb::VIRTIO_BLK_S_UNSUPP => Status::Unsupported,
            _ if raw == Self::UNWRITTEN => Status::Unwritten,
            _ => Status::Other(raw),
        }
    }
}

/// One range of a discard or write-zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// Flags on the wire; bit 0 is "unmap", for write-zeroes only.
    pub flags: u32,
}

impl Range {
    /// As it stands in memory.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.sector.to_le_bytes());
        out[8..12].copy_from_slice(&self.sectors.to_le_bytes());
        out[12..].copy_from_slice(&self.flags.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_fields_are_where_the_standard_puts_them() {
        let mut raw = [0u8; 60];
        raw[0] = 7;
        raw[12] = 126;
        raw[21] = 2;
        raw[34] = 4;
        raw[48] = 9;
        let config = BlkConfig::parse(&raw);
        assert_eq!(config.capacity_sectors, 7);
        assert_eq!(config.seg_max, 126);
        assert_eq!(config.blk_size, 512);
        assert_eq!(config.num_queues, 4);
        assert_eq!(config.max_write_zeroes_sectors, 9);
        assert_eq!(
            BlkConfig::parse(&raw[..8]).seg_max,
            0,
            "short is zero, not a panic"
        );
    }

    #[test]
    fn status_bytes() {
        assert_eq!(Status::parse(0), Status::Ok);
        assert_eq!(Status::parse(2), Status::Unsupported);
        assert_eq!(Status::parse(0xff), Status::Unwritten);
        assert_eq!(Status::parse(9), Status::Other(9));
    }
}
