use std::os::unix::fs::FileExt;

use ferry_dataplane::limits::SEGMENTS_PER_REQUEST;
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::memory::{DirtyLog, LOG_PAGE_BYTES, MemoryMap, RegionSpec};
use crate::vring::tests::{AVAIL, GUEST, Guest, INDIRECT, LEN, NEXT, TABLE, USED, WRITE};
use crate::vring::{LogSettings, RING_SIZE_MAX, RingAddress, RingSetup};

/// Where the tests put buffers, in the guest's memory.
const DATA: u64 = 24576;

/// A guest's driver: descriptors go in by hand, used entries come out.
struct Driver {
    guest: Guest,
    offered: u16,
    /// Told when the ring breaks.
    err: EventFd,
}

impl Driver {
    fn new(size: u16) -> Driver {
        Driver {
            guest: Guest::new(size),
            offered: 0,
            err: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    fn setup(&self) -> RingSetup {
        RingSetup {
            err: Some(self.err.try_clone().unwrap()),
            ..self.guest.setup()
        }
    }

    fn tx(&self, rules: Rules) -> TxVring {
        TxVring::new("tx".into(), Vring::new(self.setup()).unwrap(), rules)
    }

    fn rx(&self, rules: Rules) -> RxVring {
        RxVring::new("rx".into(), Vring::new(self.setup()).unwrap(), rules)
    }

    /// Makes a chain of buffers, from descriptor `head` on, and puts it into the available ring.
    fn offer(&mut self, head: u16, buffers: &[(u64, u32)], flags: u16) {
        self.lay(0, head, buffers, flags);
        self.offer_head(head);
    }

    fn lay(&self, table: u64, head: u16, buffers: &[(u64, u32)], flags: u16) {
        for (at, &(guest, len)) in (head..).zip(buffers) {
            let is_last = at - head + 1 == u16::try_from(buffers.len()).unwrap();
            let next = if is_last { 0 } else { NEXT };
            let descriptor = (guest, len, flags | next, at + 1);
            self.guest.descriptor(table, at, descriptor);
        }
    }

    fn offer_head(&mut self, head: u16) {
        let at = u64::from(self.offered % self.guest.size);
        self.guest.put(AVAIL + 4 + 2 * at, &head.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
        self.guest.put(AVAIL + 2, &self.offered.to_le_bytes());
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.guest.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn memory(&self) -> Vec<u8> {
        self.bytes(0, usize::try_from(LEN).unwrap())
    }

    /// The used entries that the guest is shown; none of these tests fills the ring.
    fn used(&self) -> Vec<(u32, u32)> {
        let number = |at| u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap());
        (0..u64::from(self.guest.u16_at(USED + 2)))
            .map(|at| USED + 4 + 8 * at)
            .map(|at| (number(at), number(at + 4)))
            .collect()
    }

    fn was_told_of_a_break(&self) -> bool {
        self.err.read().is_ok()
    }
}

fn rules() -> Rules {
    Rules {
        sends: Offloads::ALL,
        takes: Offloads::ALL,
        mergeable: true,
        header_bytes: Rules::header_bytes(true, true),
    }
}

fn not_mergeable() -> Rules {
    Rules {
        mergeable: false,
        ..rules()
    }
}

fn legacy() -> Rules {
    Rules {
        mergeable: false,
        header_bytes: Rules::header_bytes(false, false),
        ..rules()
    }
}

fn header() -> Header {
    Header::parse(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
}

/// Bytes that no two frames of different `seed` share at any place.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at % 251).to_le_bytes()[0] ^ seed)
        .collect()
}

fn contents(segments: &Segments) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(segments.total_bytes()).unwrap()];
    assert_eq!(segments.copy_out(0, &mut bytes), bytes.len());
    bytes
}

/// Takes a frame, which must be there; its tag and header, and its bytes.
fn taken(queue: &mut TxVring) -> (u32, Header, Vec<u8>) {
    let mut bytes = Segments::new();
    let mut taken = Taken::default();
    assert_eq!(queue.take(&mut taken, &mut bytes), Fetched::Frame);
    let bytes = contents(&bytes);
    assert_eq!(bytes.len(), taken.len);
    (taken.tag, taken.header.unwrap_or_default(), bytes)
}

fn take(queue: &mut TxVring) -> Fetched {
    queue.take(&mut Taken::default(), &mut Segments::new())
}

/// Lays `bytes` out from `DATA` on, cut at `cuts`, with a byte between the pieces.
fn scattered(driver: &Driver, bytes: &[u8], cuts: &[usize]) -> Vec<(u64, u32)> {
    let ends = cuts.iter().copied().chain([bytes.len()]);
    let starts = [0].into_iter().chain(cuts.iter().copied());
    let mut at = DATA;
    starts
        .zip(ends)
        .map(|(start, end)| {
            let piece = (GUEST + at, u32::try_from(end - start).unwrap());
            driver.guest.put(at, &bytes[start..end]);
            at += u64::from(piece.1) + 1;
            piece
        })
        .collect()
}

/// What the guest finds in its buffers, in order.
fn gathered(driver: &Driver, buffers: &[(u64, u32)]) -> Vec<u8> {
    buffers
        .iter()
        .flat_map(|&(guest, len)| driver.bytes(guest - GUEST, len.try_into().unwrap()))
        .collect()
}

fn with_header(bytes: &[u8]) -> Vec<u8> {
    [&header().to_bytes()[..], bytes].concat()
}

#[test]
fn a_header_and_its_frame_are_taken_from_one_buffer() {
    let mut driver = Driver::new(8);
    let sent = frame(60, 0);
    let buffers = scattered(&driver, &with_header(&sent), &[]);
    driver.offer(5, &buffers, 0);
    let mut queue = driver.tx(rules());
    assert!(queue.has_work());
    assert_eq!(taken(&mut queue), (5, header(), sent));
    assert!(matches!(take(&mut queue), Fetched::Empty));
    queue.publish();
    assert_eq!(driver.used(), [], "not before it is done");
    queue.done(5);
    assert_eq!(driver.used(), [], "not before it is published");
    queue.publish();
    assert_eq!(driver.used(), [(5, 0)]);
}

#[test]
fn a_header_may_be_cut_anywhere() {
    let sent = frame(20, 7);
    let whole = with_header(&sent);
    for first in 0..=whole.len() {
        for second in first..=whole.len() {
            // An empty piece is a buffer of no bytes, but for the last: that makes it two.
            let cuts = [first, second];
            let cuts = if second == whole.len() {
                &cuts[..1]
            } else {
                &cuts
            };
            let mut driver = Driver::new(8);
            let buffers = scattered(&driver, &whole, cuts);
            driver.offer(2, &buffers, 0);
            let found = taken(&mut driver.tx(rules()));
            assert_eq!(found, (2, header(), sent.clone()), "{cuts:?}");
        }
    }
}

#[test]
fn a_frame_may_be_in_an_indirect_chain() {
    let mut driver = Driver::new(8);
    let sent = frame(100, 1);
    let buffers = scattered(&driver, &with_header(&sent), &[5, 12, 50]);
    driver.lay(TABLE, 0, &buffers, 0);
    driver.offer(3, &[(GUEST + TABLE, 16 * 4)], INDIRECT);
    let mut queue = driver.tx(rules());
    assert_eq!(taken(&mut queue), (3, header(), sent));
    queue.done(3);
    queue.publish();
    assert_eq!(driver.used(), [(3, 0)]);
}

#[test]
fn a_driver_from_before_virtio_1_has_a_header_of_ten_bytes() {
    let mut driver = Driver::new(8);
    let sent = frame(30, 2);
    let whole = [&header().to_bytes()[..10], &sent].concat();
    let buffers = scattered(&driver, &whole, &[10]);
    driver.offer(0, &buffers, 0);
    let without = Header {
        num_buffers: 0,
        ..header()
    };
    assert_eq!(taken(&mut driver.tx(legacy())), (0, without, sent.clone()));

    let mut driver = Driver::new(8);
    let room = (GUEST + DATA, 40);
    driver.offer(0, &[room], WRITE);
    let mut queue = driver.rx(legacy());
    assert_eq!(
        queue.put(Some(&header()), &Bytes::Own(&sent), 30),
        Put::Done
    );
    queue.publish();
    assert_eq!(gathered(&driver, &[room]), whole);
    assert_eq!(driver.used(), [(0, 40)]);
    assert_eq!(Rules::header_bytes(false, true), 12, "it has num_buffers");
}

#[test]
fn chains_that_are_no_frames_are_given_back() {
    let far = GUEST + LEN;
    let mut bad: Vec<Vec<(u64, u32)>> = (0..12).map(|len| vec![(GUEST + DATA, len)]).collect();
    bad.push(vec![(GUEST + DATA, 6), (GUEST + DATA, 5)]);
    bad.push(vec![(far, 60)]);
    bad.push(vec![(far - 6, 60)]);
    bad.push(vec![(GUEST + DATA, 12), (far - 1, 2)]);
    bad.push(vec![(GUEST + DATA, 12), (0, 1)]);
    bad.push(vec![(GUEST + DATA, 12), (u64::MAX, u32::MAX)]);
    bad.push(vec![(GUEST + DATA, 12), (u64::MAX - 1, 9)]);
    for buffers in bad {
        let mut driver = Driver::new(8);
        driver.offer(0, &buffers, 0);
        driver.offer(4, &[(GUEST + DATA, 12)], WRITE);
        driver.offer(6, &[(GUEST + DATA, 12)], 0);
        let mut queue = driver.tx(rules());
        assert!(
            matches!(take(&mut queue), Fetched::Malformed),
            "{buffers:x?}"
        );
        assert!(
            matches!(take(&mut queue), Fetched::Malformed),
            "nothing to read"
        );
        assert!(taken(&mut queue).2.is_empty(), "the queue goes on");
        queue.publish();
        assert_eq!(driver.used(), [(0, 0), (4, 0)]);
        assert!(!driver.was_told_of_a_break());
    }
}

#[test]
fn a_frame_in_more_runs_than_a_request_has_is_given_back() {
    for (runs, fits) in [
        (SEGMENTS_PER_REQUEST, true),
        (SEGMENTS_PER_REQUEST + 1, false),
    ] {
        let mut driver = Driver::new(8);
        let mut buffers = vec![(GUEST + DATA, 1); runs];
        buffers.insert(0, (GUEST + DATA, 12));
        driver.lay(TABLE, 0, &buffers, 0);
        let bytes = u32::try_from(16 * buffers.len()).unwrap();
        driver.offer(0, &[(GUEST + TABLE, bytes)], INDIRECT);
        let mut queue = driver.tx(rules());
        let found = take(&mut queue);
        assert_eq!(matches!(found, Fetched::Frame), fits);
        assert_eq!(matches!(found, Fetched::Malformed), !fits);
    }
}

#[test]
fn a_chain_in_hand_that_is_made_available_again_breaks_the_queue() {
    let mut driver = Driver::new(8);
    driver.offer(1, &[(GUEST + DATA, 40)], 0);
    driver.offer_head(1);
    driver.offer(3, &[(GUEST + DATA, 40)], 0);
    let mut queue = driver.tx(rules());
    assert_eq!(taken(&mut queue).0, 1);
    assert!(matches!(take(&mut queue), Fetched::Broken));
    assert!(driver.was_told_of_a_break());
    assert!(matches!(take(&mut queue), Fetched::Empty));
    assert!(!queue.has_work() && !queue.arm());
    queue.done(1);
    queue.publish();
    assert_eq!(driver.used(), [(1, 0)], "what was in hand is given back");
}

#[test]
fn an_available_ring_that_makes_no_sense_breaks_either_queue() {
    for (index, head) in [(9u16, 0u16), (u16::MAX, 0), (1, 8), (1, u16::MAX)] {
        let driver = Driver::new(8);
        driver.guest.put(AVAIL + 2, &index.to_le_bytes());
        driver.guest.put(AVAIL + 4, &head.to_le_bytes());
        let mut queue = driver.tx(rules());
        assert!(matches!(take(&mut queue), Fetched::Broken));
        assert!(driver.was_told_of_a_break());
        let mut queue = driver.rx(rules());
        let sent = Bytes::Own(&[0; 60]);
        assert_eq!(queue.put(Some(&header()), &sent, 60), Put::Broken);
        assert!(driver.was_told_of_a_break());
    }
}

#[test]
fn a_frame_put_back_is_the_next_again() {
    let mut driver = Driver::new(8);
    let mut queue = driver.tx(rules());
    for head in [6, 2] {
        let whole = with_header(&frame(10, head));
        driver.guest.put(DATA + 100 * u64::from(head), &whole);
        let buffer = (GUEST + DATA + 100 * u64::from(head), 22);
        driver.offer(head.into(), &[buffer], 0);
    }
    for _ in 0..3 {
        assert_eq!(taken(&mut queue), (6, header(), frame(10, 6)));
        queue.put_back(6);
    }
    assert_eq!(taken(&mut queue).0, 6);
    for _ in 0..3 {
        assert_eq!(taken(&mut queue), (2, header(), frame(10, 2)));
        queue.put_back(2);
    }
    queue.done(6);
    assert_eq!(taken(&mut queue).0, 2);
    queue.done(2);
    queue.publish();
    assert_eq!(driver.used(), [(6, 0), (2, 0)]);
    assert_eq!(queue.into_ring().next_avail(), 2);
}

#[test]
fn frames_are_given_back_in_any_order() {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for order in orders {
        let mut driver = Driver::new(8);
        for head in 0..3 {
            driver.offer(head, &[(GUEST + DATA, 20)], 0);
        }
        let mut queue = driver.tx(rules());
        for head in 0..3 {
            assert_eq!(taken(&mut queue).0, head);
        }
        for head in order {
            queue.done(head);
        }
        queue.publish();
        assert_eq!(driver.used(), order.map(|head| (head, 0)));
        driver.offer_head(1);
        assert_eq!(taken(&mut queue).0, 1, "the driver may use it again");
    }
}

#[test]
fn frames_seen_before_another_map_are_looked_for_in_that() {
    let mut driver = Driver::new(8);
    let other = Guest::new(8);
    let (here, there) = (frame(30, 3), frame(30, 4));
    for head in 0..3 {
        driver.offer(head, &[(GUEST + DATA, 42)], 0);
    }
    driver.guest.put(DATA, &with_header(&here));
    other.put(0, &driver.memory());
    other.put(DATA, &with_header(&there));
    let mut queue = driver.tx(rules());
    assert_eq!(taken(&mut queue).2, here);
    assert!(queue.ring_mut().set_map(other.map.clone()));
    assert_eq!(taken(&mut queue).2, there);

    let mut driver = Driver::new(8);
    for head in 0..3 {
        driver.offer(head, &[(GUEST + DATA + 100 * u64::from(head), 100)], WRITE);
    }
    let mut queue = driver.rx(rules());
    assert_eq!(put(&mut queue, &frame(60, 1)), Put::Done);
    let before = driver.memory();
    assert!(queue.ring_mut().set_map(other.map.clone()));
    other.put(0, &before);
    assert_eq!(put(&mut queue, &frame(60, 2)), Put::Done);
    assert!(driver.memory() == before, "not its memory any more");
}

#[test]
fn a_frame_in_hand_keeps_its_memory() {
    let mut driver = Driver::new(8);
    let sent = frame(30, 3);
    let buffers = scattered(&driver, &with_header(&sent), &[]);
    driver.offer(0, &buffers, 0);
    let mut queue = driver.tx(rules());
    let mut bytes = Segments::new();
    assert!(matches!(
        queue.take(&mut Taken::default(), &mut bytes),
        Fetched::Frame
    ));
    let other = Guest::new(8);
    assert!(queue.ring_mut().set_map(other.map.clone()));
    assert_eq!(Arc::strong_count(&driver.guest.map), 2);
    assert_eq!(contents(&bytes), sent);
    queue.done(0);
    assert_eq!(Arc::strong_count(&driver.guest.map), 1, "no longer");
}

/// Puts `sent`; the guest's view of the buffers that were offered.
fn put(queue: &mut RxVring, sent: &[u8]) -> Put {
    let put = queue.put(Some(&header()), &Bytes::Own(sent), sent.len());
    queue.publish();
    put
}

/// What a guest finds before a frame in `count` buffers.
fn header_of(count: u16) -> Header {
    Header {
        num_buffers: count,
        ..header()
    }
}

#[test]
fn a_frame_goes_into_one_buffer() {
    for rules in [rules(), not_mergeable()] {
        for len in [0, 1, 60, 188] {
            let mut driver = Driver::new(8);
            let sent = frame(len, 9);
            driver.offer(4, &[(GUEST + DATA, 200)], WRITE);
            let mut queue = driver.rx(rules);
            assert_eq!(put(&mut queue, &sent), Put::Done);
            assert_eq!(driver.used(), [(4, 12 + u32::try_from(len).unwrap())]);
            let whole = [&header_of(1).to_bytes()[..], &sent].concat();
            assert_eq!(driver.bytes(DATA, 12 + len), whole);
            let rest = driver.bytes(DATA + whole.len() as u64, 200);
            assert!(rest.iter().all(|&byte| byte == 0), "nothing behind it");
            assert_eq!(put(&mut queue, &sent), Put::NoRoom);
        }
    }
}

#[test]
fn a_frame_goes_over_several_buffers() {
    // What each buffer holds, what the frame has, and how much of each is used.
    let cases: [(&[u32], usize, &[u32]); 6] = [
        (&[20, 30, 40], 78, &[20, 30, 40]),
        (&[20, 30, 40], 77, &[20, 30, 39]),
        (&[20, 30, 40], 39, &[20, 30, 1]),
        (&[20, 30, 40], 38, &[20, 30]),
        (&[12, 1, 1, 1], 3, &[12, 1, 1, 1]),
        (&[12, 500], 60, &[12, 60]),
    ];
    for (sizes, len, used) in cases {
        let mut driver = Driver::new(8);
        let sent = frame(len, 11);
        let place = |at: u16| DATA + 1000 * u64::from(at);
        for (at, &size) in (0..).zip(sizes) {
            driver.offer(7 - at, &[(GUEST + place(at), size)], WRITE);
        }
        let mut queue = driver.rx(rules());
        assert_eq!(put(&mut queue, &sent), Put::Done);
        let expected: Vec<_> = (0..8).rev().zip(used.iter().copied()).collect();
        assert_eq!(driver.used(), expected);
        let total: u32 = used.iter().sum();
        assert_eq!(usize::try_from(total).unwrap(), 12 + len);
        let filled: Vec<_> = (0..)
            .zip(used)
            .map(|(at, &n)| (GUEST + place(at), n))
            .collect();
        let count = u16::try_from(used.len()).unwrap();
        let whole = [&header_of(count).to_bytes()[..], &sent].concat();
        assert_eq!(gathered(&driver, &filled), whole, "{sizes:?} {len}");
        assert_eq!(queue.into_ring().next_avail(), count);
    }
}

#[test]
fn a_header_is_written_across_any_cut_of_the_first_chain() {
    let sent = frame(30, 13);
    for first in 0..=20 {
        for second in first..=20 {
            let mut driver = Driver::new(8);
            let chain = scattered(&driver, &[0; 20], &[first, second]);
            driver.offer(0, &chain, WRITE);
            let other = (GUEST + DATA + 1000, 22);
            driver.offer(5, &[other], WRITE);
            let mut queue = driver.rx(rules());
            assert_eq!(put(&mut queue, &sent), Put::Done);
            let whole = [&header_of(2).to_bytes()[..], &sent].concat();
            let found = gathered(&driver, &[&chain[..], &[other]].concat());
            assert_eq!(found, whole, "{first} {second}");
            assert_eq!(driver.used(), [(0, 20), (5, 22)]);
        }
    }
}

#[test]
fn without_room_for_all_of_it_a_frame_takes_nothing() {
    let mut driver = Driver::new(8);
    let mut queue = driver.rx(rules());
    let sent = frame(60, 17);
    assert_eq!(put(&mut queue, &sent), Put::NoRoom);
    driver.offer(3, &[(GUEST + DATA, 30)], WRITE);
    driver.offer(1, &[(GUEST + DATA + 100, 30)], WRITE);
    for _ in 0..10 {
        assert_eq!(put(&mut queue, &sent), Put::NoRoom);
        assert_eq!(queue.ring_mut().next_avail(), 0);
    }
    assert_eq!(driver.used(), []);
    assert!(queue.has_work());
    let short = frame(18, 19);
    assert_eq!(put(&mut queue, &short), Put::Done, "a shorter one fits");
    assert_eq!(put(&mut queue, &sent), Put::NoRoom);
    driver.offer(5, &[(GUEST + DATA + 200, 100)], WRITE);
    assert_eq!(put(&mut queue, &sent), Put::Done);
    assert_eq!(driver.used(), [(3, 30), (1, 30), (5, 42)]);
    let found = [
        driver.bytes(DATA, 30),
        driver.bytes(DATA + 100, 30),
        driver.bytes(DATA + 200, 42),
    ];
    let first = [&header_of(1).to_bytes()[..], &short].concat();
    let second = [&header_of(2).to_bytes()[..], &sent].concat();
    assert_eq!(found.concat(), [first, second].concat());
}

#[test]
fn buffers_are_put_back_where_the_index_wraps() {
    let driver = Driver::new(4);
    let mut driver = Driver {
        offered: 65_535,
        ..driver
    };
    driver.guest.put(AVAIL + 2, &65_535u16.to_le_bytes());
    let setup = RingSetup {
        next_avail: 65_535,
        ..driver.setup()
    };
    let mut queue = RxVring::new("rx".into(), Vring::new(setup).unwrap(), rules());
    driver.offer(2, &[(GUEST + DATA, 20)], WRITE);
    driver.offer(0, &[(GUEST + DATA + 100, 20)], WRITE);
    assert_eq!(put(&mut queue, &frame(50, 0)), Put::NoRoom);
    assert_eq!(queue.ring_mut().next_avail(), 65_535);
    assert_eq!(put(&mut queue, &frame(28, 0)), Put::Done);
    assert_eq!(queue.ring_mut().next_avail(), 1);
    assert_eq!(driver.used(), [(2, 20), (0, 20)]);
}

#[test]
fn a_frame_too_large_for_its_one_buffer_takes_nothing() {
    let mut driver = Driver::new(8);
    driver.offer(2, &[(GUEST + DATA, 50)], WRITE);
    driver.offer(4, &[(GUEST + DATA + 100, 500)], WRITE);
    let mut queue = driver.rx(not_mergeable());
    for _ in 0..10 {
        assert_eq!(put(&mut queue, &frame(39, 1)), Put::TooLarge);
    }
    assert_eq!((driver.used(), queue.ring_mut().next_avail()), (vec![], 0));
    assert_eq!(put(&mut queue, &frame(38, 1)), Put::Done);
    assert_eq!(driver.used(), [(2, 50)]);
    assert!(!driver.was_told_of_a_break());
}

#[test]
fn buffers_to_receive_into_that_are_none_break_the_queue() {
    let far = GUEST + LEN;
    let mut bad: Vec<(Vec<(u64, u32)>, u16)> = (0..12)
        .map(|len| (vec![(GUEST + DATA, len)], WRITE))
        .collect();
    bad.push((vec![(GUEST + DATA, 0), (GUEST + DATA, 0)], WRITE));
    bad.push((vec![(GUEST + DATA, 100)], 0));
    bad.push((vec![(far, 100)], WRITE));
    bad.push((vec![(far - 50, 100)], WRITE));
    bad.push((vec![(GUEST + DATA, 100), (far - 1, 2)], WRITE));
    bad.push((vec![(GUEST + DATA, 100), (0, 2)], WRITE));
    bad.push((vec![(u64::MAX - 10, u32::MAX)], WRITE));
    bad.push((vec![(u64::MAX, u32::MAX), (u64::MAX, u32::MAX)], WRITE));
    for (buffers, flags) in &bad {
        for rules in [rules(), not_mergeable()] {
            let mut driver = Driver::new(8);
            driver.offer(0, buffers, *flags);
            driver.offer(4, &[(GUEST + DATA, 100)], WRITE);
            let mut queue = driver.rx(rules);
            let before = driver.memory();
            let got = put(&mut queue, &frame(60, 5));
            assert_eq!(got, Put::Broken, "{buffers:x?}");
            assert!(driver.was_told_of_a_break());
            assert_eq!(put(&mut queue, &frame(60, 5)), Put::Broken);
            assert!(!queue.has_work() && !queue.arm());
            assert_eq!(driver.used(), []);
            // Kicks were asked for, which is what nothing but zeroes looks like.
            assert!(driver.memory() == before, "nothing was written");
        }
    }
    // The second buffer of a frame.
    for (buffers, flags) in bad
        .iter()
        .filter(|bad| bad.0[0].1 == 0 || bad.0.len() > 1 || bad.0[0].1 > 12)
    {
        let mut driver = Driver::new(8);
        driver.offer(7, &[(GUEST + DATA, 40)], WRITE);
        driver.offer(0, buffers, *flags);
        let mut queue = driver.rx(rules());
        assert_eq!(put(&mut queue, &frame(60, 5)), Put::Broken);
        assert_eq!(driver.used(), [], "{buffers:x?}");
    }
}

#[test]
fn one_buffer_twice_for_one_frame_breaks_the_queue() {
    let mut driver = Driver::new(8);
    driver.offer(1, &[(GUEST + DATA, 40)], WRITE);
    driver.offer_head(1);
    let mut queue = driver.rx(rules());
    assert_eq!(put(&mut queue, &frame(60, 0)), Put::Broken);
    assert!(driver.was_told_of_a_break());
    assert_eq!(driver.used(), []);
    // For two frames it is the guest's own affair: the first is over by then.
    let mut driver = Driver::new(8);
    let mut queue = driver.rx(rules());
    driver.offer(1, &[(GUEST + DATA, 40)], WRITE);
    assert_eq!(put(&mut queue, &frame(20, 0)), Put::Done);
    driver.offer_head(1);
    assert_eq!(put(&mut queue, &frame(28, 0)), Put::Done);
    assert_eq!(driver.used(), [(1, 32), (1, 40)]);
}

/// A dirty log of the whole guest, and its file.
fn log() -> (std::fs::File, Arc<DirtyLog>) {
    let file = tempfile::tempfile().unwrap();
    let bytes = (GUEST + LEN).div_ceil(8 * LOG_PAGE_BYTES);
    file.set_len(bytes).unwrap();
    let log = DirtyLog::new(file.try_clone().unwrap(), 0, bytes).unwrap();
    (file, Arc::new(log))
}

fn settings(log: Option<Arc<DirtyLog>>) -> LogSettings {
    LogSettings {
        all: true,
        log,
        used_guest: Some(GUEST + USED),
    }
}

/// Pages of the guest's memory that the log has marked.
fn marked(file: &std::fs::File) -> Vec<u64> {
    (0..LEN / LOG_PAGE_BYTES)
        .filter(|page| {
            let page = GUEST / LOG_PAGE_BYTES + page;
            let mut byte = [0];
            file.read_exact_at(&mut byte, page / 8).unwrap();
            byte[0] & (1 << (page % 8)) != 0
        })
        .collect()
}

/// Pages that differ.
fn changed(before: &[u8], after: &[u8]) -> Vec<u64> {
    let size = usize::try_from(LOG_PAGE_BYTES).unwrap();
    let pages = before.chunks(size).zip(after.chunks(size));
    (0..)
        .zip(pages)
        .filter_map(|(page, (before, after))| (before != after).then_some(page))
        .collect()
}

#[test]
fn every_page_written_is_marked() {
    let page = |at: u64| GUEST + at * LOG_PAGE_BYTES;
    let mut driver = Driver::new(8);
    // The header across pages 6 and 7; the second buffer in 9 and 11; a third in 13 is not reached.
    driver.offer(0, &[(page(7) - 5, 20)], WRITE);
    driver.offer(2, &[(page(9), 30), (page(11), 40)], WRITE);
    driver.offer(5, &[(page(13), 100)], WRITE);
    let mut queue = driver.rx(rules());
    let (file, log) = log();
    queue.ring_mut().set_log(settings(Some(log)));
    let before = driver.memory();
    assert_eq!(put(&mut queue, &frame(8 + 60, 1)), Put::Done);
    let used = USED / LOG_PAGE_BYTES;
    assert_eq!(changed(&before, &driver.memory()), [used, 6, 7, 9, 11]);
    assert_eq!(marked(&file), [used, 6, 7, 9, 11]);
}

/// The guest does not look at what is in buffers that were put back, but a migration owes it the same
/// bytes on the other side.
#[test]
fn what_a_frame_that_found_no_room_left_behind_is_marked() {
    let page = |at: u64| GUEST + at * LOG_PAGE_BYTES;
    for (rules, got) in [(rules(), Put::NoRoom), (not_mergeable(), Put::TooLarge)] {
        let mut driver = Driver::new(8);
        driver.offer(0, &[(page(7), 20)], WRITE);
        driver.offer(2, &[(page(9), 30)], WRITE);
        let mut queue = driver.rx(rules);
        let (file, log) = log();
        queue.ring_mut().set_log(settings(Some(log)));
        let before = driver.memory();
        assert_eq!(put(&mut queue, &frame(500, 1)), got);
        let marked = marked(&file);
        for page in changed(&before, &driver.memory()) {
            assert!(marked.contains(&page), "{page} {got:?}");
        }
    }
}

#[test]
fn nothing_is_written_while_the_log_is_missing() {
    let mut driver = Driver::new(8);
    driver.offer(0, &[(GUEST + DATA, 100)], WRITE);
    let mut queue = driver.rx(rules());
    queue.ring_mut().set_log(settings(None));
    let before = driver.memory();
    assert_eq!(put(&mut queue, &frame(60, 1)), Put::NoRoom);
    queue.disarm();
    queue.arm();
    assert!(!queue.may_complete());
    assert!(driver.memory() == before);
    let (file, log) = log();
    queue.ring_mut().set_log(settings(Some(log)));
    assert_eq!(put(&mut queue, &frame(60, 1)), Put::Done);
    assert_eq!(driver.used(), [(0, 72)]);
    assert!(marked(&file).contains(&(DATA / LOG_PAGE_BYTES)));
}

#[test]
fn frames_done_while_the_log_is_missing_are_given_back_later() {
    let mut driver = Driver::new(8);
    for head in 0..3 {
        driver.offer(head, &[(GUEST + DATA, 20)], 0);
    }
    let mut queue = driver.tx(rules());
    assert_eq!((taken(&mut queue).0, taken(&mut queue).0), (0, 1));
    queue.done(1);
    queue.ring_mut().set_log(settings(None));
    let before = driver.memory();
    assert!(matches!(take(&mut queue), Fetched::Empty));
    queue.done(0);
    queue.publish();
    assert!(driver.memory() == before);
    let (file, log) = log();
    queue.ring_mut().set_log(settings(Some(log)));
    assert_eq!(taken(&mut queue).0, 2);
    assert_eq!(driver.used(), [(1, 0), (0, 0)], "shown at the next look");
    assert_eq!(marked(&file), [USED / LOG_PAGE_BYTES]);
}

#[test]
fn frames_done_while_the_ring_is_not_mapped_are_given_back_later() {
    let mut driver = Driver::new(8);
    driver.offer(0, &[(GUEST + DATA, 20)], 0);
    let mut queue = driver.tx(rules());
    assert_eq!(taken(&mut queue).0, 0);
    assert!(!queue.ring_mut().set_map(Arc::default()));
    queue.done(0);
    queue.publish();
    assert!(queue.ring_mut().set_map(driver.guest.map.clone()));
    queue.publish();
    assert_eq!(driver.used(), [(0, 0)]);
}

/// The ring of a guest whose buffers hold a byte each, but for some headers, as many as a ring may have.
fn tiny_buffers() -> Vring {
    let (size, avail, used, data) = (RING_SIZE_MAX, 1 << 20, 2 << 20, 3 << 20);
    let file = tempfile::tempfile().unwrap();
    let spec = RegionSpec {
        guest_start: GUEST,
        len: 4 << 20,
        user_start: GUEST,
        file_offset: 0,
    };
    file.set_len(spec.len).unwrap();
    let mut table = Vec::new();
    let mut heads = Vec::new();
    for head in 0..size {
        let is_first = usize::from(head).is_multiple_of(HEADS_MAX);
        let len: u32 = if is_first { 12 } else { 1 };
        table.extend((GUEST + data).to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend(WRITE.to_le_bytes());
        table.extend([0; 2]);
        heads.extend(head.to_le_bytes());
    }
    file.write_all_at(&table, 0).unwrap();
    file.write_all_at(&size.to_le_bytes(), avail + 2).unwrap();
    file.write_all_at(&heads, avail + 4).unwrap();
    let setup = RingSetup {
        size,
        address: RingAddress {
            desc: GUEST,
            avail: GUEST + avail,
            used: GUEST + used,
        },
        map: Arc::new(MemoryMap::new(vec![(spec, file)]).unwrap()),
        ..Guest::new(8).setup()
    };
    Vring::new(setup).unwrap()
}

/// Other guests wait meanwhile, so a frame is not spread over more than any driver needs. The next one that
/// fits is given: the guest has done nothing wrong.
#[test]
fn a_ring_full_of_tiny_buffers_is_not_walked_through() {
    let fits = frame(HEADS_MAX - 1, 0);
    let mut queue = RxVring::new("rx".into(), tiny_buffers(), rules());
    assert_eq!(put(&mut queue, &fits), Put::Done);
    assert_eq!(put(&mut queue, &frame(64 << 10, 0)), Put::TooLarge);
    assert_eq!(put(&mut queue, &fits), Put::Done);
    assert_eq!(usize::from(queue.into_ring().used_index()), 2 * HEADS_MAX);
}

fn sizes(most: u32) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![1u32..8, 1..most], 1..30)
}

