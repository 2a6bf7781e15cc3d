//! A daemon's life: how it starts with what it finds, and how it ends or is held up.

use ferry_migration::lease::{Ownership, Restart};
use ferry_migration::phase::{Event as Change, Phase};

use super::coverage::Happened;
use super::destination;
use super::device::{self, Gate, OnRestart};
use super::guest;
use super::image::byte_of;
use super::resolve::Resolving;
use super::rings;
use super::source::{self, Source, Stage};
use super::state;
use super::tasks::Task;
use super::wire;
use super::world::{Attempt, DISK_UUID, Event, MILLI, NAMES, SECOND, World, tell};

/// As the daemon does with a record that it finds.
pub fn start(world: &mut World, here: usize) {
    let host = &mut world.hosts[here];
    if host.up {
        return;
    }
    let shelf = Box::new(host.shelf.clone());
    let ownership = Ownership::open(shelf, DISK_UUID, host.id).expect("a shelf is read");
    let record = ownership.record();
    let restart = record.at_restart();
    if let Restart::DiscardCopy { migration } = restart
        && ownership.apply(Change::Discard { migration }).is_err()
    {
        return start_later(world, here);
    }
    host.record = Some(ownership);
    host.up = true;
    tell!(world, "the daemon at {} starts: {restart:?}", NAMES[here]);
    match restart {
        Restart::New | Restart::Elsewhere { .. } => {}
        Restart::DiscardCopy { .. } | Restart::Void => world.hosts[here].image = None,
        Restart::Serve => {
            let image = world.hosts[here].image.as_ref().expect("it is served");
            let seen = world.oracle.check(here, image, 0, world.options.blocks);
            world.keep_promise(seen);
            world.hosts[here].device.gate = Gate::Open;
        }
        Restart::AwaitActivation {
            migration,
            epoch,
            device_state,
        } => await_activation(world, here, Attempt::of(migration, epoch), &device_state),
        Restart::Resolve => {
            let epoch = record.state.phase.epoch();
            let (Phase::Released { migration, .. } | Phase::Handed { migration, .. }) =
                record.state.phase
            else {
                return world.break_promise("a record to resolve that was not released");
            };
            let stage = Stage::Resolving(Resolving::default());
            let capacity = byte_of(world.options.blocks);
            let mut source = Source::new(Attempt::of(migration, epoch), stage, capacity);
            source.peer = record.peer.expect("released to somebody").daemon;
            source.lost = Some("the daemon was restarted");
            world.hosts[here].device.on_restart = OnRestart::Source;
            world.hosts[here].source = Some(source);
            source::wake(world, here);
        }
    }
    guest::reconnect(world, here);
}

fn await_activation(world: &mut World, here: usize, attempt: Attempt, device_state: &[u8]) {
    world.saw(Happened::RestartedWhileGranted);
    let host = &mut world.hosts[here];
    let imported = state::import(host, device_state);
    host.arrival = Some(attempt);
    world.keep_promise(imported);
    // All of it is still there; and it may have been told that the record could not be written.
    let image = world.hosts[here].image.as_ref().expect("it is granted");
    let kept = world.oracle.grant(here, attempt.number, image);
    world.keep_promise(kept);
    destination::arm(world, here, attempt);
}

fn start_later(world: &mut World, here: usize) {
    let life = world.hosts[here].life;
    let mean = if world.healed { MILLI } else { SECOND };
    let wait = world.about(mean);
    world.after(wait, Event::Start { here, life });
}

/// The daemon is killed, at whatever it is.
pub fn kill(world: &mut World, here: usize) {
    if world.hosts[here].up {
        tell!(world, "the daemon at {} is killed", NAMES[here]);
        world.saw(Happened::Kill);
        die(world, here, false);
    }
}

fn die(world: &mut World, here: usize, power_cut: bool) {
    if world.hosts[here].tasks.iter().any(Task::is_begun) {
        world.saw(Happened::DiedBetweenSteps);
    }
    wire::died(world, here, power_cut);
    let left = device::died(world, here);
    let host = &mut world.hosts[here];
    host.life += 1;
    (host.up, host.suspended, host.record, host.source) = (false, false, None, None);
    host.arrival = None;
    host.later.clear();
    host.sessions.clear();
    host.tasks.clear();
    host.vm.stopping = false;
    host.vm.waiting.splice(0..0, left);
    start_later(world, here);
}

/// The host loses power, and comes back without its VM.
pub fn power_cut(world: &mut World, here: usize) {
    tell!(world, "the power of {} is cut", NAMES[here]);
    world.saw(Happened::PowerCut);
    if world.hosts.iter().any(|host| !host.sessions.is_empty()) {
        world.saw(Happened::PowerCutDuringCopy);
    }
    guest::quit(world, here);
    if world.hosts[here].up {
        die(world, here, true);
    }
    if let Some(image) = &mut world.hosts[here].image {
        if image.power_cut(&mut world.rng) > 0 {
            world.seen.count(Happened::UnflushedLost);
        }
        world.oracle.power_cut(here, image);
    }
}

/// The process takes no step until it is woken.
pub fn suspend(world: &mut World, here: usize) {
    let host = &mut world.hosts[here];
    if !host.up || host.suspended {
        return;
    }
    host.suspended = true;
    let life = host.life;
    tell!(world, "the daemon at {} is suspended", NAMES[here]);
    world.saw(Happened::Suspended);
    let mean = if world.rng.bool() {
        SECOND / 5
    } else {
        8 * SECOND
    };
    let wait = world.about(mean);
    world.after(wait, Event::Wake { here, life });
}

/// It goes on with what it held.
pub fn wake(world: &mut World, here: usize) {
    if !std::mem::take(&mut world.hosts[here].suspended) {
        return;
    }
    tell!(world, "the daemon at {} goes on", NAMES[here]);
    let later = std::mem::take(&mut world.hosts[here].later);
    for (at, job) in (0..).zip(later) {
        world.job(here, at * 5, job);
    }
    rings::pump(world, here);
}
