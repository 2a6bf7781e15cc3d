use ferry_dataplane::net::filter::{TABLE_MAX, VLAN_IDS};
use proptest::prelude::*;

use super::*;

const OWN: Mac = [0x52, 0x54, 0, 0, 0, 1];
const OTHER: Mac = [0x52, 0x54, 0, 0, 0, 2];
const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];
const BROADCAST: Mac = [0xff; 6];

fn state() -> ControlState {
    ControlState::new(u64::MAX, OWN, 4)
}

/// One that has left promiscuous mode, as drivers do first.
fn choosy() -> ControlState {
    let mut state = state();
    assert_eq!(state.apply(CLASS_RX, RX_PROMISCUOUS, &[0]), Ack::Ok);
    state
}

fn tables(unicast: &[Mac], multicast: &[Mac]) -> Vec<u8> {
    let mut data = Vec::new();
    for table in [unicast, multicast] {
        data.extend(u32::try_from(table.len()).unwrap().to_le_bytes());
        data.extend(table.concat());
    }
    data
}

fn refused(mut state: ControlState, class: u8, command: u8, data: &[u8]) {
    let before = state.clone();
    assert_eq!(state.apply(class, command, data), Ack::Err);
    assert_eq!(state.refused(), before.refused() + 1);
    state.refused = before.refused;
    assert_eq!(state, before, "an error changes nothing");
}

#[test]
fn everything_passes_until_the_driver_chooses() {
    let state = state();
    for mac in [OWN, OTHER, GROUP, BROADCAST] {
        assert!(state.admits(mac, None) && state.admits(mac, Some(7)));
    }
    let chosen: Vec<bool> = [OWN, OTHER, GROUP, BROADCAST]
        .map(|mac| choosy().admits(mac, None))
        .into();
    assert_eq!(chosen, [true, false, false, true]);
}

#[test]
fn each_mode_lets_its_sort_pass_or_stops_it() {
    let cases = [
        (RX_PROMISCUOUS, [true, true, true, true]),
        (RX_ALL_MULTICAST, [true, false, true, true]),
        (RX_ALL_UNICAST, [true, true, false, true]),
        (RX_NO_MULTICAST, [true, false, false, true]),
        (RX_NO_UNICAST, [false, false, false, true]),
        (RX_NO_BROADCAST, [true, false, false, false]),
    ];
    for (command, expected) in cases {
        let mut state = choosy();
        assert_eq!(state.apply(CLASS_RX, command, &[1]), Ack::Ok);
        let found = [OWN, OTHER, GROUP, BROADCAST].map(|mac| state.admits(mac, None));
        assert_eq!(found, expected, "mode {command}");
        assert_eq!(state.apply(CLASS_RX, command, &[0]), Ack::Ok);
        assert_eq!(state, choosy());
    }
}

#[test]
fn none_of_a_sort_comes_before_all_of_it_and_the_table() {
    let mut state = choosy();
    let data = tables(&[OTHER], &[GROUP]);
    assert_eq!(state.apply(CLASS_MAC, MAC_TABLE_SET, &data), Ack::Ok);
    for mode in [
        RX_ALL_MULTICAST,
        RX_ALL_UNICAST,
        RX_NO_MULTICAST,
        RX_NO_UNICAST,
    ] {
        assert_eq!(state.apply(CLASS_RX, mode, &[1]), Ack::Ok);
    }
    assert!(!state.admits(OTHER, None) && !state.admits(OWN, None) && !state.admits(GROUP, None));
}

#[test]
fn tables_are_set_together_and_anew() {
    let mut state = choosy();
    let data = tables(&[OTHER], &[GROUP]);
    assert_eq!(state.apply(CLASS_MAC, MAC_TABLE_SET, &data), Ack::Ok);
    assert!(state.admits(OTHER, None) && state.admits(GROUP, None) && state.admits(OWN, None));
    let data = tables(&[], &[]);
    assert_eq!(state.apply(CLASS_MAC, MAC_TABLE_SET, &data), Ack::Ok);
    assert!(!state.admits(OTHER, None) && !state.admits(GROUP, None));
}

