//! Who owns a disk, as one table.
//!
//! Each host keeps one [`State`] per disk, durable beside the image. At most one host is ever in
//! `Serving` for the newest epoch. The two columns are the two hosts of one move:
//!
//! ```text
//!          SOURCE                                            DESTINATION
//!
//!   Vacant --Create--> Serving(n)                    Vacant | Returned | Moved
//!                        | Release                             | Accept
//!                        v                                     v
//!              +--- Released(id,n+1) ------ GRANT -----> Incoming(id,n+1) --Discard--+
//!              |         | Acknowledged <-- Granted ---        | Grant               |
//!              |         v                                     v                     |
//!              +---- Handed(id,n+1)                      Granted(id,n+1)             |
//!              |         |                                |            |             |
//!              |         | ActivatedThere        Activate |            | HandBack    |
//!              |         v                                v            v             v
//!              |     Moved(id,n+1)               Serving(n+1)        Returned(id,n+1)
//!              |                                (no way back)     (the id is refused for ever)
//!              | ReturnedHere                                          |
//!              v                                                       |
//!         Serving(n+2)  <------------------ "returned" ----------------+
//! ```
//!
//! `Released` without an acknowledgement is the state in doubt: this side does not serve, and
//! cannot know whether the other may. Only an answer of the other side ends it.
//!
//! On a datastore that several hosts share, a host may take a disk over whose owner is gone, from
//! any phase in which it does not own it: `TakeOver` to `Serving`. Whose disk was taken over finds
//! it out by the chain of claims (`lease::chain`): `TakenOver` to `Taken`.
//!
//! A repeated event leaves the state as it is and is answered as the first was, so every message
//! may be sent again after a lost reply.

use crate::ids::MigrationId;

/// How many refused ids are remembered. An id that falls out is unknown, and unknown is refused too.
pub const REFUSED_MAX: usize = 64;

/// The ownership of one disk as one host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No disk of that name was ever here.
    Vacant,
    /// This host serves the disk.
    Serving {
        /// The count of ownership changes.
        epoch: u64,
        /// The migration that brought the disk here, if one did.
        through: Option<MigrationId>,
    },
    /// Given up by this host, and the other has not said that it took it: in doubt.
    Released {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Given up, and the other side has it durably. It may still hand it back.
    Handed {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// The other side serves it.
    Moved {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// A copy is being received; worth nothing until granted.
    Incoming {
        /// The attempt.
        migration: MigrationId,
        /// The epoch it will be granted.
        epoch: u64,
    },
    /// This host owns the disk and has not served it yet.
    Granted {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Given back or discarded; the copy here is void.
    Returned {
        /// The attempt.
        migration: MigrationId,
        /// The epoch that was not taken.
        epoch: u64,
    },
    /// Shared datastore: another host took it over.
    Taken {
        /// The epoch it has since.
        epoch: u64,
    },
}

impl Phase {
    /// The newest epoch this host knows of.
    pub fn epoch(&self) -> u64 {
        match *self {
            Phase::Vacant => 0,
            Phase::Serving { epoch, .. }
            | Phase::Released { epoch, .. }
            | Phase::Handed { epoch, .. }
            | Phase::Moved { epoch, .. }
            | Phase::Incoming { epoch, .. }
            | Phase::Granted { epoch, .. }
            | Phase::Returned { epoch, .. }
            | Phase::Taken { epoch } => epoch,
        }
    }

    /// The one word for status and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Vacant => "vacant",
            Phase::Serving { .. } => "serving",
            Phase::Released { .. } => "released",
            Phase::Handed { .. } => "handed",
            Phase::Moved { .. } => "moved",
            Phase::Incoming { .. } => "incoming",
            Phase::Granted { .. } => "granted",
            Phase::Returned { .. } => "returned",
            Phase::Taken { .. } => "taken over",
        }
    }
}

/// Messages of `migration` are refused up to `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RefusedId {
    /// The attempt that is over.
    pub migration: MigrationId,
    /// The highest epoch refused.
    pub epoch: u64,
}

/// A phase and the attempts that can never succeed any more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Where the disk is in its life.
    pub phase: Phase,
    /// Oldest first, at most [`REFUSED_MAX`].
    pub refused: Vec<RefusedId>,
}

