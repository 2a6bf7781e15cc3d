use super::*;
use crate::net::frame::ETHER_TYPE_IPV4;
use crate::net::header::{FLAG_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_UDP_L4};

fn bits(bits: &[u32]) -> u64 {
    bits.iter().map(|bit| 1 << bit).sum()
}

#[test]
fn each_side_has_bits_of_its_own() {
    let sends = bits(&[
        bit::CSUM,
        bit::HOST_TSO4,
        bit::HOST_TSO6,
        bit::HOST_ECN,
        bit::HOST_UFO,
        bit::HOST_USO,
    ]);
    let takes = bits(&[
        bit::GUEST_CSUM,
        bit::GUEST_TSO4,
        bit::GUEST_TSO6,
        bit::GUEST_ECN,
        bit::GUEST_UFO,
        bit::GUEST_USO4,
        bit::GUEST_USO6,
    ]);
    assert_eq!(Offloads::sent_with(sends), Offloads::ALL);
    assert_eq!(Offloads::taken_with(takes), Offloads::ALL);
    assert_eq!(Offloads::sent_with(takes), Offloads::NONE);
    assert_eq!(Offloads::taken_with(sends), Offloads::NONE);
    let some = bits(&[bit::GUEST_CSUM, bit::GUEST_USO4, bit::MRG_RXBUF]);
    let set = Offloads::CSUM.with(Offloads::USO4);
    assert_eq!(Offloads::taken_with(some), set);
    assert_eq!(set.without(Offloads::USO4), Offloads::CSUM);
}

#[test]
fn without_the_checksum_there_is_no_offload() {
    let features = bits(&[bit::HOST_TSO4, bit::HOST_ECN]);
    assert_eq!(Offloads::sent_with(features), Offloads::NONE);
}

#[test]
fn a_set_covers_what_it_has_all_of() {
    let long = Header {
        flags: FLAG_NEEDS_CSUM,
        gso_type: GSO_TCPV4 | GSO_ECN,
        gso_size: 1448,
        ..Header::default()
    };
    let tcp = Offloads::CSUM.with(Offloads::TSO4);
    assert!(tcp.with(Offloads::ECN).cover(&long, ETHER_TYPE_IPV4));
    assert!(!tcp.cover(&long, ETHER_TYPE_IPV4));
    assert!(Offloads::NONE.cover(&Header::default(), ETHER_TYPE_IPV4));
    let datagrams = Header {
        gso_type: GSO_UDP_L4,
        ..long
    };
    let four = Offloads::CSUM.with(Offloads::USO4);
    assert!(four.cover(&datagrams, ETHER_TYPE_IPV4));
    assert!(!four.cover(&datagrams, ETHER_TYPE_IPV6));
    let unknown = Header {
        gso_type: 2,
        ..long
    };
    assert!(!Offloads::ALL.cover(&unknown, ETHER_TYPE_IPV4));
}
