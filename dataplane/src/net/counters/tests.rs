use super::*;

#[test]
fn each_count_has_a_place_of_its_own() {
    let counters = PortCounters::default();
    counters.received(1, 100);
    counters.sent(2, 300);
    let causes = [
        (Cause::NoBuffers, 3),
        (Cause::Spoofed, 4),
        (Cause::Malformed, 5),
        (Cause::Limited, 6),
        (Cause::TooLarge, 7),
        (Cause::NoLink, 8),
        (Cause::Filtered, 10),
    ];
    for (cause, frames) in causes {
        counters.dropped(cause, frames);
    }
    counters.capture_lost(9);
    counters.queue_broke();
    let expected = PortTotals {
        rx_frames: 1,
        rx_bytes: 100,
        tx_frames: 2,
        tx_bytes: 300,
        no_buffers: 3,
        spoofed: 4,
        malformed: 5,
        limited: 6,
        too_large: 7,
        no_link: 8,
        filtered: 10,
        capture_lost: 9,
        broken_queues: 1,
    };
    assert_eq!(counters.totals(), expected);
}

#[test]
fn sets_add_up() {
    let (one, other) = (PortCounters::default(), PortCounters::default());
    one.received(1, 60);
    other.received(2, 3000);
    other.dropped(Cause::Limited, 1);
    let mut totals = PortTotals::default();
    one.add_to(&mut totals);
    other.add_to(&mut totals);
    assert_eq!((totals.rx_frames, totals.rx_bytes), (3, 3060));
    assert_eq!(totals.limited, 1);
}

#[test]
fn a_guests_error_has_its_cause() {
    assert_eq!(Cause::from(FrameError::TooLong), Cause::TooLarge);
    assert_eq!(Cause::from(FrameError::GsoSize), Cause::Malformed);
}
