//! A NIC's state, version 1. Frozen: a change is a new file.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// As it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetV1 {
    /// Which device exported it, since when: the frames that it keeps are counted under this.
    pub origin: u64,
    /// Its address as it is configured.
    pub mac: [u8; 6],
    /// Bytes behind the Ethernet header.
    pub mtu: u16,
    /// Pairs of queues offered.
    pub queue_pairs: u16,
    /// Virtio features the driver accepted.
    pub acked_features: u64,
    /// Whether the link is up.
    pub link_up: bool,
    /// What the guest set by the control queue; `None` where the VMM keeps that queue to itself.
    pub control: Option<ControlV1>,
    /// Addresses that the guest has spoken of, the last at the end.
    pub addresses: Vec<AddressV1>,
    /// What went through it.
    pub counters: CountersV1,
}

/// What a guest set by the control queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlV1 {
    /// The address that the guest gave the NIC.
    pub mac: [u8; 6],
    /// Bits from 0: promiscuous, all multicast, all unicast, no multicast, no unicast, no broadcast.
    pub receive_mode: u8,
    /// Stations that it receives for besides, sorted; `None` for all.
    pub unicast: Option<Vec<[u8; 6]>>,
    /// Groups that it receives for, sorted; `None` for all.
    pub multicast: Option<Vec<[u8; 6]>>,
    /// Its VLANs, a bit for each id, 64 words; `None` for all.
    pub vlans: Option<Vec<u64>>,
    /// Pairs of queues in use.
    pub active_pairs: u16,
    /// The guest was asked to announce itself, and has not said that it did.
    pub announcing: bool,
}

/// An address that a guest has spoken of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressV1 {
    /// On which VLAN.
    pub vlan: Option<u16>,
    /// The station that has it.
    pub mac: [u8; 6],
    /// The address.
    pub ip: IpAddr,
    /// Seconds since the guest spoke of it.
    pub age_s: u32,
}

/// Frames and bytes since the NIC was made, on whatever host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersV1 {
    /// Frames that the guest received.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames that it sent.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Dropped: no buffers, spoofed, malformed, held back by the rate, too large, no link; lost by a
    /// capture that was full, and filtered; and queues that broke their rules.
    pub dropped: [u64; 9],
}

/// A frame that reached the source and is the destination's to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameV1 {
    /// The port of the source that it came to.
    pub port: u16,
    /// Counts up with every frame of the port.
    pub seq: u64,
    /// Virtio's header, as for a NIC with VERSION_1.
    pub header: [u8; 12],
    /// What is behind its addresses and tags.
    pub ether_type: u16,
    /// The frame.
    pub bytes: Vec<u8>,
}
