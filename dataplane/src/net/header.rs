//! The header that virtio puts before each frame, and everything that a guest can lie about in it.
//!
//! Virtio 1.2, 5.1.6.1: twelve bytes, little-endian, the same in both directions. What the standard
//! has the device ignore is ignored here: flags it does not know, `num_buffers` of what a guest
//! sends, and all fields that no flag or type gives a meaning to. The rest is compared with the
//! frame, as Linux does for a tap device, and somewhat more strictly: who receives a frame trusts
//! the header, because it comes from its device.

use super::features::Offloads;
use super::frame::{ETHERNET_BYTES, Start, TAG_BYTES};
use super::gso::Plan;
use super::packet::checksum_floor;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 12;

/// Longest frame, in bytes: a packet of 64 KiB and an Ethernet header (virtio 1.2, 5.1.6.3.1).
pub const FRAME_BYTES_MAX: usize = 65_550;

/// Bytes of a frame's start within which all its headers must be, if it is to be segmented. Who
/// checks a header needs that many, or the whole frame.
pub const HEAD_BYTES: usize = 256;

/// Segments that one frame may come to. Linux makes no TCP segment of less than 48 bytes; one that
/// asks for one byte each would have us make 64 thousand frames of one.
pub const SEGMENTS_MAX: usize = 2048;

/// Flag: the checksum at `csum_start + csum_offset` is left to do.
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// Flag, to guests only: the checksum was verified.
pub const FLAG_DATA_VALID: u8 = 2;

/// Type: a frame as it goes out.
pub const GSO_NONE: u8 = 0;
/// Type: a long TCP segment over IPv4 (TSO).
pub const GSO_TCPV4: u8 = 1;
/// Type: a long UDP datagram, to be sent as IP fragments (UFO).
pub const GSO_UDP: u8 = 3;
/// Type: a long TCP segment over IPv6 (TSO).
pub const GSO_TCPV6: u8 = 4;
/// Type: many UDP datagrams in one (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Beside a TCP type: it has the CWR flag, which only the first segment may show.
pub const GSO_ECN: u8 = 0x80;

/// What a long frame is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// One UDP datagram, to be sent as IP fragments.
    UdpFragments,
    /// Several UDP datagrams.
    UdpDatagrams,
}

/// The header, its fields as virtio names them. Sizes and offsets are in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// [`FLAG_NEEDS_CSUM`], [`FLAG_DATA_VALID`], and what is ignored.
    pub flags: u8,
    /// One of the types, maybe with [`GSO_ECN`].
    pub gso_type: u8,
    /// How long all headers are: a hint.
    pub hdr_len: u16,
    /// Payload of each segment.
    pub gso_size: u16,
    /// Where the sum starts, from the frame's start.
    pub csum_start: u16,
    /// Where it is put, from `csum_start`.
    pub csum_offset: u16,
    /// Buffers that the frame fills; the device's word only.
    pub num_buffers: u16,
}

/// What is wrong with a frame or its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Ends before its ethertype.
    #[error("the frame ends before its type")]
    Runt,
    /// Above [`FRAME_BYTES_MAX`], or the MTU.
    #[error("the frame is longer than the device allows")]
    TooLong,
    /// `hdr_len` is longer than the frame.
    #[error("the header length is beyond the frame")]
    HeaderLength,
    /// The checksum would be in the addresses, in the IP header, or behind the frame.
    #[error("the place of the checksum is not in the frame's payload")]
    ChecksumPlace,
    /// A type that virtio does not have.
    #[error("the segmentation type is unknown")]
    UnknownGso,
    /// An offload that the guest did not acknowledge.
    #[error("the offload was not negotiated")]
    NotNegotiated,
    /// A long frame whose segments would have no payload.
    #[error("the segment size is too small")]
    GsoSize,
    /// A long frame whose checksum is not left to do.
    #[error("segmentation without a checksum to do")]
    GsoWithoutChecksum,
    /// The type does not fit the packet, or the packet's headers are not where they should be.
    #[error("the segmentation type does not match the packet")]
    GsoMismatch,
    /// More than [`SEGMENTS_MAX`].
    #[error("the frame would come to too many segments")]
    TooManySegments,
    /// Nothing a guest did wrong: fragments of IPv6 are not made here.
    #[error("this kind of segmentation is not done in software")]
    NotInSoftware,
}

