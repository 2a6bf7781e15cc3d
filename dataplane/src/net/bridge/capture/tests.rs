use crossbeam_channel::{Receiver, unbounded};

use super::*;

const MS: u64 = 1_000_000;
const LARGE: usize = 60_000;

/// A frame to one station, or to a group, that says `n`.
fn frame(group: bool, n: u8) -> Arc<[u8]> {
    [if group { 0xff } else { 2 }, 0, 0, n].into()
}

fn keep(capture: &mut Capture, running: bool, group: bool, n: u8) -> Kept {
    capture.keep(running, 0, (Header::default(), 0), frame(group, n))
}

fn from_source(capture: &mut Capture, group: bool, n: u8) {
    let frame = Captured {
        seq: 99,
        header: Header::default(),
        ether_type: 0,
        bytes: frame(group, n),
    };
    assert!(capture.deliver(frame, 0));
}

/// What the guest is given now.
fn given(capture: &mut Capture) -> Vec<u8> {
    std::iter::from_fn(|| {
        let n = capture.first().map(|it| it.bytes[3]);
        capture.given();
        n
    })
    .collect()
}

fn teller() -> (Teller, Receiver<NicEvent>) {
    let (to, told) = unbounded();
    (Teller { to, port: 3 }, told)
}

fn told(from: &Receiver<NicEvent>) -> Vec<Option<u8>> {
    let number = |event| match event {
        NicEvent::Told(3, Told::Frame(frame)) => Some(frame.bytes[3]),
        NicEvent::Told(3, Told::Resumed) => None,
        other => panic!("{other:?}"),
    };
    from.try_iter().map(number).collect()
}

fn stopped() -> Capture {
    let mut capture = Capture::default();
    capture.resumed(0);
    capture
}

#[test]
fn frames_for_a_guest_that_stands_still_are_kept_for_it() {
    let mut capture = Capture::default();
    assert_eq!(keep(&mut capture, false, false, 1), Kept::NoLink);
    capture.resumed(0);
    assert!(capture.is_direct());
    assert_eq!(keep(&mut capture, false, false, 2), Kept::Yes);
    // Behind it, though its queues run.
    assert!(!capture.is_direct());
    assert_eq!(keep(&mut capture, true, false, 3), Kept::Yes);
    assert_eq!(given(&mut capture), [2, 3]);
    assert!(capture.is_direct());
}

#[test]
fn a_nic_that_leaves_tells_all_and_keeps_all() {
    let mut capture = stopped();
    keep(&mut capture, false, false, 1);
    let (to, told_there) = teller();
    capture.leave(false, to, 0);
    keep(&mut capture, false, true, 2);
    assert_eq!(told(&told_there), [Some(1), Some(2)]);
    assert_eq!(capture.in_hand().len(), 2);
    // Cancelled: its guest has them here, first.
    capture.resumed(0);
    assert_eq!(told(&told_there), [None]);
    keep(&mut capture, true, false, 3);
    assert_eq!(given(&mut capture), [1, 2, 3]);
    assert_eq!(told(&told_there), [], "what its guest has is not passed on");
    keep(&mut capture, false, false, 4);
    assert_eq!(told(&told_there), [Some(4)]);
}

#[test]
fn what_nobody_hears_is_told_again_with_its_numbers() {
    let mut capture = stopped();
    let (to, told_there) = teller();
    capture.leave(false, to, 0);
    keep(&mut capture, false, false, 1);
    drop(told_there);
    for n in 2..5 {
        assert_eq!(keep(&mut capture, false, false, n), Kept::Yes);
    }
    let (to, told_there) = teller();
    capture.leave(false, to, 0);
    assert_eq!(told(&told_there), [1, 2, 3, 4].map(Some));
    let numbers: Vec<u64> = capture.in_hand().iter().map(|it| it.seq).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
}

#[test]
fn of_a_nic_that_is_gone_frames_are_only_passed_on() {
    let mut capture = stopped();
    let (to, told_there) = teller();
    capture.leave(false, to, 0);
    keep(&mut capture, false, false, 1);
    capture.gone();
    assert!(capture.is_empty());
    assert_eq!(keep(&mut capture, false, false, 2), Kept::Yes);
    assert_eq!(keep(&mut capture, false, true, 3), Kept::Elsewhere);
    assert_eq!(told(&told_there), [Some(1), Some(2)]);
    capture.stay();
    assert_eq!(keep(&mut capture, false, false, 4), Kept::NoLink);
    assert!(told_there.recv().is_err(), "nobody tells any more");
}