#[test]
fn a_full_table_holds_and_a_longer_one_lets_its_sort_pass() {
    let many = |count: usize, first: u8| -> Vec<Mac> {
        let number = |at: usize| u8::try_from(at).unwrap();
        // Backwards, so that the order is not the table's.
        (0..count)
            .rev()
            .map(|at| [first, 9, 9, 9, 9, number(at)])
            .collect()
    };
    let mut state = choosy();
    let data = tables(&many(TABLE_MAX, 2), &many(TABLE_MAX, 3));
    assert_eq!(state.apply(CLASS_MAC, MAC_TABLE_SET, &data), Ack::Ok);
    let filter = state.filter();
    assert!(!filter.unicast.overflow() && !filter.multicast.overflow());
    for mac in many(TABLE_MAX, 2).into_iter().chain(many(TABLE_MAX, 3)) {
        assert!(state.admits(mac, None));
    }
    assert!(!state.admits(OTHER, None) && !state.admits(GROUP, None));

    let data = tables(&many(TABLE_MAX + 1, 2), &many(1, 3));
    assert_eq!(state.apply(CLASS_MAC, MAC_TABLE_SET, &data), Ack::Ok);
    assert!(state.filter().unicast.overflow() && state.filter().unicast.macs().is_empty());
    assert!(state.admits(OTHER, None) && !state.admits(GROUP, None));

    let data = tables(&[], &many(TABLE_MAX + 1, 3));
    assert_eq!(state.apply(CLASS_MAC, MAC_TABLE_SET, &data), Ack::Ok);
    assert!(!state.admits(OTHER, None) && state.admits(GROUP, None));
    assert!(!state.filter().unicast.overflow() && state.filter().multicast.overflow());
}

#[test]
fn tables_that_do_not_add_up_are_refused() {
    let good = tables(&[OTHER], &[GROUP]);
    for len in 0..good.len() {
        refused(choosy(), CLASS_MAC, MAC_TABLE_SET, &good[..len]);
    }
    refused(
        choosy(),
        CLASS_MAC,
        MAC_TABLE_SET,
        &[good, vec![0]].concat(),
    );
    let huge = [u32::MAX.to_le_bytes().to_vec(), vec![0; 64]].concat();
    refused(choosy(), CLASS_MAC, MAC_TABLE_SET, &huge);
}

#[test]
fn another_mac_takes_the_place_of_the_first() {
    let mut state = choosy();
    assert_eq!(state.apply(CLASS_MAC, MAC_ADDR_SET, &OTHER), Ack::Ok);
    assert_eq!(state.mac(), OTHER);
    assert!(state.admits(OTHER, None) && !state.admits(OWN, None));
    for data in [&GROUP[..], &[0; 6], &OTHER[..5], &[2; 7], &[]] {
        refused(choosy(), CLASS_MAC, MAC_ADDR_SET, data);
    }
}

#[test]
fn a_vlan_passes_while_it_is_asked_for() {
    let mut state = choosy();
    assert!(!state.admits(OWN, Some(5)));
    for id in [1, 5, 63, 64, VLAN_IDS - 1] {
        assert_eq!(
            state.apply(CLASS_VLAN, VLAN_ADD, &id.to_le_bytes()),
            Ack::Ok
        );
        assert!(state.admits(OWN, Some(id)) && !state.admits(OTHER, Some(id)));
    }
    assert!(!state.admits(OWN, Some(6)) && !state.admits(BROADCAST, Some(6)));
    assert_eq!(state.apply(CLASS_VLAN, VLAN_DEL, &[5, 0]), Ack::Ok);
    assert!(!state.admits(OWN, Some(5)) && state.admits(OWN, Some(63)));
    assert!(state.admits(OWN, Some(0)), "a priority is not a VLAN");
    assert!(!state.admits(OWN, Some(u16::MAX)));
    for data in [&VLAN_IDS.to_le_bytes()[..], &[1], &[1, 0, 0], &[]] {
        refused(choosy(), CLASS_VLAN, VLAN_ADD, data);
        refused(choosy(), CLASS_VLAN, VLAN_DEL, data);
    }
}

#[test]
fn all_vlans_pass_for_a_driver_that_cannot_ask() {
    let mut state = ControlState::new(feature::CTRL_RX, OWN, 1);
    assert_eq!(state.apply(CLASS_RX, RX_PROMISCUOUS, &[0]), Ack::Ok);
    assert!(state.admits(OWN, Some(5)));
    refused(state, CLASS_VLAN, VLAN_ADD, &[5, 0]);
}

#[test]
fn an_announcement_is_acknowledged_once() {
    let mut asked = state();
    assert!(asked.announce() && asked.announcing());
    refused(asked.clone(), CLASS_ANNOUNCE, ANNOUNCE_ACK, &[0]);
    assert_eq!(asked.apply(CLASS_ANNOUNCE, ANNOUNCE_ACK, &[]), Ack::Ok);
    assert!(!asked.announcing());
    refused(asked, CLASS_ANNOUNCE, ANNOUNCE_ACK, &[]);
    let mut cannot = ControlState::new(!feature::GUEST_ANNOUNCE, OWN, 4);
    assert!(!cannot.announce() && !cannot.announcing());
}

