//! The lists of `migration/src/handover.rs`, carried out step by step. Anything may come between two
//! steps: other lists, messages, the daemon's death.

use std::collections::VecDeque;

use ferry_migration::codec::{self, Answer, Grant, HandBack, Message, Returned};
use ferry_migration::handover::{self, Step, Word};
use ferry_migration::lease::ownership::{Applied, OwnershipError};
use ferry_migration::phase::Event;

use super::coverage::Happened;
use super::device::Gate;
use super::source;
use super::world::{Attempt, Job, NAMES, World, tell};
use super::{chaos, destination, release, resolve, rings, wire};

/// What a list is carried out for.
#[derive(Debug, Clone)]
pub enum Why {
    Release {
        device_state: Vec<u8>,
    },
    /// On the connection of a session.
    Grant {
        conn: usize,
        device_state: Vec<u8>,
    },
    HandBack {
        conn: usize,
    },
    FirstRequest,
    Word(Word),
}

#[derive(Debug)]
pub struct Task {
    id: u32,
    attempt: Attempt,
    steps: VecDeque<Step>,
    why: Why,
    begun: bool,
    /// Its last record was made.
    recorded: bool,
}

impl Task {
    pub fn is_begun(&self) -> bool {
        self.begun
    }
}

/// What comes after a step.
enum Then {
    GoOn,
    /// Only the answer is left to be given.
    Answer,
    Stop,
}

pub fn carry_out(world: &mut World, here: usize, attempt: Attempt, steps: &[Step], why: Why) {
    let id = world.number();
    world.hosts[here].tasks.push(Task {
        id,
        attempt,
        steps: steps.iter().copied().collect(),
        why,
        begun: false,
        recorded: false,
    });
    world.job(here, 0, Job::Step(id));
}

/// Whether a session's thread has a list to carry out.
pub fn is_busy_for(world: &World, here: usize, conn: usize) -> bool {
    let on = |task: &Task| match task.why {
        Why::Grant { conn: c, .. } | Why::HandBack { conn: c } => c == conn,
        _ => false,
    };
    world.hosts[here].tasks.iter().any(on)
}

pub fn carry_out_one(world: &mut World, here: usize, id: u32) {
    let tasks = &mut world.hosts[here].tasks;
    let Some(at) = tasks.iter().position(|task| task.id == id) else {
        return;
    };
    let mut task = tasks.swap_remove(at);
    task.begun = true;
    let life = world.hosts[here].life;
    let then = match task.steps.pop_front() {
        Some(step) => carry_out_step(world, here, &mut task, step),
        None => Then::Stop,
    };
    match then {
        Then::GoOn => {}
        Then::Answer => task.steps.retain(|step| *step == Step::Answer),
        Then::Stop => task.steps.clear(),
    }
    if task.steps.is_empty() {
        done(world, here, &task);
    } else {
        let wait = world.soon();
        world.hosts[here].tasks.push(task);
        world.job(here, wait, Job::Step(id));
    }
    if world.hosts[here].life == life {
        chaos::after_a_step(world, here);
    }
}

fn carry_out_step(world: &mut World, here: usize, task: &mut Task, step: Step) -> Then {
    tell!(
        world,
        "{} of move {}: {step:?}",
        NAMES[here],
        task.attempt.number
    );
    match step {
        Step::Flush => destination::flush_copy(world, here, task.attempt),
        Step::Record(event) => return record(world, here, task, event),
        Step::Say(_) => say_grant(world, here, task),
        Step::Answer => answer(world, here, task),
        Step::Serve => serve(world, here, task),
        Step::Take | Step::LetGo | Step::Claim { .. } => unreachable!("of shared datastores"),
    }
    Then::GoOn
}

fn say_grant(world: &mut World, here: usize, task: &Task) {
    let source = world.hosts[here].source.as_ref();
    let conn = source.and_then(|source| source.conn);
    if let (Why::Release { device_state }, Some(conn)) = (&task.why, conn) {
        let grant = Grant {
            claim: task.attempt.claim(),
            device_state: device_state.clone(),
        };
        wire::say(world, here, conn, &Message::Grant(grant));
    }
}

fn serve(world: &mut World, here: usize, task: &Task) {
    if let Why::FirstRequest = task.why {
        let device = &mut world.hosts[here].device;
        (device.gate, device.expected, device.asked) = (Gate::Open, None, false);
        world.hosts[here].arrival = None;
        tell!(world, "{} serves", NAMES[here]);
        world.saw(Happened::Activated);
        destination::notice_activation(world, here, task.attempt);
        rings::pump(world, here);
    } else {
        source::resume(world, here);
    }
}

