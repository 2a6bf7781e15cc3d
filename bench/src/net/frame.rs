//! The frames of the load, as pure logic: how they are made, and what may arrive.
//!
//! ```text
//!   Ethernet (tag) IPv4 UDP   stamp pattern...
//!   Ethernet (tag) IPv4 TCP   stamp pattern... | stamp pattern... | ...    every 1448 bytes
//! ```
//!
//! A frame to be cut into segments has a stamp where each segment will start, so
//! that it can be judged whole, cut, or put together again. The unit that is
//! numbered, lost and found is therefore the segment; a plain frame is one.

use crate::frontend::net::NetHeader;
use crate::rng::mix;

/// Bytes of a stamp: the least frame, with a tag, has room for no more.
pub const STAMP_BYTES: usize = 18;
/// Payload of a segment.
pub const SEGMENT_BYTES: usize = 1448;
/// The flow of frames that are sent to be learnt from, and not counted.
pub const HELLO: u8 = 0x7f;
/// Bytes of a frame that hold its headers and its first stamp.
pub const HEAD_BYTES: usize = 18 + IP_BYTES + TCP_BYTES + STAMP_BYTES;

const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const TCP_BYTES: usize = 20;
const PORT_FIRST: u16 = 49152;
/// Discard.
const PORT_TO: u16 = 9;
const SALT: u64 = 0xfe77_7e57_0b5e_55ed;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Tells runs apart.
    pub run: u8,
    /// The direction: 0 or 1.
    pub lane: u8,
    /// Which of the direction's flows, or [`HELLO`].
    pub flow: u8,
    /// Counts the flow's segments, and wraps.
    pub seq: u32,
    /// When it was sent, in nanoseconds of CLOCK_MONOTONIC.
    pub sent_ns: u64,
}

impl Stamp {
    /// As it stands in a frame.
    #[inline]
    pub fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut out = [0; STAMP_BYTES];
        let who = self.lane << 7 | self.flow & HELLO;
        out[0] = self.run;
        out[1] = who;
        out[2..6].copy_from_slice(&self.seq.to_be_bytes());
        out[6..14].copy_from_slice(&self.sent_ns.to_be_bytes());
        let sum = checksum(u16::from_be_bytes([self.run, who]), self.seq, self.sent_ns);
        out[14..].copy_from_slice(&sum);
        out
    }

    /// Nothing if the checksum is not right.
    #[inline]
    pub fn parse(raw: &[u8; STAMP_BYTES]) -> Option<Self> {
        let [run, who, rest @ ..] = *raw;
        let [s0, s1, s2, s3, t0, t1, t2, t3, t4, t5, t6, t7, sum @ ..] = rest;
        let seq = u32::from_be_bytes([s0, s1, s2, s3]);
        let sent_ns = u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let right = checksum(u16::from_be_bytes([run, who]), seq, sent_ns);
        (sum == right).then_some(Self {
            run,
            lane: who >> 7,
            flow: who & HELLO,
            seq,
            sent_ns,
        })
    }
}

#[inline]
fn checksum(who: u16, seq: u32, sent_ns: u64) -> [u8; 4] {
    let word = u64::from(who) << 32 | u64::from(seq);
    let [a, b, c, d, ..] = mix(word ^ SALT ^ mix(sent_ns)).to_be_bytes();
    [a, b, c, d]
}

/// The addresses of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// MAC of the sender.
    pub from: [u8; 6],
    /// MAC of the receiver.
    pub to: [u8; 6],
    /// 0 or 1.
    pub lane: u8,
}

impl Ends {
    /// From and to, in the block for benchmarks (RFC 2544).
    fn addresses(&self) -> [u8; 8] {
        let (from, to) = (1 + self.lane, 2 - self.lane);
        [198, 18, 0, from, 198, 18, 0, to]
    }
}

/// What all frames of a run have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Bytes from the first MAC to the end of the payload.
    pub bytes: usize,
    /// 802.1Q tag.
    pub vlan: Option<u16>,
    /// TCP, to be cut into segments of [`SEGMENT_BYTES`]; else UDP.
    pub tso: bool,
}

impl Form {
    fn l3_at(self) -> usize {
        if self.vlan.is_some() { 18 } else { 14 }
    }

    fn l4_bytes(self) -> usize {
        if self.tso { TCP_BYTES } else { UDP_BYTES }
    }

    fn payload_at(self) -> usize {
        self.l3_at() + IP_BYTES + self.l4_bytes()
    }

    /// Fewest bytes of a frame: of a plain one what Ethernet asks for, of one to
    /// be cut more than a segment.
    pub fn bytes_min(self) -> usize {
        if self.tso {
            self.payload_at() + SEGMENT_BYTES + 1
        } else {
            64
        }
    }

