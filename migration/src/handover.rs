//! What each side does when a disk changes hands, and in which order: lists of steps, as data.
//!
//! The daemon carries them out one after the other and stops at the first that fails; a crash may
//! come between any two. So the order is the promise: what is said or served on the strength of a
//! record comes after it. The explorer under `tests/` carries out the same lists, with every crash
//! and every order of messages.

use crate::ids::MigrationId;
use crate::phase::{Event, Phase, State};

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Make durable what arrived of the copy.
    Flush,
    /// Shared datastore: open the image, with its lock.
    Take,
    /// Shared datastore: close the image, and free its lock.
    LetGo,
    /// Shared datastore: claim the epoch for this host, exclusively and for good. The rest of the
    /// list is not carried out when another host has it.
    Claim {
        /// The epoch.
        epoch: u64,
        /// The move by which it comes to this host, written in the claim; none for a takeover.
        through: Option<MigrationId>,
        /// That the other side has it through the same move will do as well. By a takeover will not:
        /// what it says of the move may have been said before.
        or_peer: bool,
    },
    /// Apply the event to the record, durably.
    Record(Event),
    /// Say it to the other side.
    Say(Word),
    /// Say what the record makes of the attempt: [`answer`].
    Answer,
    /// Serve the guest.
    Serve,
}

/// What is said about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// Source: it is yours.
    Grant,
    /// Destination: it is durably mine, and not served yet.
    Granted,
    /// Destination: it is served here, or was since. No way back.
    Activated,
    /// Destination: it is durably yours, and this attempt can never be granted.
    Returned,
}

/// What the two hosts of a move have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Datastore {
    /// Each has its own: the disk is copied.
    Own,
    /// Both see the same image: nothing is copied, and the chain of claims has the last word.
    Shared,
}

/// The source gives the disk up. It is out of service by now, and all of it is durable where the
/// destination will find it.
pub fn release(migration: MigrationId, datastore: Datastore) -> Vec<Step> {
    let release = Step::Record(Event::Release { migration });
    match datastore {
        Datastore::Own => vec![release, Step::Say(Word::Grant)],
        Datastore::Shared => vec![release, Step::LetGo, Step::Say(Word::Grant)],
    }
}

fn claim(epoch: u64, through: MigrationId) -> Step {
    Step::Claim {
        epoch,
        through: Some(through),
        or_peer: false,
    }
}

/// The destination is granted the disk.
pub fn on_grant(migration: MigrationId, epoch: u64, datastore: Datastore) -> Vec<Step> {
    let grant = Step::Record(Event::Grant { migration, epoch });
    match datastore {
        Datastore::Own => vec![Step::Flush, grant, Step::Answer],
        Datastore::Shared => vec![Step::Take, claim(epoch, migration), grant, Step::Answer],
    }
}

/// The destination is asked for the disk: to have it back even if it was granted, or only if not.
pub fn on_hand_back(migration: MigrationId, epoch: u64, though_granted: bool) -> [Step; 2] {
    let event = if though_granted {
        Event::HandBack { migration, epoch }
    } else {
        Event::Settle { migration, epoch }
    };
    [Step::Record(event), Step::Answer]
}

/// The first descriptor of a granted disk is about to be popped.
pub fn on_first_request(migration: MigrationId, epoch: u64, datastore: Datastore) -> Vec<Step> {
    let activate = Step::Record(Event::Activate { migration, epoch });
    match datastore {
        Datastore::Own => vec![activate, Step::Serve],
        // It may have been taken over since the grant.
        Datastore::Shared => vec![Step::Take, claim(epoch, migration), activate, Step::Serve],
    }
}

/// The source has the disk back that it gave up at `epoch`.
fn have_back(migration: MigrationId, epoch: u64, datastore: Datastore, or_peer: bool) -> Vec<Step> {
    let returned = Step::Record(Event::ReturnedHere { migration, epoch });
    match datastore {
        Datastore::Own => vec![returned, Step::Serve],
        // One epoch after the other, so that a claim is never made past another's.
        Datastore::Shared => vec![
            Step::Take,
            Step::Claim {
                epoch,
                through: Some(migration),
                or_peer,
            },
            claim(epoch.saturating_add(1), migration),
            returned,
            Step::Serve,
        ],
    }
}

