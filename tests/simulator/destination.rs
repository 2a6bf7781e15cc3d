//! The receiving end: sessions, and what strangers' connections ask. What `migration/src/destination`
//! does with threads, as jobs.

use ferry_dataplane::lifecycle::Geometry;
use ferry_migration::codec::{
    self, Data, Grant, Message, Pull, Refused, Tag, Zero, data_intact, refused,
};
use ferry_migration::handover::{self, Datastore};
use ferry_migration::lease::ownership::Applied;
use ferry_migration::negotiate::{Hello, Ready, check_hello, check_target};
use ferry_migration::phase::{self, Event, Phase};

use super::coverage::Happened;
use super::device::{Gate, OnRestart};
use super::image::{BLOCK_BYTES, Block, Image, PARTS, block_of, byte_of, unpack};
use super::tasks::{self, Why};
use super::world::{Attempt, DISK_UUID, Job, NAMES, SECOND, World, tell};
use super::{rings, state, wire};

/// One mirror's receiving end.
#[derive(Debug)]
pub struct Session {
    conn: usize,
    attempt: Attempt,
    /// The copy that its frames go to.
    image: u32,
    /// The disk may be asked for: its grant has not come.
    receiving: bool,
    granted: bool,
    /// Why it is over, once its thread finds out.
    over: Option<&'static str>,
}

fn session(world: &mut World, here: usize, conn: usize) -> Option<&mut Session> {
    let sessions = &mut world.hosts[here].sessions;
    sessions.iter_mut().find(|session| session.conn == conn)
}

/// Whether the thread that reads the connection does something else.
pub fn is_busy(world: &World, here: usize, conn: usize) -> bool {
    tasks::is_busy_for(world, here, conn)
}

pub fn hear(world: &mut World, here: usize, conn: usize, message: Message, data: &[u8]) {
    if session(world, here, conn).is_none() {
        return hear_first(world, here, conn, &message);
    }
    let heard = match message {
        Message::Ping | Message::NotGranted(_) => Ok(()),
        Message::Data(head) => apply_data(world, here, conn, &head, data),
        Message::Zero(zero) => apply_zero(world, here, conn, &zero),
        Message::Flush(tag) => receiving(world, here, conn).map(|image| {
            // A destination does not rely on it: the list of a grant flushes by itself.
            if !world.options.lazy_flush {
                image_of(world, here, image).flush();
            }
            wire::say(world, here, conn, &Message::Ack(Tag::Flush(tag)));
        }),
        Message::Grant(grant) => {
            take(world, here, conn, grant);
            Ok(())
        }
        Message::HandBack(ask) => {
            tasks::hand_back(world, here, conn, &ask);
            Ok(())
        }
        Message::Abort(_) => Err("the source aborted the migration"),
        _ => Err("a message out of place"),
    };
    if let Err(why) = heard {
        over(world, here, conn, why);
    }
}

/// A conversation begins.
fn hear_first(world: &mut World, here: usize, conn: usize, message: &Message) {
    match message {
        Message::Hello(hello) => match prepare(world, here, conn, hello) {
            Ok(()) => {
                let daemon = world.hosts[here].id;
                wire::watch(world, here, conn);
                wire::say(
                    world,
                    here,
                    conn,
                    &Message::Ready(Ready {
                        daemon,
                        kept: false,
                    }),
                );
                world.timer(here, SECOND, Job::Beat(conn));
            }
            Err(no) => {
                tell!(world, "{} refuses the disk: {}", NAMES[here], no.reason);
                wire::say(world, here, conn, &Message::Refused(no));
                wire::close(world, here, conn);
            }
        },
        Message::HandBack(ask) => tasks::hand_back(world, here, conn, ask),
        _ => {
            wire::say(world, here, conn, &refused("out of place"));
            wire::close(world, here, conn);
        }
    }
}

