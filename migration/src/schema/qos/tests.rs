use ferry_dataplane::qos::SHARES_NORMAL;

use super::super::tests::sample;
use super::super::{BlkState, KIND_QOS, body};
use super::*;
use crate::envelope::{self, OPTIONAL, Section};

fn limited() -> Qos {
    Qos {
        policy: Policy {
            shares: 2000,
            limit_iops: Some(1000),
            limit_bytes: Some(100 << 20),
            reservation_iops: 250,
        },
        credit_ns: 7_500_000,
        group: Some("vm-1".into()),
    }
}

/// What version 1 wrote once, every later Ferry must read.
const GOLDEN: &str = "d00f01e8070180808032fa01e0e1c9030104766d2d31";

fn state(qos: Qos) -> BlkState {
    BlkState {
        qos: Some(qos),
        ..sample()
    }
}

fn decoded(section: Section) -> Result<Option<Qos>, SchemaError> {
    let mut sections = envelope::decode(&sample().encode().unwrap()).unwrap();
    sections.push(section);
    let state = BlkState::decode(&envelope::encode(&sections).unwrap())?;
    assert_eq!(
        (&state.blk, &state.queues),
        (&sample().blk, &sample().queues)
    );
    Ok(state.qos)
}

fn section(version: u16, bytes: &[u8]) -> Section {
    Section {
        kind: KIND_QOS,
        version,
        bytes: bytes.to_vec(),
    }
}

#[test]
fn the_golden_section_is_written_and_read() {
    let sections = envelope::decode(&state(limited()).encode().unwrap()).unwrap();
    let last = sections.last().unwrap();
    assert_eq!((last.kind, last.version), (KIND_QOS, 1));
    let hex: String = last.bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, GOLDEN);
    let golden: Vec<u8> = (0..GOLDEN.len() / 2)
        .map(|i| u8::from_str_radix(&GOLDEN[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    assert_eq!(decoded(section(1, &golden)).unwrap(), Some(limited()));
}

#[test]
fn a_peer_that_does_not_know_it_skips_it() {
    const { assert!(KIND_QOS & OPTIONAL != 0) };
    // As one from before it, or this one with a version to come.
    assert_eq!(decoded(section(2, b"whatever")).unwrap(), None);
    assert_eq!(
        BlkState::decode(&sample().encode().unwrap()).unwrap().qos,
        None
    );
}

#[test]
fn what_no_disk_has_is_refused() {
    let refused = |change: fn(&mut Qos)| {
        let mut qos = limited();
        change(&mut qos);
        // Encoding does not check, so that this reaches the decoder.
        let bytes = state(qos.clone()).encode().unwrap();
        let error = BlkState::decode(&bytes).unwrap_err();
        assert!(matches!(error, SchemaError::Invalid(_)), "{error}");
        assert!(sample().with_qos(Some(qos)).is_err());
    };
    refused(|qos| qos.policy.shares = 0);
    refused(|qos| qos.policy.shares = SHARES_MAX + 1);
    refused(|qos| qos.policy.limit_iops = Some(0));
    refused(|qos| qos.policy.limit_bytes = Some(0));
    refused(|qos| qos.credit_ns = CREDIT_NS_MAX + 1);
    refused(|qos| qos.group = Some(String::new()));
    refused(|qos| qos.group = Some("../up".into()));
    refused(|qos| qos.group = Some("g".repeat(65)));
    let plain = Qos::default();
    assert_eq!(plain.policy.shares, SHARES_NORMAL);
    assert_eq!(
        sample().with_qos(Some(plain.clone())).unwrap().qos,
        Some(plain)
    );
}

#[test]
fn it_is_said_once_and_whole() {
    let bytes = body(&limited().to_v1()).unwrap();
    let mut long = bytes.clone();
    long.push(0);
    for damaged in [&bytes[..bytes.len() - 1], &long, &[]] {
        let error = decoded(section(1, damaged)).unwrap_err();
        assert_eq!(error, SchemaError::Body(KIND_QOS));
    }
    let mut sections = envelope::decode(&state(limited()).encode().unwrap()).unwrap();
    sections.push(sections.last().unwrap().clone());
    assert!(BlkState::decode(&envelope::encode(&sections).unwrap()).is_err());
}
