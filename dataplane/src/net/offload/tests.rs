use super::*;
use crate::net::header::{FRAME_BYTES_MAX, GSO_TCPV4};
use crate::net::sample::{Sample, assert_whole, naive_sum, pseudo_header};
use proptest::prelude::*;

const ROOM_BYTES: usize = FRAME_BYTES_MAX;

fn segments(sample: &Sample, takes: Offloads) -> (Vec<Vec<u8>>, Header) {
    let frame = sample.frame();
    let mut cut = Segmenter::new(&frame, &sample.header(), takes, ROOM_BYTES).unwrap();
    let mut out = vec![0xaa; cut.longest_bytes()];
    let mut all = Vec::new();
    while let Some(len) = cut.next_into(&mut out) {
        all.push(out[..len].to_vec());
    }
    assert_eq!(all.len(), cut.segments());
    (all, cut.header())
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap();
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::try_from(digit(pair[0]) << 4 | digit(pair[1])).unwrap())
        .collect()
}

/// Made outside of this program, from the RFCs.
#[test]
fn a_known_packet_is_cut_as_it_should_be() {
    let sample = Sample {
        tcp_flags: 0x99,
        sequence: 0xffff_fffe,
        id: 0xffff,
        ..Sample::new(Gso::Tcp4, false, 3, b"hello")
    };
    let whole = concat!(
        "5254000000025254000000010800",
        "4500002dffff4000400626c90a0000010a000002",
        "c0000050fffffffe010203045099020014220000",
        "68656c6c6f"
    );
    assert_eq!(sample.frame(), hex(whole));
    let first = concat!(
        "5254000000025254000000010800",
        "4500002bffff4000400626cb0a0000010a000002",
        "c0000050fffffffe010203045090020000940000",
        "68656c"
    );
    let second = concat!(
        "5254000000025254000000010800",
        "4500002a00004000400626cc0a0000010a000002",
        "c000005000000001010203045019020069000000",
        "6c6f"
    );
    let (cut, header) = segments(&sample, Offloads::NONE);
    assert_eq!(cut, [hex(first), hex(second)]);
    assert_eq!(header, Header::default());
}

#[test]
fn a_checksum_left_to_do_is_done() {
    for gso in [Gso::Tcp6, Gso::UdpDatagrams] {
        for length in [0, 1, 2, 3, 1001] {
            let sample = Sample::new(gso, true, 0, &vec![9; length]);
            let mut frame = sample.frame();
            finish_checksum(&mut frame, &sample.whole_header());
            let protocol = if gso == Gso::Tcp6 { 6 } else { 17 };
            assert_whole(&frame, sample.l3(), sample.l4(), protocol);
        }
    }
}

#[test]
fn a_checksum_of_nothing_in_udp_is_all_ones() {
    let mut sample = Sample::new(Gso::UdpDatagrams, false, 0, &[0, 0]);
    let plain = sample.frame();
    // What is missing to 0xffff makes the checksum 0.
    let missing = !naive_sum(&plain[sample.l4()..]);
    sample.payload = missing.to_be_bytes().to_vec();
    let mut frame = sample.frame();
    finish_checksum(&mut frame, &sample.whole_header());
    let at = sample.l4() + UDP_CHECKSUM;
    assert_eq!(frame[at..at + 2], [0xff, 0xff]);
    assert_whole(&frame, sample.l3(), sample.l4(), 17);
}

#[test]
fn a_checksum_beyond_the_frame_is_left_alone() {
    let mut frame = [7; 60];
    for (csum_start, csum_offset) in [(60, 0), (59, 0), (20, 39), (65_535, 65_535)] {
        let header = Header {
            flags: FLAG_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Header::default()
        };
        finish_checksum(&mut frame, &header);
        assert_eq!(frame, [7; 60]);
    }
    finish_checksum(&mut frame, &Header::default());
    assert_eq!(frame, [7; 60]);
}

