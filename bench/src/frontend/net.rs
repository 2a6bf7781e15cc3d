//! What the virtio-net device says of itself, the header before each frame, and
//! the two kinds of its queues.

mod rx;
mod slots;
mod tx;

use virtio_bindings::bindings::virtio_net as vn;

pub use rx::{Frame, RxOptions, RxQueue};
pub use tx::{TxFrame, TxOptions, TxQueue};

/// Bytes of the header before each frame, with virtio 1.
pub const HEADER_BYTES: usize = 12;
/// Largest buffer piece, as a guest's pages are.
const PIECE_BYTES: u32 = 4096;

/// Feature bits, as masks.
pub mod feature {
    use super::vn;

    pub use super::super::blk::feature::{EVENT_IDX, INDIRECT, PROTOCOL, VERSION_1};

    /// The device takes frames whose checksum is not filled in.
    pub const CSUM: u64 = 1 << vn::VIRTIO_NET_F_CSUM;
    /// The driver does.
    pub const GUEST_CSUM: u64 = 1 << vn::VIRTIO_NET_F_GUEST_CSUM;
    /// The device tells a MAC.
    pub const MAC: u64 = 1 << vn::VIRTIO_NET_F_MAC;
    /// The driver takes TCPv4 frames that were not cut into segments.
    pub const GUEST_TSO4: u64 = 1 << vn::VIRTIO_NET_F_GUEST_TSO4;
    /// The device does.
    pub const HOST_TSO4: u64 = 1 << vn::VIRTIO_NET_F_HOST_TSO4;
    /// A frame may arrive in several buffers.
    pub const MRG_RXBUF: u64 = 1 << vn::VIRTIO_NET_F_MRG_RXBUF;
    /// The driver asks for things by a queue of its own.
    pub const CTRL_VQ: u64 = 1 << vn::VIRTIO_NET_F_CTRL_VQ;
    /// More than one pair of queues.
    pub const MQ: u64 = 1 << vn::VIRTIO_NET_F_MQ;
}

/// The device's configuration space. A field of a feature that was not
/// negotiated is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetConfig {
    /// The MAC that the device wants to see.
    pub mac: Option<[u8; 6]>,
    /// Most pairs of queues.
    pub pairs_max: Option<u16>,
}

impl NetConfig {
    /// Bytes of the configuration space, up to and with the number of pairs.
    pub const BYTES: u32 = 10;

    /// Reads the fields that these features make valid; nothing if the space is short.
    pub fn parse(raw: &[u8], features: u64) -> Option<Self> {
        let [a, b, c, d, e, f, _, _, low, high] = *raw.first_chunk()?;
        let mac = [a, b, c, d, e, f];
        let told = features & feature::MAC != 0 && mac != [0; 6];
        let several = features & feature::MQ != 0;
        Some(Self {
            mac: told.then_some(mac),
            pairs_max: several.then_some(u16::from_le_bytes([low, high])),
        })
    }
}

/// The header before a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHeader {
    /// What stands in for the checksum has yet to be made one.
    pub needs_csum: bool,
    /// The frame is TCPv4 and to be cut into segments of so many bytes; 0 for
    /// one that is not.
    pub gso_size: u16,
    /// Bytes of the frame's own headers.
    pub hdr_len: u16,
    /// Where the checksum starts to count, from the frame's start.
    pub csum_start: u16,
    /// Where the checksum goes, from there.
    pub csum_offset: u16,
    /// Buffers that a received frame lies in.
    pub buffers: u16,
}

impl NetHeader {
    /// As it stands in memory.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let gso = match self.gso_size {
            0 => vn::VIRTIO_NET_HDR_GSO_NONE,
            _ => vn::VIRTIO_NET_HDR_GSO_TCPV4,
        };
        // One bit, and a type of a few.
        out[0] = u8::from(self.needs_csum);
        out[1] = u8::try_from(gso).unwrap_or(0);
        for (i, word) in [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.buffers,
        ]
        .into_iter()
        .enumerate()
        {
            out[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_fields_count_only_with_their_features() {
        let raw = [2, 1, 2, 3, 4, 5, 0, 0, 4, 0];
        let both = NetConfig::parse(&raw, feature::MAC | feature::MQ).unwrap();
        assert_eq!(both.mac, Some([2, 1, 2, 3, 4, 5]));
        assert_eq!(both.pairs_max, Some(4));
        assert_eq!(NetConfig::parse(&raw, 0), Some(NetConfig::default()));
        assert_eq!(NetConfig::parse(&raw[..9], feature::MAC), None, "short");
    }

    #[test]
    fn header_fields_are_where_the_standard_puts_them() {
        let header = NetHeader {
            needs_csum: true,
            gso_size: 1448,
            hdr_len: 54,
            csum_start: 34,
            csum_offset: 16,
            buffers: 2,
        };
        let bytes = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 2, 0];
        assert_eq!(header.to_bytes(), bytes);
    }
}
