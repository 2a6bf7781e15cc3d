//! The start of an Ethernet frame: addresses, VLAN, and what comes behind.

use std::fmt;
use std::str::FromStr;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: usize = 14;

/// Bytes of one VLAN tag.
pub const TAG_BYTES: usize = 4;

/// Tags that are looked through: 802.1ad has two.
pub const TAGS_MAX: usize = 2;

/// The ethertype of IPv4.
pub const ETHER_TYPE_IPV4: u16 = 0x0800;

/// The ethertype of IPv6.
pub const ETHER_TYPE_IPV6: u16 = 0x86dd;

/// The ethertype of an 802.1Q tag.
pub const ETHER_TYPE_VLAN: u16 = 0x8100;

/// The ethertype of an 802.1ad service tag.
pub const ETHER_TYPE_SERVICE_VLAN: u16 = 0x88a8;

/// The VLAN id in a tag's control information.
const VLAN_ID_MASK: u16 = 0x0fff;

/// An Ethernet address, as on the wire. Written and read as `52:54:00:12:34:56`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// What is not six pairs of hexadecimal digits with colons, or dashes, between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six pairs of hexadecimal digits, like 52:54:00:12:34:56")]
pub struct MacError;

impl Mac {
    /// The address of every station.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// An address that no vendor gave out (locally administered) of one station, from the low 48
    /// of `bits`, which should be random.
    pub fn random(bits: u64) -> Mac {
        let [_, _, first, rest @ ..] = bits.to_be_bytes();
        let mut mac = [0; 6];
        mac[0] = first & 0xfc | 0x02;
        mac[1..].copy_from_slice(&rest);
        Mac(mac)
    }

    /// Whether it stands for several stations; broadcast does as well.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it stands for every station.
    pub fn is_broadcast(self) -> bool {
        self == Mac::BROADCAST
    }

    /// Whether a frame may come from it: one station's, and not all zeros.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self != Mac::default()
    }

    /// Its 48 bits as a number.
    pub fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut parts = text.split(separator);
        let mut mac = [0; 6];
        for byte in &mut mac {
            *byte = parts.next().and_then(hex_pair).ok_or(MacError)?;
        }
        parts.next().is_none().then_some(Mac(mac)).ok_or(MacError)
    }
}

/// Two hexadecimal digits, without the sign that the library would take.
fn hex_pair(text: &str) -> Option<u8> {
    let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

/// What a frame says of itself before its payload. Tags stay in the frame as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Where it goes.
    pub destination: Mac,
    /// Where it says it comes from.
    pub source: Mac,
    /// The first VLAN id of its tags that is not 0. An id of 0 gives a priority only, and who
    /// receives it looks through it; so do we, lest a VLAN hide behind it.
    pub vlan: Option<u16>,
    /// The ethertype behind the tags. That of a tag, if there are more than [`TAGS_MAX`].
    pub ether_type: u16,
    /// Bytes of addresses, tags and ethertype: where the payload starts.
    pub bytes: usize,
}

impl Start {
    /// Reads the start of a frame; `None` when the frame, or what is given of it, ends before
    /// the ethertype.
    pub fn parse(frame: &[u8]) -> Option<Start> {
        let destination = Mac(*frame.first_chunk()?);
        let source = Mac(*frame.get(6..)?.first_chunk()?);
        let mut start = Start {
            destination,
            source,
            vlan: None,
            ether_type: be16(frame, 12)?,
            bytes: ETHERNET_BYTES,
        };
        while is_tag(start.ether_type) && start.tags() < TAGS_MAX {
            let id = be16(frame, start.bytes)? & VLAN_ID_MASK;
            start.vlan = start.vlan.or((id != 0).then_some(id));
            start.ether_type = be16(frame, start.bytes + 2)?;
            start.bytes += TAG_BYTES;
        }
        Some(start)
    }

    /// Tags that were looked through.
    pub fn tags(&self) -> usize {
        (self.bytes - ETHERNET_BYTES) / TAG_BYTES
    }
}

fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, ETHER_TYPE_VLAN | ETHER_TYPE_SERVICE_VLAN)
}

/// The big-endian number at `at`.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests;
