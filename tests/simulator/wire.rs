//! The link: connections that are cut, stall and damage what they carry. Every message passes the
//! production codec, as bytes.

use std::collections::VecDeque;

use ferry_migration::codec::{self, CodecError, Message};
use ferry_migration::transport::SILENCE;

use super::coverage::Happened;
use super::world::{Job, MILLI, NAMES, SECOND, Time, World, tell};
use super::{destination, source};

#[derive(Debug, Default)]
pub struct Wire {
    conns: Vec<Conn>,
    /// Nothing arrives before.
    pub blocked_until: Time,
}

/// One TCP connection: what was sent arrives in order, up to some point.
#[derive(Debug)]
struct Conn {
    lives: [u32; 2],
    to: [Pipe; 2],
    /// A side has closed it.
    closed: [bool; 2],
    cut: bool,
    /// When a side has last heard of the other, by its own clock.
    heard: [Time; 2],
}

#[derive(Debug, Default)]
struct Pipe {
    packets: VecDeque<Packet>,
    last: Time,
}

#[derive(Debug)]
struct Packet {
    at: Time,
    /// Nothing: the end of the stream.
    bytes: Option<Vec<u8>>,
}

/// Messages that the sockets' buffers take.
const WINDOW: usize = 12;

impl Wire {
    /// Whether the buffers take one more.
    pub fn has_room(&self, from: usize, conn: usize) -> bool {
        self.conns[conn].to[1 - from].packets.len() < WINDOW
    }

    fn is_gone(&self, conn: usize) -> bool {
        let conn = &self.conns[conn];
        conn.cut || conn.closed != [false; 2]
    }
}

/// Connects to the other host's daemon. A suspended one's kernel answers for it.
pub fn open(world: &mut World, from: usize) -> Option<usize> {
    if world.wire.blocked_until > world.now || !world.hosts[1 - from].up {
        return None;
    }
    let lives = [world.hosts[0].life, world.hosts[1].life];
    let heard = [world.clock(0), world.clock(1)];
    world.wire.conns.push(Conn {
        lives,
        to: [Pipe::default(), Pipe::default()],
        closed: [false; 2],
        cut: false,
        heard,
    });
    Some(world.wire.conns.len() - 1)
}

/// Both ends have something to say at least every heartbeat from now on.
pub fn watch(world: &mut World, here: usize, conn: usize) {
    world.wire.conns[conn].heard[here] = world.clock(here);
    world.timer(here, SECOND, Job::Silence(conn));
}

pub fn say(world: &mut World, from: usize, conn: usize, message: &Message) {
    say_with(world, from, conn, message, &[]);
}

pub fn say_with(world: &mut World, from: usize, conn: usize, message: &Message, data: &[u8]) {
    let mut bytes = codec::encode(message, data.len()).expect("a message of a good size");
    bytes.extend_from_slice(data);
    tell!(world, "{} says {}", NAMES[from], brief(message));
    if world.options.damage > 0 && !world.healed && world.once_in(world.options.damage) {
        let at = world.rng.usize(0..bytes.len());
        bytes[at] ^= 1 << world.rng.u32(0..8);
        world.saw(Happened::Damage);
        tell!(world, "  and it is damaged on its way");
    }
    send(world, from, conn, Some(bytes));
}

fn send(world: &mut World, from: usize, conn: usize, bytes: Option<Vec<u8>>) {
    let delay = world.about(world.options.net);
    let at = (world.now + delay).max(world.wire.blocked_until);
    let it = &mut world.wire.conns[conn];
    if it.cut || it.closed[from] {
        return;
    }
    let pipe = &mut it.to[1 - from];
    pipe.last = pipe.last.max(at);
    pipe.packets.push_back(Packet {
        at: pipe.last,
        bytes,
    });
    let wait = pipe.last - world.now;
    world.job(1 - from, wait, Job::Hear(conn));
}

/// An orderly end: the other side hears all that was said before.
pub fn close(world: &mut World, from: usize, conn: usize) {
    send(world, from, conn, None);
    world.wire.conns[conn].closed[from] = true;
}

/// The connection breaks: of what is under way some arrives, and each side finds out by itself.
pub fn cut(world: &mut World, conn: usize) {
    if world.wire.conns[conn].cut {
        return;
    }
    for to in 0..2 {
        let under_way = world.wire.conns[conn].to[to].packets.len();
        let arrive = world.rng.usize(0..=under_way);
        world.wire.conns[conn].to[to].packets.truncate(arrive);
        let reset = world.once_in(2);
        let mean = if reset { 20 * MILLI } else { 3 * SECOND };
        let wait = world.about(mean);
        let wait = wait.max(world.wire.conns[conn].to[to].last.saturating_sub(world.now));
        world.job(to, wait, Job::Lost(conn));
    }
    world.wire.conns[conn].cut = true;
}

