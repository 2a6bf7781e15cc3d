use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::memory::{MemoryMap, RegionSpec};
use crate::vring::RingAddress;

/// A region of one queue, looked at through its file.
struct Kept {
    file: File,
    region: Arc<Region>,
    size: u16,
}

impl Kept {
    fn new(size: u16) -> Kept {
        let (file, bytes) = Region::create(1, size).unwrap();
        let region = Region::map(file.try_clone().unwrap(), (0, bytes), 1, size).unwrap();
        Kept {
            file,
            region: Arc::new(region),
            size,
        }
    }

    fn tracker(&self) -> Tracker {
        self.region.tracker(0, self.size).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; queue_bytes(self.size)];
        self.file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).unwrap();
    }
}

/// For regions that are not doubted, whose ring is not looked at.
fn no_entry(_index: u16) -> u32 {
    u32::MAX
}

fn in_flight(bytes: &[u8], head: usize) -> u8 {
    bytes[HEADER_BYTES + ENTRY_BYTES * head]
}

#[test]
fn the_layout_is_the_documents() {
    let kept = Kept::new(4);
    let mut tracker = kept.tracker();
    assert_eq!(tracker.take_up((7, 7), 7, no_entry).next_avail, 7);
    tracker.popped(2);
    tracker.popped(3);
    tracker.ended(3);
    tracker.ended(2);
    tracker.shown(9);
    tracker.popped(1);
    let raw = kept.bytes();
    assert_eq!(raw.len(), 128, "a header, four entries, rounded up to 64");
    assert_eq!(raw[..8], [0; 8], "no features");
    assert_eq!(
        raw[8..16],
        [1, 0, 4, 0, 2, 0, 9, 0],
        "version, size, last, used"
    );
    assert_eq!(
        raw[16 + 16..][..16],
        [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        raw[16 + 32..][..16],
        [0, 0, 0, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn a_fresh_region_begins_where_the_ring_stands() {
    let kept = Kept::new(8);
    let mut tracker = kept.tracker();
    let begun = tracker.take_up((500, 503), 500, no_entry);
    assert_eq!((begun.next_avail, begun.heads), (500, vec![]));
    tracker.popped(5);
    // The one before died with it.
    let left = kept.tracker().take_up((500, 503), 500, no_entry);
    assert_eq!((left.next_avail, left.heads), (501, vec![5]));
}

#[test]
fn what_was_left_is_served_in_the_order_of_popping() {
    let kept = Kept::new(8);
    let mut tracker = kept.tracker();
    tracker.take_up((0, 0), 0, no_entry);
    for head in [6, 1, 4, 0] {
        tracker.popped(head);
    }
    tracker.ended(1);
    tracker.shown(1);
    let mut next = kept.tracker();
    let left = next.take_up((1, 4), 1, no_entry);
    assert_eq!((left.next_avail, left.heads), (4, vec![6, 4, 0]));
    assert!(!next.is_idle());
    // What comes after is later than what was left.
    next.popped(1);
    let left = kept.tracker().take_up((1, 5), 1, no_entry);
    assert_eq!(left.heads, [6, 4, 0, 1]);
}

#[test]
fn a_region_of_another_life_is_not_used() {
    let kept = Kept::new(4);
    let mut tracker = kept.tracker();
    tracker.take_up((1000, 1000), 1000, no_entry);
    tracker.popped(2);
    // The ring was reset: its used index lies far behind.
    let left = kept.tracker().take_up((0, 3), 0, no_entry);
    assert_eq!((left.next_avail, left.heads), (0, vec![]));
    // More in flight than was ever available.
    let kept = Kept::new(4);
    let mut tracker = kept.tracker();
    tracker.take_up((0, 2), 0, no_entry);
    tracker.popped(0);
    tracker.popped(1);
    let left = kept.tracker().take_up((0, 1), 0, no_entry);
    assert_eq!((left.next_avail, left.heads), (0, vec![]));
}

#[test]
fn nonsense_is_refused_or_begun_anew() {
    assert!(Region::create(0, 4).is_err());
    assert!(Region::create(1, 0).is_err());
    assert!(Region::create(1, RING_SIZE_MAX + 1).is_err());
    let (file, bytes) = Region::create(2, 128).unwrap();
    let map =
        |place, queues, entries| Region::map(file.try_clone().unwrap(), place, queues, entries);
    assert!(map((0, bytes), 3, 128).is_err(), "less than it claims");
    assert!(
        map((0, bytes + 1), 2, 128).is_err(),
        "a file that ends before"
    );
    assert!(map((u64::MAX, bytes), 2, 128).is_err());
    let region = Arc::new(map((0, bytes), 2, 128).unwrap());
    assert!(region.tracker(2, 128).is_err());
    assert!(
        region.tracker(0, 256).is_err(),
        "a ring larger than its part"
    );
    let kept = Kept::new(4);
    kept.put(AT_VERSION, &2u16.to_le_bytes());
    assert!(kept.region.tracker(0, 4).is_err(), "an unknown version");
    // A batch that leads out of the region.
    kept.put(AT_VERSION, &1u16.to_le_bytes());
    kept.put(AT_LAST_BATCH_HEAD, &9u16.to_le_bytes());
    let left = kept.tracker().take_up((1, 3), 1, no_entry);
    assert_eq!((left.next_avail, left.heads), (1, vec![]));
}

#[test]
fn a_reset_near_the_wrap_is_another_life() {
    // The batch that was shown last, heads 1 and then 2, as the ring has it and as it has not.
    for (entries, served) in [([1, 2], vec![7, 9]), ([0, 0], vec![]), ([2, 1], vec![])] {
        let kept = Kept::new(256);
        let mut tracker = kept.tracker();
        tracker.take_up((65_534, 2), 65_534, no_entry);
        for head in [7, 9, 1, 2] {
            tracker.popped(head);
        }
        tracker.ended(1);
        tracker.ended(2);
        let mut next = kept.tracker();
        next.doubts = true;
        let left = next.take_up((0, 3), 0, |index| entries[usize::from(index - 65_534)]);
        let expected = u16::try_from(served.len()).unwrap();
        assert_eq!(
            (left.next_avail, left.heads),
            (expected, served),
            "{entries:?}"
        );
    }
}

#[test]
fn names_of_devices_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "/run/vm-a/d.sock",
        "/run/vm/a-d.sock",
        "run~-vm-a",
        "/run~vm-a",
        "run/vm-a",
    ];
    let paths = names.map(|name| OwnRegions::new(dir.path(), name).path(0));
    for (at, path) in paths.iter().enumerate() {
        assert!(!paths[..at].contains(path), "{path:?}");
        assert_eq!(path.parent(), Some(dir.path()));
    }
}

/// Guest memory of 4 MiB at user address 0x7000_0000, cut where `parts` say.
fn cut(file: &File, parts: &[(u64, u64)]) -> MemoryMap {
    let part = |&(start, end): &(u64, u64)| {
        let spec = RegionSpec {
            guest_start: start,
            len: end - start,
            user_start: 0x7000_0000 + start,
            file_offset: start,
        };
        (spec, file.try_clone().unwrap())
    };
    MemoryMap::new(parts.iter().map(part).collect()).unwrap()
}

const RING: RingAddress = RingAddress {
    desc: 0x7030_0000,
    avail: 0x7030_1000,
    used: 0x7030_2000,
};

#[test]
fn a_ring_keeps_its_name_however_the_table_is_cut() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 << 20).unwrap();
    let whole = RingIdentity::of(&cut(&file, &[(0, 4 << 20)]), RING, 8).unwrap();
    let parts = RingIdentity::of(&cut(&file, &[(0, 1 << 20), (2 << 20, 4 << 20)]), RING, 8);
    assert_eq!(parts, Some(whole));
    let other = tempfile::tempfile().unwrap();
    other.set_len(4 << 20).unwrap();
    let other = RingIdentity::of(&cut(&other, &[(0, 4 << 20)]), RING, 8).unwrap();
    assert_ne!(other, whole);
    assert!(RingIdentity::of(&cut(&file, &[(0, 1 << 20)]), RING, 8).is_none());
}

