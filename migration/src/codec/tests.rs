use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ids::{DaemonId, Member, MigrationId};
use crate::negotiate::ImageKind;
use crate::schema::blk_v1::BlkV1;

fn samples() -> Vec<Message> {
    let claim = Claim {
        migration: MigrationId(Uuid::from_u128(1)),
        disk: "vda".parse().unwrap(),
        epoch: 2,
    };
    let daemon = DaemonId(Uuid::from_u128(2));
    let shape = BlkV1 {
        capacity_bytes: 1 << 20,
        block_bytes: 512,
        num_queues: 1,
        read_only: false,
        acked_features: 0,
        writeback: true,
        serial: [0; 20],
    };
    let answer = Answer {
        claim: claim.clone(),
        daemon,
    };
    vec![
        Message::Hello(Hello {
            claim: claim.clone(),
            disk_uuid: Uuid::from_u128(3),
            daemon,
            image: ImageKind::Raw,
            shape,
            members: vec![Member {
                disk: claim.disk.clone(),
                epoch: 3,
            }],
        }),
        Message::Ready(Ready { daemon, kept: true }),
        Message::NicHello(NicHello {
            migration: claim.migration,
            nic: claim.disk.clone(),
            daemon,
            shape: vec![1, 2, 3],
        }),
        Message::NicReady,
        Message::NicState(NicState {
            device_state: vec![7; 300],
        }),
        Message::NicTaken,
        Message::NicFrames(NicFrames {
            frames: vec![FrameV1 {
                port: 1,
                seq: 300,
                header: [9; 12],
                ether_type: 0x0800,
                bytes: vec![5; 60],
            }],
        }),
        Message::NicActivated,
        Message::NicFence,
        Message::NicResumed,
        Message::NicDone,
        Message::Digest(Digest {
            tag: Tag::Bulk(2),
            offset_bytes: 512,
            len_bytes: 1024,
            hash: digest(b"bytes"),
        }),
        Message::Differs(Differs {
            tag: Tag::Bulk(2),
            offset_bytes: 512,
            len_bytes: 1024,
        }),
        refused("no"),
        Message::Zero(Zero {
            tag: Tag::Guest(9),
            offset_bytes: 512,
            len_bytes: 1024,
        }),
        Message::Ack(Tag::Bulk(3)),
        Message::Flush(4),
        Message::Grant(Grant {
            claim: claim.clone(),
            device_state: vec![1, 2, 3],
        }),
        Message::Granted(answer.clone()),
        Message::Activated(answer),
        Message::HandBack(HandBack {
            claim: claim.clone(),
            though_granted: true,
        }),
        Message::Returned(Returned {
            claim: claim.clone(),
            daemon,
            reason: "so".into(),
        }),
        Message::Abort(Abort { claim }),
        Message::Qmp(Qmp {
            socket: "/s".into(),
            command: "{}".into(),
        }),
        Message::QmpReply(QmpReply {
            answer: "{}".into(),
        }),
        Message::Ping,
    ]
}

#[test]
fn every_message_survives_the_wire() {
    for message in samples() {
        let bytes = encode(&message, 0).unwrap();
        let frame = read_frame(&mut &bytes[..]).unwrap();
        assert_eq!(frame.message, message);
        assert_eq!(frame.data_bytes, 0);
    }
}

#[test]
fn data_carries_its_checksums() {
    let data = vec![5u8; 150_000];
    let head = Data {
        tag: Tag::Bulk(1),
        offset_bytes: 0,
        crcs: data_crcs(&data),
    };
    assert_eq!(head.crcs.len(), 3);
    let bytes = encode(&Message::Data(head.clone()), data.len()).unwrap();
    let frame = read_frame(&mut &bytes[..]).unwrap();
    assert_eq!(frame.data_bytes, data.len());
    assert!(data_intact(&data, &head.crcs));
    assert!(!data_intact(&data[1..], &head.crcs));
    // Data where there must be none, and none where there must be some.
    assert!(read_frame(&mut &encode(&Message::Ping, 1).unwrap()[..]).is_err());
    assert!(read_frame(&mut &encode(&Message::Data(head), 0).unwrap()[..]).is_err());
}

#[test]
fn bounds_hold_both_ways() {
    assert!(encode(&Message::Ping, DATA_BYTES_MAX + 1).is_err());
    let huge = Message::Qmp(Qmp {
        socket: String::new(),
        command: "x".repeat(META_BYTES_MAX),
    });
    assert!(encode(&huge, 0).is_err());
    assert_eq!(cut("ü".repeat(1000)).len(), REASON_BYTES_MAX);
    let mut other = encode(&Message::Ping, 0).unwrap();
    other[4] = 2;
    assert!(matches!(
        read_frame(&mut &other[..]),
        Err(CodecError::Version(2))
    ));
    assert!(matches!(read_frame(&mut &[][..]), Err(CodecError::Closed)));
}

#[test]
fn a_name_that_leaves_its_directory_does_not_decode() {
    for name in ["../x", "a/b", "", ".hidden", "a\0", &"x".repeat(65)] {
        let meta = postcard::to_stdvec(&(Uuid::nil(), name, 2u64)).unwrap();
        assert!(Message::decode_meta(13, &meta).is_err(), "{name}");
    }
    let meta = postcard::to_stdvec(&(Uuid::nil(), "vda", 2u64)).unwrap();
    assert!(Message::decode_meta(13, &meta).is_ok());
}

proptest! {
    #[test]
    fn a_flipped_bit_is_refused(which in 0usize..15, at in any::<usize>(), bit in 0u8..8) {
        let mut bytes = encode(&samples()[which], 0).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(read_frame(&mut &bytes[..]).is_err());
    }

    #[test]
    fn a_cut_frame_is_refused(which in 0usize..15, at in any::<usize>()) {
        let bytes = encode(&samples()[which], 0).unwrap();
        prop_assert!(read_frame(&mut &bytes[..at % bytes.len()]).is_err());
    }

    #[test]
    fn noise_behind_a_right_checksum_does_not_panic(
        kind in 0u16..20,
        meta in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = Message::decode_meta(kind, &meta);
    }
}