/// What waits for a guest that runs is told only when it stops, and only what it did not get till then.
#[test]
fn what_its_guest_may_still_have_here_is_not_passed_on() {
    let mut capture = stopped();
    for n in 1..=3 {
        keep(&mut capture, false, false, n);
    }
    capture.resumed(0);
    let (to, told_there) = teller();
    capture.leave(true, to, 0);
    keep(&mut capture, true, false, 4);
    capture.given();
    assert_eq!(told(&told_there), []);
    capture.stopped();
    keep(&mut capture, false, false, 5);
    assert_eq!(told(&told_there), [2, 3, 4, 5].map(Some));
    // It goes on here after all, and stops again.
    capture.resumed(0);
    capture.given();
    capture.stopped();
    assert_eq!(told(&told_there), [None, Some(3), Some(4), Some(5)]);
}

/// The next move begins while stragglers of the last are still passed on.
#[test]
fn the_end_of_one_move_does_not_end_the_next() {
    let mut capture = stopped();
    let (to, _told) = teller();
    capture.leave(false, to, 0);
    capture.gone();
    capture.arrive();
    capture.stay();
    from_source(&mut capture, false, 1);
    capture.resumed(0);
    keep(&mut capture, true, false, 2);
    assert_eq!(given(&mut capture), [1]);
    capture.settle(0);
    assert_eq!(given(&mut capture), [2]);
}

#[test]
fn what_the_source_passes_on_is_first() {
    let mut capture = Capture::default();
    capture.arrive();
    // The source has it too.
    assert_eq!(keep(&mut capture, false, false, 9), Kept::Elsewhere);
    from_source(&mut capture, false, 1);
    capture.resumed(0);
    assert_eq!(given(&mut capture), [1]);
    keep(&mut capture, true, false, 5);
    keep(&mut capture, true, false, 6);
    from_source(&mut capture, false, 2);
    assert_eq!(given(&mut capture), [2]);
    from_source(&mut capture, false, 3);
    assert!(capture.settle(0));
    assert_eq!(given(&mut capture), [3, 5, 6]);
    assert!(capture.is_direct());
    // A straggler.
    from_source(&mut capture, false, 4);
    assert_eq!(given(&mut capture), [4]);
}

#[test]
fn a_frame_to_a_group_that_comes_both_ways_is_given_once() {
    let mut capture = Capture::default();
    capture.arrive();
    capture.resumed(0);
    // First here, then from the source.
    keep(&mut capture, true, true, 1);
    from_source(&mut capture, true, 1);
    // The other way round, and only once.
    from_source(&mut capture, true, 2);
    keep(&mut capture, true, true, 2);
    keep(&mut capture, true, true, 2);
    // Another that says the same, later.
    from_source(&mut capture, true, 3);
    let late = capture.keep(true, 60 * MS, (Header::default(), 0), frame(true, 3));
    assert_eq!(late, Kept::Yes);
    capture.settle(0);
    assert_eq!(given(&mut capture), [1, 2, 3, 2, 3]);
}