#[test]
fn a_file_is_taken_over_by_its_own_ring_alone() {
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(4 << 20).unwrap();
    let map = cut(&memory, &[(0, 4 << 20)]);
    let identity = RingIdentity::of(&map, RING, 8).unwrap();
    let other = RingIdentity::of(&map, RING, 4).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let own = OwnRegions::new(&dir.path().join("made"), "a/b");
    let begin = |identity| {
        let mut tracker = own.tracker(3, 8, identity).unwrap();
        let left = tracker.take_up((5, 7), 5, no_entry);
        tracker.popped(6);
        left.heads
    };
    assert_eq!(begin(identity), vec![0u16; 0]);
    assert_eq!(begin(identity), [6]);
    assert_eq!(begin(other), vec![0u16; 0], "another ring");
    assert_eq!(begin(identity), vec![0u16; 0], "it was the other's since");
    own.forget(3);
    own.forget(3);
    assert_eq!(begin(identity), vec![0u16; 0]);
    assert!(own.writeback());
    own.keep_writeback(false);
    assert!(!OwnRegions::new(&dir.path().join("made"), "a/b").writeback());
    own.keep_writeback(true);
    own.keep_writeback(true);
    assert!(own.writeback());
}

/// What a driver and a device do to a ring and a region, as a list of single stores; a death may
/// come between any two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Pop(u16),
    End(u16),
    /// The ring's used index alone, before the region hears of it.
    Show,
    /// The first of the batch's marks is taken back, and nothing more.
    Half,
    /// The rest.
    Done,
}

