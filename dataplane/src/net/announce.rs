//! How a network is made to learn where a guest is now.
//!
//! A NIC that has moved is announced by its host, whatever the guest does itself:
//!
//! - RARP, as hypervisors send it since VMware's vMotion (RFC 903's request for the sender's own address):
//!   switches learn from its source address, and hosts do not care.
//! - An ARP announcement (RFC 5227, section 3) for each IPv4 address.
//! - An unsolicited neighbour advertisement (RFC 4861, section 7.2.6) for each IPv6 address.
//!
//! The addresses are those that the guest has spoken of lately: in its own ARP, and in its own neighbour
//! discovery, each with the station that it gave it, as a guest may have others behind it. One that another
//! station speaks of since is that one's. A guest that sends nothing of the kind is announced by RARP
//! alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::frame::{ETHER_TYPE_IPV6, ETHER_TYPE_VLAN, Mac, Start};
use crate::limits::{SPOKEN_ADDRESSES, SPOKEN_S};

const ETHER_TYPE_ARP: u16 = 0x0806;
const ETHER_TYPE_RARP: u16 = 0x8035;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Ethernet has no shorter frames, its checksum not counted.
const FRAME_BYTES_MIN: usize = 60;
const SECOND_NS: u64 = 1_000_000_000;
const IPV6_BYTES: usize = 40;

/// Bytes of a frame that [`Spoken::learn`] wants to see, tags included.
pub const SPOKEN_BYTES: usize = 96;

/// An address of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The VLAN on which it spoke of it.
    pub vlan: Option<u16>,
    /// The station that has it: the guest, or one behind it.
    pub mac: Mac,
    /// The address.
    pub ip: IpAddr,
    /// Seconds since it spoke of it.
    pub age_s: u32,
}

/// The addresses that a guest has spoken of, the last [`SPOKEN_ADDRESSES`] of them, and when: before
/// this host's clock began, some that came from another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spoken(Vec<(i128, Address)>);

/// Who says to have an address, and on which VLAN.
struct Claim {
    vlan: Option<u16>,
    mac: Mac,
    ip: IpAddr,
}

impl Claim {
    fn of(start: &Start, frame: &[u8]) -> Option<Claim> {
        let packet = frame.get(start.bytes..)?;
        let ip = match start.ether_type {
            ETHER_TYPE_ARP => sender_of_arp(packet, start.source).map(IpAddr::V4),
            ETHER_TYPE_IPV6 => sender_of_discovery(packet).map(IpAddr::V6),
            _ => None,
        };
        Some(Claim {
            vlan: start.vlan,
            mac: start.source,
            ip: ip?,
        })
    }

    fn is_of(&self, other: &Address) -> bool {
        (self.vlan, self.ip) == (other.vlan, other.ip)
    }
}

impl Spoken {
    /// Whether a frame may speak of an address, by what it carries.
    pub fn may_concern(ether_type: u16) -> bool {
        matches!(ether_type, ETHER_TYPE_ARP | ETHER_TYPE_IPV6)
    }

