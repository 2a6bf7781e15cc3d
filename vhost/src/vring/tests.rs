use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::chain::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use super::*;
use crate::memory::RegionSpec;

pub(crate) const USER: u64 = 1 << 44;
pub(crate) const GUEST: u64 = 1 << 20;
pub(crate) const AVAIL: u64 = 4096;
pub(crate) const USED: u64 = 8192;
pub(crate) const TABLE: u64 = 16384;
pub(crate) const LEN: u64 = 65536;
pub(crate) const NEXT: u16 = DESC_NEXT;
pub(crate) const WRITE: u16 = DESC_WRITE;
pub(crate) const INDIRECT: u16 = DESC_INDIRECT;

/// Guest memory with a ring, written through its file.
pub(crate) struct Guest {
    pub(crate) file: File,
    pub(crate) map: Arc<MemoryMap>,
    pub(crate) size: u16,
}

impl Guest {
    pub(crate) fn new(size: u16) -> Guest {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        let spec = RegionSpec {
            guest_start: GUEST,
            len: LEN,
            user_start: USER,
            file_offset: 0,
        };
        let map = MemoryMap::new(vec![(spec, file.try_clone().unwrap())]).unwrap();
        Guest {
            file,
            map: Arc::new(map),
            size,
        }
    }

    pub(crate) fn setup(&self) -> RingSetup {
        RingSetup {
            size: self.size,
            address: RingAddress {
                desc: USER,
                avail: USER + AVAIL,
                used: USER + USED,
            },
            next_avail: 0,
            event_idx: false,
            indirect: true,
            kick: None,
            call: None,
            err: None,
            map: self.map.clone(),
            log: LogSettings::default(),
            tracker: None,
        }
    }

    pub(crate) fn ring(&self) -> Vring {
        Vring::new(self.setup()).unwrap()
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    pub(crate) fn descriptor(&self, table: u64, at: u16, d: (u64, u32, u16, u16)) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&d.0.to_le_bytes());
        raw[8..12].copy_from_slice(&d.1.to_le_bytes());
        raw[12..14].copy_from_slice(&d.2.to_le_bytes());
        raw[14..].copy_from_slice(&d.3.to_le_bytes());
        self.put(table + u64::from(at) * 16, &raw);
    }

    pub(crate) fn u16_at(&self, at: u64) -> u16 {
        let mut raw = [0; 2];
        self.file.read_exact_at(&mut raw, at).unwrap();
        u16::from_le_bytes(raw)
    }
}

/// Whether `now` went past `event` on its way from `before`, one step at a time.
fn passed_by_steps(event: u16, before: u16, now: u16) -> bool {
    let mut at = before;
    while at != now {
        if at == event {
            return true;
        }
        at = at.wrapping_add(1);
    }
    false
}

#[test]
fn a_chain_comes_back_as_it_was_laid_out() {
    let guest = Guest::new(8);
    guest.descriptor(0, 5, (100, 16, DESC_NEXT, 2));
    guest.descriptor(0, 2, (200, 512, DESC_NEXT | DESC_WRITE, 7));
    guest.descriptor(0, 7, (300, 1, DESC_WRITE, 0));
    let mut chain = Chain::new();
    guest.ring().copy_chain(5, &mut chain).unwrap();
    let buffer = |guest, len| Buffer { guest, len };
    assert_eq!(chain.readable(), [buffer(100, 16)]);
    assert_eq!(chain.writable(), [buffer(200, 512), buffer(300, 1)]);
}

#[test]
fn a_chain_of_the_whole_queue_is_the_longest() {
    let guest = Guest::new(8);
    for at in 0..8 {
        let flags = if at < 7 { DESC_NEXT } else { 0 };
        guest.descriptor(0, at, (0, 1, flags, at + 1));
    }
    let mut chain = Chain::new();
    guest.ring().copy_chain(0, &mut chain).unwrap();
    assert_eq!(chain.readable().len(), 8);
    guest.descriptor(0, 7, (0, 1, DESC_NEXT, 0));
    assert_eq!(
        guest.ring().copy_chain(0, &mut chain),
        Err("longer than the queue")
    );
}

#[test]
fn sizes_and_places_that_cannot_be_are_refused() {
    let guest = Guest::new(8);
    for size in [0, 3, 6, 32769, u16::MAX] {
        let setup = RingSetup {
            size,
            ..guest.setup()
        };
        assert_eq!(Vring::new(setup).unwrap_err(), RingError::Size(size));
    }
    let at = |desc, avail, used| {
        let mut setup = guest.setup();
        setup.address = RingAddress { desc, avail, used };
        Vring::new(setup).map(drop)
    };
    let (desc, avail, used) = (USER, USER + AVAIL, USER + USED);
    assert!(at(desc, avail, used).is_ok());
    for bad in [
        0,
        USER - 16,
        USER + 8,
        USER + LEN,
        USER + LEN - 16,
        u64::MAX - 15,
    ] {
        assert_eq!(
            at(bad, avail, used),
            Err(RingError::Address("descriptor table"))
        );
    }
    for bad in [USER + 1, USER + LEN - 20, u64::MAX] {
        assert_eq!(
            at(desc, bad, used),
            Err(RingError::Address("available ring"))
        );
    }
    for bad in [USER + 2, USER + LEN - 68, u64::MAX] {
        assert_eq!(at(desc, avail, bad), Err(RingError::Address("used ring")));
    }
    // To the last byte is inside.
    assert!(at(desc, USER + LEN - 22, used).is_ok());
    assert!(at(USER + LEN - 128, avail, used).is_ok());
}