/// What may happen to a disk's ownership. `epoch` is the epoch after the move throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A new disk, or one that was never recorded, is taken into service.
    Create,
    /// Source: the rings are stopped, the copies are equal, the trigger was given.
    Release {
        /// The attempt.
        migration: MigrationId,
    },
    /// Source: the destination said `Granted`.
    Acknowledged {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Source: the destination said `Activated`.
    ActivatedThere {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Source: the destination said `Returned`.
    ReturnedHere {
        /// The attempt.
        migration: MigrationId,
        /// The epoch that was not taken.
        epoch: u64,
    },
    /// Destination: a copy is about to arrive.
    Accept {
        /// The attempt.
        migration: MigrationId,
        /// The epoch it will be granted.
        epoch: u64,
    },
    /// Destination: the source gave the disk up.
    Grant {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Destination: the first descriptor is about to be popped.
    Activate {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Destination: the source wants the disk back, granted or not.
    HandBack {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Destination: the source lost sight. Stay if granted; otherwise never be granted.
    Settle {
        /// The attempt.
        migration: MigrationId,
        /// The epoch granted.
        epoch: u64,
    },
    /// Destination: the copy was aborted, or its link is lost.
    Discard {
        /// The attempt.
        migration: MigrationId,
    },
    /// Shared datastore: the owner is gone for good or cannot do any harm, and this host has
    /// claimed the epoch.
    TakeOver {
        /// The epoch claimed.
        epoch: u64,
    },
    /// Shared datastore: another host has claimed the epoch.
    TakenOver {
        /// The newest epoch claimed.
        epoch: u64,
    },
}

/// Why an event changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The attempt was given up or handed back.
    #[error("migration {migration} is over here; start a new one")]
    Over {
        /// The attempt.
        migration: MigrationId,
    },
    /// The disk was served here since: there is no handing back.
    #[error(
        "the disk has been served here since at epoch {epoch}; move it back by a new migration"
    )]
    Activated {
        /// The epoch it is at.
        epoch: u64,
    },
    /// The grant arrived already, so the copy is the disk.
    #[error("migration {migration} was granted; its copy is the disk now and is not discarded")]
    AlreadyGranted {
        /// The attempt.
        migration: MigrationId,
    },
    /// No such attempt is known in this phase.
    #[error("the disk is {phase} here at epoch {epoch}, which does not fit {wanted}")]
    Unfit {
        /// The phase's name.
        phase: &'static str,
        /// The epoch it is at.
        epoch: u64,
        /// The event's name.
        wanted: &'static str,
    },
    /// Epochs have run out, or a peer lies.
    #[error("epoch {0} has no successor; the record is damaged or the peer is not to be trusted")]
    EpochOverflow(u64),
}

/// The table: what `event` makes of `state`, or why it does not. Pure; the caller makes the result
/// durable before it believes it.
pub fn next(state: &State, event: Event) -> Result<State, Refusal> {
    let phase = match event {
        Event::Accept { migration, epoch } | Event::Grant { migration, epoch }
            if state.refuses(migration, epoch) =>
        {
            return Err(Refusal::Over { migration });
        }
        // Answered so before, and so for ever.
        Event::HandBack { migration, epoch } | Event::Settle { migration, epoch }
            if state.refuses(migration, epoch) =>
        {
            return Ok(state.clone());
        }
        _ => next_phase(state.phase, event)?,
    };
    let mut refused = state.refused.clone();
    // Both ends of a hand-back refuse the attempt from now on.
    if let (Event::ReturnedHere { migration, epoch }, true)
    | (Event::HandBack { migration, epoch } | Event::Settle { migration, epoch }, true) =
        (event, phase != state.phase)
    {
        remember(&mut refused, migration, epoch);
    }
    if let (Event::Discard { migration }, Phase::Returned { epoch, .. }) = (event, phase)
        && phase != state.phase
    {
        remember(&mut refused, migration, epoch);
    }
    // What the disk was in the middle of is over: a grant that comes late is refused.
    if let (
        Event::TakeOver { .. } | Event::TakenOver { .. },
        Phase::Incoming { migration, epoch } | Phase::Granted { migration, epoch },
    ) = (event, state.phase)
    {
        remember(&mut refused, migration, epoch);
    }
    Ok(State { phase, refused })
}

fn remember(refused: &mut Vec<RefusedId>, migration: MigrationId, epoch: u64) {
    refused.push(RefusedId { migration, epoch });
    let over = refused.len().saturating_sub(REFUSED_MAX);
    refused.drain(..over);
}

fn next_phase(phase: Phase, event: Event) -> Result<Phase, Refusal> {
    match event {
        Event::Create | Event::Release { .. } => start(phase, event),
        Event::TakeOver { epoch } | Event::TakenOver { epoch } => {
            let taken = match event {
                Event::TakeOver { .. } => Phase::Serving {
                    epoch,
                    through: None,
                },
                _ => Phase::Taken { epoch },
            };
            take_over(phase, event, epoch, taken)
        }
        Event::Acknowledged { .. } | Event::ActivatedThere { .. } | Event::ReturnedHere { .. } => {
            source(phase, event)
        }
        Event::Accept { .. }
        | Event::Grant { .. }
        | Event::Activate { .. }
        | Event::HandBack { .. }
        | Event::Settle { .. }
        | Event::Discard { .. } => destination(phase, event),
    }
}

/// What the owner may do by itself.
fn start(phase: Phase, event: Event) -> Result<Phase, Refusal> {
    match (phase, event) {
        (Phase::Vacant, Event::Create) => Ok(Phase::Serving {
            epoch: 1,
            through: None,
        }),
        (Phase::Serving { epoch, .. }, Event::Release { migration }) => Ok(Phase::Released {
            migration,
            epoch: successor(epoch)?,
        }),
        (
            Phase::Released {
                migration: known, ..
            },
            Event::Release { migration },
        ) if known == migration => Ok(phase),
        _ => Err(unfit(phase, event)),
    }
}

/// What a claimed epoch makes of a disk, for who claimed it and for who did not.
fn take_over(phase: Phase, event: Event, epoch: u64, taken: Phase) -> Result<Phase, Refusal> {
    let news = match phase {
        // The epoch named there was another host's to claim.
        Phase::Released { epoch: e, .. }
        | Phase::Incoming { epoch: e, .. }
        | Phase::Returned { epoch: e, .. } => epoch >= e,
        _ => epoch > phase.epoch(),
    };
    match phase {
        _ if news => Ok(taken),
        _ if phase == taken => Ok(phase),
        _ => Err(unfit(phase, event)),
    }
}

/// What the source does with the destination's answers.
fn source(phase: Phase, event: Event) -> Result<Phase, Refusal> {
    let (migration, epoch) = event.claim();
    let same = |m: MigrationId, e: u64| m == migration && e == epoch;
    match (phase, event) {
        (
            Phase::Released {
                migration: m,
                epoch: e,
            },
            Event::Acknowledged { .. },
        ) if same(m, e) => Ok(Phase::Handed { migration, epoch }),
        // Late or repeated: it is known already.
        (
            Phase::Handed {
                migration: m,
                epoch: e,
            }
            | Phase::Moved {
                migration: m,
                epoch: e,
            },
            Event::Acknowledged { .. },
        ) if same(m, e) => Ok(phase),
        (
            Phase::Released {
                migration: m,
                epoch: e,
            }
            | Phase::Handed {
                migration: m,
                epoch: e,
            }
            | Phase::Moved {
                migration: m,
                epoch: e,
            },
            Event::ActivatedThere { .. },
        ) if same(m, e) => Ok(Phase::Moved { migration, epoch }),
        (
            Phase::Released {
                migration: m,
                epoch: e,
            }
            | Phase::Handed {
                migration: m,
                epoch: e,
            },
            Event::ReturnedHere { .. },
        ) if same(m, e) => Ok(Phase::Serving {
            epoch: successor(epoch)?,
            through: None,
        }),
        (
            Phase::Serving {
                epoch: e,
                through: None,
            },
            Event::ReturnedHere { .. },
        ) if Some(e) == epoch.checked_add(1) => Ok(phase),
        _ => Err(unfit(phase, event)),
    }
}

/// What the destination does with the source's messages, and with its own device's first request.
fn destination(phase: Phase, event: Event) -> Result<Phase, Refusal> {
    let (migration, epoch) = event.claim();
    match (phase, event) {
        (Phase::Vacant, Event::Accept { .. }) => Ok(Phase::Incoming { migration, epoch }),
        // The peer serves at an epoch that was granted from here, so that grant was taken.
        (
            Phase::Released { epoch: e, .. }
            | Phase::Handed { epoch: e, .. }
            | Phase::Moved { epoch: e, .. }
            | Phase::Taken { epoch: e },
            Event::Accept { .. },
        ) if epoch > e => Ok(Phase::Incoming { migration, epoch }),
        (Phase::Returned { epoch: e, .. }, Event::Accept { .. }) if epoch >= e => {
            Ok(Phase::Incoming { migration, epoch })
        }
        (
            Phase::Incoming {
                migration: m,
                epoch: e,
            },
            _,
        ) if m == migration => match event {
            Event::Accept { .. } if e == epoch => Ok(phase),
            Event::Grant { .. } if e == epoch => Ok(Phase::Granted { migration, epoch }),
            Event::HandBack { .. } | Event::Settle { .. } if e == epoch => {
                Ok(Phase::Returned { migration, epoch })
            }
            Event::Discard { .. } => Ok(Phase::Returned {
                migration,
                epoch: e,
            }),
            _ => Err(unfit(phase, event)),
        },
        (
            Phase::Granted {
                migration: m,
                epoch: e,
            },
            _,
        ) if m == migration => match event {
            Event::Grant { .. } | Event::Settle { .. } if e == epoch => Ok(phase),
            Event::Activate { .. } if e == epoch => Ok(Phase::Serving {
                epoch,
                through: Some(migration),
            }),
            Event::HandBack { .. } if e == epoch => Ok(Phase::Returned { migration, epoch }),
            Event::Discard { .. } => Err(Refusal::AlreadyGranted { migration }),
            _ => Err(unfit(phase, event)),
        },
        (Phase::Returned { migration: m, .. }, Event::Discard { .. }) if m == migration => {
            Ok(phase)
        }
        _ => since_activation(phase, event),
    }
}

/// Messages that come after the copy became the disk, or never had to do with it.
fn since_activation(phase: Phase, event: Event) -> Result<Phase, Refusal> {
    let (migration, epoch) = event.claim();
    let at = phase.epoch();
    let arrived = match phase {
        Phase::Serving { epoch: e, through } => {
            through == Some(migration) && e == epoch || e > epoch
        }
        // From `released` on this host can only be because it served first.
        Phase::Released { epoch: e, .. }
        | Phase::Handed { epoch: e, .. }
        | Phase::Moved { epoch: e, .. }
        | Phase::Taken { epoch: e } => e > epoch,
        _ => false,
    };
    match event {
        Event::Grant { .. } | Event::Activate { .. }
            if matches!(phase, Phase::Serving { .. }) && at == epoch && arrived =>
        {
            Ok(phase)
        }
        Event::HandBack { .. } | Event::Settle { .. } if arrived => {
            Err(Refusal::Activated { epoch: at })
        }
        Event::Discard { .. } if matches!(phase, Phase::Serving { through, .. } if through == Some(migration)) => {
            Err(Refusal::AlreadyGranted { migration })
        }
        _ => Err(unfit(phase, event)),
    }
}

fn successor(epoch: u64) -> Result<u64, Refusal> {
    epoch.checked_add(1).ok_or(Refusal::EpochOverflow(epoch))
}

fn unfit(phase: Phase, event: Event) -> Refusal {
    Refusal::Unfit {
        phase: phase.name(),
        epoch: phase.epoch(),
        wanted: event.name(),
    }
}

impl State {
    /// Whether the attempt is over here, up to `epoch`.
    pub fn refuses(&self, migration: MigrationId, epoch: u64) -> bool {
        self.refused
            .iter()
            .any(|r| r.migration == migration && r.epoch >= epoch)
    }
}

impl Event {
    /// Migration and epoch; the epoch is 0 for an event that carries none.
    fn claim(&self) -> (MigrationId, u64) {
        match *self {
            Event::Create => (MigrationId(uuid::Uuid::nil()), 0),
            Event::TakeOver { epoch } | Event::TakenOver { epoch } => {
                (MigrationId(uuid::Uuid::nil()), epoch)
            }
            Event::Release { migration } | Event::Discard { migration } => (migration, 0),
            Event::Acknowledged { migration, epoch }
            | Event::ActivatedThere { migration, epoch }
            | Event::ReturnedHere { migration, epoch }
            | Event::Accept { migration, epoch }
            | Event::Grant { migration, epoch }
            | Event::Activate { migration, epoch }
            | Event::HandBack { migration, epoch }
            | Event::Settle { migration, epoch } => (migration, epoch),
        }
    }

    /// The event in a word, for refusals.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Create => "a first start",
            Event::Release { .. } => "a release",
            Event::Acknowledged { .. } => "an acknowledged grant",
            Event::ActivatedThere { .. } => "an activation at the destination",
            Event::ReturnedHere { .. } => "a return",
            Event::Accept { .. } => "an incoming copy of this migration and epoch",
            Event::Grant { .. } => "a grant of this migration and epoch",
            Event::Activate { .. } => "an activation of this migration and epoch",
            Event::HandBack { .. } => "a hand-back of this migration and epoch",
            Event::Settle { .. } => "a question about this migration and epoch",
            Event::Discard { .. } => "discarding the copy of this migration",
            Event::TakeOver { .. } => "taking the disk over",
            Event::TakenOver { .. } => "a takeover by another host",
        }
    }
}

#[cfg(test)]
mod tests;
