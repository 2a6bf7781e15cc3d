use proptest::prelude::*;

use super::*;

pub(super) fn sample() -> BlkState {
    let blk = BlkV1 {
        capacity_bytes: 1 << 30,
        block_bytes: 4096,
        num_queues: 2,
        read_only: false,
        acked_features: 0x1_3000_6244,
        writeback: true,
        serial: *b"ferry-0001\0\0\0\0\0\0\0\0\0\0",
    };
    let queue = |index, next_avail| QueueV1 {
        index,
        size: 256,
        next_avail,
        used_idx: next_avail,
        enabled: true,
        event_idx: true,
    };
    BlkState::new(blk, vec![queue(0, 4711), queue(1, 65535)]).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What version 1 wrote once, every later Ferry must read.
const GOLDEN: &str = concat!(
    "46525953010003004f00000078fd60230100010023000000808080800480200200c4c48180130166",
    "657272792d30303031000000000000000000000200010009000000008002e724e724010102000100",
    "0b000000018002ffff03ffff030101",
);

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_golden_state_is_written_and_read() {
    assert_eq!(hex(&sample().encode().unwrap()), GOLDEN);
    assert_eq!(BlkState::decode(&unhex(GOLDEN)).unwrap(), sample());
}

#[test]
fn states_of_no_device_are_refused() {
    let broken = |change: fn(&mut BlkState)| {
        let mut state = sample();
        change(&mut state);
        // Encoding does not check, so that this reaches the decoder.
        BlkState::decode(&state.encode().unwrap()).unwrap_err()
    };
    broken(|s| s.blk.block_bytes = 513);
    broken(|s| s.blk.block_bytes = 256);
    broken(|s| s.blk.capacity_bytes = 0);
    broken(|s| s.blk.capacity_bytes = 4095);
    broken(|s| s.blk.capacity_bytes = u64::MAX - 4095);
    broken(|s| s.blk.num_queues = 0);
    broken(|s| s.blk.num_queues = 3);
    broken(|s| s.queues[1].index = 0);
    broken(|s| s.queues[1].size = 0);
    broken(|s| s.queues[1].size = 255);
    broken(|s| s.queues.clear());
}

#[test]
fn unknown_sections_are_refused_unless_optional() {
    let mut sections = envelope::decode(&sample().encode().unwrap()).unwrap();
    sections.push(Section {
        kind: 77 | OPTIONAL,
        version: 9,
        bytes: vec![1],
    });
    let bytes = envelope::encode(&sections).unwrap();
    assert_eq!(BlkState::decode(&bytes).unwrap(), sample());
    sections.last_mut().unwrap().kind = 77;
    let bytes = envelope::encode(&sections).unwrap();
    let error = BlkState::decode(&bytes).unwrap_err();
    assert_eq!(
        error,
        SchemaError::Unknown {
            kind: 77,
            version: 9
        }
    );
}

#[test]
fn envelopes_are_bounded() {
    let section = |len| Section {
        kind: 1,
        version: 1,
        bytes: vec![0; len],
    };
    assert!(envelope::encode(&[section(70_000)]).is_err());
    assert!(envelope::encode(&vec![section(0); 601]).is_err());
    assert!(envelope::decode(&vec![0; 70_000]).is_err());
}

proptest! {
    #[test]
    fn a_cut_state_is_refused(at in 0usize..1000) {
        let bytes = sample().encode().unwrap();
        let at = at % bytes.len();
        prop_assert!(BlkState::decode(&bytes[..at]).is_err());
    }

    #[test]
    fn a_flipped_bit_is_refused(at in 0usize..1000, bit in 0u8..8) {
        let mut bytes = sample().encode().unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(BlkState::decode(&bytes).is_err());
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(BlkState::decode(&bytes).is_err());
    }

    /// Behind a right checksum too: noise as sections of every known kind, beside a device.
    #[test]
    fn noise_in_sections_does_not_panic(
        bodies in prop::collection::vec(
            (prop_oneof![1u16..4, Just(KIND_QOS)], 0u16..3, prop::collection::vec(any::<u8>(), 0..60)), 0..5),
    ) {
        let noise: Vec<Section> = bodies
            .into_iter()
            .map(|(kind, version, bytes)| Section { kind, version, bytes })
            .collect();
        let _ = BlkState::decode(&envelope::encode(&noise).unwrap());
        let mut sections = envelope::decode(&sample().encode().unwrap()).unwrap();
        sections.extend(noise);
        if let Ok(state) = BlkState::decode(&envelope::encode(&sections).unwrap()) {
            prop_assert!(state.qos.iter().all(|qos| check_qos(qos).is_ok()));
        }
    }
}