/// A device that works off `order` in batches of `batch`, as steps, with `ahead` more in flight.
fn life(order: &[u16], batch: usize, ahead: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut popped = 0;
    for (at, heads) in order.chunks(batch).enumerate() {
        let until = order.len().min((at + 1) * batch + ahead);
        steps.extend(order[popped..until].iter().map(|&head| Step::Pop(head)));
        popped = until;
        steps.extend(heads.iter().rev().map(|&head| Step::End(head)));
        steps.extend([Step::Show, Step::Half, Step::Done]);
    }
    steps
}

proptest! {
    /// Wherever the process dies, its successor serves each request that the guest was not shown,
    /// and none that it was.
    #[test]
    fn nothing_is_lost_or_served_twice(
        batch in 1usize..5,
        ahead in 0usize..4,
        rounds in 1usize..4,
        begin in any::<u16>(),
        dies_at in 0usize..60,
    ) {
        let size = 8u16;
        let kept = Kept::new(size);
        let mut tracker = kept.tracker();
        let order: Vec<u16> = (0..rounds).flat_map(|_| [3, 0, 7, 1, 5, 2, 6, 4]).collect();
        let avail = begin.wrapping_add(u16::try_from(order.len()).unwrap());
        tracker.take_up((begin, begin), begin, no_entry);
        let (mut used, mut popped, mut unshown): (u16, Vec<u16>, Vec<u16>) = (begin, vec![], vec![]);
        for step in life(&order, batch, ahead).into_iter().take(dies_at) {
            match step {
                Step::Pop(head) => {
                    tracker.popped(head);
                    popped.push(head);
                }
                Step::End(head) => {
                    tracker.ended(head);
                    unshown.push(head);
                }
                Step::Show => {
                    used = used.wrapping_add(u16::try_from(unshown.len()).unwrap());
                    popped.retain(|head| !unshown.contains(head));
                }
                Step::Half => tracker.inflight(unshown[0]).store(0, Ordering::Release),
                Step::Done => {
                    tracker.shown(used);
                    unshown.clear();
                }
            }
        }
        let window = avail.wrapping_sub(used).min(size);
        let left = kept.tracker().take_up((used, used.wrapping_add(window)), used, no_entry);
        prop_assert_eq!(&left.heads, &popped);
        let in_flight = u16::try_from(popped.len()).unwrap();
        prop_assert_eq!(left.next_avail, used.wrapping_add(in_flight));
        let raw = kept.bytes();
        for head in 0..size {
            let marked = in_flight_mark(&raw, head);
            prop_assert_eq!(marked, left.heads.contains(&head));
        }
    }
}

fn in_flight_mark(raw: &[u8], head: u16) -> bool {
    in_flight(raw, usize::from(head)) != 0
}
