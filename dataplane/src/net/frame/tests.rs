use super::*;
use proptest::prelude::*;

fn frame(tags: &[(u16, u16)], ether_type: u16) -> Vec<u8> {
    let mut frame = vec![1, 2, 3, 4, 5, 6, 0x52, 0x54, 0, 0, 0, 9];
    for (kind, control) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    frame.extend(ether_type.to_be_bytes());
    frame
}

#[test]
fn an_address_reads_as_it_is_written() {
    let mac: Mac = "52:54:00:Ab:cd:EF".parse().unwrap();
    assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0xcd, 0xef]));
    assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
    assert_eq!("52-54-00-ab-cd-ef".parse(), Ok(mac));
    assert_eq!(mac.bits(), 0x5254_00ab_cdef);
    for wrong in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:ef:01",
        "52:54:00:ab:cd:e",
        "52:54:00:ab:cd:+e",
        "52:54:00:ab:cd-ef",
        "52:54:00:ab:cd:ef:",
        "525400abcdef",
        "52:54:00:ab:cd:é",
    ] {
        assert_eq!(wrong.parse::<Mac>(), Err(MacError), "{wrong:?}");
    }
}

#[test]
fn kinds_of_addresses() {
    assert!(Mac::BROADCAST.is_multicast() && Mac::BROADCAST.is_broadcast());
    let group = Mac([1, 0, 0x5e, 0, 0, 1]);
    assert!(group.is_multicast() && !group.is_broadcast() && !group.is_station());
    assert!(!Mac::default().is_station());
    assert!(Mac([0x52, 0, 0, 0, 0, 0]).is_station());
}

#[test]
fn tags_are_looked_through() {
    let plain = Start::parse(&frame(&[], ETHER_TYPE_IPV4)).unwrap();
    assert_eq!(plain.destination, Mac([1, 2, 3, 4, 5, 6]));
    assert_eq!(plain.source, Mac([0x52, 0x54, 0, 0, 0, 9]));
    let seen = |tags: &[(u16, u16)]| {
        let start = Start::parse(&frame(tags, ETHER_TYPE_IPV4)).unwrap();
        (start.vlan, start.ether_type, start.bytes, start.tags())
    };
    let (q, ad) = (ETHER_TYPE_VLAN, ETHER_TYPE_SERVICE_VLAN);
    assert_eq!(seen(&[]), (None, ETHER_TYPE_IPV4, 14, 0));
    assert_eq!(seen(&[(q, 0xe005)]), (Some(5), ETHER_TYPE_IPV4, 18, 1));
    assert_eq!(seen(&[(ad, 7), (q, 5)]), (Some(7), ETHER_TYPE_IPV4, 22, 2));
    // A priority hides no VLAN.
    assert_eq!(seen(&[(q, 0xe000)]), (None, ETHER_TYPE_IPV4, 18, 1));
    assert_eq!(seen(&[(q, 0), (q, 5)]), (Some(5), ETHER_TYPE_IPV4, 22, 2));
    assert_eq!(seen(&[(q, 1), (q, 2), (q, 3)]), (Some(1), q, 22, 2));
}

#[test]
fn what_ends_too_early_has_no_start() {
    let whole = frame(&[(ETHER_TYPE_VLAN, 5)], ETHER_TYPE_IPV4);
    for len in 0..whole.len() {
        assert_eq!(Start::parse(&whole[..len]), None, "{len} bytes");
    }
    assert!(Start::parse(&whole).is_some());
}

proptest! {
    #[test]
    fn random_addresses_are_local_stations(bits: u64) {
        let mac = Mac::random(bits);
        prop_assert!(mac.is_station());
        prop_assert_eq!(mac.0[0] & 2, 2);
        prop_assert_eq!(mac.bits() & 0xfcff_ffff_ffff, bits & 0xfcff_ffff_ffff);
        prop_assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let start = Start::parse(&bytes);
        prop_assert!(start.is_none_or(|start| start.bytes <= bytes.len()));
    }
}
