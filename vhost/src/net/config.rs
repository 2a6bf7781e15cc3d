//! What a NIC offers: features and configuration space (virtio 1.2, sections 5.1.3 and 5.1.4).

use super::{Mac, is_group};
use crate::device::feature::{EVENT_IDX, INDIRECT_DESC, LOG_ALL, PROTOCOL, VERSION_1};

/// Bytes of the configuration space that mean something.
pub const CONFIG_BYTES: usize = 17;
/// Most queue pairs: of the 0x8000 that virtio allows, those whose rings, with the control queue's, 16 bits
/// count.
pub const QUEUE_PAIRS_MAX: u16 = 0x7fff;
/// Least MTU that virtio allows, in bytes.
pub const MTU_MIN: u16 = 68;

/// Bits of `status` in the configuration space.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
/// Speed and duplex that nobody knows.
const SPEED_UNKNOWN: u32 = u32::MAX;
const DUPLEX_UNKNOWN: u8 = 0xff;

/// The network device's feature bits.
#[allow(missing_docs)]
pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const GUEST_UFO: u64 = 1 << 10;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const HOST_UFO: u64 = 1 << 14;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
    pub const SPEED_DUPLEX: u64 = 1 << 63;
}

/// What frames of one direction may leave to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// The checksum. Without it none of the others is offered.
    pub checksum: bool,
    /// Segments of TCP over IPv4.
    pub tso4: bool,
    /// Segments of TCP over IPv6.
    pub tso6: bool,
    /// Segments of TCP with ECN. Goes with `tso4` or `tso6`.
    pub ecn: bool,
    /// Fragments of UDP.
    pub ufo: bool,
    /// Segments of UDP.
    pub uso: bool,
}

impl Offloads {
    /// All of them.
    pub const ALL: Offloads = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        ufo: true,
        uso: true,
    };

    /// As features, for frames that the guest sends.
    fn when_sent(self) -> u64 {
        use feature::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO, HOST_USO};
        if !self.checksum {
            return 0;
        }
        CSUM | on(self.tso4, HOST_TSO4)
            | on(self.tso6, HOST_TSO6)
            | on(self.ecn && (self.tso4 || self.tso6), HOST_ECN)
            | on(self.ufo, HOST_UFO)
            | on(self.uso, HOST_USO)
    }

    /// As features, for frames that the guest receives.
    fn when_received(self) -> u64 {
        use feature::{
            GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6,
        };
        if !self.checksum {
            return 0;
        }
        GUEST_CSUM
            | on(self.tso4, GUEST_TSO4)
            | on(self.tso6, GUEST_TSO6)
            | on(self.ecn && (self.tso4 || self.tso6), GUEST_ECN)
            | on(self.ufo, GUEST_UFO)
            | on(self.uso, GUEST_USO4 | GUEST_USO6)
    }
}

/// What the guest may ask for by the control queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Controls {
    /// Promiscuous, all multicast, and the tables of addresses.
    pub rx: bool,
    /// The four modes of CTRL_RX_EXTRA. Goes with `rx`.
    pub rx_extra: bool,
    /// The filter of VLANs.
    pub vlan: bool,
    /// Another MAC.
    pub mac: bool,
    /// To be asked for an announcement, and to say that it was made. Goes with `status`.
    pub announce: bool,
}

impl Controls {
    /// All of them.
    pub const ALL: Controls = Controls {
        rx: true,
        rx_extra: true,
        vlan: true,
        mac: true,
        announce: true,
    };
}

/// Speed and duplex, for the guest to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// In Mbit/s, below 2^31.
    pub speed_mbps: u32,
    /// Both directions at once.
    pub full_duplex: bool,
}

impl Link {
    /// Offered, as a host that the guest moves to may know more.
    pub const UNKNOWN: Link = Link {
        speed_mbps: SPEED_UNKNOWN,
        full_duplex: true,
    };
}

/// What a NIC offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOptions {
    /// Its address; without one the guest makes one up.
    pub mac: Option<Mac>,
    /// Its guest is refused another address.
    pub fixed_mac: bool,
    /// Longest packet in bytes, without the Ethernet header.
    pub mtu: Option<u16>,
    /// Speed and duplex.
    pub link: Option<Link>,
    /// The guest is told whether the link is up.
    pub status: bool,
    /// Pairs of a receive and a transmit queue. More than one takes the control queue.
    pub queue_pairs: u16,
    /// A frame may lie in several buffers.
    pub mergeable: bool,
    /// Descriptors may lie in a table of their own.
    pub indirect: bool,
    /// Kicks and calls by index.
    pub event_idx: bool,
    /// A VMM may have pages logged that are written.
    pub log: bool,
    /// Frames that the guest sends.
    pub from_guest: Offloads,
    /// Frames that the guest receives.
    pub to_guest: Offloads,
    /// The control queue; `None` for a device without one.
    pub control: Option<Controls>,
}

