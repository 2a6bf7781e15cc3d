use proptest::prelude::*;

use super::*;
use crate::schema::net_v1::{AddressV1, ControlV1, CountersV1};

fn sample() -> NetState {
    let net = NetV1 {
        origin: 0x0123_4567_89ab_cdef,
        mac: [2, 0, 0, 0, 0, 7],
        mtu: 1500,
        queue_pairs: 1,
        acked_features: 0x1_3000_0003,
        link_up: true,
        control: Some(ControlV1 {
            mac: [2, 0, 0, 0, 0, 8],
            receive_mode: 2,
            unicast: Some(vec![[2, 0, 0, 0, 0, 9]]),
            multicast: None,
            vlans: Some([&[3][..], &[0; 63]].concat()),
            active_pairs: 1,
            announcing: true,
        }),
        addresses: vec![
            AddressV1 {
                vlan: None,
                mac: [2, 0, 0, 0, 0, 7],
                ip: "10.0.0.7".parse().unwrap(),
                age_s: 0,
            },
            AddressV1 {
                vlan: Some(12),
                mac: [2, 0, 0, 0, 0, 10],
                ip: "fd00::7".parse().unwrap(),
                age_s: 300,
            },
        ],
        counters: CountersV1 {
            rx_frames: 1,
            rx_bytes: 64,
            tx_frames: 300,
            tx_bytes: 70_000,
            dropped: [1, 2, 3, 4, 5, 6, 7, 8, 9],
        },
    };
    let queue = |index, next_avail| QueueV1 {
        index,
        size: 256,
        next_avail,
        used_idx: next_avail,
        enabled: true,
        event_idx: true,
    };
    let frame = FrameV1 {
        port: 0,
        seq: 9,
        header: [0; 12],
        ether_type: 0x0800,
        bytes: (0..60).collect(),
    };
    NetState::new(net, vec![queue(0, 4711), queue(1, 65535)], vec![frame]).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

/// What version 1 wrote once, every later Ferry must read.
const GOLDEN: &str = concat!(
    "4652595301000400280100004097c00d03000100a6000000ef9bafcdf8acd19101020000000007dc",
    "0b018380808013010102000000000802010102000000000900014003000000000000000000000000",
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "000000000000000000000001010200020000000007000a00000700010c02000000000a01fd000000",
    "000000000000000000000007ac020140ac02f0a20401020304050607080902000100090000000080",
    "02e724e7240101020001000b000000018002ffff03ffff030101040001004e000000010009000000",
    "00000000000000000080103c000102030405060708090a0b0c0d0e0f101112131415161718191a1b",
    "1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b",
);

#[test]
fn the_golden_state_is_written_and_read() {
    assert_eq!(hex(&sample().encode().unwrap()), GOLDEN);
    assert_eq!(NetState::decode(&unhex(GOLDEN)).unwrap(), sample());
}

#[test]
fn states_of_no_nic_are_refused() {
    let broken = |change: fn(&mut NetState)| {
        let mut state = sample();
        change(&mut state);
        // Encoding does not check, so that this reaches the decoder.
        NetState::decode(&state.encode().unwrap()).unwrap_err()
    };
    let control = |state: &mut NetState, change: fn(&mut ControlV1)| {
        change(state.net.control.as_mut().unwrap());
    };
    broken(|s| s.net.queue_pairs = 0);
    broken(|s| s.net.queue_pairs = 2);
    broken(|s| s.net.mac[0] = 1);
    broken(|s| s.net.addresses[0].vlan = Some(4096));
    broken(|s| s.net.addresses[0].mac[0] = 1);
    broken(|s| s.net.addresses[0].ip = "224.0.0.1".parse().unwrap());
    broken(|s| s.queues[1].index = 0);
    broken(|s| s.queues[0].size = 3);
    broken(|s| s.queues.clear());
    broken(|s| s.frames[0].bytes.truncate(13));
    let mut state = sample();
    control(&mut state, |it| it.active_pairs = 2);
    assert!(NetState::decode(&state.encode().unwrap()).is_err());
    let mut state = sample();
    control(&mut state, |it| it.vlans = Some(vec![0; 63]));
    assert!(NetState::decode(&state.encode().unwrap()).is_err());
    // A disk is no NIC.
    let sections = envelope::decode(&sample().encode().unwrap()).unwrap();
    let bytes = envelope::encode(&sections[1..]).unwrap();
    assert!(NetState::decode(&bytes).is_err());
}

proptest! {
    #[test]
    fn a_cut_state_is_refused(at in 0usize..1000) {
        let bytes = sample().encode().unwrap();
        let at = at % bytes.len();
        prop_assert!(NetState::decode(&bytes[..at]).is_err());
    }

    #[test]
    fn a_damaged_state_is_refused(at in 0usize..1000, bit in 0u8..8) {
        let mut bytes = sample().encode().unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(NetState::decode(&bytes).is_err());
    }
}