#[test]
fn fragments_make_the_datagram_again() {
    let payload: Vec<u8> = (0..=255).cycle().take(4001).collect();
    let sample = Sample {
        network_options: 1,
        tags: 1,
        ..Sample::new(Gso::UdpFragments, false, 1481, &payload)
    };
    let (cut, header) = segments(&sample, Offloads::ALL);
    assert_eq!(
        header,
        Header::default(),
        "fragments have no partial checksum"
    );
    assert_eq!(cut.len(), 3);
    let (l3, l4) = (sample.l3(), sample.l4());
    let mut datagram = Vec::new();
    for (index, fragment) in cut.iter().enumerate() {
        let ip = &fragment[l3..];
        assert_eq!(naive_sum(&ip[..l4 - l3]), 0xffff);
        assert_eq!(usize::from(be16(ip, 2).unwrap()), ip.len());
        assert_eq!(be16(ip, 4), Some(1), "one id for all");
        let more = if index < 2 { 0x2000 } else { 0 };
        assert_eq!(be16(ip, 6), Some(more | number(index * 1480 / 8)));
        datagram.extend_from_slice(&fragment[l4..]);
    }
    assert_eq!(datagram[8..], payload);
    let pseudo = pseudo_header(&cut[0][l3..], 17, datagram.len());
    assert_eq!(naive_sum(&[pseudo, datagram].concat()), 0xffff);
}

#[test]
fn what_can_not_be_cut_is_refused() {
    let fails = |sample: &Sample, frame: &[u8], room| {
        Segmenter::new(frame, &sample.header(), Offloads::NONE, room).unwrap_err()
    };
    let fragments = Sample::new(Gso::UdpFragments, true, 1000, &[7; 3000]);
    let error = fails(&fragments, &fragments.frame(), ROOM_BYTES);
    assert_eq!(error, FrameError::NotInSoftware);
    let tcp = Sample::new(Gso::Tcp4, false, 1000, &[7; 3000]);
    assert_eq!(fails(&tcp, &tcp.frame(), 1053), FrameError::TooLong);
    // What the guest changed after the check.
    let mut frame = tcp.frame();
    frame[14] = 0x4f;
    assert_eq!(fails(&tcp, &frame, ROOM_BYTES), FrameError::GsoMismatch);
    assert_eq!(
        fails(&tcp, &frame[..40], ROOM_BYTES),
        FrameError::GsoMismatch
    );
    let whole = Segmenter::new(&frame, &tcp.whole_header(), Offloads::NONE, 9000);
    assert_eq!(whole.unwrap_err(), FrameError::GsoMismatch);
}

#[test]
fn work_is_what_the_receiver_does_not_take() {
    let sample = Sample::new(Gso::Tcp4, false, 1000, &[7; 3000]);
    let ether_type = 0x0800;
    let work = |header: &Header, takes| Work::of(header, ether_type, takes);
    let (long, whole) = (sample.header(), sample.whole_header());
    assert_eq!(work(&long, Offloads::ALL), Work::Nothing);
    assert_eq!(work(&long, Offloads::CSUM), Work::Segments);
    assert_eq!(work(&whole, Offloads::CSUM), Work::Nothing);
    assert_eq!(work(&whole, Offloads::NONE), Work::Checksum);
    assert_eq!(work(&Header::default(), Offloads::NONE), Work::Nothing);
    let ecn = Header {
        gso_type: GSO_TCPV4 | 0x80,
        ..long
    };
    let no_ecn = Offloads::ALL.without(Offloads::ECN);
    assert_eq!(work(&ecn, no_ecn), Work::Segments);
}

fn samples() -> impl Strategy<Value = Sample> {
    let kind = prop::sample::select(vec![
        (Gso::Tcp4, false),
        (Gso::Tcp6, true),
        (Gso::UdpDatagrams, false),
        (Gso::UdpDatagrams, true),
    ]);
    let payload = prop::collection::vec(any::<u8>(), 0..5000);
    let numbers = any::<(u32, u16, u8)>();
    let sizes = (0usize..=2, 0usize..=4, 0usize..=10, 3u16..3000);
    (kind, payload, numbers, sizes).prop_map(|((gso, v6), payload, numbers, sizes)| Sample {
        tags: sizes.0,
        network_options: sizes.1,
        tcp_options: sizes.2,
        sequence: numbers.0,
        id: numbers.1,
        tcp_flags: numbers.2,
        ..Sample::new(gso, v6, sizes.3, &payload)
    })
}