/// Makes room, and makes `incoming` durable.
fn prepare(world: &mut World, here: usize, conn: usize, hello: &Hello) -> Result<(), Refused> {
    let no = |reason: String, passing| Refused { reason, passing };
    check_hello(hello).map_err(|why| no(why, false))?;
    let host = &mut world.hosts[here];
    let (state, attempt) = (
        host.record().state(),
        Attempt::of(hello.claim.migration, hello.claim.epoch),
    );
    if let Phase::Incoming { .. } = state.phase {
        return Err(no("the disk is being received already".into(), true));
    }
    let (migration, epoch) = (attempt.migration(), attempt.epoch);
    phase::next(&state, Event::Accept { migration, epoch })
        .map_err(|refusal| no(refusal.to_string(), false))?;
    if !handover::takes_offers(&state.phase) || host.arrival.is_some() || host.source.is_some() {
        return Err(no(
            format!("the disk is {}, not awaited", state.phase.name()),
            false,
        ));
    }
    let target = Geometry {
        capacity_bytes: byte_of(world.options.blocks),
        block_bytes: 512,
    };
    check_target(hello, target).map_err(|why| no(why, false))?;
    let image = world.number();
    let host = &mut world.hosts[here];
    host.image = Some(Image::blank(image, world.options.blocks));
    host.arrival = Some(attempt);
    host.device.gate = Gate::Held;
    host.device.on_restart = OnRestart::Session(conn);
    host.device.expected = None;
    let mut peer = world.hosts[1 - here].peer();
    peer.address.clear();
    peer.daemon = hello.daemon;
    match world.hosts[here]
        .record()
        .accept(migration, epoch, DISK_UUID, peer, Vec::new())
    {
        Ok(Applied::Changed) => {}
        Ok(Applied::Repeated) => return Err(no("it is received already".into(), false)),
        Err(error) => {
            discard(world, here, attempt);
            return Err(no(error.to_string(), false));
        }
    }
    tell!(world, "{} receives move {}", NAMES[here], attempt.number);
    world.hosts[here].sessions.push(Session {
        conn,
        attempt,
        image,
        receiving: true,
        granted: false,
        over: None,
    });
    Ok(())
}

/// Which image takes the copy; none when that is void, or is the disk by now.
fn receiving(world: &mut World, here: usize, conn: usize) -> Result<u32, &'static str> {
    let phase = world.hosts[here].phase();
    let session = session(world, here, conn).expect("it has one");
    match phase {
        Phase::Incoming { migration, .. } if migration == session.attempt.migration() => {
            Ok(session.image)
        }
        _ => Err("the disk takes no copy"),
    }
}

fn image_of(world: &mut World, here: usize, id: u32) -> &mut Image {
    let image = world.hosts[here].image.as_mut();
    image
        .filter(|image| image.id == id)
        .expect("the copy is there while it is received")
}

fn apply_data(
    world: &mut World,
    here: usize,
    conn: usize,
    head: &Data,
    data: &[u8],
) -> Result<(), &'static str> {
    let image = receiving(world, here, conn)?;
    let bytes = data.len() as u64 / (size_of::<Block>() as u64) * BLOCK_BYTES;
    if head.offset_bytes + bytes > byte_of(world.options.blocks) {
        return Err("it is not on the disk");
    }
    if !data_intact(data, &head.crcs) {
        world.saw(Happened::DamageFound);
        return Err("data arrived damaged");
    }
    image_of(world, here, image).write(block_of(head.offset_bytes), &unpack(data));
    wire::say(world, here, conn, &Message::Ack(head.tag));
    Ok(())
}

fn apply_zero(
    world: &mut World,
    here: usize,
    conn: usize,
    zero: &Zero,
) -> Result<(), &'static str> {
    let image = receiving(world, here, conn)?;
    let blocks = vec![[0; PARTS]; block_of(zero.len_bytes)];
    image_of(world, here, image).write(block_of(zero.offset_bytes), &blocks);
    wire::say(world, here, conn, &Message::Ack(zero.tag));
    Ok(())
}

/// The disk changes hands.
fn take(world: &mut World, here: usize, conn: usize, grant: Grant) {
    let session = session(world, here, conn).expect("it has one");
    if grant.claim != session.attempt.claim() {
        return over(world, here, conn, "it grants another disk");
    }
    session.receiving = false;
    let attempt = session.attempt;
    let steps = handover::on_grant(attempt.migration(), attempt.epoch, Datastore::Own);
    let why = Why::Grant {
        conn,
        device_state: grant.device_state,
    };
    tasks::carry_out(world, here, attempt, &steps, why);
}

/// The list's first step.
pub fn flush_copy(world: &mut World, here: usize, attempt: Attempt) {
    let host = &mut world.hosts[here];
    if host.arrival == Some(attempt)
        && let Some(image) = &mut host.image
    {
        image.flush();
    }
}

pub fn install_and_record(
    world: &mut World,
    here: usize,
    attempt: Attempt,
    device_state: &[u8],
) -> Result<(), String> {
    let (migration, epoch) = (attempt.migration(), attempt.epoch);
    let host = &mut world.hosts[here];
    // The daemon sees a repetition, or a grant that comes too late, by itself. Here the table has to.
    let before = host.record().state();
    let next = phase::next(&before, Event::Grant { migration, epoch });
    if next.map_err(|refusal| refusal.to_string())? == before {
        return Ok(());
    }
    state::import(host, device_state)?;
    let granted = host.record().grant(migration, epoch, device_state.to_vec());
    granted.map_err(|error| error.to_string())?;
    world.saw(Happened::Granted);
    let Some(image) = &world.hosts[here].image else {
        world.break_promise("a disk is granted whose copy was thrown away");
        return Ok(());
    };
    let kept = world.oracle.grant(here, attempt.number, image);
    world.keep_promise(kept);
    arm(world, here, attempt);
    Ok(())
}