impl Header {
    /// Reads a header; any bytes are one.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Header {
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Header {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
            num_buffers: number(10),
        }
    }

    /// Reads a header that a guest sent; `None` for one that says nothing.
    #[inline]
    pub fn parse_said(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        (*bytes != [0; HEADER_BYTES]).then(|| Header::parse(bytes))
    }

    /// In the guest's memory before a frame that is whole, in so many buffers. Put together in registers:
    /// bytes that were just written one by one cannot be read at once, and a core waits for that.
    #[inline]
    pub fn plain_bytes(num_buffers: u16) -> [u8; HEADER_BYTES] {
        (u128::from(num_buffers) << 80).to_le_bytes()[..HEADER_BYTES]
            .try_into()
            .expect("16 bytes are more")
    }

    /// As it stands in the guest's memory.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let numbers = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        for (place, number) in bytes[2..].chunks_exact_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Whether a checksum is left to do.
    pub fn needs_checksum(&self) -> bool {
        self.flags & FLAG_NEEDS_CSUM != 0
    }

    /// Whether the type has the mark for CWR.
    pub fn has_ecn(&self) -> bool {
        self.gso_type & GSO_ECN != 0
    }

    /// What the frame is to be cut into; `None` for one that is whole. Fails with
    /// [`FrameError::UnknownGso`], also for a mark of CWR beside anything but TCP.
    pub fn gso(&self) -> Result<Option<Gso>, FrameError> {
        let gso = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => return Ok(Some(Gso::Tcp4)),
            GSO_TCPV6 => return Ok(Some(Gso::Tcp6)),
            GSO_NONE => None,
            GSO_UDP => Some(Gso::UdpFragments),
            GSO_UDP_L4 => Some(Gso::UdpDatagrams),
            _ => return Err(FrameError::UnknownGso),
        };
        if self.has_ecn() {
            return Err(FrameError::UnknownGso);
        }
        Ok(gso)
    }

    /// The frame's byte where the checksum is put.
    pub fn checksum_at(&self) -> usize {
        usize::from(self.csum_start) + usize::from(self.csum_offset)
    }

    /// The header for who receives the frame as it is: only what [`check`](Header::check) has
    /// looked at, nothing that the sender's device was to ignore. `hdr_len` reaches to the checksum
    /// at least, as with Linux's tap. `num_buffers` is left to whoever fills the buffers.
    #[must_use]
    pub fn passed_on(&self) -> Header {
        let mut header = Header::default();
        if self.needs_checksum() {
            header.flags = FLAG_NEEDS_CSUM;
            header.csum_start = self.csum_start;
            header.csum_offset = self.csum_offset;
        }
        if self.gso_type != GSO_NONE {
            header.gso_type = self.gso_type;
            header.gso_size = self.gso_size;
            let least = u16::try_from(self.checksum_at() + 2).unwrap_or(u16::MAX);
            header.hdr_len = self.hdr_len.max(least);
        }
        header
    }

    /// The header for a receiver that takes this much of it. A tap says of frames that their checksum was
    /// verified; a guest that has not taken on checksums is told nothing of them (virtio 1.2, 5.1.6.4.1).
    #[must_use]
    pub fn taken_with(&self, takes: Offloads) -> Header {
        let known = if takes.has(Offloads::CSUM) {
            FLAG_NEEDS_CSUM | FLAG_DATA_VALID
        } else {
            0
        };
        Header {
            flags: self.flags & known,
            ..*self
        }
    }

    /// Whether it says nothing: the frame is whole, and as it goes out.
    #[inline]
    pub fn is_plain(&self) -> bool {
        *self == Header::default()
    }

    /// As [`check`](Header::check), for a frame whose header says nothing.
    #[inline]
    pub fn check_plain(frame: &[u8], frame_len: usize, mtu: u16) -> Result<Start, FrameError> {
        let head = &frame[..frame.len().min(frame_len)];
        let start = Start::parse(head).ok_or(FrameError::Runt)?;
        let most = whole_bytes_max(&start, mtu).min(FRAME_BYTES_MAX);
        if frame_len > most {
            return Err(FrameError::TooLong);
        }
        Ok(start)
    }

    /// Compares the header of a frame that a guest sent with the frame; returns how that starts.
    ///
    /// `frame` is the first [`HEAD_BYTES`] of it at least, or all of it; `frame_len` its length in
    /// bytes. `allowed` is what the guest may ask for, and `mtu` the most bytes behind Ethernet
    /// header and tags: a frame, or each segment of a long one, may have a tag besides, and a
    /// second one if the first is there.
    pub fn check(
        &self,
        frame: &[u8],
        frame_len: usize,
        allowed: Offloads,
        mtu: u16,
    ) -> Result<Start, FrameError> {
        if self.is_plain() {
            return Header::check_plain(frame, frame_len, mtu);
        }
        let head = &frame[..frame.len().min(frame_len)];
        let start = Start::parse(head).ok_or(FrameError::Runt)?;
        if frame_len > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong);
        }
        if usize::from(self.hdr_len) > frame_len {
            return Err(FrameError::HeaderLength);
        }
        let gso = self.gso()?;
        if !allowed.cover(self, start.ether_type) {
            return Err(FrameError::NotNegotiated);
        }
        self.check_checksum(&start, head, frame_len)?;
        let longest = match gso {
            None => frame_len,
            Some(gso) => Plan::new(self, gso, head, frame_len)?.longest_bytes(),
        };
        if longest > whole_bytes_max(&start, mtu) {
            return Err(FrameError::TooLong);
        }
        Ok(start)
    }

    fn check_checksum(
        &self,
        start: &Start,
        head: &[u8],
        frame_len: usize,
    ) -> Result<(), FrameError> {
        let low = usize::from(self.csum_start) < checksum_floor(start, head);
        let high = self.checksum_at() + 2 > frame_len;
        if self.needs_checksum() && (low || high) {
            return Err(FrameError::ChecksumPlace);
        }
        Ok(())
    }
}

/// Longest frame that is not to be cut, in bytes.
fn whole_bytes_max(start: &Start, mtu: u16) -> usize {
    ETHERNET_BYTES + start.tags().max(1) * TAG_BYTES + usize::from(mtu)
}

#[cfg(test)]
mod tests;
