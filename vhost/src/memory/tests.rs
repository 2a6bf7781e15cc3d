use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

fn region(guest_start: u64, len: u64) -> (RegionSpec, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    let spec = RegionSpec {
        guest_start,
        len,
        user_start: guest_start + (1 << 44),
        file_offset: 0,
    };
    (spec, file)
}

/// Two regions that touch, a gap, a third; each byte holds its address.
fn three() -> MemoryMap {
    let table = [0x10000, 0x14000, 0x20000].map(|start| {
        let (spec, file) = region(start, 0x4000);
        let bytes: Vec<u8> = (start..start + 0x4000).map(byte_of).collect();
        file.write_all_at(&bytes, 0).unwrap();
        (spec, file)
    });
    MemoryMap::new(table.into()).unwrap()
}

fn byte_of(guest: u64) -> u8 {
    guest.wrapping_mul(31).to_le_bytes()[0] ^ (guest >> 8).to_le_bytes()[0]
}

#[test]
fn regions_that_overlap_or_reach_past_their_file_are_refused() {
    let map = three();
    for (start, len) in [
        (0xf000, 0x2000),
        (0x13fff, 1),
        (0x14000, 0x4000),
        (0x1ffff, 2),
        (0, 0),
    ] {
        let (spec, file) = region(start, len);
        assert!(map.with(spec, file).is_err(), "{len} at {start:#x}");
    }
    let (spec, file) = region(0x30000, 0x1000);
    for (len, file_offset) in [(0x1001, 0), (0x1000, 1), (0x1000, u64::MAX), (u64::MAX, 0)] {
        let spec = RegionSpec {
            len,
            file_offset,
            ..spec
        };
        assert!(map.with(spec, file.try_clone().unwrap()).is_err());
    }
    assert!(map.with(spec, file.try_clone().unwrap()).is_ok());
    assert!(DirtyLog::new(file.try_clone().unwrap(), 0, 0x1001).is_err());
    assert!(DirtyLog::new(file, 0, 0x1000).is_ok());
}

#[test]
fn a_region_is_removed_by_all_that_names_it() {
    let map = three();
    let (spec, _) = region(0x14000, 0x4000);
    let wrong = RegionSpec {
        len: 0x2000,
        ..spec
    };
    assert!(map.without(wrong).is_err());
    let less = map.without(spec).unwrap();
    assert!(!less.read(0x14000, &mut [0]));
    assert!(map.read(0x14000, &mut [0]), "the old map is what it was");
}

#[test]
fn marks_end_with_the_log() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let log = DirtyLog::new(file.try_clone().unwrap(), 0, 2).unwrap();
    log.mark(4095..4097);
    log.mark(15 * 4096..15 * 4096);
    log.mark(14 * 4096 + 1..u64::MAX);
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [3, 0xc0, 0, 0, 0, 0, 0, 0]);
}

proptest! {
    #[test]
    fn what_is_pushed_is_what_is_there(
        start in 0xfff0u64..0x24010, len in 1u64..0x9000, from in 0usize..0x5000,
    ) {
        let map = three();
        let mut segments = Segments::new();
        let inside = (start >= 0x10000 && start + len <= 0x18000)
            || (start >= 0x20000 && start + len <= 0x24000);
        prop_assert_eq!(map.push_segments(start, len, &mut segments), inside);
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        prop_assert_eq!(map.read(start, &mut bytes), inside);
        if !inside {
            return Ok(());
        }
        prop_assert_eq!(segments.total_bytes(), len);
        let wanted: Vec<u8> = (start..start + len).map(byte_of).collect();
        prop_assert!(bytes == wanted);
        // The same through the segments, from the middle on, and back in.
        let from = from.min(bytes.len());
        let mut part = vec![0; bytes.len()];
        let copied = segments.copy_out(from, &mut part);
        prop_assert_eq!(copied, bytes.len() - from);
        prop_assert!(part[..copied] == wanted[from..]);
        part.iter_mut().for_each(|byte| *byte = !*byte);
        prop_assert_eq!(segments.copy_in(from, &part), copied);
        prop_assert!(map.read(start, &mut bytes));
        prop_assert!(bytes[..from] == wanted[..from]);
        prop_assert!(bytes[from..].iter().zip(&wanted[from..]).all(|(a, b)| *a == !*b));
        let ranges: Vec<_> = segments.as_slice().iter().filter_map(|s| map.guest_of(s)).collect();
        prop_assert_eq!(ranges[0].start, start);
        prop_assert_eq!(ranges.iter().map(|r| r.end - r.start).sum::<u64>(), len);
    }
}