/// Lets a granted disk wait for its first request.
pub fn arm(world: &mut World, here: usize, attempt: Attempt) {
    let device = &mut world.hosts[here].device;
    (device.gate, device.on_restart, device.asked) =
        (Gate::Armed(attempt), OnRestart::Nobody, false);
    rings::pump(world, here);
}

pub fn arm_again(world: &mut World, here: usize, attempt: Attempt) {
    if world.hosts[here].arrival == Some(attempt) && world.hosts[here].device.gate == Gate::Held {
        arm(world, here, attempt);
    }
}

pub fn first_request(world: &mut World, here: usize) {
    let Gate::Armed(attempt) = world.hosts[here].device.gate else {
        world.hosts[here].device.asked = false;
        return;
    };
    let steps = handover::on_first_request(attempt.migration(), attempt.epoch, Datastore::Own);
    tasks::carry_out(world, here, attempt, &steps, Why::FirstRequest);
}

/// The grant is answered; without an answer, or when it was not taken, the session is over.
pub fn answered(
    world: &mut World,
    here: usize,
    conn: usize,
    granted: bool,
    message: Option<&Message>,
) {
    if let Some(message) = message {
        wire::say(world, here, conn, message);
    }
    if let Some(session) = session(world, here, conn) {
        session.granted = granted;
        if !granted {
            over(world, here, conn, "the grant was not taken");
        }
    }
}

pub fn conn_lost(world: &mut World, here: usize, conn: usize) {
    if session(world, here, conn).is_some() {
        over(world, here, conn, "the link is lost");
    }
}

/// The session's thread reads on.
pub fn is_free(world: &mut World, here: usize, conn: usize) {
    match session(world, here, conn).and_then(|session| session.over) {
        Some(why) => over(world, here, conn, why),
        None => world.job(here, 0, Job::Hear(conn)),
    }
}

/// The session ends; a copy that was not granted is given up.
fn over(world: &mut World, here: usize, conn: usize, why: &'static str) {
    // Its thread is at something else, and finds out after that.
    if is_busy(world, here, conn)
        && let Some(session) = session(world, here, conn)
    {
        session.over = Some(why);
        return;
    }
    let sessions = &mut world.hosts[here].sessions;
    let Some(at) = sessions.iter().position(|session| session.conn == conn) else {
        return;
    };
    let session = sessions.swap_remove(at);
    tell!(
        world,
        "{} ends the session of move {}: {why}",
        NAMES[here],
        session.attempt.number
    );
    if !session.granted {
        give_up(world, here, session.attempt);
        wire::say(world, here, conn, &refused(why));
    }
    wire::close(world, here, conn);
}

/// The tombstone first, then the copy.
pub fn give_up(world: &mut World, here: usize, attempt: Attempt) {
    let migration = attempt.migration();
    let applied = world.hosts[here]
        .record()
        .apply(Event::Discard { migration });
    if applied.is_ok_and(|applied| applied == Applied::Changed) {
        world.saw(Happened::CopyDiscarded);
        discard(world, here, attempt);
    }
}

/// The host lets go of the copy, if it is still this one's.
pub fn discard(world: &mut World, here: usize, attempt: Attempt) {
    if world.hosts[here].arrival != Some(attempt) {
        return;
    }
    tell!(
        world,
        "{} throws the copy of move {} away",
        NAMES[here],
        attempt.number
    );
    let host = &mut world.hosts[here];
    (host.arrival, host.image) = (None, None);
    host.device.gate = Gate::Held;
}

/// Once a second.
pub fn beat(world: &mut World, here: usize, conn: usize) {
    if session(world, here, conn).is_some() {
        pull(world, here, conn);
        world.timer(here, SECOND, Job::Beat(conn));
    }
}

/// Asks the source for the disk, if rings wait for it here.
pub fn pull(world: &mut World, here: usize, conn: usize) {
    let phase = world.hosts[here].phase();
    let (rings_run, base) = (
        world.hosts[here].device.rings_run,
        world.hosts[here].device.base,
    );
    let Some(session) = session(world, here, conn) else {
        return;
    };
    let attempt = session.attempt;
    let waits =
        matches!(phase, Phase::Incoming { migration, .. } if migration == attempt.migration());
    if session.receiving && waits && rings_run {
        let pull = Pull {
            claim: attempt.claim(),
            bases: vec![base],
        };
        world.saw(Happened::Pulled);
        wire::say(world, here, conn, &Message::Pull(pull));
    }
}

/// The source is told, where the session still stands.
pub fn notice_activation(world: &mut World, here: usize, attempt: Attempt) {
    let sessions = &world.hosts[here].sessions;
    let Some(session) = sessions.iter().find(|session| session.attempt == attempt) else {
        return;
    };
    let (conn, claim, daemon) = (session.conn, attempt.claim(), world.hosts[here].id);
    let answer = codec::Answer { claim, daemon };
    wire::say(world, here, conn, &Message::Activated(answer));
}
