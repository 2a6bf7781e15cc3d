use super::*;

const ENDS: Ends = Ends {
    from: [2, 0xfe, 1, 2, 3, 1],
    to: [2, 0xfe, 1, 2, 3, 2],
    lane: 0,
};

const PLAIN: Form = Form {
    bytes: 64,
    vlan: None,
    tso: false,
};

fn stamp() -> Stamp {
    Stamp {
        run: 9,
        lane: 1,
        flow: 3,
        seq: 0xdead_beef,
        sent_ns: 1 << 50,
    }
}

#[test]
fn a_stamp_comes_back_and_any_flipped_bit_is_seen() {
    let bytes = stamp().to_bytes();
    assert_eq!(Stamp::parse(&bytes), Some(stamp()));
    for bit in 0..STAMP_BYTES * 8 {
        let mut bent = bytes;
        bent[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Stamp::parse(&bent), None, "bit {bit}");
    }
    assert_eq!(Stamp::parse(&[0; STAMP_BYTES]), None);
}

#[test]
fn the_least_frame_has_room_for_a_stamp_with_a_tag_and_without() {
    for vlan in [None, Some(5)] {
        let form = Form { vlan, ..PLAIN };
        let frame = form.template(&ENDS, 0);
        assert_eq!(frame.len(), 64);
        assert_eq!(form.stamps(), [form.payload_at()]);
        assert_eq!(ones_sum(&frame[form.l3_at()..form.l3_at() + 20]), 0xffff);
    }
}

#[test]
fn a_frame_is_ours_with_a_tag_more_or_less() {
    let frame = PLAIN.template(&ENDS, 2);
    let ours = |payload_at| Judged::Ours {
        payload_at,
        flow: 2,
    };
    assert_eq!(judge(PLAIN, &ENDS, &frame, 64), ours(42));
    let mut tagged = frame.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(judge(PLAIN, &ENDS, &tagged, 68), ours(46));
}

#[test]
fn what_was_changed_on_the_way_is_seen() {
    let frame = PLAIN.template(&ENDS, 0);
    for at in [0, 5, 14, 17, 23, 26, 33, 34, 36] {
        let mut bent = frame.clone();
        bent[at] ^= 0xff;
        assert_eq!(judge(PLAIN, &ENDS, &bent, 64), Judged::Corrupt, "byte {at}");
    }
    assert_eq!(judge(PLAIN, &ENDS, &frame[..60], 60), Judged::Corrupt);
    assert_eq!(judge(PLAIN, &ENDS, &frame[..30], 30), Judged::Corrupt);
    let mut routed = frame.clone();
    (routed[22], routed[24]) = (63, 1);
    assert!(
        matches!(judge(PLAIN, &ENDS, &routed, 64), Judged::Ours { .. }),
        "a hop less"
    );
}

#[test]
fn what_others_send_is_not_ours() {
    let mut frame = PLAIN.template(&ENDS, 0);
    assert_eq!(judge(PLAIN, &ENDS, &frame[..10], 10), Judged::Other);
    frame[12..14].copy_from_slice(&[0x80, 0x35]);
    assert_eq!(
        judge(PLAIN, &ENDS, &frame, 64),
        Judged::Other,
        "an announcement of our MAC"
    );
    frame[6] = 4;
    assert_eq!(judge(PLAIN, &ENDS, &frame, 64), Judged::Other);
}

#[test]
fn every_segment_has_a_stamp_unless_it_is_too_short() {
    let form = |bytes| Form {
        bytes,
        vlan: None,
        tso: true,
    };
    assert_eq!(form(54 + 1448 + 18).stamps(), [54, 54 + 1448]);
    assert_eq!(form(54 + 1448 + 17).stamps(), [54]);
    assert_eq!(form(65535).stamps().len(), 46);
    assert_eq!(form(65535).template(&ENDS, 0).len(), 65535);
}

#[test]
fn a_frame_to_be_cut_tells_how() {
    let form = Form {
        bytes: 9000,
        vlan: Some(7),
        tso: true,
    };
    let header = form.header();
    assert_eq!((header.gso_size, header.hdr_len), (1448, 58));
    assert_eq!((header.csum_start, header.csum_offset), (38, 16));
    let frame = form.template(&ENDS, 0);
    let mut pseudo = ENDS.addresses().to_vec();
    pseudo.extend_from_slice(&[0, 6]);
    pseudo.extend_from_slice(&(9000u16 - 38).to_be_bytes());
    assert_eq!(frame[54..56], ones_sum(&pseudo).to_be_bytes());
}
