use super::*;

const SECOND: u64 = 1_000_000_000;

/// Keeps so many requests at an array for some seconds: how many end in a second, and in how many
/// milliseconds, in the mean.
fn closed(spec: ArraySpec, depth: u32, bytes: u64, seconds: u64) -> (f64, f64) {
    let mut array = Array::new(spec);
    let mut since = vec![0; depth as usize];
    for ticket in 0..depth {
        array.submit(0, ticket, bytes, false);
    }
    let (mut count, mut latency_ns) = (0u64, 0u64);
    while let Some(now) = array.next_ns().filter(|&at| at < seconds * SECOND) {
        while let Some(ticket) = array.take(now) {
            count += 1;
            latency_ns += now - since[ticket as usize];
            since[ticket as usize] = now;
            array.submit(now, ticket, bytes, false);
        }
    }
    let mean_ms = latency_ns as f64 / count as f64 / 1e6;
    (count as f64 / seconds as f64, mean_ms)
}

fn near(found: f64, expected: f64, percent: f64) {
    let error = (found / expected - 1.0).abs() * 100.0;
    assert!(error < percent, "{found}, not {expected}");
}

#[test]
fn it_does_what_it_was_made_for_when_it_is_busy() {
    // PARDA's, with as much under way as without control: four hosts, 32 each.
    let (iops, ms) = closed(ArraySpec::seeking(20, 3360.0), 124, 16 << 10, 60);
    near(iops, 3360.0, 1.0);
    near(ms, 37.0, 2.0);
    // One request alone takes what a spindle does.
    let (iops, ms) = closed(ArraySpec::seeking(20, 3360.0), 1, 16 << 10, 60);
    near(iops, 168.0, 1.0);
    near(ms, 5.95, 1.0);
}

#[test]
fn queues_of_their_own_leave_spindles_idle() {
    let spec = ArraySpec {
        queues: Queues::PerSpindle,
        chance: 1.0,
        ..ArraySpec::seeking(10, 1000.0)
    };
    // A closed network of exponential servers: N / (N + m - 1).
    let (iops, _) = closed(spec, 30, 4096, 300);
    near(iops, 1000.0 * 30.0 / 39.0, 1.5);
}

#[test]
fn size_direction_and_chance_count() {
    let mut spec = ArraySpec::seeking(4, 1000.0);
    spec.read.unit_ns = 2e6;
    spec.write.begin_ns = 1e6;
    assert_eq!(spec.mean_ns(64 << 10, false), 8e6);
    assert_eq!(spec.mean_ns(64 << 10, true), 1e6);
    for chance in [0.0, 1.0] {
        let spec = ArraySpec {
            chance,
            ..spec.clone()
        };
        near(closed(spec, 16, 64 << 10, 200).0, 500.0, 1.5);
    }
    let (a, b) = (closed(spec.clone(), 9, 512, 5), closed(spec, 9, 512, 5));
    assert_eq!(a, b, "the same seed, the same run");
}

#[test]
fn rebuilds_pauses_and_hits() {
    let slow = Slow {
        from_ns: 10 * SECOND,
        to_ns: 40 * SECOND,
        factor: 2.0,
    };
    let rebuilds = ArraySpec {
        slow: vec![slow],
        ..ArraySpec::seeking(4, 1000.0)
    };
    // 60 seconds, 30 of them at half the pace.
    near(closed(rebuilds, 16, 4096, 60).0, 750.0, 1.0);
    for in_turn in [false, true] {
        let pauses = Pauses {
            every_ns: SECOND,
            pause_ns: SECOND / 10,
            in_turn,
        };
        let collects = ArraySpec {
            pauses: Some(pauses),
            ..ArraySpec::seeking(4, 1000.0)
        };
        near(closed(collects, 16, 4096, 60).0, 900.0, 1.0);
    }
    let cache = Cache {
        read_percent: 50,
        hit_ns: 100_000,
        ..Cache::default()
    };
    let cached = ArraySpec {
        cache,
        ..ArraySpec::seeking(4, 1000.0)
    };
    near(closed(cached, 32, 4096, 60).0, 2000.0, 2.0);
}
