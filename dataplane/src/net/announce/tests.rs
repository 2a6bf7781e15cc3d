use super::*;

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 7]);

fn learned(frames: &[Vec<u8>]) -> Vec<Address> {
    let mut spoken = Spoken::default();
    for frame in frames {
        let start = Start::parse(frame).unwrap();
        if Spoken::concerns(&start, frame) {
            spoken.learn(&start, &frame[..frame.len().min(SPOKEN_BYTES)], 0);
        }
    }
    spoken.addresses(0)
}

fn address(ip: &str, vlan: Option<u16>) -> Address {
    Address {
        vlan,
        mac: GUEST,
        ip: ip.parse().unwrap(),
        age_s: 0,
    }
}

/// What a NIC announces tells its addresses to whoever listens, this module included.
#[test]
fn what_is_announced_is_what_was_spoken_of() {
    let addresses = [
        address("10.0.0.7", None),
        address("192.168.1.9", Some(12)),
        address("fd00::7", None),
        address("fe80::1:2", Some(12)),
    ];
    let frames = frames(GUEST, &addresses);
    assert_eq!(learned(&frames), addresses);
    // RARP without a tag, and in the one VLAN.
    let rarps = frames.iter().map(|it| Start::parse(it).unwrap());
    let rarps: Vec<_> = rarps
        .filter(|it| it.ether_type == ETHER_TYPE_RARP)
        .collect();
    assert_eq!(rarps.len(), 2);
    assert_eq!((rarps[0].vlan, rarps[1].vlan), (None, Some(12)));
    for frame in &frames {
        let start = Start::parse(frame).unwrap();
        assert_eq!(start.source, GUEST);
        assert!(start.destination.is_multicast() && frame.len() >= FRAME_BYTES_MIN);
    }
}

#[test]
fn an_arp_announcement_is_as_rfc_5227_has_it() {
    let frame = announcement(GUEST, None, Ipv4Addr::new(10, 0, 0, 7));
    let wanted = [
        &[0xff; 6][..],
        &GUEST.0,
        &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1],
        &GUEST.0,
        &[10, 0, 0, 7],
        &[0; 6],
        &[10, 0, 0, 7],
        &[0; 18],
    ];
    assert_eq!(frame, wanted.concat());
}

#[test]
fn an_advertisement_has_a_good_checksum() {
    let frame = advertisement(GUEST, None, "fd00::7".parse().unwrap());
    let packet = &frame[14..];
    let sum = Sum::default()
        .bytes(&packet[8..40])
        .bytes(&[0, 0, 0, 32, 0, 0, 0, ICMPV6])
        .bytes(&packet[40..]);
    assert_eq!(sum.folded(), 0xffff);
    assert_eq!((packet[7], packet.len()), (255, 72));
}

#[test]
fn what_says_nothing_of_the_guest_is_not_learned() {
    let mut others = announcement(GUEST, None, Ipv4Addr::new(10, 0, 0, 8));
    others[22] = 9; // of another station
    let probe = announcement(GUEST, None, Ipv4Addr::UNSPECIFIED);
    let cut = announcement(GUEST, None, Ipv4Addr::new(10, 0, 0, 9))[..30].to_vec();
    let mut no_discovery = advertisement(GUEST, None, "fd00::7".parse().unwrap());
    no_discovery[54] = 128;
    let unspecified = advertisement(GUEST, None, Ipv6Addr::UNSPECIFIED);
    let frames = [others, probe, cut, no_discovery, unspecified, vec![0; 14]];
    assert_eq!(learned(&frames), []);
}

#[test]
fn what_was_spoken_of_last_is_remembered() {
    let of = |n: u8| announcement(GUEST, None, Ipv4Addr::new(10, 0, 0, n));
    let frames: Vec<_> = (1..=20).chain([10]).map(of).collect();
    let learned = learned(&frames);
    assert_eq!(learned.len(), SPOKEN_ADDRESSES);
    assert_eq!(learned[0], address("10.0.0.5", None));
    assert_eq!(learned[15], address("10.0.0.10", None));
}

#[test]
fn a_station_behind_the_guest_is_announced_as_itself() {
    const NESTED: Mac = Mac([2, 0, 0, 0, 0, 9]);
    let behind = Address {
        mac: NESTED,
        ..address("10.0.0.9", None)
    };
    let frames = frames(GUEST, &[address("10.0.0.7", None), behind]);
    let sources = frames.iter().map(|it| Start::parse(it).unwrap());
    let sources: Vec<_> = sources.map(|it| (it.ether_type, it.source)).collect();
    let wanted = [ETHER_TYPE_RARP, ETHER_TYPE_ARP].map(|it| [(it, GUEST), (it, NESTED)]);
    assert_eq!(sources, wanted.concat());
    assert_eq!(learned(&frames)[1], behind);
}

#[test]
fn an_address_that_went_to_another_station_is_forgotten() {
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);
    let mut spoken = Spoken::default();
    spoken.replace(
        &[
            address("10.0.0.7", None),
            address("10.0.0.8", None),
            address("fd00::7", None),
        ],
        0,
    );
    let mut hear = |frame: Vec<u8>| {
        spoken.heard(&Start::parse(&frame).unwrap(), &frame);
        spoken.addresses(0).len()
    };
    // Its own, by way of another host; and on another VLAN.
    assert_eq!(
        hear(announcement(GUEST, None, Ipv4Addr::new(10, 0, 0, 7))),
        3
    );
    assert_eq!(
        hear(announcement(OTHER, Some(3), Ipv4Addr::new(10, 0, 0, 7))),
        3
    );
    assert_eq!(
        hear(announcement(OTHER, None, Ipv4Addr::new(10, 0, 0, 7))),
        2
    );
    assert_eq!(
        hear(advertisement(OTHER, None, "fd00::7".parse().unwrap())),
        1
    );
    assert_eq!(spoken.addresses(0), [address("10.0.0.8", None)]);
}

#[test]
fn what_was_spoken_of_long_ago_is_not_announced() {
    let of = |age_s| Address {
        age_s,
        ..address("10.0.0.7", None)
    };
    let mut spoken = Spoken::default();
    // Its age is carried from host to host.
    spoken.replace(&[of(SPOKEN_S - 10)], 7_000 * SECOND_NS);
    let aged = spoken.addresses(7_005 * SECOND_NS);
    assert_eq!(aged, [of(SPOKEN_S - 5)]);
    assert_eq!(spoken.addresses(7_010 * SECOND_NS), []);
}

#[test]
fn an_address_is_older_than_the_daemon_that_it_comes_to() {
    let of = |age_s| Address {
        age_s,
        ..address("10.0.0.7", None)
    };
    let mut spoken = Spoken::default();
    spoken.replace(&[of(SPOKEN_S - 10)], 5 * SECOND_NS);
    assert_eq!(spoken.addresses(5 * SECOND_NS), [of(SPOKEN_S - 10)]);
    assert_eq!(spoken.addresses(15 * SECOND_NS), []);
    spoken.replace(&[of(u32::MAX)], 0);
    assert_eq!(spoken.addresses(u64::MAX), []);
}
