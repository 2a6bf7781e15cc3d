use super::*;
use proptest::prelude::*;

const SECOND_NS: u64 = 1_000_000_000;

fn limit(packets_per_s: Option<u64>, bits_per_s: Option<u64>) -> RateLimit {
    RateLimit {
        packets_per_s,
        bits_per_s,
    }
}

/// Frames that pass from `from_ns` on within a second, one offered every `gap_ns`.
fn passed(bucket: &mut Bucket, frame_bytes: usize, from_ns: u64, gap_ns: u64) -> u64 {
    let times = (from_ns..from_ns + SECOND_NS).step_by(usize::try_from(gap_ns).unwrap());
    times
        .map(|now_ns| u64::from(bucket.admit(frame_bytes, now_ns)))
        .sum()
}

fn near(measured: u64, rate: u64) -> bool {
    measured.abs_diff(rate) * 200 <= rate
}

#[test]
fn without_a_limit_all_pass() {
    let mut bucket = Bucket::new(RateLimit::default(), 5);
    assert_eq!(passed(&mut bucket, 65_550, 5, 1_000_000), 1000);
}

#[test]
fn a_limit_of_nothing_lets_nothing_pass() {
    for nothing in [limit(Some(0), None), limit(None, Some(0))] {
        let mut bucket = Bucket::new(nothing, 0);
        assert!(!bucket.admit(60, SECOND_NS));
        assert_eq!(bucket.next_ns(), u64::MAX);
    }
}

#[test]
fn a_second_of_packets_is_what_was_asked_for() {
    // Rates that do not divide a second as well.
    for rate in [1000, 9_973, 123_457, 700_001] {
        let mut bucket = Bucket::new(limit(Some(rate), None), 0);
        passed(&mut bucket, 60, 0, 1009);
        let second = passed(&mut bucket, 60, SECOND_NS, 1009);
        assert!(near(second, rate), "{second} of {rate}");
    }
}

/// As on several workers, each with frames of its own.
#[test]
fn buckets_that_share_their_time_let_one_rate_pass() {
    let shared = SharedTime::new(4);
    let rate = limit(Some(100_000), Some(200_000_000));
    let mut buckets: Vec<Bucket> = (0..4)
        .map(|_| Bucket::sharing(rate, 0, shared.clone()))
        .collect();
    let mut passed = [0u64; 4];
    for now_ns in (0..SECOND_NS).step_by(1009) {
        for (bucket, passed) in buckets.iter_mut().zip(&mut passed) {
            if bucket.next_ns() <= now_ns && bucket.admit(60, now_ns) {
                *passed += 1;
            }
        }
    }
    let burst = 100_000 * BURST_NS / SECOND_NS;
    let all: u64 = passed.iter().sum();
    assert!((100_000..=100_000 + 2 * burst).contains(&all), "{all}");
    assert!(passed.iter().all(|it| *it > 10_000), "{passed:?}");
    // One alone has all of it, whatever the others' levels are.
    let alone = self::passed(&mut buckets[2], 60, SECOND_NS, 1009);
    assert!(alone.abs_diff(100_000) <= 2 * burst, "{alone}");
}

/// The longest frame passes, and what a change of the limit finds is not given anew.
#[test]
fn a_part_of_a_small_bucket_holds_the_longest_frame() {
    let shared = SharedTime::new(8);
    let slow = limit(Some(10), Some(1_000_000));
    let mut bucket = Bucket::sharing(slow, 0, shared.clone());
    assert!(!bucket.admit(FRAME_BYTES_MAX, 0));
    assert!(bucket.next_ns() < SECOND_NS);
    assert!(bucket.admit(FRAME_BYTES_MAX, bucket.next_ns()));
    let mut other = Bucket::sharing(slow, SECOND_NS, shared);
    while other.admit(60, SECOND_NS) {}
    other.set_limit(slow, SECOND_NS);
    assert!(!other.admit(60, SECOND_NS));
}

#[test]
fn a_second_of_bits_is_what_was_asked_for() {
    for rate in [10_000_000, 333_333_333, 1_000_000_000, 9_999_999_967] {
        let mut bucket = Bucket::new(limit(None, Some(rate)), 0);
        passed(&mut bucket, 1514, 0, 1009);
        let second = passed(&mut bucket, 1514, SECOND_NS, 1009) * 1514 * 8;
        assert!(near(second, rate), "{second} of {rate}");
    }
}

#[test]
fn nothing_drifts_over_an_hour() {
    let rate = 7;
    let mut bucket = Bucket::new(limit(Some(rate), None), 0);
    let offers = (0..3600 * SECOND_NS).step_by(99_999_989);
    let count: u64 = offers.map(|now| u64::from(bucket.admit(60, now))).sum();
    let most = 3600 * rate + BURST_PACKETS_MIN;
    assert!((most - 1..=most).contains(&count), "{count}");
}