/// Compares one segment with the whole: all but what a segment has of its own.
fn assert_segment(sample: &Sample, segment: &[u8], index: usize, count: usize) {
    let (l3, l4) = (sample.l3(), sample.l4());
    let tcp = matches!(sample.gso, Gso::Tcp4 | Gso::Tcp6);
    assert_whole(segment, l3, l4, if tcp { 6 } else { 17 });
    if !sample.v6 {
        let id = sample.id.wrapping_add(number(index));
        assert_eq!(be16(segment, l3 + 4), Some(id));
    }
    if tcp {
        let sequence = u32::from_be_bytes(*segment[l4 + 4..].first_chunk().unwrap());
        let offset = u32::try_from(index * usize::from(sample.gso_size)).unwrap();
        assert_eq!(sequence, sample.sequence.wrapping_add(offset));
        let mut flags = sample.tcp_flags;
        if index + 1 < count {
            flags &= !0x09;
        }
        if index > 0 {
            flags &= 0x7f;
        }
        assert_eq!(segment[l4 + 13], flags);
    }
    let whole = sample.frame();
    assert_eq!(segment[..l3], whole[..l3]);
    let same = if sample.v6 { l3 + 6..l4 } else { l3 + 12..l4 };
    assert_eq!(segment[same.clone()], whole[same]);
    assert_eq!(segment[l4..l4 + 4], whole[l4..l4 + 4], "ports");
}

proptest! {
    #[test]
    fn segments_are_whole_and_make_the_payload_again(sample in samples()) {
        let tcp = matches!(sample.gso, Gso::Tcp4 | Gso::Tcp6);
        let payload_at = sample.l4() + if tcp { 20 + 4 * sample.tcp_options } else { 8 };
        let (full, _) = segments(&sample, Offloads::NONE);
        for (index, segment) in full.iter().enumerate() {
            assert_segment(&sample, segment, index, full.len());
        }
        let parts: Vec<&[u8]> = full.iter().map(|segment| &segment[payload_at..]).collect();
        let size = usize::from(sample.gso_size);
        let last = parts.len() - 1;
        prop_assert!(parts[..last].iter().all(|part| part.len() == size));
        prop_assert!(parts[last].len() <= size);
        prop_assert_eq!(parts.concat(), &sample.payload[..]);
        // With the checksum left to do, doing it gives the same frames.
        let (mut partial, header) = segments(&sample, Offloads::CSUM);
        for (segment, expected) in partial.iter_mut().zip(&full) {
            prop_assert_eq!(header.check(segment, segment.len(), Offloads::CSUM, 9000).map(drop), Ok(()));
            finish_checksum(segment, &header);
            prop_assert_eq!(&*segment, expected);
        }
        prop_assert_eq!(partial.len(), full.len());
    }

    #[test]
    fn no_frame_is_too_strange(
        sample in samples(),
        places in prop::collection::vec((0usize..200, any::<u8>()), 0..6),
        changes in prop::collection::vec((0usize..12, any::<u8>()), 0..3),
        cut: prop::sample::Index,
    ) {
        let mut frame = sample.frame();
        for (place, value) in places {
            if let Some(byte) = frame.get_mut(place) {
                *byte = value;
            }
        }
        let mut bytes = sample.header().to_bytes();
        for (place, value) in changes {
            bytes[place] = value;
        }
        let header = Header::parse(&bytes);
        let frame = &frame[..cut.index(frame.len() + 1)];
        let (mut out, mut count) = (vec![0; ROOM_BYTES], 0);
        if let Ok(mut cut) = Segmenter::new(frame, &header, Offloads::NONE, ROOM_BYTES) {
            while cut.next_into(&mut out).is_some() {
                count += 1;
            }
        }
        prop_assert!(count <= crate::net::header::SEGMENTS_MAX);
        finish_checksum(&mut frame.to_vec(), &header);
    }
}
