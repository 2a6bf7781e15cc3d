//! Feature bits of a virtio network device, and what they say about offloads.

use super::frame::ETHER_TYPE_IPV6;
use super::header::{Gso, Header};

/// The numbers of the feature bits: virtio 1.2, 5.1.3, and 1.3 for USO.
#[allow(missing_docs)]
pub mod bit {
    pub const CSUM: u32 = 0;
    pub const GUEST_CSUM: u32 = 1;
    pub const MTU: u32 = 3;
    pub const MAC: u32 = 5;
    pub const GUEST_TSO4: u32 = 7;
    pub const GUEST_TSO6: u32 = 8;
    pub const GUEST_ECN: u32 = 9;
    pub const GUEST_UFO: u32 = 10;
    pub const HOST_TSO4: u32 = 11;
    pub const HOST_TSO6: u32 = 12;
    pub const HOST_ECN: u32 = 13;
    pub const HOST_UFO: u32 = 14;
    pub const MRG_RXBUF: u32 = 15;
    pub const STATUS: u32 = 16;
    pub const CTRL_VQ: u32 = 17;
    pub const CTRL_RX: u32 = 18;
    pub const CTRL_VLAN: u32 = 19;
    pub const CTRL_RX_EXTRA: u32 = 20;
    pub const GUEST_ANNOUNCE: u32 = 21;
    pub const MQ: u32 = 22;
    pub const CTRL_MAC_ADDR: u32 = 23;
    pub const GUEST_USO4: u32 = 54;
    pub const GUEST_USO6: u32 = 55;
    pub const HOST_USO: u32 = 56;
    pub const SPEED_DUPLEX: u32 = 63;
}

/// A set of offloads: those a guest may ask for as it sends, or those it can take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    /// None at all.
    pub const NONE: Offloads = Offloads(0);
    /// Checksums of which only the pseudo header is summed.
    pub const CSUM: Offloads = Offloads(1);
    /// Long TCP segments over IPv4.
    pub const TSO4: Offloads = Offloads(1 << 1);
    /// Long TCP segments over IPv6.
    pub const TSO6: Offloads = Offloads(1 << 2);
    /// Long TCP segments with congestion marks.
    pub const ECN: Offloads = Offloads(1 << 3);
    /// Long UDP datagrams, to be sent as IP fragments.
    pub const UFO: Offloads = Offloads(1 << 4);
    /// Many UDP datagrams over IPv4 in one.
    pub const USO4: Offloads = Offloads(1 << 5);
    /// Many UDP datagrams over IPv6 in one.
    pub const USO6: Offloads = Offloads(1 << 6);
    /// All of them.
    pub const ALL: Offloads = Offloads((1 << 7) - 1);

    /// What a guest that acknowledged `features` may send.
    pub fn sent_with(features: u64) -> Offloads {
        let pairs = [
            (bit::CSUM, Offloads::CSUM),
            (bit::HOST_TSO4, Offloads::TSO4),
            (bit::HOST_TSO6, Offloads::TSO6),
            (bit::HOST_ECN, Offloads::ECN),
            (bit::HOST_UFO, Offloads::UFO),
            (bit::HOST_USO, Offloads::USO4.with(Offloads::USO6)),
        ];
        Offloads::of(features, &pairs)
    }

    /// What a guest that acknowledged `features` can take.
    pub fn taken_with(features: u64) -> Offloads {
        let pairs = [
            (bit::GUEST_CSUM, Offloads::CSUM),
            (bit::GUEST_TSO4, Offloads::TSO4),
            (bit::GUEST_TSO6, Offloads::TSO6),
            (bit::GUEST_ECN, Offloads::ECN),
            (bit::GUEST_UFO, Offloads::UFO),
            (bit::GUEST_USO4, Offloads::USO4),
            (bit::GUEST_USO6, Offloads::USO6),
        ];
        Offloads::of(features, &pairs)
    }

    /// Every other offload requires that of the checksum (virtio 1.2, 5.1.3.1): a guest that took
    /// them without it has none.
    fn of(features: u64, pairs: &[(u32, Offloads)]) -> Offloads {
        let has = |bit: u32| features & (1 << bit) != 0;
        let all = pairs.iter().filter(|(bit, _)| has(*bit));
        let set = all.fold(Offloads::NONE, |set, (_, offload)| set.with(*offload));
        if set.has(Offloads::CSUM) {
            set
        } else {
            Offloads::NONE
        }
    }

    /// Both sets in one.
    #[must_use]
    pub const fn with(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }

    /// This set without `other`.
    #[must_use]
    pub const fn without(self, other: Offloads) -> Offloads {
        Offloads(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn has(self, other: Offloads) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a frame with this header and this ethertype asks for nothing but what is in the set.
    /// A header of an unknown kind asks for more than there is.
    pub fn cover(self, header: &Header, ether_type: u16) -> bool {
        header
            .gso()
            .is_ok_and(|gso| self.has(asked(header, gso, ether_type)))
    }
}

/// What a header asks for.
fn asked(header: &Header, gso: Option<Gso>, ether_type: u16) -> Offloads {
    let long = match gso {
        None => Offloads::NONE,
        Some(Gso::Tcp4) => Offloads::TSO4,
        Some(Gso::Tcp6) => Offloads::TSO6,
        Some(Gso::UdpFragments) => Offloads::UFO,
        Some(Gso::UdpDatagrams) if ether_type == ETHER_TYPE_IPV6 => Offloads::USO6,
        Some(Gso::UdpDatagrams) => Offloads::USO4,
    };
    let mut asked = long;
    if header.needs_checksum() {
        asked = asked.with(Offloads::CSUM);
    }
    if header.has_ecn() {
        asked = asked.with(Offloads::ECN);
    }
    asked
}

#[cfg(test)]
mod tests;
