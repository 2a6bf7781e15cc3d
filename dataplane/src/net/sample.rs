//! Frames for tests: packets as a guest would send them, all offloads left to do, and what makes
//! sure, in ways of its own, that a whole one is right.

use super::header::{FLAG_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, Gso, Header};

/// A frame to be made.
#[derive(Debug, Clone)]
pub struct Sample {
    pub gso: Gso,
    pub v6: bool,
    pub tags: usize,
    /// Options of IPv4 in units of 4 bytes, up to 10; of IPv6 extension headers of 8 bytes, up to 4.
    pub network_options: usize,
    /// In units of 4 bytes, up to 10.
    pub tcp_options: usize,
    pub tcp_flags: u8,
    pub sequence: u32,
    pub id: u16,
    pub gso_size: u16,
    pub payload: Vec<u8>,
}

impl Sample {
    pub fn new(gso: Gso, v6: bool, gso_size: u16, payload: &[u8]) -> Sample {
        Sample {
            gso,
            v6,
            tags: 0,
            network_options: 0,
            tcp_options: 0,
            tcp_flags: 0x10,
            sequence: 1,
            id: 1,
            gso_size,
            payload: payload.to_vec(),
        }
    }

    fn is_tcp(&self) -> bool {
        matches!(self.gso, Gso::Tcp4 | Gso::Tcp6)
    }

    pub fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    pub fn l4(&self) -> usize {
        let (fixed, unit) = if self.v6 { (40, 8) } else { (20, 4) };
        self.l3() + fixed + unit * self.network_options
    }

    pub fn header(&self) -> Header {
        let gso_type = match self.gso {
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::UdpFragments => GSO_UDP,
            Gso::UdpDatagrams => GSO_UDP_L4,
        };
        Header {
            flags: FLAG_NEEDS_CSUM,
            gso_type,
            hdr_len: 14,
            gso_size: self.gso_size,
            csum_start: u16::try_from(self.l4()).unwrap(),
            csum_offset: if self.is_tcp() { 16 } else { 6 },
            num_buffers: 0,
        }
    }

    /// The same frame, not to be cut.
    pub fn whole_header(&self) -> Header {
        Header {
            gso_type: 0,
            gso_size: 0,
            ..self.header()
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1];
        for tag in 0..self.tags {
            frame.extend([0x81, 0, 0, 5 + u8::try_from(tag).unwrap()]);
        }
        let ip = if self.v6 {
            self.ipv6(transport.len())
        } else {
            self.ipv4(transport.len())
        };
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        let checksum = if self.is_tcp() { 16 } else { 6 };
        let pseudo = naive_sum(&pseudo_header(&ip, self.protocol(), transport.len()));
        frame.extend(ip);
        let at = frame.len() + checksum;
        frame.extend(transport);
        frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        frame
    }

    fn protocol(&self) -> u8 {
        if self.is_tcp() { 6 } else { 17 }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0xc0, 0, 0, 80];
        if self.is_tcp() {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([1, 2, 3, 4]);
            bytes.push(u8::try_from(5 + self.tcp_options).unwrap() << 4);
            bytes.extend([self.tcp_flags, 2, 0, 0, 0, 0, 0]);
            bytes.resize(bytes.len() + 4 * self.tcp_options, 1);
        } else {
            let length = u16::try_from(8 + self.payload.len()).unwrap();
            bytes.extend(length.to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn ipv4(&self, transport_len: usize) -> Vec<u8> {
        let words = 5 + self.network_options;
        let total = u16::try_from(words * 4 + transport_len).unwrap();
        let mut ip = vec![0x40 | u8::try_from(words).unwrap(), 0];
        ip.extend(total.to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend([0x40, 0, 64, self.protocol(), 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ip.resize(words * 4, 1);
        let checksum = !naive_sum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip
    }

    fn ipv6(&self, transport_len: usize) -> Vec<u8> {
        let length = u16::try_from(8 * self.network_options + transport_len).unwrap();
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([self.protocol(), 64]);
        ip.extend([0xfd; 16]);
        ip.extend([0xfe; 16]);
        let mut next_at = 6;
        for _ in 0..self.network_options {
            ip[next_at] = 60;
            next_at = ip.len();
            ip.extend([self.protocol(), 0, 1, 4, 0, 0, 0, 0]);
        }
        ip
    }
}

/// The pseudo header for an IP header without extensions read, RFC 793 and RFC 8200 8.1.
pub fn pseudo_header(ip: &[u8], protocol: u8, transport_len: usize) -> Vec<u8> {
    let length = u32::try_from(transport_len).unwrap().to_be_bytes();
    let addresses = if ip[0] >> 4 == 6 { 8..40 } else { 12..20 };
    [&ip[addresses], &length, &[0, 0, 0, protocol]].concat()
}

/// The sum of 16-bit words by the letter of RFC 1071, carries added, not inverted.
pub fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Asserts that a frame's lengths and checksums are right, given where its headers are.
pub fn assert_whole(frame: &[u8], l3: usize, l4: usize, protocol: u8) {
    let (ip, transport) = (&frame[l3..], &frame[l4..]);
    if ip[0] >> 4 == 6 {
        let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
        assert_eq!(length, ip.len() - 40, "payload length");
    } else {
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        assert_eq!(length, ip.len(), "total length");
        assert_eq!(naive_sum(&ip[..l4 - l3]), 0xffff, "IP checksum");
    }
    let pseudo = pseudo_header(ip, protocol, transport.len());
    let all = [&pseudo, transport].concat();
    assert_eq!(naive_sum(&all), 0xffff, "transport checksum");
    if protocol == 17 {
        let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
        assert_eq!(length, transport.len(), "UDP length");
        assert_ne!(&transport[6..8], [0, 0], "UDP has a checksum");
    }
}