fn record(world: &mut World, here: usize, task: &mut Task, event: Event) -> Then {
    if let (Event::Grant { .. }, Why::Grant { device_state, .. }) = (event, &task.why) {
        return match destination::install_and_record(world, here, task.attempt, device_state) {
            Ok(()) => Then::GoOn,
            Err(why) => {
                tell!(world, "{} cannot take the grant: {why}", NAMES[here]);
                destination::give_up(world, here, task.attempt);
                Then::Answer
            }
        };
    }
    let result = match event {
        Event::Release { migration } => {
            let peer = world.hosts[1 - here].peer();
            world.hosts[here]
                .record()
                .release(migration, peer, Vec::new())
        }
        event => world.hosts[here].record().apply(event),
    };
    if let Err(error) = &result {
        tell!(world, "{} does not record it: {error}", NAMES[here]);
    }
    task.recorded = result.is_ok();
    if result.is_ok()
        && !matches!(event, Event::Settle { .. })
        && result.as_ref().ok() == Some(&Applied::Changed)
    {
        recorded(world, here, task, event);
    }
    match (event, result) {
        (Event::HandBack { .. } | Event::Settle { .. }, Ok(Applied::Changed)) => {
            destination::discard(world, here, task.attempt);
            world.saw(Happened::Tombstone);
            Then::GoOn
        }
        (_, Ok(_)) => Then::GoOn,
        (Event::Release { .. }, Err(_)) => {
            // Either record may be on the disk now. Nothing was granted, so both are safe.
            let _ = world.hosts[here].record().store_again();
            world.saw(Happened::ReleaseNotRecorded);
            source::end(world, here, "the release cannot be recorded");
            Then::Stop
        }
        (Event::Activate { .. }, Err(error)) => {
            world.hosts[here].device.asked = false;
            world.hosts[here].device.gate = Gate::Held;
            if let OwnershipError::Lease(_) = error {
                world.timer(here, super::world::SECOND, Job::Arm(task.attempt));
            }
            Then::Stop
        }
        (Event::HandBack { .. } | Event::Settle { .. }, Err(OwnershipError::Refused(_))) => {
            Then::GoOn
        }
        (Event::ReturnedHere { .. }, Err(_)) => Then::Stop,
        (Event::Acknowledged { .. } | Event::ActivatedThere { .. }, Err(_)) => Then::GoOn,
        (_, Err(_)) => {
            if let Why::HandBack { conn } = task.why {
                let no = codec::refused("it cannot be recorded");
                wire::say(world, here, conn, &no);
            }
            Then::Stop
        }
    }
}

/// A record has changed, durably.
fn recorded(world: &mut World, here: usize, task: &Task, event: Event) {
    match event {
        Event::Release { .. } => {
            let host = &world.hosts[here];
            let image = host.image.as_ref().expect("it was served");
            world.oracle.release(here, task.attempt.number, image);
            release::released(world, here);
        }
        Event::Activate { .. } => {
            let released = world.hosts[1 - here].given_up;
            // Of rings that were never used nothing can be told: there a person's word counts.
            let unused = released.index == 0;
            let known = !released.or_boots && !unused || released.pulled && unused;
            if world.hosts[here].device.machine != released.machine && known {
                let pulled = if released.pulled {
                    "pulled"
                } else {
                    "was given"
                };
                world.break_promise(format!("another machine {pulled} the disk"));
            }
            if released.pulled {
                world.saw(Happened::MovedByPull);
            }
        }
        _ => {}
    }
}

/// Says what the record makes of the attempt.
fn answer(world: &mut World, here: usize, task: &Task) {
    let (conn, in_session) = match task.why {
        Why::Grant { conn, .. } => (conn, true),
        Why::HandBack { conn } => (conn, false),
        _ => return,
    };
    let (claim, attempt) = (task.attempt.claim(), task.attempt);
    let record = world.hosts[here].record();
    let daemon = record.daemon();
    let word = handover::answer(&record.state(), attempt.migration(), attempt.epoch);
    let reason = "as asked".to_owned();
    let message = match word {
        Some(Word::Granted) => Message::Granted(Answer { claim, daemon }),
        Some(Word::Activated) => Message::Activated(Answer { claim, daemon }),
        Some(Word::Returned) => Message::Returned(Returned {
            claim,
            daemon,
            reason,
        }),
        _ => codec::refused("the attempt is not known here"),
    };
    if in_session {
        let granted = matches!(word, Some(Word::Granted | Word::Activated));
        destination::answered(
            world,
            here,
            conn,
            granted,
            word.is_some().then_some(&message),
        );
    } else {
        wire::say(world, here, conn, &message);
    }
}

fn done(world: &mut World, here: usize, task: &Task) {
    match task.why {
        Why::Word(word) => resolve::noted(world, here, word, task.recorded),
        Why::Grant { conn, .. } | Why::HandBack { conn } => destination::is_free(world, here, conn),
        Why::Release { .. } => source::wake(world, here),
        Why::FirstRequest => world.hosts[here].device.asked = false,
    }
}

/// The source is asked back on a connection of its own, or in a session.
pub fn hand_back(world: &mut World, here: usize, conn: usize, ask: &HandBack) {
    let attempt = Attempt::of(ask.claim.migration, ask.claim.epoch);
    let steps = handover::on_hand_back(attempt.migration(), attempt.epoch, ask.though_granted);
    carry_out(world, here, attempt, &steps, Why::HandBack { conn });
}
