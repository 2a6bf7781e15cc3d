//! The sending end: the conductor, and the mirror's writer and reader. What `migration/src/source`
//! does with threads, as jobs.

use std::collections::VecDeque;

use ferry_migration::codec::{self, Abort, Message};
use ferry_migration::extents::Extents;
use ferry_migration::handover::Word;
use ferry_migration::ids::DaemonId;
use ferry_migration::negotiate::{Hello, ImageKind};
use ferry_migration::phase::Phase;

use super::copy::{self, Copier};
use super::coverage::Happened;
use super::device::{self, Gate};
use super::image::byte_of;
use super::mirror::{self, Change};
use super::release::{self, Releasing};
use super::resolve::{self, Resolving};
use super::world::{Attempt, DISK_UUID, Job, MILLI, NAMES, SECOND, Time, World, tell};
use super::{rings, state, wire};

/// How long an offer is repeated, and how often.
const BUSY_PATIENCE: Time = 8 * SECOND;
const BUSY_PAUSE: Time = 100 * MILLI;
/// A question that was heard longer ago than this is not answered.
const PULL_AGE_MAX: Time = 5 * SECOND;
const PULL_PATIENCE: Time = 30 * SECOND;

#[derive(Debug)]
pub enum Stage {
    Connecting { give_up: Time, again: Time },
    Copying,
    InSync,
    Releasing(Releasing),
    Resolving(Resolving),
}

#[derive(Debug)]
pub struct Source {
    pub attempt: Attempt,
    pub stage: Stage,
    pub conn: Option<usize>,
    pub peer: DaemonId,
    pub plan: Extents,
    pub copier: Copier,
    pub channel: VecDeque<Change>,
    /// Flushes that were ordered and not written.
    pub orders: VecDeque<u64>,
    /// Costs of bulk pieces that were queued and not acknowledged.
    pub bulk: VecDeque<u64>,
    pub bulk_bytes: u64,
    pub bulk_tag: u64,
    pub bulk_acked: u64,
    pub guest_sent: u64,
    pub since_flush: u64,
    pub flush_tag: u64,
    pub flushed: u64,
    /// Acknowledgements mean our tap.
    pub tapped: bool,
    /// The disk gave the mirror up.
    pub failed: bool,
    pub lost: Option<&'static str>,
    pub cancelled: bool,
    /// Until when the release that a person asked for must be through.
    pub wanted: Option<Time>,
    pull: Option<(Vec<u16>, Time)>,
    /// The VMM started the rings of the quiesced disk.
    pub restarted: bool,
    pub verdict: Option<Word>,
    /// A look is due.
    awake: bool,
    alarm: Time,
    pub writing: bool,
}

impl Source {
    pub fn new(attempt: Attempt, stage: Stage, capacity_bytes: u64) -> Source {
        Source {
            attempt,
            stage,
            conn: None,
            peer: DaemonId(uuid::Uuid::nil()),
            plan: Extents::new(capacity_bytes),
            copier: Copier::Rests,
            channel: VecDeque::new(),
            orders: VecDeque::new(),
            bulk: VecDeque::new(),
            bulk_bytes: 0,
            bulk_tag: 0,
            bulk_acked: 0,
            guest_sent: 0,
            since_flush: 0,
            flush_tag: 0,
            flushed: 0,
            tapped: false,
            failed: false,
            lost: None,
            cancelled: false,
            wanted: None,
            pull: None,
            restarted: false,
            verdict: None,
            awake: false,
            alarm: 0,
            writing: false,
        }
    }

    pub fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Connecting { .. } => "connecting",
            Stage::Copying => "copying",
            Stage::InSync => "in sync",
            Stage::Releasing(_) => "releasing",
            Stage::Resolving(_) => "resolving",
        }
    }

    pub fn is_before_release(&self) -> bool {
        !matches!(self.stage, Stage::Resolving(_))
    }

    /// A reason to stop, if there is one by now.
    pub fn stop(&self) -> Option<&'static str> {
        self.cancelled.then_some("cancelled").or(self.lost)
    }
}

