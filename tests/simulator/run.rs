//! One run: a time of chaos, and then the world is healed and has to come to rest.

use super::chaos;
use super::coverage::{Happened, Seen};
use super::device::Gate;
use super::guest::{self, Power};
use super::host::Host;
use super::resolve;
use super::world::{SECOND, Time, World};

/// What came of a run.
pub struct Outcome {
    pub events: u64,
    pub seen: Seen,
    pub trace: Vec<String>,
    /// The promise that was broken.
    pub broken: Option<String>,
}

/// How long a healed world may take until one host owns the disk, and for its guest to be served.
const REST: Time = 90 * SECOND;
/// More than any run takes.
const EVENTS_MAX: u64 = 2_000_000;

pub fn run(seed: u64, traced: bool) -> Outcome {
    let mut world = World::new(seed, traced);
    let until = world.options.until;
    go_until(&mut world, until, |_| false);
    chaos::heal(&mut world);
    if world.broken.is_none() {
        come_to_rest(&mut world);
    }
    let state = traced.then(|| world.to_string());
    let mut trace = world.trace.unwrap_or_default();
    trace.extend(state);
    Outcome {
        events: world.events,
        seen: world.seen,
        trace,
        broken: world.broken,
    }
}

/// Lets things happen until a moment, or until something holds.
fn go_until(world: &mut World, until: Time, holds: impl Fn(&World) -> bool) -> bool {
    while world.now < until && world.broken.is_none() {
        if holds(world) {
            return true;
        }
        if !world.step() {
            return holds(world);
        }
        if world.events > EVENTS_MAX {
            world.break_promise("it never comes to rest");
        }
    }
    false
}

fn come_to_rest(world: &mut World) {
    // What was under way arrives first.
    let settle = world.now + 2 * SECOND;
    go_until(world, settle, |_| false);
    let until = world.now + REST;
    if !go_until(world, until, has_one_owner) {
        let owners = world.hosts.iter().filter(|host| host.owns()).count();
        return world.break_promise(format!("once healed, {owners} hosts own the disk"));
    }
    let Some(here) = (0..2).find(|&here| world.hosts[here].owns()) else {
        return;
    };
    check_disk(world, here);
    if world.broken.is_none() {
        serve_guest(world, here);
    }
}

/// One host owns the disk, and none is in doubt. A record may still say `released` where the
/// destination's word could not be written: that is asked for again at a restart.
fn has_one_owner(world: &World) -> bool {
    let doubt = |host: &Host| host.source.as_ref().is_some_and(resolve::is_in_doubt);
    world.hosts.iter().filter(|host| host.owns()).count() == 1 && !world.hosts.iter().any(doubt)
}

fn check_disk(world: &mut World, here: usize) {
    if let Some(image) = &world.hosts[here].image {
        let seen = world.oracle.check(here, image, 0, world.options.blocks);
        world.keep_promise(seen);
    } else {
        world.break_promise("the owner has no image");
    }
}

/// A machine that may use the disk gets it.
fn serve_guest(world: &mut World, here: usize) {
    let other = &world.hosts[1 - here].vm;
    // Rings that want the disk back at the other host may have it.
    if other.power == Power::Running && !world.hosts[here].device.is_open() {
        return;
    }
    let host = &world.hosts[here];
    match (host.vm.power, host.device.gate) {
        (Power::Off, Gate::Open) => guest::boot(world, here),
        (Power::Stopped, Gate::Open) if host.vm.is_still() => guest::resume(world, here),
        // Rings that were held as another machine's are tried again by their VMM.
        (Power::Running, Gate::Open) => guest::resume(world, here),
        (Power::Running, _) if host.device.rings_run => {}
        _ => return,
    }
    let (answered, until) = (world.oracle.answered, world.now + REST);
    let served = move |world: &World| world.oracle.answered > answered + 3;
    if go_until(world, until, served) {
        world.saw(Happened::ServedAfterHealing);
        check_disk(world, here);
    } else {
        world.break_promise("once healed, the guest is not served");
    }
}
