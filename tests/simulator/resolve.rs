//! After the release: who owns the disk? As `migration/src/source/resolve.rs` finds out.

use ferry_migration::codec::{HandBack, Message};
use ferry_migration::handover::{self, Datastore, Word};

use super::coverage::Happened;
use super::source::{Source, Stage, alarm, wake};
use super::tasks::{self, Why};
use super::wire;
use super::world::{NAMES, SECOND, Time, World, tell};

const ASK_EVERY: Time = SECOND;
const IDLE_ASK_EVERY: Time = 5 * SECOND;
/// How long an answer may take.
const ANSWER_PATIENCE: Time = 15 * SECOND;

#[derive(Debug, Default)]
pub struct Resolving {
    acknowledged: bool,
    ask_at: Time,
    /// The question that is under way: its connection, until when, and whether the disk is wanted
    /// though it was granted.
    asked: Option<(usize, Time, bool)>,
    /// A list is carried out.
    busy: bool,
}

fn resolving(source: &mut Source) -> Option<&mut Resolving> {
    match &mut source.stage {
        Stage::Resolving(it) => Some(it),
        _ => None,
    }
}

/// Whether the destination has not said yet that it has the disk, or has not.
pub fn is_in_doubt(source: &Source) -> bool {
    matches!(&source.stage, Stage::Resolving(it) if !it.acknowledged)
}

pub fn asks_on(source: &Source, conn: usize) -> bool {
    match &source.stage {
        Stage::Resolving(it) => it.asked.is_some_and(|(asked, ..)| asked == conn),
        _ => false,
    }
}

pub fn go_on(world: &mut World, here: usize) {
    let now = world.clock(here);
    let source = world.hosts[here].source.as_mut().expect("looked at");
    let asking = source.restarted || source.lost.is_some();
    let (verdict, though_granted) = (source.verdict, source.restarted);
    let Some(it) = resolving(source) else { return };
    if it.busy {
        return;
    }
    if let Some((conn, until, _)) = it.asked {
        if now >= until {
            it.asked = None;
            it.ask_at = now + ASK_EVERY;
            wire::close(world, here, conn);
            return wake(world, here);
        }
        return alarm(world, here, until - now);
    }
    if let Some(word) = verdict {
        it.busy = true;
        source.verdict = None;
        let attempt = source.attempt;
        let (migration, epoch) = (attempt.migration(), attempt.epoch);
        let steps = handover::on_word(word, migration, epoch, Datastore::Own);
        return tasks::carry_out(world, here, attempt, &steps, Why::Word(word));
    }
    if asking && now >= it.ask_at {
        ask(world, here, though_granted);
    } else if asking {
        let wait = it.ask_at - now;
        alarm(world, here, wait);
    }
}

fn ask(world: &mut World, here: usize, though_granted: bool) {
    let now = world.clock(here);
    let conn = wire::open(world, here);
    let source = world.hosts[here].source.as_mut().expect("looked at");
    let claim = source.attempt.claim();
    let it = resolving(source).expect("it resolves");
    let Some(conn) = conn else {
        it.ask_at = now + ASK_EVERY;
        return alarm(world, here, ASK_EVERY);
    };
    it.asked = Some((conn, now + ANSWER_PATIENCE, though_granted));
    tell!(world, "{} asks who owns the disk", NAMES[here]);
    world.saw(if though_granted {
        Happened::AskedBack
    } else {
        Happened::Asked
    });
    let question = HandBack {
        claim,
        though_granted,
    };
    wire::say(world, here, conn, &Message::HandBack(question));
    wake(world, here);
}

/// The connection that was asked on has ended without a word.
pub fn no_answer(source: &mut Source) {
    if let Some(it) = resolving(source) {
        it.asked = None;
    }
}

pub fn answered(world: &mut World, here: usize, conn: usize, message: &Message) {
    let now = world.clock(here);
    let source = world.hosts[here].source.as_mut().expect("it asked");
    let (claim, peer) = (source.attempt.claim(), source.peer);
    let Some(it) = resolving(source) else { return };
    let though_granted = it.asked.take().is_some_and(|(.., though)| though);
    let idle = it.acknowledged && !though_granted;
    it.ask_at = now + if idle { IDLE_ASK_EVERY } else { ASK_EVERY };
    let (of, daemon, word) = match message {
        Message::Granted(a) => (&a.claim, a.daemon, Some(Word::Granted)),
        Message::Activated(a) => (&a.claim, a.daemon, Some(Word::Activated)),
        Message::Returned(a) => (&a.claim, a.daemon, Some(Word::Returned)),
        _ => (&claim, peer, None),
    };
    if *of == claim && daemon == peer && word.is_some() {
        source.verdict = word;
    }
    wire::close(world, here, conn);
    wake(world, here);
}

/// The list that a word calls for is carried out, or could not be.
pub fn noted(world: &mut World, here: usize, word: Word, recorded: bool) {
    let Some(source) = &mut world.hosts[here].source else {
        return;
    };
    let (was_asked, lost) = (source.lost.is_some(), source.lost);
    let Some(it) = resolving(source) else { return };
    it.busy = false;
    match word {
        Word::Granted => {
            it.acknowledged = true;
            if was_asked {
                world.saw(Happened::DoubtResolvedAsGranted);
            }
        }
        Word::Activated => {
            if was_asked {
                world.saw(Happened::DoubtResolvedAsMoved);
            }
            world.saw(Happened::Moved);
            return finish(world, here);
        }
        Word::Returned if recorded => {
            world.saw(Happened::HandedBack);
            return finish(world, here);
        }
        Word::Returned => {
            source.lost = lost.or(Some("the disk is back"));
        }
        Word::Grant => {}
    }
    wake(world, here);
}

fn finish(world: &mut World, here: usize) {
    let Some(source) = world.hosts[here].source.take() else {
        return;
    };
    if let Some(conn) = source.conn {
        wire::close(world, here, conn);
    }
}
