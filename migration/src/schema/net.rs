//! A NIC's state, checked.

use std::net::IpAddr;

use ferry_dataplane::net::header::Header;
use ferry_dataplane::net::lifecycle::{Captured, PortFrame};

use super::net_v1::{FrameV1, NetV1};
use super::queue_v1::QueueV1;
use super::{
    KIND_FRAMES, KIND_NET, KIND_QUEUE, QUEUES_MAX, SchemaError, body, check_queue, invalid, parse,
};
use crate::envelope::{self, OPTIONAL, Section};

/// Bytes of the frames in a state. More go by Ferry's own channel; a VMM carries the state while its
/// machine stands still.
pub const STATE_FRAME_BYTES_MAX: usize = 32 * 1024;
/// The longest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 65_550;
/// What of a guest's addresses is carried.
pub const ADDRESSES_MAX: usize = 64;
/// Words of a bitmap of VLANs.
const VLAN_WORDS: usize = 64;
const MACS_MAX: usize = 1024;

/// A NIC's state that passed its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetState {
    /// The device.
    pub net: NetV1,
    /// Its queues, by index, without gaps.
    pub queues: Vec<QueueV1>,
    /// Frames in hand, oldest first.
    pub frames: Vec<FrameV1>,
}

impl NetState {
    /// Checks a device, its queues and its frames.
    pub fn new(
        net: NetV1,
        queues: Vec<QueueV1>,
        frames: Vec<FrameV1>,
    ) -> Result<NetState, SchemaError> {
        check_net(&net)?;
        let pairs = usize::from(net.queue_pairs);
        if !(2 * pairs..=2 * pairs + 1).contains(&queues.len()) {
            return Err(invalid(format!(
                "{} queues for {pairs} pairs",
                queues.len()
            )));
        }
        for (at, queue) in queues.iter().enumerate() {
            check_queue(at, queue)?;
        }
        frames.iter().try_for_each(check_frame)?;
        Ok(NetState {
            net,
            queues,
            frames,
        })
    }

    /// The state as an envelope.
    pub fn encode(&self) -> Result<Vec<u8>, SchemaError> {
        let section = |kind, bytes| Section {
            kind,
            version: 1,
            bytes,
        };
        let mut sections = vec![section(KIND_NET, body(&self.net)?)];
        for queue in &self.queues {
            sections.push(section(KIND_QUEUE, body(queue)?));
        }
        if !self.frames.is_empty() {
            sections.push(section(KIND_FRAMES, body(&self.frames)?));
        }
        Ok(envelope::encode(&sections)?)
    }

    /// The state in an envelope.
    pub fn decode(bytes: &[u8]) -> Result<NetState, SchemaError> {
        let mut net = None;
        let (mut queues, mut frames) = (Vec::new(), Vec::new());
        for section in envelope::decode(bytes)? {
            match (section.kind, section.version) {
                (KIND_NET, 1) if net.is_none() => net = Some(parse::<NetV1>(&section)?),
                (KIND_NET, 1) => return Err(invalid("it describes two devices".into())),
                (KIND_QUEUE, 1) => queues.push(parse::<QueueV1>(&section)?),
                (KIND_FRAMES, 1) => frames.extend(parse::<Vec<FrameV1>>(&section)?),
                (kind, _) if kind & OPTIONAL != 0 => {}
                (kind, version) => return Err(SchemaError::Unknown { kind, version }),
            }
        }
        let net = net.ok_or_else(|| invalid("it describes no NIC".into()))?;
        NetState::new(net, queues, frames)
    }
}

/// Checks a device without its queues, as a peer announces it.
pub fn check_net(net: &NetV1) -> Result<(), SchemaError> {
    if net.queue_pairs == 0 || net.queue_pairs > QUEUES_MAX / 2 {
        return Err(invalid(format!("{} pairs of queues", net.queue_pairs)));
    }
    if net.mac[0] & 1 != 0 {
        return Err(invalid("its address is a group's".into()));
    }
    if net.addresses.len() > ADDRESSES_MAX {
        return Err(invalid(format!("{} addresses", net.addresses.len())));
    }
    let vlan = |id: Option<u16>| id.is_none_or(|id| (1..4096).contains(&id));
    if !net
        .addresses
        .iter()
        .all(|it| vlan(it.vlan) && !is_group(it.ip) && it.mac[0] & 1 == 0)
    {
        return Err(invalid("an address that no guest has".into()));
    }
    let Some(control) = &net.control else {
        return Ok(());
    };
    let long = |macs: &Option<Vec<_>>| macs.as_ref().is_some_and(|macs| macs.len() > MACS_MAX);
    if long(&control.unicast) || long(&control.multicast) {
        return Err(invalid("a table of addresses without bound".into()));
    }
    let words = control.vlans.as_ref().map_or(VLAN_WORDS, Vec::len);
    if words != VLAN_WORDS || control.active_pairs == 0 || control.active_pairs > net.queue_pairs {
        return Err(invalid("what its control queue set makes no sense".into()));
    }
    Ok(())
}

fn is_group(ip: IpAddr) -> bool {
    ip.is_multicast() || ip.is_unspecified()
}

/// Checks a frame that a peer passes on.
pub fn check_frame(frame: &FrameV1) -> Result<(), SchemaError> {
    if !(14..=FRAME_BYTES_MAX).contains(&frame.bytes.len()) {
        return Err(invalid(format!("a frame of {} bytes", frame.bytes.len())));
    }
    Ok(())
}

/// A frame as it is sent.
pub fn frame_v1(it: &PortFrame) -> FrameV1 {
    FrameV1 {
        port: it.port,
        seq: it.frame.seq,
        header: it.frame.header.to_bytes(),
        ether_type: it.frame.ether_type,
        bytes: it.frame.bytes.to_vec(),
    }
}

/// A frame that was sent.
pub fn port_frame(it: FrameV1) -> PortFrame {
    PortFrame {
        port: it.port,
        frame: Captured {
            seq: it.seq,
            header: Header::parse(&it.header),
            ether_type: it.ether_type,
            bytes: it.bytes.into(),
        },
    }
}

#[cfg(test)]
mod tests;
