use super::*;

fn rings(bases: [u16; 2]) -> Vec<QueueV1> {
    let ring = |(index, base)| QueueV1 {
        index,
        size: 256,
        next_avail: base,
        used_idx: base,
        enabled: true,
        event_idx: false,
    };
    (0..).zip(bases).map(ring).collect()
}

fn hook() -> ActivatedHook {
    Box::new(|| {})
}

#[test]
fn one_that_is_to_leave_may_begin_first() {
    let mut arrival = Arrival::default();
    arrival.attend(1, hook());
    arrival.expect(1, rings([7, 9]));
    arrival.leave();
    assert!(arrival.machine().is_some(), "as it came");
    assert!(arrival.activate().is_some_and(|it| it.hook.is_some()));
    arrival.started(0);
    assert!(
        arrival.machine().is_none(),
        "it runs, and is what it is now"
    );
    assert!(arrival.by(1).is_some());
    // One that is gone, and one whose front-end is, does not.
    for gone in [Arrival::gone, Arrival::will_not_begin] {
        arrival.attend(2, hook());
        arrival.expect(1, rings([7, 9]));
        arrival.leave();
        gone(&mut arrival);
        assert!(arrival.activate().is_none());
        assert!(arrival.by(2).is_none());
        arrival.started(0);
        assert!(arrival.machine().is_none(), "another boots");
    }
}

#[test]
fn a_guest_that_has_gone_is_gone_until_another_runs() {
    let mut arrival = Arrival::default();
    arrival.gone();
    arrival.attend(1, hook());
    assert!(arrival.has_gone());
    arrival.end();
    assert!(arrival.has_gone(), "the attempt failed");
    arrival.begin();
    assert!(arrival.activate().is_some());
    assert!(!arrival.has_gone());
}

#[test]
fn another_machine_may_boot_once_nobody_speaks_for_the_source() {
    let mut arrival = Arrival::default();
    arrival.attend(1, hook());
    arrival.expect(1, rings([7, 0]));
    assert_eq!(arrival.fits(0, 0), Fit::No);
    arrival.unattended();
    assert_eq!(
        (arrival.fits(0, 0), arrival.fits(0, 7)),
        (Fit::Yes, Fit::Yes)
    );
    assert_eq!(arrival.fits(0, 8), Fit::No);
    assert!(arrival.is_another(0, 0) && !arrival.is_another(0, 7));
    assert!(!arrival.is_another(1, 0), "a ring that never received");
}