    /// Whether a frame may speak of an address, by its first bytes.
    pub fn concerns(start: &Start, head: &[u8]) -> bool {
        match start.ether_type {
            ETHER_TYPE_ARP => true,
            // What is next, in the fixed header.
            ETHER_TYPE_IPV6 => head.get(start.bytes + 6) == Some(&ICMPV6),
            _ => false,
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Learns from a frame that the guest sends, of which at least the first [`SPOKEN_BYTES`] are given
    /// if it has them.
    pub fn learn(&mut self, start: &Start, frame: &[u8], now_ns: u64) {
        let Some(claim) = Claim::of(start, frame) else {
            return;
        };
        // The one it spoke of last is the last.
        self.0.retain(|(_, other)| !claim.is_of(other));
        if self.0.len() == SPOKEN_ADDRESSES {
            self.0.remove(0);
        }
        let Claim { vlan, mac, ip } = claim;
        let age_s = 0;
        self.0.push((
            now_ns.into(),
            Address {
                vlan,
                mac,
                ip,
                age_s,
            },
        ));
    }

    /// Learns from one that another station sends, in the same way: an address that this has now is not
    /// the guest's any more.
    pub fn heard(&mut self, start: &Start, frame: &[u8]) {
        if let Some(claim) = Claim::of(start, frame) {
            self.0
                .retain(|(_, other)| !claim.is_of(other) || claim.mac == other.mac);
        }
    }

    /// The addresses that it spoke of within the last [`SPOKEN_S`] seconds, the last at the end.
    pub fn addresses(&self, now_ns: u64) -> Vec<Address> {
        let aged = self.0.iter().map(|&(at_ns, address)| {
            let age_s = (i128::from(now_ns) - at_ns) / i128::from(SECOND_NS);
            Address {
                age_s: u32::try_from(age_s).unwrap_or(u32::MAX),
                ..address
            }
        });
        aged.filter(|it| it.age_s < SPOKEN_S).collect()
    }

    /// What it spoke of elsewhere, the last at the end.
    pub fn replace(&mut self, addresses: &[Address], now_ns: u64) {
        let first = addresses.len().saturating_sub(SPOKEN_ADDRESSES);
        let spoken = addresses[first..].iter().map(|&it| {
            let age_ns = i128::from(it.age_s) * i128::from(SECOND_NS);
            (i128::from(now_ns) - age_ns, it)
        });
        self.0 = spoken.collect();
    }
}

fn sender_of_arp(packet: &[u8], source: Mac) -> Option<Ipv4Addr> {
    // Ethernet and IPv4, with the lengths of their addresses.
    let rest = packet.strip_prefix(&[0, 1, 8, 0, 6, 4])?.get(2..)?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let ip = Ipv4Addr::from(*rest.first_chunk::<4>()?);
    let usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
    (Mac(*mac) == source && usable).then_some(ip)
}

fn sender_of_discovery(packet: &[u8]) -> Option<Ipv6Addr> {
    let address = |at: usize| {
        let bytes = packet.get(at..)?.first_chunk::<16>()?;
        Some(Ipv6Addr::from(*bytes))
    };
    let ip = match *packet.get(IPV6_BYTES)? {
        NEIGHBOUR_SOLICITATION => address(8)?,
        // Behind type, code, checksum and flags.
        NEIGHBOUR_ADVERTISEMENT => address(IPV6_BYTES + 8)?,
        _ => return None,
    };
    (!ip.is_unspecified() && !ip.is_multicast()).then_some(ip)
}

/// The frames that announce a NIC of that address, and the stations behind it.
pub fn frames(mac: Mac, addresses: &[Address]) -> Vec<Vec<u8>> {
    let spoken = addresses.iter().map(|it| (it.vlan, it.mac.0));
    let mut stations: Vec<_> = spoken.chain([(None, mac.0)]).collect();
    stations.sort_unstable();
    stations.dedup();
    let stations = stations.into_iter();
    let mut frames: Vec<_> = stations.map(|(vlan, mac)| rarp(Mac(mac), vlan)).collect();
    frames.extend(addresses.iter().map(|it| match it.ip {
        IpAddr::V4(ip) => announcement(it.mac, it.vlan, ip),
        IpAddr::V6(ip) => advertisement(it.mac, it.vlan, ip),
    }));
    frames
}

fn ethernet(to: Mac, from: Mac, vlan: Option<u16>, ether_type: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(SPOKEN_BYTES);
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    if let Some(vlan) = vlan {
        frame.extend_from_slice(&ETHER_TYPE_VLAN.to_be_bytes());
        frame.extend_from_slice(&vlan.to_be_bytes());
    }
    frame.extend_from_slice(&ether_type.to_be_bytes());
    frame
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() < FRAME_BYTES_MIN {
        frame.resize(FRAME_BYTES_MIN, 0);
    }
    frame
}

/// What ARP and RARP have in common: hardware, protocol, and the lengths of their addresses.
fn resolution(frame: &mut Vec<u8>, operation: u8) {
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
}

fn rarp(mac: Mac, vlan: Option<u16>) -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, mac, vlan, ETHER_TYPE_RARP);
    resolution(&mut frame, 3);
    for _ in 0..2 {
        frame.extend_from_slice(&mac.0);
        frame.extend_from_slice(&[0; 4]);
    }
    padded(frame)
}

fn announcement(mac: Mac, vlan: Option<u16>, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, mac, vlan, ETHER_TYPE_ARP);
    resolution(&mut frame, 1);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&ip.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&ip.octets());
    padded(frame)
}

fn advertisement(mac: Mac, vlan: Option<u16>, ip: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const MESSAGE_BYTES: u8 = 32;
    let to = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0];
    // Override what is known; nobody has asked.
    message.extend_from_slice(&[0x20, 0, 0, 0]);
    message.extend_from_slice(&ip.octets());
    // The link-layer address, in units of eight bytes.
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&mac.0);
    let checksum = Sum::default()
        .bytes(&ip.octets())
        .bytes(&ALL_NODES.octets())
        .bytes(&[0, 0, 0, MESSAGE_BYTES, 0, 0, 0, ICMPV6])
        .bytes(&message)
        .checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = ethernet(to, mac, vlan, ETHER_TYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, MESSAGE_BYTES, ICMPV6, 255]);
    frame.extend_from_slice(&ip.octets());
    frame.extend_from_slice(&ALL_NODES.octets());
    frame.extend_from_slice(&message);
    frame
}

#[cfg(test)]
mod tests;
