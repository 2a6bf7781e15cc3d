use proptest::prelude::*;

use super::*;

fn id(n: u128) -> MigrationId {
    MigrationId(uuid::Uuid::from_u128(n))
}

const M: u128 = 1;

fn phases(epoch: u64) -> Vec<Phase> {
    let migration = id(M);
    vec![
        Phase::Vacant,
        Phase::Serving {
            epoch,
            through: None,
        },
        Phase::Serving {
            epoch,
            through: Some(migration),
        },
        Phase::Released { migration, epoch },
        Phase::Handed { migration, epoch },
        Phase::Moved { migration, epoch },
        Phase::Incoming { migration, epoch },
        Phase::Granted { migration, epoch },
        Phase::Returned { migration, epoch },
    ]
}

fn events(migration: MigrationId, epoch: u64) -> Vec<Event> {
    vec![
        Event::Create,
        Event::Release { migration },
        Event::Acknowledged { migration, epoch },
        Event::ActivatedThere { migration, epoch },
        Event::ReturnedHere { migration, epoch },
        Event::Accept { migration, epoch },
        Event::Grant { migration, epoch },
        Event::Activate { migration, epoch },
        Event::HandBack { migration, epoch },
        Event::Settle { migration, epoch },
        Event::Discard { migration },
    ]
}

fn state(phase: Phase) -> State {
    State {
        phase,
        refused: Vec::new(),
    }
}

/// Everything the same migration at the same epoch may do; every other pair is refused.
fn allowed(phase: Phase, event: Event) -> Option<Phase> {
    let (migration, epoch) = (id(M), 5);
    let released = Phase::Released { migration, epoch };
    let moved = Phase::Moved { migration, epoch };
    let granted = Phase::Granted { migration, epoch };
    let returned = Phase::Returned { migration, epoch };
    let served = Phase::Serving {
        epoch,
        through: Some(migration),
    };
    Some(match (phase, event) {
        (Phase::Vacant, Event::Create) => Phase::Serving {
            epoch: 1,
            through: None,
        },
        (Phase::Vacant, Event::Accept { .. }) => Phase::Incoming { migration, epoch },
        (Phase::Serving { .. }, Event::Release { .. }) => Phase::Released {
            migration,
            epoch: 6,
        },
        (
            Phase::Serving {
                through: Some(_), ..
            },
            Event::Grant { .. } | Event::Activate { .. },
        ) => served,
        (Phase::Released { .. }, Event::Release { .. }) => released,
        (Phase::Released { .. } | Phase::Handed { .. }, Event::Acknowledged { .. }) => {
            Phase::Handed { migration, epoch }
        }
        (Phase::Moved { .. }, Event::Acknowledged { .. }) => moved,
        (
            Phase::Released { .. } | Phase::Handed { .. } | Phase::Moved { .. },
            Event::ActivatedThere { .. },
        ) => moved,
        (Phase::Released { .. } | Phase::Handed { .. }, Event::ReturnedHere { .. }) => {
            Phase::Serving {
                epoch: 6,
                through: None,
            }
        }
        (Phase::Incoming { .. }, Event::Accept { .. }) => phase,
        (Phase::Incoming { .. } | Phase::Granted { .. }, Event::Grant { .. }) => granted,
        (Phase::Incoming { .. }, Event::HandBack { .. } | Event::Settle { .. }) => returned,
        (Phase::Incoming { .. } | Phase::Returned { .. }, Event::Discard { .. }) => returned,
        (Phase::Granted { .. }, Event::Activate { .. }) => served,
        (Phase::Granted { .. }, Event::Settle { .. }) => granted,
        (Phase::Granted { .. }, Event::HandBack { .. }) => returned,
        // Only when the record does not refuse the id, which it always does in this phase.
        (Phase::Returned { .. }, Event::Accept { .. }) => Phase::Incoming { migration, epoch },
        _ => return None,
    })
}

#[test]
fn every_pair_is_as_the_drawing_says() {
    for phase in phases(5) {
        for event in events(id(M), 5) {
            let got = next(&state(phase), event).ok().map(|s| s.phase);
            assert_eq!(got, allowed(phase, event), "{phase:?} {event:?}");
        }
    }
}

#[test]
fn another_migration_is_never_mistaken_for_this_one() {
    for phase in phases(5) {
        for event in events(id(2), 5) {
            let starts = matches!(
                (phase, event),
                (Phase::Vacant, Event::Create | Event::Accept { .. })
                    | (Phase::Serving { .. }, Event::Release { .. })
                    | (Phase::Returned { .. }, Event::Accept { .. })
            );
            assert_eq!(
                next(&state(phase), event).is_ok(),
                starts,
                "{phase:?} {event:?}"
            );
        }
    }
}

#[test]
fn another_epoch_is_refused() {
    for phase in phases(5) {
        for epoch in [4, 6] {
            for event in events(id(M), epoch) {
                let Ok(after) = next(&state(phase), event) else {
                    continue;
                };
                let free = matches!(
                    event,
                    Event::Create | Event::Release { .. } | Event::Discard { .. }
                ) || matches!((phase, event), (Phase::Vacant, Event::Accept { .. }))
                    // What comes from a newer epoch proves that the older one is over.
                    || (epoch == 6 && matches!(event, Event::Accept { .. }))
                    // The repetition of a return that made this epoch.
                    || (epoch == 4 && matches!(event, Event::ReturnedHere { .. })
                        && after.phase == phase);
                assert!(free, "{phase:?} {event:?} -> {after:?}");
            }
        }
    }
}