/// Shared datastore: the source wants back what it released, and the destination does not answer.
/// Who has the epoch that was granted cannot be granted it any more, nor can anyone else.
pub fn reclaim(migration: MigrationId, epoch: u64) -> Vec<Step> {
    have_back(migration, epoch, Datastore::Shared, false)
}

/// Shared datastore: the owner's lease has run out, and it is fenced.
pub fn take_over(epoch: u64) -> Vec<Step> {
    vec![
        Step::Take,
        Step::Claim {
            epoch,
            through: None,
            or_peer: false,
        },
        Step::Record(Event::TakeOver { epoch }),
        Step::Serve,
    ]
}

/// The source hears of a disk that it gave up.
pub fn on_word(word: Word, migration: MigrationId, epoch: u64, datastore: Datastore) -> Vec<Step> {
    match word {
        Word::Granted => vec![Step::Record(Event::Acknowledged { migration, epoch })],
        Word::Activated => vec![Step::Record(Event::ActivatedThere { migration, epoch })],
        Word::Returned => have_back(migration, epoch, datastore, true),
        Word::Grant => vec![],
    }
}

/// What a destination's record makes of an attempt; nothing where no answer would be true for good.
pub fn answer(state: &State, migration: MigrationId, epoch: u64) -> Option<Word> {
    match state.phase {
        // It was taken over since, by this host or another: more than returned.
        Phase::Serving {
            epoch: e,
            through: None,
        }
        | Phase::Taken { epoch: e }
            if e >= epoch =>
        {
            return Some(Word::Activated);
        }
        _ if state.refuses(migration, epoch) => return Some(Word::Returned),
        _ => {}
    }
    match state.phase {
        Phase::Granted {
            migration: m,
            epoch: e,
        } if m == migration && e == epoch => Some(Word::Granted),
        Phase::Serving { epoch: e, through } if through == Some(migration) && e == epoch => {
            Some(Word::Activated)
        }
        // It has gone on from here since, so it was served here.
        Phase::Serving { epoch: e, .. }
        | Phase::Released { epoch: e, .. }
        | Phase::Handed { epoch: e, .. }
        | Phase::Moved { epoch: e, .. }
        | Phase::Taken { epoch: e }
            if e > epoch =>
        {
            Some(Word::Activated)
        }
        _ => None,
    }
}

/// Destination: what is known of the disks of one VM that move as one decides for all of them. Each
/// is given by its state here and the epoch that it was to have; `None` for one that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// All are granted, or were served here since: this one may be served too.
    All,
    /// One was served here: none can be handed back any more.
    Begun,
    /// Not all are granted yet.
    Waiting,
    /// One can never be granted: none may be served here.
    Never,
}

/// See [`Together`].
pub fn together<'a>(
    migration: MigrationId,
    members: impl Iterator<Item = (Option<&'a State>, u64)>,
) -> Together {
    let mut worst = Together::All;
    for (state, epoch) in members {
        match state.and_then(|state| answer(state, migration, epoch)) {
            // Then all were granted, whatever has become of the others since.
            Some(Word::Activated) => return Together::Begun,
            Some(Word::Granted | Word::Grant) => {}
            Some(Word::Returned) => worst = Together::Never,
            None if worst == Together::All => worst = Together::Waiting,
            None => {}
        }
    }
    worst
}

/// Source: whether a disk that was given up with others stays so; when one of them is back, or was
/// never given up, all have to come back.
pub fn is_given_up(state: &State, migration: MigrationId) -> bool {
    matches!(state.phase,
        Phase::Released { migration: m, .. }
        | Phase::Handed { migration: m, .. }
        | Phase::Moved { migration: m, .. } if m == migration)
}