/// Every connection breaks.
pub fn cut_all(world: &mut World) {
    for conn in 0..world.wire.conns.len() {
        if !world.wire.is_gone(conn) {
            cut(world, conn);
        }
    }
}

/// The daemon is gone. Of a killed one the kernel sends what is left and says goodbye; a host
/// without power says nothing.
pub fn died(world: &mut World, here: usize, power_cut: bool) {
    let life = world.hosts[here].life;
    for conn in 0..world.wire.conns.len() {
        let it = &world.wire.conns[conn];
        if it.lives[here] != life || it.cut || it.closed[here] {
            continue;
        }
        if power_cut {
            cut(world, conn);
        } else {
            close(world, here, conn);
        }
    }
}

pub fn silence(world: &mut World, here: usize, conn: usize) {
    let now = world.clock(here);
    let there = &world.hosts[1 - here];
    let it = &mut world.wire.conns[conn];
    if it.closed[here] {
        return;
    }
    let talks = there.up && !there.suspended && there.life == it.lives[1 - here] && !it.cut;
    if talks && world.wire.blocked_until <= world.now {
        it.heard[here] = now;
    }
    let silence = Time::try_from(SILENCE.as_micros()).unwrap_or(Time::MAX);
    if now - it.heard[here] > silence {
        tell!(world, "{} has heard nothing for too long", NAMES[here]);
        world.saw(Happened::Silence);
        lost(world, here, conn);
    } else {
        world.timer(here, SECOND, Job::Silence(conn));
    }
}

/// A connection is at its end, for this side.
pub fn lost(world: &mut World, here: usize, conn: usize) {
    if world.wire.conns[conn].closed[here] {
        return;
    }
    close(world, here, conn);
    tell!(world, "{} finds a connection broken", NAMES[here]);
    ended(world, here, conn);
}

fn ended(world: &mut World, here: usize, conn: usize) {
    source::conn_lost(world, here, conn);
    destination::conn_lost(world, here, conn);
}

/// Takes what has arrived, frame by frame, as long as the thread that reads has nothing else to do.
pub fn hear(world: &mut World, here: usize, conn: usize) {
    loop {
        if world.wire.conns[conn].closed[here] || destination::is_busy(world, here, conn) {
            return;
        }
        let now = world.now;
        let pipe = &mut world.wire.conns[conn].to[here];
        if pipe.packets.front().is_none_or(|packet| packet.at > now) {
            return;
        }
        let packet = pipe.packets.pop_front().expect("looked at");
        world.wire.conns[conn].heard[here] = world.clock(here);
        let Some(bytes) = packet.bytes else {
            tell!(world, "{} hears the end of a connection", NAMES[here]);
            world.wire.conns[conn].closed[here] = true;
            return ended(world, here, conn);
        };
        match decode(&bytes) {
            Ok((message, data)) => {
                tell!(world, "{} hears {}", NAMES[here], brief(&message));
                dispatch(world, here, conn, message, data);
            }
            Err(error) => {
                tell!(world, "{} hears nonsense: {error}", NAMES[here]);
                return lost(world, here, conn);
            }
        }
    }
}

fn decode(mut bytes: &[u8]) -> Result<(Message, &[u8]), CodecError> {
    let frame = codec::read_frame(&mut bytes)?;
    let data = bytes.get(..frame.data_bytes).ok_or(CodecError::Closed)?;
    Ok((frame.message, data))
}

fn dispatch(world: &mut World, here: usize, conn: usize, message: Message, data: &[u8]) {
    if source::has(world, here, conn) {
        source::hear(world, here, conn, message);
    } else {
        destination::hear(world, here, conn, message, data);
    }
}

/// A message in a few words.
fn brief(message: &Message) -> String {
    match message {
        Message::Hello(hello) => format!("Hello of {}", hello.claim),
        Message::Data(data) => format!("Data {:?} at {}", data.tag, data.offset_bytes),
        Message::Grant(grant) => format!("Grant of {}", grant.claim),
        Message::HandBack(ask) => {
            let though = ask.though_granted;
            format!("HandBack of {}, though granted: {though}", ask.claim)
        }
        Message::Returned(answer) => format!("Returned {}: {}", answer.claim, answer.reason),
        Message::Granted(answer) => format!("Granted {}", answer.claim),
        Message::Activated(answer) => format!("Activated {}", answer.claim),
        Message::Pull(pull) => format!("Pull {:?}", pull.bases),
        other => format!("{other:?}"),
    }
}