#[test]
fn a_hand_back_after_activation_is_told_from_a_stranger() {
    let served = state(Phase::Serving {
        epoch: 5,
        through: Some(id(M)),
    });
    let back = Event::HandBack {
        migration: id(M),
        epoch: 5,
    };
    assert_eq!(next(&served, back), Err(Refusal::Activated { epoch: 5 }));
    // It moved on since: still served, still no way back.
    let later = state(Phase::Moved {
        migration: id(9),
        epoch: 6,
    });
    assert_eq!(next(&later, back), Err(Refusal::Activated { epoch: 6 }));
    let stranger = Event::HandBack {
        migration: id(2),
        epoch: 5,
    };
    assert!(matches!(
        next(&served, stranger),
        Err(Refusal::Unfit { .. })
    ));
}

#[test]
fn a_returned_id_is_refused_for_ever() {
    let (migration, epoch) = (id(M), 5);
    let granted = state(Phase::Granted { migration, epoch });
    let back = next(&granted, Event::HandBack { migration, epoch }).unwrap();
    for event in [
        Event::Grant { migration, epoch },
        Event::Accept { migration, epoch },
    ] {
        assert_eq!(next(&back, event), Err(Refusal::Over { migration }));
    }
    assert!(next(&back, Event::Activate { migration, epoch }).is_err());
    // A newer attempt comes; late words of the old one still get the old answer.
    let newer = next(
        &back,
        Event::Accept {
            migration: id(2),
            epoch: 7,
        },
    )
    .unwrap();
    assert_eq!(
        next(&newer, Event::HandBack { migration, epoch }).unwrap(),
        newer
    );
    assert_eq!(
        next(&newer, Event::Grant { migration, epoch }),
        Err(Refusal::Over { migration })
    );
}

#[test]
fn the_last_epoch_has_no_successor() {
    let last = state(Phase::Serving {
        epoch: u64::MAX,
        through: None,
    });
    let release = Event::Release { migration: id(M) };
    assert_eq!(next(&last, release), Err(Refusal::EpochOverflow(u64::MAX)));
}

#[test]
fn refused_ids_are_bounded() {
    let mut at = state(Phase::Vacant);
    for n in 0..200 {
        at = next(
            &at,
            Event::Accept {
                migration: id(n),
                epoch: 2,
            },
        )
        .unwrap();
        at = next(&at, Event::Discard { migration: id(n) }).unwrap();
    }
    assert_eq!(at.refused.len(), REFUSED_MAX);
    assert!(at.refuses(id(199), 2));
}

/// The two hosts of one move, and every message on the way lost, repeated or late.
#[derive(Debug, Clone, Copy)]
enum Act {
    Release,
    SendGrant,
    LoseLink,
    Activate,
    AskBack,
    Settle,
    Tell,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        Just(Act::Release),
        Just(Act::SendGrant),
        Just(Act::LoseLink),
        Just(Act::Activate),
        Just(Act::AskBack),
        Just(Act::Settle),
        Just(Act::Tell),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn two_sides_never_serve(acts in prop::collection::vec(act(), 0..40)) {
        let (migration, epoch) = (id(M), 2);
        let mut source = state(Phase::Serving { epoch: 1, through: None });
        let mut target = next(&state(Phase::Vacant), Event::Accept { migration, epoch }).unwrap();
        let mut granted_once = false;
        // Answers of the destination that may still arrive, in any order and more than once.
        let mut answers: Vec<Event> = Vec::new();
        for (step, act) in acts.into_iter().enumerate() {
            match act {
                Act::Release => {
                    if let Ok(after) = next(&source, Event::Release { migration })
                        && !granted_once
                    {
                        source = after;
                        granted_once = true;
                    }
                }
                // Once released, its grant may arrive at any later time.
                Act::SendGrant if granted_once => {
                    if let Ok(after) = next(&target, Event::Grant { migration, epoch }) {
                        target = after;
                        answers.push(Event::Acknowledged { migration, epoch });
                    }
                }
                Act::SendGrant => {}
                Act::LoseLink => {
                    if let Ok(after) = next(&target, Event::Discard { migration }) {
                        target = after;
                    }
                }
                Act::Activate => {
                    if let Ok(after) = next(&target, Event::Activate { migration, epoch }) {
                        target = after;
                        answers.push(Event::ActivatedThere { migration, epoch });
                    }
                }
                Act::AskBack | Act::Settle => {
                    let event = match act {
                        Act::AskBack => Event::HandBack { migration, epoch },
                        _ => Event::Settle { migration, epoch },
                    };
                    // Asked only by a source that has released.
                    if granted_once {
                        match next(&target, event) {
                            Ok(after) => {
                                target = after;
                                answers.push(if target.refuses(migration, epoch) {
                                    Event::ReturnedHere { migration, epoch }
                                } else {
                                    Event::Acknowledged { migration, epoch }
                                });
                            }
                            Err(Refusal::Activated { .. }) => {
                                answers.push(Event::ActivatedThere { migration, epoch });
                            }
                            Err(_) => {}
                        }
                    }
                }
                Act::Tell if !answers.is_empty() => {
                    let answer = answers[step % answers.len()];
                    if let Ok(after) = next(&source, answer) {
                        source = after;
                    }
                }
                Act::Tell => {}
            }
            let serves = |s: &State| matches!(s.phase, Phase::Serving { .. });
            prop_assert!(!(serves(&source) && serves(&target)), "{source:?} {target:?}");
        }
    }
}