    /// Where the stamps are. The rest of the last segment may be too short for one.
    pub fn stamps(self) -> Vec<usize> {
        let last = self.bytes - STAMP_BYTES;
        let step = if self.tso { SEGMENT_BYTES } else { usize::MAX };
        (self.payload_at()..=last).step_by(step).collect()
    }

    /// The header before the frame.
    pub fn header(self) -> NetHeader {
        if !self.tso {
            return NetHeader::default();
        }
        let word = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        NetHeader {
            needs_csum: true,
            gso_size: word(SEGMENT_BYTES),
            hdr_len: word(self.payload_at()),
            csum_start: word(self.l3_at() + IP_BYTES),
            csum_offset: 16,
            buffers: 0,
        }
    }

    /// A frame with everything but its stamps.
    pub fn template(self, ends: &Ends, flow: u8) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes);
        out.extend_from_slice(&ends.to);
        out.extend_from_slice(&ends.from);
        if let Some(vlan) = self.vlan {
            out.extend_from_slice(&[0x81, 0]);
            out.extend_from_slice(&vlan.to_be_bytes());
        }
        out.extend_from_slice(&[8, 0]);
        out.extend_from_slice(&self.ip(ends));
        let l4 = u16::try_from(self.bytes - self.l3_at() - IP_BYTES).unwrap_or(u16::MAX);
        out.extend_from_slice(&(PORT_FIRST + u16::from(flow)).to_be_bytes());
        out.extend_from_slice(&PORT_TO.to_be_bytes());
        if self.tso {
            // Sequence and acknowledgment 0, 20 bytes of header, PSH and ACK, the
            // widest window, the pseudo-header's sum, no urgent data.
            out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff]);
            let pseudo = [&ends.addresses()[..], &[0, 6], &l4.to_be_bytes()].concat();
            out.extend_from_slice(&ones_sum(&pseudo).to_be_bytes());
            out.extend_from_slice(&[0, 0]);
        } else {
            // A UDP checksum of 0 is none.
            out.extend_from_slice(&l4.to_be_bytes());
            out.extend_from_slice(&[0, 0]);
        }
        let payload = self.bytes - out.len();
        out.extend((0..payload).map(|at| pattern(self.offset(at))));
        out
    }

    /// An offset of the payload as one in its segment.
    fn offset(self, at: usize) -> usize {
        if self.tso { at % SEGMENT_BYTES } else { at }
    }

    fn ip(self, ends: &Ends) -> [u8; IP_BYTES] {
        let total = u16::try_from(self.bytes - self.l3_at()).unwrap_or(u16::MAX);
        let mut ip = [0; IP_BYTES];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        // Do not fragment; 64 hops.
        ip[6] = 0x40;
        ip[8] = 64;
        ip[9] = self.protocol();
        ip[12..].copy_from_slice(&ends.addresses());
        let sum = !ones_sum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    }

    fn protocol(self) -> u8 {
        if self.tso { 6 } else { 17 }
    }
}

/// What the payload holds besides stamps, at this offset of its segment.
#[inline]
pub fn pattern(at: usize) -> u8 {
    (at as u64 * 7 + 13).to_le_bytes()[0]
}

/// The sum of the checksum of RFC 1071, of an even number of bytes.
fn ones_sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// What a frame's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// Not of this load: a switch's own, or a run's before this.
    Other,
    /// Of this load, and not as it was sent.
    Corrupt,
    /// Of this load.
    Ours {
        /// Where its payload starts.
        payload_at: usize,
        /// The flow by its source port.
        flow: u16,
    },
}

/// Judges a frame by its headers; `head` holds its first bytes, at least
/// [`HEAD_BYTES`] or all of them. It may have won or lost a tag on the way, and
/// one to be cut may have been cut; all else that is not rewritten by a router
/// must be as it was sent.
#[inline]
pub fn judge(form: Form, ends: &Ends, head: &[u8], frame_bytes: usize) -> Judged {
    if head.len() < 18 || head[6..12] != ends.from {
        return Judged::Other;
    }
    let l3_at = if head[12..14] == [0x81, 0] { 18 } else { 14 };
    if head[l3_at - 2..l3_at] != [8, 0] {
        return Judged::Other;
    }
    let payload_at = l3_at + IP_BYTES + form.l4_bytes();
    if head[..6] != ends.to || head.len() < payload_at + STAMP_BYTES {
        return Judged::Corrupt;
    }
    let ip = &head[l3_at..];
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let from_port = u16::from_be_bytes([ip[20], ip[21]]);
    let sound = ip[0] == 0x45
        && ip[9] == form.protocol()
        && total == frame_bytes - l3_at
        && (form.tso || total == form.bytes - form.l3_at())
        && ip[12..20] == ends.addresses()
        && ip[22..24] == PORT_TO.to_be_bytes();
    match from_port.checked_sub(PORT_FIRST) {
        Some(flow) if sound => Judged::Ours { payload_at, flow },
        _ => Judged::Corrupt,
    }
}

#[cfg(test)]
mod tests;
