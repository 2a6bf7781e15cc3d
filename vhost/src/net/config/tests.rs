use super::feature::*;
use super::*;

const MAC_OF_IT: Mac = [0x52, 0x54, 0, 1, 2, 3];

fn bare() -> NetOptions {
    NetOptions {
        mac: None,
        fixed_mac: false,
        mtu: None,
        link: None,
        status: false,
        queue_pairs: 1,
        mergeable: false,
        indirect: false,
        event_idx: false,
        log: false,
        from_guest: Offloads::default(),
        to_guest: Offloads::default(),
        control: None,
    }
}

fn full() -> NetOptions {
    NetOptions {
        mac: Some(MAC_OF_IT),
        fixed_mac: false,
        mtu: Some(9000),
        link: Some(Link {
            speed_mbps: 25_000,
            full_duplex: true,
        }),
        status: true,
        queue_pairs: 4,
        mergeable: true,
        indirect: true,
        event_idx: true,
        log: true,
        from_guest: Offloads::ALL,
        to_guest: Offloads::ALL,
        control: Some(Controls::ALL),
    }
}

#[test]
fn a_bare_nic_offers_what_every_device_must() {
    assert_eq!(features(&bare()), VERSION_1 | PROTOCOL);
}

#[test]
fn a_full_nic_offers_all_there_is() {
    let bits = [
        0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 26, 28, 29,
        30, 32, 54, 55, 56, 63,
    ];
    let all = bits.into_iter().fold(0, |all, bit| all | 1 << bit);
    assert_eq!(features(&full()), all);
}

#[test]
fn each_group_is_switched_by_itself() {
    type Off = fn(&mut NetOptions);
    let cases: [(Off, u64); 13] = [
        (|it| it.mac = None, MAC),
        (|it| it.mtu = None, MTU),
        (|it| it.link = None, SPEED_DUPLEX),
        (|it| it.status = false, STATUS | GUEST_ANNOUNCE),
        (|it| it.queue_pairs = 1, MQ),
        (|it| it.mergeable = false, MRG_RXBUF),
        (|it| it.indirect = false, INDIRECT_DESC),
        (|it| it.event_idx = false, EVENT_IDX),
        (|it| it.log = false, LOG_ALL),
        (
            |it| it.from_guest.checksum = false,
            CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO,
        ),
        (
            |it| it.to_guest.checksum = false,
            GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6,
        ),
        (
            |it| (it.to_guest.tso4, it.to_guest.tso6) = (false, false),
            GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN,
        ),
        (
            |it| it.control = None,
            CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR | GUEST_ANNOUNCE | MQ,
        ),
    ];
    for (at, (off, bits)) in cases.into_iter().enumerate() {
        let mut options = full();
        off(&mut options);
        assert_eq!(features(&options), features(&full()) & !bits, "case {at}");
    }
}

#[test]
fn the_space_lies_as_the_specification_has_it() {
    let now = Now {
        mac: MAC_OF_IT,
        link_up: true,
        announce: true,
    };
    let said = space(&full(), now);
    let expected = [
        0x52, 0x54, 0, 1, 2, 3, // mac
        3, 0, // status
        4, 0, // queue pairs
        0x28, 0x23, // mtu
        0xa8, 0x61, 0, 0, // speed
        1, // duplex
    ];
    assert_eq!(said, expected);
}

#[test]
fn what_is_not_known_is_said_to_be_so() {
    let now = Now {
        mac: [0; 6],
        link_up: false,
        announce: false,
    };
    let mut expected = [0; CONFIG_BYTES];
    expected[8] = 1;
    expected[12..].fill(0xff);
    assert_eq!(space(&bare(), now), expected);
}

#[test]
fn what_a_nic_cannot_be_is_refused() {
    assert_eq!(bare().check(), Ok(()));
    assert_eq!(full().check(), Ok(()));
    let with = |change: fn(&mut NetOptions)| {
        let mut options = full();
        change(&mut options);
        options.check()
    };
    use NetOptionsError as E;
    assert_eq!(with(|it| it.mac = Some([0; 6])), Err(E::Mac));
    assert_eq!(with(|it| it.mac = Some([1, 0, 0x5e, 0, 0, 1])), Err(E::Mac));
    assert_eq!(with(|it| it.mtu = Some(67)), Err(E::Mtu(67)));
    assert_eq!(with(|it| it.queue_pairs = 0), Err(E::QueuePairs(0)));
    assert_eq!(
        with(|it| it.queue_pairs = 0x8000),
        Err(E::QueuePairs(0x8000))
    );
    let fast = Some(Link {
        speed_mbps: 1 << 31,
        full_duplex: true,
    });
    let mut options = full();
    options.link = fast;
    assert_eq!(options.check(), Err(E::Speed(1 << 31)));
    // One that nobody knows is offered as such.
    options.link = Some(Link::UNKNOWN);
    assert_eq!(options.check(), Ok(()));
    assert_ne!(features(&options) & SPEED_DUPLEX, 0);
    let now = Now {
        mac: [2; 6],
        link_up: true,
        announce: false,
    };
    assert_eq!(space(&options, now)[12..], [0xff; 5]);
}