/// What a NIC cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetOptionsError {
    /// Nobody has such an address.
    #[error("a NIC's MAC is one of its own, neither zero nor a group's")]
    Mac,
    /// Too small.
    #[error("an MTU of {0} bytes; the least is {MTU_MIN}")]
    Mtu(u16),
    /// None, or too many.
    #[error("{0} queue pairs; there are 1 to {QUEUE_PAIRS_MAX}")]
    QueuePairs(u16),
    /// More than the field can say.
    #[error("a speed of {0} Mbit/s; the most is 2147483647")]
    Speed(u32),
}

impl NetOptions {
    /// Whether a device can be this.
    pub fn check(&self) -> Result<(), NetOptionsError> {
        if self.mac.is_some_and(|mac| !may_be_a_nics(mac)) {
            return Err(NetOptionsError::Mac);
        }
        if let Some(mtu) = self.mtu.filter(|&mtu| mtu < MTU_MIN) {
            return Err(NetOptionsError::Mtu(mtu));
        }
        if !(1..=QUEUE_PAIRS_MAX).contains(&self.queue_pairs) {
            return Err(NetOptionsError::QueuePairs(self.queue_pairs));
        }
        match self.link {
            Some(link) if link != Link::UNKNOWN && i32::try_from(link.speed_mbps).is_err() => {
                Err(NetOptionsError::Speed(link.speed_mbps))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a NIC may have the address: not a group's, and not zero.
pub(super) fn may_be_a_nics(mac: Mac) -> bool {
    !is_group(mac) && mac != [0; 6]
}

fn on(wanted: bool, bits: u64) -> u64 {
    if wanted { bits } else { 0 }
}

/// The features that a NIC offers. One whose condition (section 5.1.3.1) is not offered is left out.
pub fn features(options: &NetOptions) -> u64 {
    use feature::{
        CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_VQ, GUEST_ANNOUNCE, MAC, MQ,
        MRG_RXBUF, MTU, SPEED_DUPLEX, STATUS,
    };
    let control = options.control.map_or(0, |control| {
        CTRL_VQ
            | on(control.rx, CTRL_RX)
            | on(control.rx && control.rx_extra, CTRL_RX_EXTRA)
            | on(control.vlan, CTRL_VLAN)
            | on(control.mac, CTRL_MAC_ADDR)
            | on(control.announce && options.status, GUEST_ANNOUNCE)
            | on(options.queue_pairs > 1, MQ)
    });
    VERSION_1
        | PROTOCOL
        | on(options.log, LOG_ALL)
        | on(options.indirect, INDIRECT_DESC)
        | on(options.event_idx, EVENT_IDX)
        | on(options.mergeable, MRG_RXBUF)
        | on(options.mac.is_some(), MAC)
        | on(options.mtu.is_some(), MTU)
        | on(options.status, STATUS)
        | on(options.link.is_some(), SPEED_DUPLEX)
        | options.from_guest.when_sent()
        | options.to_guest.when_received()
        | control
}

/// What changes in the configuration space while the device lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The address, which the guest may have changed; zero for none.
    pub mac: Mac,
    /// Frames come and go.
    pub link_up: bool,
    /// The guest is asked to announce itself.
    pub announce: bool,
}

/// The configuration space, `struct virtio_net_config`, little-endian.
pub fn space(options: &NetOptions, now: Now) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let status = if now.link_up { LINK_UP } else { 0 } | if now.announce { ANNOUNCE } else { 0 };
    let (speed, duplex) = match options.link {
        Some(link) if link != Link::UNKNOWN => (link.speed_mbps, u8::from(link.full_duplex)),
        _ => (SPEED_UNKNOWN, DUPLEX_UNKNOWN),
    };
    put(0, &now.mac);
    put(6, &status.to_le_bytes());
    put(8, &options.queue_pairs.to_le_bytes());
    put(10, &options.mtu.unwrap_or(0).to_le_bytes());
    put(12, &speed.to_le_bytes());
    put(16, &[duplex]);
    space
}

#[cfg(test)]
mod tests;