/// Whether a disk that is offered may be received, by what the record says of it.
pub fn takes_offers(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::Vacant | Phase::Moved { .. } | Phase::Returned { .. } | Phase::Taken { .. }
    )
}

/// Why rings at the destination do not show that their VM is the one that was served here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoProof {
    /// A VM that boots begins at 0 too.
    #[error(
        "the rings here were never used, so nothing shows that it is the same VM that has arrived \
         there; say so: ferry migrate commit"
    )]
    Unused,
    /// The rings there were used, and of those here nothing is known.
    #[error(
        "where the rings stopped here is not known any more (the daemon was restarted, or no VM has \
         driven them since), so nothing shows that it is the same VM that has arrived there; if it is, say \
         so: ferry migrate commit"
    )]
    Unknown,
    /// They differ.
    #[error(
        "the rings there begin at {there:?}, and those here stopped at {here:?}: another VM is \
         attached there, or not all of its rings have started"
    )]
    Differ {
        /// What SET_VRING_BASE said there.
        there: Vec<u16>,
        /// What GET_VRING_BASE said here.
        here: Vec<u16>,
    },
}

/// Whether the VM whose rings begin `there` is the one whose rings stopped `here`.
pub fn prove(here: &[u16], there: &[u16]) -> Result<(), NoProof> {
    let unused = here.iter().all(|&base| base == 0);
    match (here == there, unused) {
        (true, false) => Ok(()),
        (true, true) => Err(NoProof::Unused),
        (false, true) => Err(NoProof::Unknown),
        (false, false) => Err(NoProof::Differ {
            there: there.to_vec(),
            here: here.to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn state(phase: Phase) -> State {
        State {
            phase,
            refused: Vec::new(),
        }
    }

    #[test]
    fn disks_of_a_vm_decide_together() {
        let migration = MigrationId(Uuid::from_u128(1));
        let epoch = 2;
        let granted = state(Phase::Granted { migration, epoch });
        let incoming = state(Phase::Incoming { migration, epoch });
        let served = state(Phase::Serving {
            epoch,
            through: Some(migration),
        });
        let mut returned = state(Phase::Returned { migration, epoch });
        returned
            .refused
            .push(crate::phase::RefusedId { migration, epoch });
        let all = |states: &[Option<&State>]| {
            together(migration, states.iter().map(|state| (*state, epoch)))
        };
        assert_eq!(all(&[]), Together::All);
        assert_eq!(all(&[Some(&granted), Some(&granted)]), Together::All);
        assert_eq!(all(&[Some(&granted), Some(&incoming)]), Together::Waiting);
        assert_eq!(all(&[Some(&granted), None]), Together::Waiting);
        assert_eq!(all(&[None, Some(&returned)]), Together::Never);
        // One that was served shows that all were granted, also those that are not known any more.
        assert_eq!(all(&[None, Some(&served)]), Together::Begun);
        assert_eq!(all(&[Some(&served), Some(&granted)]), Together::Begun);
    }

    #[test]
    fn a_shared_grant_is_claimed_before_it_is_recorded() {
        let migration = MigrationId(Uuid::from_u128(1));
        let steps = on_grant(migration, 2, Datastore::Shared);
        let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted);
        let claimed = at(|step| {
            matches!(
                step,
                Step::Claim {
                    epoch: 2,
                    or_peer: false,
                    ..
                }
            )
        });
        let recorded = at(|step| matches!(step, Step::Record(_)));
        assert!(claimed.is_some() && claimed < recorded, "{steps:?}");
    }

    #[test]
    fn rings_prove_what_they_can() {
        assert_eq!(prove(&[7, 9], &[7, 9]), Ok(()));
        assert_eq!(prove(&[0, 0], &[0, 0]), Err(NoProof::Unused));
        assert_eq!(prove(&[0, 0], &[7, 0]), Err(NoProof::Unknown));
        assert!(matches!(prove(&[7, 9], &[7]), Err(NoProof::Differ { .. })));
        assert!(matches!(
            prove(&[7, 9], &[0, 0]),
            Err(NoProof::Differ { .. })
        ));
    }
}
