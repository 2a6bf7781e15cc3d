//! Finding the transport header behind IPv4 or IPv6.

use super::frame::{ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, Start, be16};

/// Extension headers of IPv6 that are looked through; behind more, the protocol is not known.
const EXTENSIONS_MAX: usize = 4;

/// Bytes of an IPv4 header without options.
const IPV4_BYTES: usize = 20;

/// Bytes of an IPv6 header.
pub const IPV6_BYTES: usize = 40;

/// The number of TCP as an IP protocol.
pub const TCP: u8 = 6;
/// That of UDP.
pub const UDP: u8 = 17;

/// IPv6 extension headers that a segment has like the whole: hop-by-hop options, routing,
/// destination options. One that authenticates does not belong here.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;

/// Where the headers of a packet are, in bytes from the frame's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub v6: bool,
    pub protocol: u8,
    /// Where the IP header starts.
    pub l3: usize,
    /// Where the transport header starts.
    pub l4: usize,
    /// Whether it is a part of a packet.
    pub fragment: bool,
}

impl Packet {
    /// Reads the IP headers; `None` when there are none, or not all of them in `head`.
    pub fn parse(start: &Start, head: &[u8]) -> Option<Packet> {
        match start.ether_type {
            ETHER_TYPE_IPV4 => Packet::parse_v4(start.bytes, head),
            ETHER_TYPE_IPV6 => Packet::parse_v6(start.bytes, head),
            _ => None,
        }
    }

    fn parse_v4(l3: usize, head: &[u8]) -> Option<Packet> {
        let header = head.get(l3..)?;
        let bytes = ipv4_bytes(header)?;
        let fragment = be16(header, 6)? & 0x3fff != 0;
        (header.len() >= bytes).then_some(Packet {
            v6: false,
            protocol: header[9],
            l3,
            l4: l3 + bytes,
            fragment,
        })
    }

    fn parse_v6(l3: usize, head: &[u8]) -> Option<Packet> {
        let header = head.get(l3..)?;
        if header.len() < IPV6_BYTES || header[0] >> 4 != 6 {
            return None;
        }
        let (mut protocol, mut l4) = (header[6], l3 + IPV6_BYTES);
        for _ in 0..EXTENSIONS_MAX {
            if !EXTENSIONS.contains(&protocol) {
                break;
            }
            protocol = *head.get(l4)?;
            l4 += (usize::from(*head.get(l4 + 1)?) + 1) * 8;
        }
        Some(Packet {
            v6: true,
            protocol,
            l3,
            l4,
            fragment: protocol == FRAGMENT,
        })
    }
}

/// Bytes of an IPv4 header with its options; `None` if it is not one.
fn ipv4_bytes(header: &[u8]) -> Option<usize> {
    let first = *header.first()?;
    let bytes = usize::from(first & 0xf) * 4;
    (first >> 4 == 4 && bytes >= IPV4_BYTES && header.len() >= IPV4_BYTES).then_some(bytes)
}

/// The first byte that a checksum left to do may cover, from the frame's start: behind addresses
/// and tags, and behind the fixed part of an IP header, which are compared with what a port may
/// send before the checksum is written.
pub fn checksum_floor(start: &Start, head: &[u8]) -> usize {
    let ip = match start.ether_type {
        ETHER_TYPE_IPV4 => {
            let header = head.get(start.bytes..).unwrap_or_default();
            ipv4_bytes(header).unwrap_or(IPV4_BYTES)
        }
        ETHER_TYPE_IPV6 => IPV6_BYTES,
        _ => 0,
    };
    start.bytes + ip
}

#[cfg(test)]
mod tests;
