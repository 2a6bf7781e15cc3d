//! Blocks that nobody should write.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A block with a right checksum, whatever it says.
fn sealed(mut bytes: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    bytes[12..16].fill(0);
    let checksum = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn what_cannot_be_is_refused() {
    let good = block(2, 1, &report(1));
    for (at, odd) in [
        (48, u64::MAX),
        (56, u64::MAX),
        (64, f64::NAN.to_bits()),
        (64, f64::INFINITY.to_bits()),
        (72, (-1.0f64).to_bits()),
        (72, 1e300f64.to_bits()),
        (80, 0.0f64.to_bits()),
        (80, f64::NAN.to_bits()),
        (44, 0),
        (128, u64::from(f32::NAN.to_bits())),
        (1152, u64::from(1e30f32.to_bits())),
        (1152, u64::from((-1f32).to_bits())),
    ] {
        let mut bytes = good;
        bytes[at..at + 8].copy_from_slice(&odd.to_le_bytes());
        assert_eq!(
            decode(&sealed(bytes)),
            Err(Fault::Absurd),
            "{odd:x} at {at}"
        );
        let mut peers = Peers::new(id(1), PERIOD_NS);
        peers.observe(0, &[sealed(bytes)]);
        assert_eq!(peers.alive(0), []);
        assert_eq!(
            peers.ignored(),
            Ignored {
                absurd: 1,
                ..Ignored::default()
            }
        );
    }
}

proptest! {
    #[test]
    fn whatever_is_in_a_block_does_no_harm(
        at in 0usize..BLOCK_BYTES, bytes in vec(any::<u8>(), 1..64), seal in any::<bool>(),
    ) {
        let mut block = block(2, 1, &report(1));
        let end = (at + bytes.len()).min(BLOCK_BYTES);
        block[at..end].copy_from_slice(&bytes[..end - at]);
        let block = if seal { sealed(block) } else { block };
        if let Ok(Some(block)) = decode(&block) {
            let report = block.report;
            prop_assert!(report.units >= 0.0 && report.units <= 1e9);
            prop_assert!(report.outstanding >= 0.0 && report.window_total > 0.0);
            prop_assert!(report.demand.total().slots.is_finite());
        }
    }

    #[test]
    fn whatever_is_written_is_read(
        ios in any::<u64>(), latency_ns in any::<u64>(), units in proptest::num::f64::ANY,
        window_total in prop_oneof![Just(f64::INFINITY), 0.01f64..1e12], slots in proptest::num::f64::ANY,
    ) {
        let mut demand = Bins::default();
        demand.add(Want { shares: slots, slots });
        let report = HostReport { ios, latency_ns, units, outstanding: slots, demand, window_total, ..report(1) };
        prop_assert!(decode(&block(2, 1, &report)).unwrap().is_some());
    }
}