/// The operator moves the disk away from here.
pub fn begin(world: &mut World, here: usize) {
    let Phase::Serving { epoch, .. } = world.hosts[here].phase() else {
        return;
    };
    world.attempts += 1;
    let attempt = Attempt {
        number: world.attempts,
        epoch: epoch + 1,
    };
    let now = world.clock(here);
    let stage = Stage::Connecting {
        give_up: now + BUSY_PATIENCE,
        again: now,
    };
    tell!(
        world,
        "move {} away from {} begins",
        attempt.number,
        NAMES[here]
    );
    let capacity_bytes = byte_of(world.options.blocks);
    world.hosts[here].source = Some(Source::new(attempt, stage, capacity_bytes));
    wake(world, here);
}

pub fn wake(world: &mut World, here: usize) {
    let wait = world.soon();
    if let Some(source) = &mut world.hosts[here].source
        && !source.awake
    {
        source.awake = true;
        world.job(here, wait, Job::Source);
    }
}

/// Has the conductor look after a time by its clock, unless it will sooner.
pub fn alarm(world: &mut World, here: usize, wait: Time) {
    let now = world.clock(here);
    if let Some(source) = &mut world.hosts[here].source
        && !(now < source.alarm && source.alarm <= now + wait)
    {
        source.alarm = now + wait;
        world.timer(here, wait + 1, Job::Alarm);
    }
}

pub fn rings(world: &mut World, here: usize) {
    if let Some(source) = &mut world.hosts[here].source {
        source.alarm = 0;
        look(world, here);
    }
}

/// The conductor looks for something to do.
pub fn look(world: &mut World, here: usize) {
    let now = world.clock(here);
    let Some(source) = &mut world.hosts[here].source else {
        return;
    };
    source.awake = false;
    if source.is_before_release()
        && let Some(why) = source.stop()
    {
        return end(world, here, why);
    }
    match &source.stage {
        Stage::Connecting { give_up, again } if source.conn.is_none() => {
            if now >= *give_up {
                source.lost = Some("the destination is busy");
                wake(world, here);
            } else if now >= *again {
                offer(world, here);
            } else {
                let wait = *again - now;
                alarm(world, here, wait);
            }
        }
        Stage::Connecting { .. } => {}
        Stage::Copying => {
            if copy::go_on(world, here) {
                in_sync(world, here);
            }
        }
        Stage::InSync => {
            if copy::go_on(world, here) {
                obey(world, here, now);
            }
        }
        Stage::Releasing(_) => release::go_on(world, here),
        Stage::Resolving(_) => resolve::go_on(world, here),
    }
}

fn offer(world: &mut World, here: usize) {
    let conn = wire::open(world, here);
    let source = world.hosts[here].source.as_mut().expect("looked at");
    let Some(conn) = conn else {
        source.lost = Some("cannot reach the destination");
        return wake(world, here);
    };
    source.conn = Some(conn);
    let hello = Hello {
        claim: source.attempt.claim(),
        disk_uuid: DISK_UUID,
        daemon: world.hosts[here].id,
        image: ImageKind::Raw,
        shape: state::shape(world.options.blocks, world.hosts[here].device.features),
        members: Vec::new(),
    };
    wire::watch(world, here, conn);
    wire::say(world, here, conn, &Message::Hello(hello));
}

fn in_sync(world: &mut World, here: usize) {
    let source = world.hosts[here].source.as_mut().expect("looked at");
    if source.bulk_bytes == 0 {
        tell!(world, "{} is in sync", NAMES[here]);
        world.hosts[here].source.as_mut().expect("still").stage = Stage::InSync;
        world.saw(Happened::InSync);
        wake(world, here);
    }
}

/// In sync: does what a person or the VM at the other side wants.
fn obey(world: &mut World, here: usize, now: Time) {
    let source = world.hosts[here].source.as_mut().expect("looked at");
    let releasing = if let Some(deadline) = source.wanted {
        Releasing::new(None, deadline)
    } else if let Some((bases, heard)) = source.pull.take()
        && now - heard < PULL_AGE_MAX
    {
        Releasing::new(Some(bases), now + PULL_PATIENCE)
    } else {
        return;
    };
    source.stage = Stage::Releasing(releasing);
    release::begin(world, here);
}

