use super::*;

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 7]);

fn learned(frames: &[Vec<u8>]) -> Vec<Address> {
    let mut spoken = Spoken::default();
    for frame in frames {
        let start = Start::parse(frame).unwrap();
        if Spoken::concerns(&start, frame) {
            spoken.learn(&start, &frame[..frame.len().min(SPOKEN_BYTES)]);
        }
    }
    spoken.addresses().to_vec()
}

fn address(ip: &str, vlan: Option<u16>) -> Address {
    let ip = ip.parse().unwrap();
    Address { vlan, ip }
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
