//! How a long frame is cut: found from its header and its own headers, before anything is copied.
//! One place, so that what the check lets through and what is then cut are the same.

use super::frame::Start;
use super::header::{FrameError, Gso, HEAD_BYTES, Header, SEGMENTS_MAX};
use super::packet::{Packet, TCP, UDP};

/// Bytes of a UDP header.
pub const UDP_BYTES: usize = 8;

/// Where TCP and UDP have their checksum, from the start of their header.
pub const TCP_CHECKSUM: usize = 16;
/// See [`TCP_CHECKSUM`].
pub const UDP_CHECKSUM: usize = 6;

/// Bytes of a TCP header without options.
const TCP_BYTES: usize = 20;

/// Fragments start at multiples of so many bytes.
const FRAGMENT_UNIT: usize = 8;

/// The way a frame of `frame_len` bytes is cut. Places are in bytes from the frame's start, and
/// inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub gso: Gso,
    pub packet: Packet,
    pub frame_len: usize,
    /// Where the payload starts: what is before it, all segments have.
    pub payload: usize,
    /// Payload of each segment but the last, in bytes; not 0.
    pub step: usize,
}

impl Plan {
    /// Plans for a frame whose first [`HEAD_BYTES`], or all of it, are in `head`.
    pub fn new(
        header: &Header,
        gso: Gso,
        head: &[u8],
        frame_len: usize,
    ) -> Result<Plan, FrameError> {
        if !header.needs_checksum() {
            return Err(FrameError::GsoWithoutChecksum);
        }
        let head = &head[..head.len().min(HEAD_BYTES).min(frame_len)];
        let start = Start::parse(head).ok_or(FrameError::Runt)?;
        let packet = Packet::parse(&start, head).ok_or(FrameError::GsoMismatch)?;
        if !fits(gso, &packet, header) {
            return Err(FrameError::GsoMismatch);
        }
        let payload = payload(gso, &packet, head).ok_or(FrameError::GsoMismatch)?;
        let plan = Plan {
            gso,
            packet,
            frame_len,
            payload,
            step: step(gso, header),
        };
        plan.bounded()
    }

    fn bounded(self) -> Result<Plan, FrameError> {
        if self.step == 0 {
            return Err(FrameError::GsoSize);
        }
        if self.segments() > SEGMENTS_MAX {
            return Err(FrameError::TooManySegments);
        }
        Ok(self)
    }

    /// Bytes of payload in all segments together.
    pub fn payload_bytes(&self) -> usize {
        self.frame_len - self.payload
    }

    /// Segments it comes to; one, if there is no payload.
    pub fn segments(&self) -> usize {
        self.payload_bytes().div_ceil(self.step).max(1)
    }

    /// Bytes of the longest segment.
    pub fn longest_bytes(&self) -> usize {
        self.payload + self.payload_bytes().min(self.step)
    }
}

/// Whether the type suits the packet, and the checksum is that of its transport header.
fn fits(gso: Gso, packet: &Packet, header: &Header) -> bool {
    let (protocol, checksum) = match gso {
        Gso::Tcp4 | Gso::Tcp6 => (TCP, TCP_CHECKSUM),
        Gso::UdpFragments | Gso::UdpDatagrams => (UDP, UDP_CHECKSUM),
    };
    let version = match gso {
        Gso::Tcp4 => !packet.v6,
        Gso::Tcp6 => packet.v6,
        Gso::UdpFragments | Gso::UdpDatagrams => true,
    };
    version
        && !packet.fragment
        && packet.protocol == protocol
        && usize::from(header.csum_start) == packet.l4
        && usize::from(header.csum_offset) == checksum
}

/// Where the payload starts; `None` if the transport header is wrong or not all in `head`.
fn payload(gso: Gso, packet: &Packet, head: &[u8]) -> Option<usize> {
    let transport = head.get(packet.l4..)?;
    let bytes = match gso {
        Gso::Tcp4 | Gso::Tcp6 => usize::from(*transport.get(12)? >> 4) * 4,
        Gso::UdpFragments | Gso::UdpDatagrams => UDP_BYTES,
    };
    let least = match gso {
        Gso::Tcp4 | Gso::Tcp6 => TCP_BYTES,
        Gso::UdpFragments | Gso::UdpDatagrams => UDP_BYTES,
    };
    if bytes < least || transport.len() < bytes {
        return None;
    }
    // The UDP header itself is payload of the first fragment.
    let shared = if gso == Gso::UdpFragments { 0 } else { bytes };
    Some(packet.l4 + shared)
}

fn step(gso: Gso, header: &Header) -> usize {
    let bytes = usize::from(header.gso_size);
    match gso {
        Gso::UdpFragments => bytes - bytes % FRAGMENT_UNIT,
        Gso::Tcp4 | Gso::Tcp6 | Gso::UdpDatagrams => bytes,
    }
}