#[test]
fn the_stricter_of_two_limits_holds() {
    let mut bucket = Bucket::new(limit(Some(1000), Some(1_000_000_000)), 0);
    passed(&mut bucket, 1514, 0, 1009);
    assert!(near(passed(&mut bucket, 1514, SECOND_NS, 1009), 1000));
    let mut bucket = Bucket::new(limit(Some(1_000_000), Some(12_112_000)), 0);
    passed(&mut bucket, 1514, 0, 1009);
    assert!(near(passed(&mut bucket, 1514, SECOND_NS, 1009), 1000));
}

#[test]
fn the_longest_frame_passes_at_any_rate() {
    let mut bucket = Bucket::new(limit(None, Some(1000)), 0);
    assert!(bucket.admit(FRAME_BYTES_MAX, 0));
    assert!(!bucket.admit(FRAME_BYTES_MAX, SECOND_NS));
    let next_ns = bucket.next_ns();
    assert_eq!(next_ns, FRAME_BYTES_MAX as u64 * 8 * 1_000_000);
    assert!(!bucket.admit(FRAME_BYTES_MAX, next_ns - 1));
    assert!(bucket.admit(FRAME_BYTES_MAX, next_ns));
}

#[test]
fn a_new_limit_holds_from_then_on() {
    let mut bucket = Bucket::new(RateLimit::default(), 0);
    bucket.set_limit(limit(Some(1000), None), 0);
    passed(&mut bucket, 60, 0, 1009);
    bucket.set_limit(limit(Some(50_000), None), SECOND_NS);
    // No new burst.
    assert!(near(passed(&mut bucket, 60, SECOND_NS, 1009), 50_000));
    bucket.set_limit(limit(None, None), 2 * SECOND_NS);
    assert_eq!(passed(&mut bucket, 60, 2 * SECOND_NS, 1_000_000), 1000);
}

#[test]
fn a_limit_changed_all_the_time_lets_no_more_pass() {
    let mut bucket = Bucket::new(limit(Some(1000), None), 0);
    let mut count = 0;
    for now_ns in (0..SECOND_NS).step_by(10_007) {
        let rate = 999 + now_ns % 2;
        bucket.set_limit(limit(Some(rate), None), now_ns);
        count += u64::from(bucket.admit(60, now_ns));
    }
    assert!(count <= 1000 + BURST_PACKETS_MIN, "{count}");
}

#[test]
fn time_that_goes_back_stands_still() {
    let mut bucket = Bucket::new(limit(Some(1), None), SECOND_NS);
    let all: u64 = (0..100).map(|_| u64::from(bucket.admit(60, 0))).sum();
    assert_eq!(all, BURST_PACKETS_MIN);
    assert_eq!(bucket.next_ns(), 2 * SECOND_NS);
}

fn arrivals() -> impl Strategy<Value = Vec<(u64, usize)>> {
    let gap = prop_oneof![Just(0u64), 1u64..100, 1u64..1_000_000, 1u64..100_000_000];
    prop::collection::vec((gap, 14usize..70_000), 1..150)
}

proptest! {
    #[test]
    fn no_window_has_more_than_its_rate_and_a_burst(
        arrivals in arrivals(),
        packets_per_s in 1u64..2_000_000,
        bits_per_s in 1u64..100_000_000_000,
    ) {
        let both = limit(Some(packets_per_s), Some(bits_per_s));
        let mut bucket = Bucket::new(both, 0);
        let (mut now_ns, mut passed) = (0, Vec::new());
        for (gap_ns, bytes) in arrivals {
            now_ns += gap_ns;
            if bucket.admit(bytes, now_ns) {
                passed.push((now_ns, bits_of(bytes)));
            } else {
                prop_assert!(bucket.next_ns() > now_ns);
            }
        }
        for first in 0..passed.len() {
            let (mut bits, mut packets) = (0, 0);
            for &(at_ns, frame_bits) in &passed[first..] {
                bits += frame_bits;
                packets += 1;
                let window_ns = u128::from(at_ns - passed[first].0);
                let fits = |count: u64, level: Level| {
                    u128::from(count) * PARTS <= u128::from(level.rate) * window_ns + level.burst
                };
                prop_assert!(fits(bits, Level::bits(bits_per_s, 1)));
                prop_assert!(fits(packets, Level::packets(packets_per_s, 1)));
            }
        }
    }

    #[test]
    fn the_time_that_is_named_is_exact(
        bytes in 14usize..70_000,
        packets_per_s in 1u64..2_000_000,
        bits_per_s in 1u64..100_000_000_000,
        start_ns in 0..SECOND_NS,
    ) {
        let both = limit(Some(packets_per_s), Some(bits_per_s));
        let mut bucket = Bucket::new(both, start_ns);
        while bucket.admit(bytes, start_ns) {}
        let next_ns = bucket.next_ns();
        prop_assert!(!bucket.clone().admit(bytes, next_ns - 1));
        prop_assert!(bucket.admit(bytes, next_ns));
    }
}
