//! The source gives the disk up: out of service, the tail flushed, proven, and then the list.

use ferry_migration::codec::{Message, Refused};
use ferry_migration::handover::{self, Datastore};

use super::copy;
use super::coverage::Happened;
use super::device::{self, Gate, OnRestart};
use super::resolve::Resolving;
use super::source::{Stage, alarm, end, resume, wake};
use super::state;
use super::tasks::{self, Why};
use super::wire;
use super::world::{NAMES, SECOND, Time, World, tell};

/// A release that is tried, and can still be undone.
#[derive(Debug)]
pub struct Releasing {
    /// Where the rings there begin, if that is what asks for it.
    proof: Option<Vec<u16>>,
    deadline: Time,
    proven: bool,
    /// The flush that is waited for.
    flush: Option<u64>,
    /// The list is carried out.
    committed: bool,
}

impl Releasing {
    pub fn new(proof: Option<Vec<u16>>, deadline: Time) -> Releasing {
        Releasing {
            proof,
            deadline,
            proven: false,
            flush: None,
            committed: false,
        }
    }
}

/// The VM and its ring that the disk was last given up with.
#[derive(Debug, Clone, Copy, Default)]
pub struct GivenUp {
    pub machine: u16,
    pub index: u16,
    /// Rings at the other host asked for it, and not a person.
    pub pulled: bool,
    /// Nobody drove the device any more.
    pub or_boots: bool,
}

pub fn begin(world: &mut World, here: usize) {
    let host = &mut world.hosts[here];
    if host.device.rings_run {
        return stay(world, here, "the rings run");
    }
    host.source.as_mut().expect("releases").restarted = false;
    host.device.gate = Gate::Held;
    host.device.on_restart = OnRestart::Source;
    host.device.expected = None;
    tell!(world, "{} takes the disk out of service", NAMES[here]);
    wake(world, here);
}

fn releasing(world: &mut World, here: usize) -> &mut Releasing {
    match &mut world.hosts[here].source.as_mut().expect("releases").stage {
        Stage::Releasing(releasing) => releasing,
        _ => unreachable!("only called while it releases"),
    }
}

pub fn go_on(world: &mut World, here: usize) {
    let now = world.clock(here);
    if releasing(world, here).committed || !world.hosts[here].device.is_drained() {
        return;
    }
    if !releasing(world, here).proven {
        return prove(world, here);
    }
    let late = now >= releasing(world, here).deadline;
    if late {
        return stay(
            world,
            here,
            "the destination did not take the last writes in time",
        );
    }
    if releasing(world, here).flush.is_some() || copy::go_on(world, here) {
        flush_tail(world, here);
    }
}

fn prove(world: &mut World, here: usize) {
    let mine = [world.hosts[here].device.base];
    let proof = releasing(world, here).proof.clone();
    if let Some(there) = proof
        && let Err(why) = handover::prove(&mine, &there)
    {
        world.saw(Happened::PullRefused);
        tell!(world, "{} does not grant: {why}", NAMES[here]);
        return stay(world, here, "no proof");
    }
    releasing(world, here).proven = true;
    wake(world, here);
}

fn flush_tail(world: &mut World, here: usize) {
    let waits = releasing(world, here).flush;
    let host = &mut world.hosts[here];
    let source = host.source.as_mut().expect("releases");
    match waits {
        None => {
            source.flush_tag += 1;
            let tag = source.flush_tag;
            source.orders.push_back(tag);
            releasing(world, here).flush = Some(tag);
            super::mirror::wake_writer(world, here);
            wake(world, here);
        }
        Some(_) if source.restarted || host.device.rings_run => stay(world, here, "the rings run"),
        Some(tag) if source.flushed < tag => {
            // Woken by the answer; the deadline is looked at meanwhile.
            alarm(world, here, SECOND);
        }
        Some(_) if !source.plan.complete() => {
            releasing(world, here).flush = None;
            wake(world, here);
        }
        Some(_) => commit(world, here),
    }
}

/// The last moment to change one's mind.
fn commit(world: &mut World, here: usize) {
    let pulled = releasing(world, here).proof.is_some();
    let host = &mut world.hosts[here];
    if !pulled && host.device.departed {
        host.device.features = 0;
    }
    let Some(device_state) = state::export(world.options.blocks, &world.hosts[here]) else {
        return end(world, here, "the device's state cannot be exported");
    };
    let host = &mut world.hosts[here];
    let source = host.source.as_mut().expect("releases");
    source.tapped = false;
    let gave_up = source.failed;
    device::detach_tap(world, here);
    if gave_up {
        return end(
            world,
            here,
            "the disk gave the mirror up before the release",
        );
    }
    let host = &mut world.hosts[here];
    let source = host.source.as_mut().expect("releases");
    if source.since_flush > 0 || !source.channel.is_empty() || !source.plan.complete() {
        world.break_promise("the disk changed after it was taken out of service");
        return;
    }
    if source.stop().is_some() || source.restarted || host.device.rings_run {
        return end(world, here, "stopped at the last moment");
    }
    let attempt = source.attempt;
    host.given_up = GivenUp {
        machine: host.driver,
        index: host.device.base,
        pulled,
        or_boots: host.device.features == 0,
    };
    releasing(world, here).committed = true;
    let steps = handover::release(attempt.migration(), Datastore::Own);
    tasks::carry_out(world, here, attempt, &steps, Why::Release { device_state });
}

/// A step of the list is done; after the record there is no undoing.
pub fn released(world: &mut World, here: usize) {
    let pulled = world.hosts[here].given_up.pulled;
    world.saw(if pulled {
        Happened::ReleasedByPull
    } else {
        Happened::ReleasedByPerson
    });
    let source = world.hosts[here].source.as_mut().expect("releases");
    source.stage = Stage::Resolving(Resolving::default());
}

/// It is not given up; the disk serves, the mirror stands, and it may be asked again.
fn stay(world: &mut World, here: usize, why: &'static str) {
    tell!(world, "{} does not release: {why}", NAMES[here]);
    world.saw(Happened::ReleaseRefused);
    let was_begun = world.hosts[here].device.gate == Gate::Held;
    let pulled = releasing(world, here).proof.is_some();
    let source = world.hosts[here].source.as_mut().expect("releases");
    source.stage = Stage::InSync;
    if !pulled {
        source.wanted = None;
    } else if let Some(conn) = source.conn {
        let no = Refused {
            reason: why.to_owned(),
            passing: true,
        };
        wire::say(world, here, conn, &Message::NotGranted(no));
    }
    if was_begun {
        resume(world, here);
    }
    wake(world, here);
}
