use super::*;
use crate::net::sample::Sample;
use proptest::prelude::*;

const MTU: u16 = 1500;

fn tcp() -> Sample {
    Sample::new(Gso::Tcp4, false, 1000, &[7; 5000])
}

fn check(header: &Header, frame: &[u8]) -> Result<(), FrameError> {
    header
        .check(frame, frame.len(), Offloads::ALL, MTU)
        .map(drop)
}

#[test]
fn a_header_is_twelve_bytes_little_endian() {
    let bytes = [1, 0x81, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    let header = Header::parse(&bytes);
    let expected = Header {
        flags: 1,
        gso_type: 0x81,
        hdr_len: 0x0302,
        gso_size: 0x0504,
        csum_start: 0x0706,
        csum_offset: 0x0908,
        num_buffers: 0x0b0a,
    };
    assert_eq!(header, expected);
    assert_eq!(header.to_bytes(), bytes);
}

#[test]
fn types_are_those_of_virtio() {
    let gso = |gso_type| {
        Header {
            gso_type,
            ..Header::default()
        }
        .gso()
    };
    let unknown = Err(FrameError::UnknownGso);
    assert_eq!(gso(0), Ok(None));
    assert_eq!(gso(1), Ok(Some(Gso::Tcp4)));
    assert_eq!(gso(3), Ok(Some(Gso::UdpFragments)));
    assert_eq!(gso(4), Ok(Some(Gso::Tcp6)));
    assert_eq!(gso(5), Ok(Some(Gso::UdpDatagrams)));
    assert_eq!(gso(0x81), Ok(Some(Gso::Tcp4)));
    assert_eq!(gso(0x84), Ok(Some(Gso::Tcp6)));
    for wrong in [2, 6, 0x41, 0x80, 0x83, 0x85] {
        assert_eq!(gso(wrong), unknown, "{wrong:#x}");
    }
}

#[test]
fn honest_frames_pass() {
    let kinds = [
        (Gso::Tcp4, false),
        (Gso::Tcp6, true),
        (Gso::UdpFragments, false),
        (Gso::UdpFragments, true),
        (Gso::UdpDatagrams, false),
        (Gso::UdpDatagrams, true),
    ];
    for (gso, v6) in kinds {
        for tags in 0..=2 {
            let sample = Sample {
                tags,
                network_options: 3,
                ..Sample::new(gso, v6, 1000, &[7; 5000])
            };
            assert_eq!(
                check(&sample.header(), &sample.frame()),
                Ok(()),
                "{sample:?}"
            );
            let head = &sample.frame()[..HEAD_BYTES];
            let length = sample.frame().len();
            let cut = sample
                .header()
                .check(head, length, Offloads::ALL, MTU)
                .map(drop);
            assert_eq!(cut, Ok(()));
        }
    }
    assert_eq!(check(&Header::default(), &[0; 60]), Ok(()));
}

#[test]
fn what_is_to_be_ignored_is_ignored() {
    let sample = tcp();
    let header = Header {
        flags: 0xff,
        num_buffers: 77,
        ..sample.header()
    };
    assert_eq!(check(&header, &sample.frame()), Ok(()));
    let passed = header.passed_on();
    assert_eq!(passed.flags, FLAG_NEEDS_CSUM);
    assert_eq!((passed.hdr_len, passed.num_buffers), (34 + 16 + 2, 0));
    // Without a flag or a type that gives them a meaning.
    let header = Header {
        flags: FLAG_DATA_VALID,
        gso_size: 9,
        csum_start: 60_000,
        csum_offset: 60_000,
        ..Header::default()
    };
    assert_eq!(check(&header, &[0; 60]), Ok(()));
    assert_eq!(header.passed_on(), Header::default());
}

type Lie = fn(&mut Header);

#[test]
fn each_lie_has_its_error() {
    let sample = tcp();
    let (honest, frame) = (sample.header(), sample.frame());
    let lies: [(FrameError, Lie); 12] = [
        (FrameError::HeaderLength, |it| it.hdr_len = 5055),
        (FrameError::UnknownGso, |it| it.gso_type = 9),
        (FrameError::GsoSize, |it| it.gso_size = 0),
        (FrameError::GsoWithoutChecksum, |it| it.flags = 0),
        (FrameError::GsoMismatch, |it| it.gso_type = GSO_TCPV6),
        (FrameError::GsoMismatch, |it| it.gso_type = GSO_UDP_L4),
        (FrameError::GsoMismatch, |it| it.csum_offset = 6),
        (FrameError::GsoMismatch, |it| it.csum_start = 36),
        (FrameError::TooManySegments, |it| it.gso_size = 2),
        (FrameError::TooLong, |it| it.gso_size = 1500),
        (FrameError::ChecksumPlace, |it| it.csum_start = 33),
        (FrameError::ChecksumPlace, |it| {
            it.csum_offset = 5054 - 34 - 1;
        }),
    ];
    for (error, lie) in lies {
        let mut header = honest;
        lie(&mut header);
        assert_eq!(check(&header, &frame), Err(error), "{header:?}");
    }
}

#[test]
fn a_checksum_stays_between_the_ip_header_and_the_end() {
    let sample = Sample::new(Gso::UdpDatagrams, true, 0, &[7; 100]);
    let frame = sample.frame();
    let at = |csum_start, csum_offset| {
        let header = Header {
            flags: FLAG_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Header::default()
        };
        check(&header, &frame)
    };
    let end = u16::try_from(frame.len()).unwrap();
    assert_eq!(at(54, 0), Ok(()));
    assert_eq!(at(54, end - 56), Ok(()));
    assert_eq!(at(54, end - 55), Err(FrameError::ChecksumPlace));
    assert_eq!(at(65_535, 65_535), Err(FrameError::ChecksumPlace));
    // The source address is not for a checksum to change, once it was compared.
    assert_eq!(at(0, 6), Err(FrameError::ChecksumPlace));
    assert_eq!(at(22, 0), Err(FrameError::ChecksumPlace));
}

#[test]
fn only_what_was_negotiated_passes() {
    let sample = tcp();
    let with = |allowed, header: Header| {
        let frame = sample.frame();
        header.check(&frame, frame.len(), allowed, MTU).map(drop)
    };
    let refused = Err(FrameError::NotNegotiated);
    let ecn = Header {
        gso_type: GSO_TCPV4 | GSO_ECN,
        ..sample.header()
    };
    assert_eq!(with(Offloads::ALL, ecn), Ok(()));
    assert_eq!(with(Offloads::ALL.without(Offloads::ECN), ecn), refused);
    let no_tso = Offloads::ALL.without(Offloads::TSO4);
    assert_eq!(with(no_tso, sample.header()), refused);
    assert_eq!(with(Offloads::NONE, sample.whole_header()), refused);
}

#[test]
fn frames_have_bounds() {
    let lengths = |tags: usize, payload: usize| {
        let sample = Sample {
            tags,
            ..Sample::new(Gso::UdpDatagrams, false, 0, &vec![7; payload])
        };
        check(&sample.whole_header(), &sample.frame())
    };
    // 28 bytes of IP and UDP; 4 more may be there without a tag.
    assert_eq!(lengths(0, 1500 - 28 + 4), Ok(()));
    assert_eq!(lengths(0, 1500 - 28 + 5), Err(FrameError::TooLong));
    assert_eq!(lengths(1, 1500 - 28), Ok(()));
    assert_eq!(lengths(1, 1500 - 28 + 1), Err(FrameError::TooLong));
    assert_eq!(lengths(2, 1500 - 28), Ok(()));
    assert_eq!(lengths(2, 1500 - 28 + 1), Err(FrameError::TooLong));
    for len in 0..ETHERNET_BYTES {
        let runt = check(&Header::default(), &vec![0; len]);
        assert_eq!(runt, Err(FrameError::Runt));
        let runt = Header::default()
            .check(&[0; 60], len, Offloads::ALL, MTU)
            .map(drop);
        assert_eq!(runt, Err(FrameError::Runt));
    }
    let frame = vec![0; FRAME_BYTES_MAX + 1];
    let whole = |len| {
        Header::default()
            .check(&frame[..len], len, Offloads::ALL, u16::MAX)
            .map(drop)
    };
    assert_eq!(whole(FRAME_BYTES_MAX), Ok(()));
    assert_eq!(whole(FRAME_BYTES_MAX + 1), Err(FrameError::TooLong));
}

#[test]
fn a_part_of_a_packet_is_not_cut() {
    let sample = tcp();
    let mut frame = sample.frame();
    frame[20] |= 0x20;
    let found = check(&sample.header(), &frame);
    assert_eq!(found, Err(FrameError::GsoMismatch));
    let mut frame = sample.frame();
    frame[46] = 0x40;
    let found = check(&sample.header(), &frame);
    assert_eq!(
        found,
        Err(FrameError::GsoMismatch),
        "a TCP header of 16 bytes"
    );
}

proptest! {
    #[test]
    fn no_header_is_too_strange(
        bytes: [u8; HEADER_BYTES],
        frame in prop::collection::vec(any::<u8>(), 0..300),
        frame_len in 0usize..70_000,
    ) {
        let header = Header::parse(&bytes);
        prop_assert_eq!(header.to_bytes(), bytes);
        let frame = &frame[..frame.len().min(frame_len)];
        let _ = header.check(frame, frame_len, Offloads::ALL, MTU);
    }
}