/// By a hub, for instance, while the guest begins and as long as stragglers come.
#[test]
fn a_frame_to_one_station_that_comes_both_ways_is_given_once() {
    let mut capture = Capture::default();
    capture.arrive();
    capture.resumed(0);
    keep(&mut capture, true, false, 1);
    from_source(&mut capture, false, 1);
    from_source(&mut capture, false, 2);
    keep(&mut capture, true, false, 2);
    // Two by the same way are two.
    from_source(&mut capture, false, 3);
    from_source(&mut capture, false, 3);
    keep(&mut capture, true, false, 4);
    keep(&mut capture, true, false, 4);
    capture.settle(0);
    assert_eq!(given(&mut capture), [1, 2, 3, 3, 4, 4]);
    // Stragglers: of what was given when it came here, and of what comes here next.
    assert!(capture.is_direct());
    assert!(!capture.has_come(0, &frame(false, 5)));
    from_source(&mut capture, false, 5);
    from_source(&mut capture, false, 6);
    assert!(capture.has_come(0, &frame(false, 6)));
    assert!(!capture.has_come(0, &frame(false, 6)));
    from_source(&mut capture, false, 4);
    from_source(&mut capture, false, 4);
    from_source(&mut capture, false, 4);
    assert_eq!(given(&mut capture), [6, 4]);
    // Another that says the same, later; and nobody minds when the source has ended.
    assert!(!capture.has_come(0, &frame(false, 7)));
    let late = Captured {
        seq: 99,
        header: Header::default(),
        ether_type: 0,
        bytes: frame(false, 7),
    };
    assert!(capture.deliver(late, 60 * MS));
    assert_eq!(given(&mut capture), [7]);
    assert!(!capture.minds_twins(6000 * MS));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut capture = stopped();
    for _ in 0..CAPTURE_FRAMES {
        assert_eq!(keep(&mut capture, false, false, 1), Kept::Yes);
    }
    assert_eq!(keep(&mut capture, false, false, 1), Kept::Full);
    let (to, _told) = teller();
    capture.leave(false, to, 0);
    for _ in CAPTURE_FRAMES..MOVE_CAPTURE_FRAMES {
        assert_eq!(keep(&mut capture, false, false, 1), Kept::Yes);
    }
    assert_eq!(keep(&mut capture, false, false, 1), Kept::Full);
    // And there is as much room while it catches up, and no longer.
    capture.resumed(0);
    capture.given();
    assert_eq!(keep(&mut capture, true, false, 1), Kept::Yes);
    capture.given();
    let later = 1000 * MS;
    let late = capture.keep(true, later, (Header::default(), 0), frame(false, 1));
    assert_eq!(late, Kept::Full);
    let mut capture = stopped();
    let large: Arc<[u8]> = vec![0; 60_000].into();
    let kept = (0..CAPTURE_FRAMES)
        .take_while(|_| capture.keep(false, 0, (Header::default(), 0), large.clone()) == Kept::Yes)
        .count();
    assert_eq!(kept, CAPTURE_BYTES / 60_000);
}

/// A blackout leaves more than a guest's ring has room for, and frames come all the while.
#[test]
fn nothing_is_lost_behind_what_a_blackout_left() {
    let mut capture = stopped();
    let (to, _told) = teller();
    capture.leave(false, to, 0);
    for _ in 0..CAPTURE_FRAMES + 1000 {
        assert_eq!(keep(&mut capture, false, false, 1), Kept::Yes);
    }
    capture.stay();
    capture.resumed(0);
    assert_eq!(keep(&mut capture, true, false, 2), Kept::Yes);
}

#[test]
fn stragglers_are_bounded() {
    let mut capture = stopped();
    let (to, _told) = teller();
    capture.leave(false, to, 0);
    capture.gone();
    let large: Arc<[u8]> = vec![0; LARGE].into();
    let passed_on = (0..MOVE_CAPTURE_FRAMES)
        .take_while(|_| capture.keep(false, 0, (Header::default(), 0), large.clone()) == Kept::Yes)
        .count();
    assert_eq!(passed_on, MOVE_CAPTURE_BYTES / LARGE);
}

/// A NIC that has just come leaves again: what came here is its guest's.
#[test]
fn one_that_leaves_again_at_once_loses_nothing() {
    let mut capture = Capture::default();
    capture.arrive();
    capture.resumed(0);
    from_source(&mut capture, false, 1);
    keep(&mut capture, true, false, 2);
    let (to, told_there) = teller();
    capture.leave(true, to, 0);
    capture.stopped();
    assert_eq!(told(&told_there), [1, 2].map(Some));
    capture.gone();
    // Gone is gone, also for one that arrives.
    capture.arrive();
    capture.gone();
    capture.resumed(0);
    assert!(!capture.is_direct());
}

/// From A by B to C, within the time that A still passes frames on.
#[test]
fn stragglers_follow_to_a_third_host() {
    let mut capture = stopped();
    let (to, told_there) = teller();
    capture.leave(false, to, 0);
    from_source(&mut capture, false, 1);
    capture.gone();
    from_source(&mut capture, false, 2);
    assert_eq!(told(&told_there), [1, 2].map(Some));
    assert!(capture.is_empty());
}
