use super::*;
use crate::net::frame::ETHERNET_BYTES;
use proptest::prelude::*;

fn start(ether_type: u16) -> Start {
    let mut bytes = [0; ETHERNET_BYTES];
    bytes[12..].copy_from_slice(&ether_type.to_be_bytes());
    Start::parse(&bytes).unwrap()
}

fn v4(first: u8, fragment: u16, protocol: u8, len: usize) -> Vec<u8> {
    let mut head = vec![0; ETHERNET_BYTES + len];
    head[14] = first;
    head[20..22].copy_from_slice(&fragment.to_be_bytes());
    head[23] = protocol;
    head
}

/// An IPv6 header with extensions of the given kinds and numbers of 8 bytes.
fn v6(extensions: &[(u8, u8)], protocol: u8) -> Vec<u8> {
    let mut head = vec![0; ETHERNET_BYTES + IPV6_BYTES];
    head[14] = 0x60;
    let mut next_at = 20;
    for (kind, length) in extensions {
        head[next_at] = *kind;
        next_at = head.len();
        head.extend([0, *length]);
        head.resize(next_at + (usize::from(*length) + 1) * 8, 0);
    }
    head[next_at] = protocol;
    head
}

#[test]
fn ipv4_with_and_without_options() {
    let parse = |head: &[u8]| Packet::parse(&start(ETHER_TYPE_IPV4), head);
    let plain = parse(&v4(0x45, 0x4000, TCP, 20)).unwrap();
    assert_eq!(
        (plain.l3, plain.l4, plain.protocol, plain.fragment),
        (14, 34, TCP, false)
    );
    assert_eq!(parse(&v4(0x4f, 0, UDP, 60)).unwrap().l4, 74);
    assert!(parse(&v4(0x45, 0x2000, TCP, 20)).unwrap().fragment);
    assert!(parse(&v4(0x45, 0x0001, TCP, 20)).unwrap().fragment);
    for (first, len) in [(0x44, 20), (0x65, 20), (0x45, 19), (0x46, 23), (0x45, 10)] {
        assert_eq!(parse(&v4(first, 0, TCP, len)[..]), None, "{first:x} {len}");
    }
    assert_eq!(Packet::parse(&start(0x0806), &v4(0x45, 0, TCP, 20)), None);
}

#[test]
fn ipv6_extensions_are_looked_through_so_deep() {
    let parse = |head: &[u8]| Packet::parse(&start(ETHER_TYPE_IPV6), head);
    let plain = parse(&v6(&[], UDP)).unwrap();
    assert_eq!((plain.v6, plain.l4, plain.protocol), (true, 54, UDP));
    let deep = parse(&v6(&[(0, 0), (60, 1), (43, 2), (60, 0)], TCP)).unwrap();
    assert_eq!((deep.l4, deep.protocol), (54 + 8 + 16 + 24 + 8, TCP));
    let deeper = parse(&v6(&[(60, 0); 5], TCP)).unwrap();
    assert_ne!(deeper.protocol, TCP);
    assert!(parse(&v6(&[(0, 0)], FRAGMENT)).unwrap().fragment);
    let cut = v6(&[(0, 0)], TCP);
    assert_eq!(parse(&cut[..cut.len() - 8]), None);
    assert_eq!(parse(&cut[..53]), None);
}

#[test]
fn checksums_stay_out_of_what_is_checked_for() {
    assert_eq!(checksum_floor(&start(0x0806), &[0; 14]), 14);
    assert_eq!(checksum_floor(&start(ETHER_TYPE_IPV6), &[0; 14]), 54);
    let options = v4(0x47, 0, TCP, 28);
    assert_eq!(checksum_floor(&start(ETHER_TYPE_IPV4), &options), 42);
    assert_eq!(checksum_floor(&start(ETHER_TYPE_IPV4), &options[..14]), 34);
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(
        bytes in prop::collection::vec(any::<u8>(), 14..120),
        version in 4u8..7,
        next in prop::sample::select(vec![0u8, 43, 60, 44, 6, 17]),
    ) {
        let mut bytes = bytes;
        for (place, value) in bytes[14..].iter_mut().zip([version << 4 | 5, 0, 0, 0, 0, 0, next]) {
            *place = value;
        }
        for kind in [ETHER_TYPE_IPV4, ETHER_TYPE_IPV6] {
            let packet = Packet::parse(&start(kind), &bytes);
            prop_assert!(packet.is_none_or(|packet| packet.l4 >= packet.l3 + 20));
        }
    }
}