#[test]
fn used_entries_are_shown_by_the_batch_and_wrap() {
    let guest = Guest::new(4);
    guest.put(USED + 2, &65_534u16.to_le_bytes());
    let mut ring = guest.ring();
    assert_eq!(ring.used_index(), 65_534, "taken from the ring itself");
    for head in 0..3 {
        ring.push_used(head, 100 + u32::from(head));
    }
    assert_eq!(guest.u16_at(USED + 2), 65_534, "not shown yet");
    ring.publish();
    assert_eq!(guest.u16_at(USED + 2), 1);
    assert_eq!(guest.u16_at(USED + 4 + 8 * 2), 0);
    assert_eq!(guest.u16_at(USED + 4 + 8 * 3), 1);
    assert_eq!(guest.u16_at(USED + 4), 2);
    assert_eq!(guest.u16_at(USED + 8), 102);
}

#[test]
fn an_index_that_jumps_or_a_head_that_is_none_breaks_the_ring() {
    let guest = Guest::new(4);
    let ring = guest.ring();
    assert_eq!(ring.waiting(), Ok(0));
    for (index, head, broken) in [
        (1u16, 3u16, false),
        (4, 3, false),
        (5, 0, true),
        (1, 4, true),
    ] {
        guest.put(AVAIL + 2, &index.to_le_bytes());
        guest.put(AVAIL + 4, &head.to_le_bytes());
        let next = ring.waiting().and_then(|_| ring.head());
        assert_eq!(next.is_err(), broken, "{index} {head}");
        assert_eq!(next == Ok(head), !broken, "{index} {head}");
    }
}

#[test]
fn a_map_stays_until_its_requests_are_over() {
    let guest = Guest::new(4);
    let mut ring = guest.ring();
    let first = ring.hold();
    let other = Guest::new(4);
    assert!(ring.set_map(other.map.clone()));
    let second = ring.hold();
    assert_ne!(first, second);
    assert!(ring.held(first).is_some() && ring.held(second).is_some());
    assert_eq!(
        Arc::strong_count(&guest.map),
        2,
        "the guest's and the request's"
    );
    ring.unhold(first);
    assert!(ring.held(first).is_none());
    assert_eq!(Arc::strong_count(&guest.map), 1, "nothing else keeps it");
    assert!(!ring.set_map(Arc::default()), "the ring is not in it");
    assert_eq!((ring.waiting(), ring.may_write()), (Ok(0), false));
    ring.unhold(second);
    assert!(ring.set_map(guest.map.clone()) && ring.may_write());
}

#[test]
fn an_event_is_passed_as_if_counted_by_hand() {
    for before in [0u16, 1, 30_000, 65_500, 65_535] {
        for moved in 0..50 {
            let now = before.wrapping_add(moved);
            for near in 0..70 {
                let event = before.wrapping_add(near).wrapping_sub(10);
                let wanted = passed_by_steps(event, before, now);
                assert_eq!(passed(event, before, now), wanted, "{event} {before} {now}");
            }
        }
    }
}

/// Between the last look and the wish for a kick, the driver may put an entry in and not kick.
#[test]
fn a_ring_looks_again_after_asking_for_kicks() {
    for event_idx in [false, true] {
        let guest = Guest::new(4);
        let mut ring = Vring::new(RingSetup {
            event_idx,
            ..guest.setup()
        })
        .unwrap();
        ring.disarm();
        assert!(!ring.arm());
        guest.put(AVAIL + 2, &1u16.to_le_bytes());
        assert!(ring.arm());
        ring.take(0);
        assert!(!ring.arm());
        assert_eq!(guest.u16_at(USED), 0, "kicks are wanted");
        let event = guest.u16_at(USED + 4 + 8 * 4);
        assert_eq!(event, u16::from(event_idx), "at the next entry");
        ring.disarm();
        assert_eq!(guest.u16_at(USED), u16::from(!event_idx));
    }
}

fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![
        3 => (0..LEN).prop_map(|at| GUEST + at),
        1 => Just(GUEST + TABLE),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![0u32..200, (0u32..20).prop_map(|n| n * 16), any::<u32>()];
    let flags = prop_oneof![4 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    (
        addr,
        len,
        flags,
        prop_oneof![9 => 0u16..20, 1 => any::<u16>()],
    )
}

proptest! {
    #[test]
    fn any_table_gives_a_bounded_chain_or_a_reason(
        ring in prop::collection::vec(any_descriptor(), 16),
        table in prop::collection::vec(any_descriptor(), 20),
        head in 0u16..16,
    ) {
        let guest = Guest::new(16);
        for (at, d) in (0..).zip(&ring) {
            guest.descriptor(0, at, *d);
        }
        for (at, d) in (0..).zip(&table) {
            guest.descriptor(TABLE, at, *d);
        }
        let mut chain = Chain::new();
        let walked = guest.ring().copy_chain(head, &mut chain);
        let all = chain.readable().len() + chain.writable().len();
        prop_assert!(all <= CHAIN_MAX);
        if walked.is_ok() {
            prop_assert!(all > 0);
            let known = |b: &Buffer| ring.iter().chain(&table).any(|d| (d.0, d.1) == (b.guest, b.len))
                || *b == Buffer { guest: 0, len: 0 };
            // A table may also be read from other guest memory; from these two in the main.
            let elsewhere = ring.iter().any(|d| d.2 & DESC_INDIRECT != 0 && d.0 != GUEST + TABLE);
            prop_assert!(elsewhere || chain.readable().iter().chain(chain.writable()).all(known));
        }
    }
}
