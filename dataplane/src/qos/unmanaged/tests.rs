use super::*;

const T: f64 = 30e6;

/// Feeds a detector windows for a device that takes `service` for each request, with an outsider's there.
fn feed(detector: &mut Detector, windows: &[f64], service: f64, outsider: f64) -> Vec<Option<f64>> {
    let look = |&window: &f64| detector.look(window, (window + outsider) * service, T);
    windows.iter().map(look).collect()
}

/// 240 slots are 30 ms.
const SERVICE: f64 = T / 240.0;

#[test]
fn latency_that_follows_the_window_is_ours() {
    let mut detector = Detector::default();
    let slow = feed(&mut detector, &[240.0, 240.0], SERVICE, 0.0);
    let slower = feed(
        &mut detector,
        &[240.0, 180.0, 130.0, 120.0],
        2.0 * SERVICE,
        0.0,
    );
    assert!(slow.iter().chain(&slower).all(Option::is_none));
}

#[test]
fn latency_that_does_not_is_an_outsiders() {
    let mut detector = Detector::default();
    feed(&mut detector, &[240.0, 240.0], SERVICE, 0.0);
    let found = feed(&mut detector, &[240.0, 120.0, 60.0], SERVICE, 500.0);
    assert_eq!(found[..2], [None, None]);
    let elasticity = found[2].unwrap();
    assert!((0.0..0.3).contains(&elasticity), "{elasticity}");
}

#[test]
fn a_slowdown_that_begins_within_a_period_is_none() {
    let mut detector = Detector::default();
    feed(&mut detector, &[240.0, 240.0], SERVICE, 0.0);
    // Half of the period, then all of it, while the window is cut.
    for (window, factor) in [(240.0, 1.5), (160.0, 2.0), (120.0, 2.0), (90.0, 2.0)] {
        assert_eq!(detector.look(window, window * factor * SERVICE, T), None);
    }
}

#[test]
fn a_restless_device_has_to_show_more() {
    let mut restless = Detector::default();
    for round in 0..400 {
        let factor = if round % 10 == 0 { 4.0 } else { 1.0 };
        restless.look(240.0, 240.0 * factor * SERVICE, T);
    }
    let mut calm = Detector::default();
    feed(&mut calm, &[240.0, 240.0], SERVICE, 0.0);
    feed(&mut restless, &[240.0, 240.0], SERVICE, 0.0);
    let windows = [240.0, 150.0, 100.0, 70.0, 45.0, 30.0, 20.0, 12.0, 8.0, 5.0];
    let first = |detector: &mut Detector| {
        feed(detector, &windows, SERVICE, 400.0)
            .iter()
            .position(Option::is_some)
    };
    let (soon, late) = (first(&mut calm).unwrap(), first(&mut restless).unwrap());
    assert!(soon == 2 && late > soon, "{soon} {late}");
}

#[test]
fn what_is_no_number_starts_afresh() {
    let mut detector = Detector::default();
    feed(&mut detector, &[240.0, 240.0], SERVICE, 0.0);
    feed(&mut detector, &[240.0, 120.0], SERVICE, 900.0);
    for odd in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(detector.look(odd, 1e9, T), None);
        assert_eq!(detector.look(60.0, odd, T), None);
    }
    assert_eq!(detector.look(60.0, 90.0 * T, T), None);
}
