use proptest::prelude::*;

use super::*;

const POLICY: Policy = Policy {
    restart_attempts: 3,
    fault_delay_ns: 30,
    healthy_ns: 300,
};

const WELL: Vitals = Vitals {
    stalled_ns: Some(30),
    silent_ns: None,
};

const SICK: Vitals = Vitals {
    stalled_ns: Some(31),
    silent_ns: None,
};

/// What is done with a machine that stays as `vitals` say, looked at every ten, from `from_ns` on.
fn watched(machine: &mut Machine, from_ns: u64, looks: u64, vitals: &Vitals) -> Vec<(u64, String)> {
    let look = |n| {
        let now_ns = from_ns + n * 10;
        let action = machine.look(now_ns, vitals, false)?;
        Some((now_ns, format!("{action:?}")))
    };
    (0..looks).filter_map(look).collect()
}

fn restart(attempt: u32) -> String {
    format!("Restart {{ attempt: {attempt}, fault: Stalled {{ ns: 31 }} }}")
}

const ESCALATE: &str = "Escalate { attempts: 3, fault: Stalled { ns: 31 } }";

#[test]
fn three_restarts_each_with_its_grace_then_one_call_for_help_then_silence() {
    let mut machine = Machine::new(POLICY);
    let done = watched(&mut machine, 0, 1000, &SICK);
    let expected = [
        (0, restart(1)),
        (30, restart(2)),
        (60, restart(3)),
        (90, ESCALATE.to_owned()),
    ];
    assert_eq!(done, expected);
    assert_eq!(machine.standing(), Standing::Escalated);
}

#[test]
fn attempts_come_back_after_a_healthy_period_and_not_before() {
    let mut machine = Machine::new(POLICY);
    assert_eq!(watched(&mut machine, 0, 1, &SICK), [(0, restart(1))]);
    assert_eq!(machine.standing(), Standing::Faulty);
    // Well from 10 to 300, which is one look too short.
    assert_eq!(watched(&mut machine, 10, 30, &WELL), []);
    assert_eq!(machine.standing(), Standing::Recovering);
    assert_eq!(watched(&mut machine, 310, 1, &SICK), [(310, restart(2))]);
    let forgotten = watched(&mut machine, 320, 100, &WELL);
    assert_eq!(forgotten, [(620, "Forget".to_owned())]);
    assert_eq!(machine.standing(), Standing::Healthy);
    assert_eq!(watched(&mut machine, 2000, 1, &SICK), [(2000, restart(1))]);
}

#[test]
fn the_grace_begins_when_the_hook_has_ended() {
    let mut machine = Machine::new(POLICY);
    assert!(machine.look(0, &SICK, false).is_some());
    for now_ns in 1..=100 {
        assert_eq!(machine.look(now_ns, &SICK, true), None);
    }
    assert_eq!(machine.look(129, &SICK, false), None);
    assert!(machine.look(130, &SICK, false).is_some());
}

#[test]
fn without_restarts_it_is_escalated_at_once() {
    let mut machine = Machine::new(Policy {
        restart_attempts: 0,
        ..POLICY
    });
    let vitals = Vitals {
        silent_ns: Some(31),
        ..Vitals::default()
    };
    let fault = Fault::Silent { ns: 31 };
    let expected = Action::Escalate { attempts: 0, fault };
    assert_eq!(machine.look(5, &vitals, false), Some(expected));
    assert_eq!(machine.look(500, &vitals, false), None);
}

proptest! {
    /// Whatever happens, in whatever order.
    #[test]
    fn never_a_loop_and_never_without_need(
        looks in prop::collection::vec((1u64..60, any::<bool>(), prop::bool::weighted(0.2)), 1..400),
        restart_attempts in 0u32..5,
    ) {
        let mut machine = Machine::new(Policy { restart_attempts, ..POLICY });
        let (mut now_ns, mut restarts, mut escalated) = (0, 0, false);
        let (mut well_for_ns, mut last_hook_ns) = (None, None);
        for (step_ns, sick, hook_runs) in looks {
            now_ns += step_ns;
            // Told apart from what the machine keeps: a healthy period is time between looks that
            // all found it well.
            well_for_ns = if sick { None } else { Some(well_for_ns.map_or(0, |ns| ns + step_ns)) };
            if well_for_ns.is_some_and(|ns| ns >= POLICY.healthy_ns) {
                (restarts, escalated) = (0, false);
            }
            let action = machine.look(now_ns, if sick { &SICK } else { &WELL }, hook_runs);
            match action {
                Some(Action::Restart { attempt, .. }) => {
                    prop_assert!(!escalated);
                    restarts += 1;
                    prop_assert_eq!(attempt, restarts);
                    prop_assert!(restarts <= restart_attempts);
                }
                Some(Action::Escalate { attempts, .. }) => {
                    prop_assert!(!escalated);
                    prop_assert_eq!(attempts, restart_attempts);
                    prop_assert_eq!(restarts, restart_attempts);
                    escalated = true;
                }
                Some(Action::Forget) => prop_assert!(!sick && restarts == 0 && !escalated),
                None => {}
            }
            let called = matches!(action, Some(Action::Restart { .. } | Action::Escalate { .. }));
            if called {
                prop_assert!(sick && !hook_runs);
                let since = last_hook_ns.map(|at| now_ns - at);
                prop_assert!(since.is_none_or(|ns| ns >= POLICY.fault_delay_ns));
            }
            if called || hook_runs {
                last_hook_ns = Some(now_ns);
            }
        }
    }
}
