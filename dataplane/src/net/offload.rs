//! What is done in software for a receiver that did not take on an offload: the checksum, or cutting
//! a long frame up.
//!
//! Both rely on the rule that virtio has for a checksum left to do (virtio 1.2, 5.1.6.2): its field
//! holds the sum over the pseudo header. So no address is read here, and a packet with a routing
//! header comes out right. A segment's pseudo header differs from the whole's in the length alone.
//! Addresses, tags and options are copied to each segment as they are. Linux cuts in the same way
//! (net/ipv4/tcp_offload.c, udp_offload.c).

use super::checksum::Sum;
use super::features::Offloads;
use super::frame::be16;
use super::gso::{Plan, TCP_CHECKSUM, UDP_CHECKSUM};
use super::header::{FLAG_NEEDS_CSUM, FrameError, Gso, Header};
use super::packet::IPV6_BYTES;

/// TCP's flags, in byte 13 of its header.
const TCP_FLAGS: usize = 13;
const TCP_FIN_PSH: u8 = 0x01 | 0x08;
const TCP_CWR: u8 = 0x80;

/// More fragments follow, in the IPv4 fragment field.
const MORE_FRAGMENTS: u16 = 0x2000;

/// What has to be done to a frame before a receiver can have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing; it takes the header as well ([`Header::passed_on`]).
    Nothing,
    /// [`finish_checksum`]; its header is [`Header::default`] then.
    Checksum,
    /// [`Segmenter`].
    Segments,
}

impl Work {
    /// For a checked header and the frame's ethertype behind its tags, and what the receiver takes.
    pub fn of(header: &Header, ether_type: u16, takes: Offloads) -> Work {
        if takes.cover(header, ether_type) {
            return Work::Nothing;
        }
        match header.gso() {
            Ok(Some(_)) => Work::Segments,
            Ok(None) | Err(_) => Work::Checksum,
        }
    }
}

/// Does the checksum that `header` leaves to do, over all of `frame` from `csum_start`. Does nothing
/// if none is left to do, or its place is not in the frame.
pub fn finish_checksum(frame: &mut [u8], header: &Header) {
    let start = usize::from(header.csum_start);
    if !header.needs_checksum() || header.checksum_at() + 2 > frame.len() {
        return;
    }
    let checksum = Sum::default().bytes(&frame[start..]).checksum();
    let is_udp = usize::from(header.csum_offset) == UDP_CHECKSUM;
    put16(frame, header.checksum_at(), sent(checksum, is_udp));
}

/// In UDP a checksum of 0 says that there is none; its other form says the same sum (RFC 768).
fn sent(checksum: u16, is_udp: bool) -> u16 {
    match checksum {
        0 if is_udp => 0xffff,
        other => other,
    }
}

fn put16(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

/// Cuts one long frame into frames that any receiver takes.
#[derive(Debug)]
pub struct Segmenter<'a> {
    frame: &'a [u8],
    plan: Plan,
    /// Whether the receiver does checksums: then segments hold the pseudo header's sum.
    partial: bool,
    /// Of the whole frame: the pseudo header's sum, or for fragments the finished checksum.
    checksum: u16,
    /// Segments given out so far.
    index: usize,
}