proptest! {
    /// From one guest to another, whatever the cuts on either side: chains of a few buffers each.
    #[test]
    fn any_cut_of_source_and_target_carries_the_bytes(
        source in sizes(400),
        target in prop::collection::vec(prop::collection::vec(1u32..300, 1..4), 1..12),
        indirect in any::<bool>(),
        legacy_source in any::<bool>(),
    ) {
        let len = usize::try_from(source.iter().sum::<u32>()).unwrap();
        let sent = frame(len, 77);
        let from_rules = if legacy_source { legacy() } else { rules() };
        let whole = [&header().to_bytes()[..from_rules.header_bytes], &sent].concat();
        let mut at = 0;
        let cuts: Vec<usize> = source
            .iter()
            .map(|&size| { at += usize::try_from(size).unwrap(); at })
            .collect();
        let mut from = Driver::new(64);
        let pieces = scattered(&from, &whole, &cuts);
        if indirect {
            from.lay(TABLE, 0, &pieces, 0);
            let bytes = u32::try_from(16 * pieces.len()).unwrap();
            from.offer(1, &[(GUEST + TABLE, bytes)], INDIRECT);
        } else {
            from.offer(1, &pieces, 0);
        }
        let mut tx = from.tx(from_rules);
        let mut bytes = Segments::new();
        let mut taken = Taken::default();
        prop_assert_eq!(tx.take(&mut taken, &mut bytes), Fetched::Frame);
        prop_assert_eq!(taken.len, len);

        let mut to = Driver::new(64);
        let mut rx = to.rx(rules());
        let mut place = DATA;
        let mut head = 0;
        let mut chains = Vec::new();
        for (at, sizes) in (0..).zip(&target) {
            let mut chain = Vec::new();
            for &size in sizes {
                let size = if at == 0 && chain.is_empty() { size.max(12) } else { size };
                chain.push((GUEST + place, size));
                place += u64::from(size) + 1;
            }
            to.offer(head, &chain, WRITE);
            chains.push((u32::from(head), chain));
            head += u16::try_from(sizes.len()).unwrap();
        }
        let room: u32 = chains.iter().flat_map(|(_, chain)| chain).map(|&(_, size)| size).sum();
        let put = rx.put(taken.header.as_ref(), &Bytes::Guest { head: &[], all: &bytes }, taken.len);
        rx.publish();
        if usize::try_from(room).unwrap() < 12 + len {
            prop_assert_eq!(put, Put::NoRoom);
            prop_assert_eq!(to.used(), vec![]);
            prop_assert_eq!(rx.into_ring().next_avail(), 0);
            return Ok(());
        }
        prop_assert_eq!(put, Put::Done);
        let used = to.used();
        let mut found = Vec::new();
        for (&(head, written), (offered, chain)) in used.iter().zip(&chains) {
            prop_assert_eq!(head, *offered);
            let bytes = gathered(&to, chain);
            let written = usize::try_from(written).unwrap();
            prop_assert!(0 < written && written <= bytes.len());
            found.extend_from_slice(&bytes[..written]);
        }
        let got = Header {
            num_buffers: u16::try_from(used.len()).unwrap(),
            ..taken.header.unwrap_or_default()
        };
        prop_assert_eq!(found, [&got.to_bytes()[..], &sent].concat());
    }
}