#[test]
fn pairs_are_set_within_what_is_offered() {
    let mut state = state();
    assert_eq!(state.queue_pairs(), 1);
    for pairs in [4u16, 1, 2] {
        assert_eq!(
            state.apply(CLASS_MQ, MQ_PAIRS_SET, &pairs.to_le_bytes()),
            Ack::Ok
        );
        assert_eq!(state.queue_pairs(), pairs);
    }
    for data in [&[0, 0][..], &[5, 0], &[0, 0x80], &[1], &[1, 0, 0]] {
        refused(state.clone(), CLASS_MQ, MQ_PAIRS_SET, data);
    }
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let without = |feature: u64| ControlState::new(!feature, OWN, 4);
    for command in RX_PROMISCUOUS..=RX_ALL_MULTICAST {
        refused(without(feature::CTRL_RX), CLASS_RX, command, &[1]);
    }
    for command in RX_ALL_UNICAST..=RX_NO_BROADCAST {
        refused(without(feature::CTRL_RX_EXTRA), CLASS_RX, command, &[1]);
    }
    let none = tables(&[], &[]);
    refused(without(feature::CTRL_RX), CLASS_MAC, MAC_TABLE_SET, &none);
    refused(
        without(feature::CTRL_MAC_ADDR),
        CLASS_MAC,
        MAC_ADDR_SET,
        &OTHER,
    );
    refused(without(feature::CTRL_VLAN), CLASS_VLAN, VLAN_ADD, &[1, 0]);
    refused(without(feature::MQ), CLASS_MQ, MQ_PAIRS_SET, &[2, 0]);
}

#[test]
fn what_is_not_known_is_refused() {
    for data in [&[][..], &[0], &[1], &[2], &[1, 0]] {
        refused(state(), CLASS_RX, RX_NO_BROADCAST + 1, data);
        refused(state(), CLASS_MAC, MAC_ADDR_SET + 1, data);
        refused(state(), CLASS_VLAN, VLAN_DEL + 1, data);
        refused(state(), CLASS_ANNOUNCE, ANNOUNCE_ACK + 1, data);
        refused(state(), CLASS_MQ, MQ_PAIRS_SET + 1, data);
        refused(state(), CLASS_MQ + 1, 0, data);
    }
    for data in [&[][..], &[2], &[0xff], &[1, 1]] {
        refused(state(), CLASS_RX, RX_PROMISCUOUS, data);
    }
    assert_eq!((Ack::Ok.status(), Ack::Err.status()), (0, 1));
}

fn commands() -> impl Strategy<Value = (u8, u8, Vec<u8>)> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..16),
        prop::collection::vec(any::<u8>(), 0..2048),
        // Tables with counts that may fit.
        (0u32..80, 0u32..80, any::<bool>()).prop_map(|(unicast, multicast, cut)| {
            let mut data = unicast.to_le_bytes().to_vec();
            data.extend(vec![2; unicast as usize * MAC_BYTES]);
            data.extend(multicast.to_le_bytes());
            data.extend(vec![
                3;
                multicast as usize * MAC_BYTES
                    - usize::from(cut).min(multicast as usize)
            ]);
            data
        }),
    ];
    let class = prop_oneof![0u8..6, any::<u8>()];
    let command = prop_oneof![0u8..7, any::<u8>()];
    (class, command, data)
}

proptest! {
    #[test]
    fn no_commands_break_it(
        features in any::<u64>(),
        pairs_max in any::<u16>(),
        commands in prop::collection::vec(commands(), 0..40),
        frames in prop::collection::vec((any::<Mac>(), any::<Option<u16>>()), 0..20),
    ) {
        let mut state = ControlState::new(features, OWN, pairs_max);
        let mut refused = 0;
        for (class, command, data) in commands {
            let before = state.clone();
            match state.apply(class, command, &data) {
                Ack::Ok => prop_assert_eq!(state.refused(), refused),
                Ack::Err => {
                    refused += 1;
                    prop_assert_eq!(state.refused(), refused);
                    prop_assert_eq!(state.filter(), before.filter());
                    prop_assert_eq!(state.queue_pairs(), before.queue_pairs());
                }
            }
            let filter = state.filter();
            for table in [&filter.unicast, &filter.multicast] {
                prop_assert!(table.macs().len() <= TABLE_MAX);
                prop_assert!(!table.overflow() || table.macs().is_empty());
            }
            prop_assert!((1..=pairs_max.clamp(1, QUEUE_PAIRS_MAX)).contains(&state.queue_pairs()));
            prop_assert!(may_be_a_nics(state.mac()));
            for &(mac, vlan) in &frames {
                if filter.mode.promiscuous {
                    prop_assert!(state.admits(mac, vlan));
                }
            }
        }
    }
}
