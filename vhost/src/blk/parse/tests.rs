use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::memory::RegionSpec;

const GUEST: u64 = 1 << 20;
const LEN: u64 = 1 << 20;

const RULES: Rules = Rules {
    capacity_bytes: 1 << 30,
    read_only: false,
    through: false,
};

/// Guest memory that begins with these bytes.
fn memory(bytes: &[u8]) -> MemoryMap {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let spec = RegionSpec {
        guest_start: GUEST,
        len: LEN,
        user_start: 1 << 44,
        file_offset: 0,
    };
    MemoryMap::new(vec![(spec, file)]).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

/// Buffers over `len` bytes from `start`, cut where `cuts` says.
fn cut(start: u64, len: u32, cuts: &[u32]) -> Vec<Buffer> {
    let mut places: Vec<u32> = cuts.iter().map(|at| at % (len + 1)).collect();
    places.extend([0, len]);
    places.sort_unstable();
    let piece = |w: &[u32]| Buffer {
        guest: start + u64::from(w[0]),
        len: w[1] - w[0],
    };
    places.windows(2).map(piece).collect()
}

fn parsed(
    readable: &[Buffer],
    writable: &[Buffer],
    map: &MemoryMap,
    rules: &Rules,
) -> (Asked, u64) {
    let chain = Chain::of(readable, writable);
    let mut segments = Segments::new();
    let parsed = parse(&chain, map, rules, 7, &mut segments).unwrap();
    if let Asked::Request(request) = parsed.asked
        && matches!(request.op, Op::Read | Op::Write)
    {
        assert_eq!(segments.total_bytes(), request.len_bytes);
    }
    (parsed.asked, parsed.status_at)
}

fn refused(asked: Asked) -> Option<u8> {
    match asked {
        Asked::Refused(status) => Some(status),
        _ => None,
    }
}

#[test]
fn the_end_of_the_disk_is_the_end() {
    let last = RULES.capacity_bytes / 512 - 1;
    let ask = |sector, len: u32, rules: &Rules| {
        let map = memory(&header(TYPE_OUT, sector));
        refused(
            parsed(
                &cut(GUEST, 16 + len, &[]),
                &cut(GUEST + 8192, 1, &[]),
                &map,
                rules,
            )
            .0,
        )
    };
    assert_eq!(ask(last, 512, &RULES), None);
    assert_eq!(ask(last, 1024, &RULES), Some(STATUS_IO_ERROR));
    assert_eq!(ask(last + 1, 512, &RULES), Some(STATUS_IO_ERROR));
    assert_eq!(ask(u64::MAX / 512 + 1, 512, &RULES), Some(STATUS_IO_ERROR));
    let read_only = Rules {
        read_only: true,
        ..RULES
    };
    assert_eq!(ask(0, 512, &read_only), Some(STATUS_IO_ERROR));
}

#[test]
fn writes_are_durable_when_there_is_no_cache() {
    let through = Rules {
        through: true,
        ..RULES
    };
    for rules in [RULES, through] {
        let map = memory(&header(TYPE_OUT, 0));
        let asked = parsed(
            &cut(GUEST, 528, &[]),
            &cut(GUEST + 8192, 1, &[]),
            &map,
            &rules,
        )
        .0;
        match asked {
            Asked::Request(request) => assert_eq!(request.through, rules.through),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn how_the_bytes_are_cut_means_nothing(
        write: bool,
        sectors in 1u32..64,
        sector in 0u64..(1 << 21),
        cuts in prop::collection::vec(any::<u32>(), 0..12),
    ) {
        let (kind, out, back) = if write {
            (TYPE_OUT, 16 + sectors * 512, 1)
        } else {
            (TYPE_IN, 16, sectors * 512 + 1)
        };
        let map = memory(&header(kind, sector));
        let into = GUEST + 65536 + 1;
        let (asked, status_at) =
            parsed(&cut(GUEST, out, &cuts), &cut(into, back, &cuts), &map, &RULES);
        prop_assert_eq!(status_at, into + u64::from(back) - 1);
        let len_bytes = u64::from(sectors) * 512;
        let inside = sector * 512 + len_bytes <= RULES.capacity_bytes;
        match asked {
            Asked::Request(request) => {
                prop_assert!(inside);
                prop_assert_eq!(request.op, if write { Op::Write } else { Op::Read });
                prop_assert_eq!((request.offset_bytes, request.len_bytes), (sector * 512, len_bytes));
                prop_assert_eq!(request.tag, 7);
            }
            Asked::Refused(status) => {
                prop_assert!(!inside);
                prop_assert_eq!(status, STATUS_IO_ERROR);
            }
            Asked::Id => prop_assert!(false),
        }
    }

    #[test]
    fn nonsense_never_gets_past_the_disk(
        bytes in prop::collection::vec(any::<u8>(), 64),
        kind in 0u32..16,
        readable in prop::collection::vec((0u64..LEN * 2, any::<u32>()), 0..6),
        writable in prop::collection::vec((any::<u64>(), 0u32..70000), 0..6),
        near: bool,
    ) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        if near {
            bytes[11..16].fill(0);
        }
        let map = memory(&bytes);
        let mut out: Vec<Buffer> = vec![Buffer { guest: GUEST, len: 16 }];
        out.extend(readable.iter().map(|r| Buffer { guest: GUEST - 4096 + r.0, len: r.1 }));
        let back: Vec<Buffer> =
            writable.iter().map(|w| Buffer { guest: GUEST + w.0 % (LEN * 2), len: w.1 }).collect();
        let mut segments = Segments::new();
        let Ok(parsed) = parse(&Chain::of(&out, &back), &map, &RULES, 0, &mut segments) else {
            return Ok(());
        };
        prop_assert!(map.read(parsed.status_at, &mut [0]));
        if let Asked::Request(request) = parsed.asked {
            let end = request.offset_bytes.checked_add(request.len_bytes).unwrap();
            prop_assert!(end <= RULES.capacity_bytes);
            prop_assert!(request.op == Op::Flush || request.len_bytes > 0);
            prop_assert!(request.len_bytes.is_multiple_of(512));
            if matches!(request.op, Op::Read | Op::Write) {
                prop_assert_eq!(segments.total_bytes(), request.len_bytes);
            }
        }
    }
}