impl<'a> Segmenter<'a> {
    /// Looks at all of a frame and plans its segments. `takes` is what the receiver takes; of it
    /// the checksum matters only. `room_bytes` is the room for one segment.
    ///
    /// Fails as [`Header::check`] does, so that a frame that was not checked does no harm; with
    /// [`FrameError::TooLong`] if a segment would not find room, and with
    /// [`FrameError::NotInSoftware`] for fragments of IPv6.
    pub fn new(
        frame: &'a [u8],
        header: &Header,
        takes: Offloads,
        room_bytes: usize,
    ) -> Result<Segmenter<'a>, FrameError> {
        let gso = header.gso()?.ok_or(FrameError::GsoMismatch)?;
        let plan = Plan::new(header, gso, frame, frame.len())?;
        let fragments = gso == Gso::UdpFragments;
        if fragments && plan.packet.v6 {
            return Err(FrameError::NotInSoftware);
        }
        if plan.longest_bytes() > room_bytes || u16::try_from(frame.len() - plan.packet.l3).is_err()
        {
            return Err(FrameError::TooLong);
        }
        let checksum = if fragments {
            sent(
                Sum::default().bytes(&frame[plan.packet.l4..]).checksum(),
                true,
            )
        } else {
            be16(frame, header.checksum_at()).ok_or(FrameError::ChecksumPlace)?
        };
        Ok(Segmenter {
            frame,
            plan,
            partial: takes.has(Offloads::CSUM) && !fragments,
            checksum,
            index: 0,
        })
    }

    /// Segments that it comes to.
    pub fn segments(&self) -> usize {
        self.plan.segments()
    }

    /// Bytes of the longest segment.
    pub fn longest_bytes(&self) -> usize {
        self.plan.longest_bytes()
    }

    /// The header of every segment, without `num_buffers`.
    pub fn header(&self) -> Header {
        if !self.partial {
            return Header::default();
        }
        Header {
            flags: FLAG_NEEDS_CSUM,
            csum_start: number(self.plan.packet.l4),
            csum_offset: number(self.checksum_place()),
            ..Header::default()
        }
    }

    /// Writes the next segment to `out`, which has the promised room, and returns its length in
    /// bytes; `None` after the last.
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.index == self.segments() {
            return None;
        }
        let (from, payload) = (self.index * self.plan.step, self.plan.payload);
        let bytes = (self.plan.payload_bytes() - from).min(self.plan.step);
        let segment = &mut out[..payload + bytes];
        segment[..payload].copy_from_slice(&self.frame[..payload]);
        segment[payload..].copy_from_slice(&self.frame[payload + from..][..bytes]);
        self.patch_ip(segment, from);
        self.patch_transport(segment, from);
        self.index += 1;
        Some(payload + bytes)
    }

    fn is_last(&self) -> bool {
        self.index + 1 == self.segments()
    }

    fn patch_ip(&self, segment: &mut [u8], from: usize) {
        let ip = &mut segment[self.plan.packet.l3..];
        if self.plan.packet.v6 {
            put16(ip, 4, number(ip.len() - IPV6_BYTES));
            return;
        }
        put16(ip, 2, number(ip.len()));
        if self.plan.gso == Gso::UdpFragments {
            // All fragments of a datagram have its id.
            let more = if self.is_last() { 0 } else { MORE_FRAGMENTS };
            put16(ip, 6, more | number(from / 8));
        } else {
            let id = be16(ip, 4).unwrap_or(0);
            put16(ip, 4, id.wrapping_add(number(self.index)));
        }
        put16(ip, 10, 0);
        let header = &ip[..self.plan.packet.l4 - self.plan.packet.l3];
        let checksum = Sum::default().bytes(header).checksum();
        put16(ip, 10, checksum);
    }

    fn patch_transport(&self, segment: &mut [u8], from: usize) {
        let transport = &mut segment[self.plan.packet.l4..];
        match self.plan.gso {
            Gso::Tcp4 | Gso::Tcp6 => self.patch_tcp(transport, from),
            Gso::UdpDatagrams => put16(transport, 4, number(transport.len())),
            Gso::UdpFragments => {
                if from == 0 {
                    put16(transport, UDP_CHECKSUM, self.checksum);
                }
                return;
            }
        }
        self.patch_checksum(transport);
    }

    fn patch_tcp(&self, tcp: &mut [u8], from: usize) {
        let [a, b, c, d] = [tcp[4], tcp[5], tcp[6], tcp[7]];
        let offset = u32::try_from(from).expect("inside a frame");
        let sequence = u32::from_be_bytes([a, b, c, d]).wrapping_add(offset);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !self.is_last() {
            tcp[TCP_FLAGS] &= !TCP_FIN_PSH;
        }
        if self.index > 0 {
            tcp[TCP_FLAGS] &= !TCP_CWR;
        }
    }

    fn patch_checksum(&self, transport: &mut [u8]) {
        let whole = number(self.frame.len() - self.plan.packet.l4);
        let pseudo = Sum::default()
            .number(self.checksum)
            .without(whole)
            .number(number(transport.len()))
            .folded();
        let place = self.checksum_place();
        put16(transport, place, pseudo);
        if !self.partial {
            let checksum = Sum::default().bytes(transport).checksum();
            let is_udp = self.plan.gso == Gso::UdpDatagrams;
            put16(transport, place, sent(checksum, is_udp));
        }
    }

    fn checksum_place(&self) -> usize {
        match self.plan.gso {
            Gso::Tcp4 | Gso::Tcp6 => TCP_CHECKSUM,
            Gso::UdpFragments | Gso::UdpDatagrams => UDP_CHECKSUM,
        }
    }
}

/// A length or an offset inside an IP packet of at most 64 KiB, or a count of its segments.
fn number(value: usize) -> u16 {
    u16::try_from(value).expect("bounded by Segmenter::new")
}

#[cfg(test)]
mod tests;