/// Before the release: the disk is served here as before.
pub fn end(world: &mut World, here: usize, why: &'static str) {
    tell!(world, "move away from {} ends: {why}", NAMES[here]);
    let Some(mut source) = world.hosts[here].source.take() else {
        return;
    };
    world.saw(match why {
        "cancelled" => Happened::Cancelled,
        _ => Happened::MoveFailed,
    });
    source.tapped = false;
    device::detach_tap(world, here);
    if let Some(conn) = source.conn {
        let claim = source.attempt.claim();
        wire::say(world, here, conn, &Message::Abort(Abort { claim }));
        wire::close(world, here, conn);
    }
    if matches!(source.stage, Stage::Releasing(_)) {
        resume(world, here);
    }
}

/// Takes the disk into service again, whatever held it.
pub fn resume(world: &mut World, here: usize) {
    let device = &mut world.hosts[here].device;
    device.gate = Gate::Open;
    device.on_restart = device::OnRestart::Nobody;
    device.expected = None;
    tell!(world, "{} serves", NAMES[here]);
    rings::pump(world, here);
}

pub fn restarted(world: &mut World, here: usize) {
    if let Some(source) = &mut world.hosts[here].source {
        source.restarted = true;
        wake(world, here);
    }
}

/// Whether the connection is one of this host's source.
pub fn has(world: &World, here: usize, conn: usize) -> bool {
    let source = world.hosts[here].source.as_ref();
    source.is_some_and(|it| it.conn == Some(conn) || resolve::asks_on(it, conn))
}

pub fn conn_lost(world: &mut World, here: usize, conn: usize) {
    if !has(world, here, conn) {
        return;
    }
    let source = world.hosts[here].source.as_mut().expect("it has one");
    if source.conn == Some(conn) {
        source.conn = None;
        source.lost.get_or_insert("the link is lost");
    } else {
        resolve::no_answer(source);
    }
    wake(world, here);
}

/// What the destination says.
pub fn hear(world: &mut World, here: usize, conn: usize, message: Message) {
    let now = world.clock(here);
    let source = world.hosts[here].source.as_mut().expect("it has one");
    if source.conn != Some(conn) {
        return resolve::answered(world, here, conn, &message);
    }
    let claim = source.attempt.claim();
    let verdict = |of: &codec::Answer, word| (of.claim == claim).then_some((word, of.daemon));
    let heard = match &message {
        Message::Ping => None,
        Message::Ready(ready) if matches!(source.stage, Stage::Connecting { .. }) => {
            source.peer = ready.daemon;
            (source.stage, source.tapped) = (Stage::Copying, true);
            device::attach_tap(world, here);
            return wake(world, here);
        }
        Message::Refused(no) if matches!(source.stage, Stage::Connecting { .. }) && no.passing => {
            source.conn = None;
            if let Stage::Connecting { again, .. } = &mut source.stage {
                *again = now + BUSY_PAUSE;
            }
            wire::close(world, here, conn);
            return wake(world, here);
        }
        Message::Ack(tag) => return mirror::acknowledged(world, here, *tag),
        Message::Pull(pull) => {
            source.pull = (pull.claim == claim).then(|| (pull.bases.clone(), now));
            return wake(world, here);
        }
        Message::Granted(answer) => verdict(answer, Word::Granted),
        Message::Activated(answer) => verdict(answer, Word::Activated),
        Message::Returned(answer) => {
            (answer.claim == claim).then_some((Word::Returned, answer.daemon))
        }
        _ => {
            source.lost.get_or_insert("the destination refused");
            None
        }
    };
    if let Some((word, daemon)) = heard
        && daemon == source.peer
        && source.verdict != Some(Word::Activated)
    {
        source.verdict = Some(word);
    }
    wake(world, here);
}
