use super::*;

#[test]
fn a_range_is_cut_at_the_stripes() {
    let cut = |range| pieces(range).collect::<Vec<_>>();
    assert_eq!(cut(0..512), vec![(0..512)]);
    let edge = STRIPE_BYTES;
    assert_eq!(cut(edge - 512..edge), vec![(edge - 512..edge)]);
    assert_eq!(
        cut(edge - 512..2 * edge + 1024),
        [edge - 512..edge, edge..2 * edge, 2 * edge..2 * edge + 1024]
    );
    assert!(cut(edge..edge).is_empty());
}

#[test]
fn room_remembers_every_page_of_a_range() {
    let room = Room::new(1 << 20);
    assert!(!room.has(&(0..512)));
    room.set(&(4096..12 * 4096 + 1));
    assert!(room.has(&(4096..13 * 4096)));
    assert!(!room.has(&(4095..4097)));
    assert!(!room.has(&(12 * 4096..13 * 4096 + 1)));
    // Over several words.
    room.set(&(0..1 << 20));
    assert!(room.has(&(0..1 << 20)));
    room.clear(&(63 * 4096 + 512..64 * 4096 + 512));
    assert!(room.has(&(0..63 * 4096)));
    assert!(!room.has(&(62 * 4096..64 * 4096)));
    assert!(!room.has(&(64 * 4096..65 * 4096)));
    assert!(room.has(&(65 * 4096..1 << 20)));
}

/// A sector is the smallest thing that two writers may share.
#[test]
fn a_sector_of_two_writers_is_one_or_the_other() {
    let disk = crate::backend::memory::MemoryDisk::new(1 << 20).unwrap();
    let mapping = disk.mapping();
    // A length at which torn copies show: over an edge, many pages.
    let (at, len) = (STRIPE_BYTES - 8 * 512, 64 * 512);
    std::thread::scope(|scope| {
        for byte in [1u8, 2] {
            scope.spawn(move || {
                let data = vec![byte; len];
                for _ in 0..2000 {
                    mapping.write(at, &data).unwrap();
                }
            });
        }
    });
    let mut seen = vec![0; len];
    mapping.read(at, &mut seen).unwrap();
    for sector in seen.chunks(512) {
        assert!(sector.iter().all(|byte| *byte == sector[0]));
        assert!([1, 2].contains(&sector[0]));
    }
}
