//! What people do, right or wrong, and what breaks. Each run draws how much of what.

use super::coverage::Happened;
use super::guest::{self, Power};
use super::source::{self, Stage};
use super::world::{Event, MILLI, NAMES, SECOND, Time, World, tell};
use super::{daemon, wire};

/// How a run goes. Different runs are to find different things, so each has some faults only.
#[derive(Debug, Clone)]
pub struct Options {
    /// The disk's size.
    pub blocks: usize,
    /// Means: between two of a guest's ideas, of the storage, of the link, between two acts of the
    /// operator, between two faults (0: none).
    pub guest: Time,
    pub storage: Time,
    pub net: Time,
    pub operator: Time,
    pub faults: Time,
    /// Requests of a guest at a time, and blocks of a write.
    pub depth: usize,
    pub write_blocks: usize,
    /// Of a hundred requests.
    pub flushes: u32,
    pub reads: u32,
    pub zeroes: u32,
    /// Once in so many: storage errors, frames damaged; 0 is never.
    pub disk_errors: u32,
    pub damage: u32,
    /// Once in so many steps of a handover something breaks right after it; 0 is never.
    pub step_faults: u32,
    /// How long a mirrored write may wait.
    pub patience: Time,
    /// Of a hundred moves, those that a VM pulls.
    pub pulls: u32,
    /// Of a hundred acts of the operator, those that make no sense.
    pub mistakes: u32,
    /// The destination leaves the tail's flush to the grant.
    pub lazy_flush: bool,
    /// Which faults there are.
    pub kinds: Vec<Fault>,
    /// How fast the hosts' clocks run, in thousandths.
    pub clocks: [u64; 2],
    /// When the faults end.
    pub until: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    PowerCut,
    Suspend,
    Cut,
    Stall,
    Store,
}

const FAULTS: [Fault; 6] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::Suspend,
    Fault::Cut,
    Fault::Stall,
    Fault::Store,
];

impl Options {
    pub fn draw(rng: &mut fastrand::Rng) -> Options {
        let one_of = |rng: &mut fastrand::Rng, all: &[u64]| all[rng.usize(0..all.len())];
        let times = |rng: &mut fastrand::Rng, all: &[u64]| one_of(rng, all) * MILLI;
        let small = |n: u64| u32::try_from(n).unwrap_or(0);
        let mut kinds = FAULTS.to_vec();
        kinds.retain(|_| rng.bool());
        Options {
            blocks: rng.usize(9..=130),
            guest: times(rng, &[3, 10, 40, 150]),
            storage: times(rng, &[1, 1, 5, 30]),
            net: times(rng, &[1, 1, 5, 40]),
            operator: times(rng, &[20, 60, 200]),
            faults: times(rng, &[0, 300, 1000, 3000]),
            depth: rng.usize(1..=8),
            write_blocks: rng.usize(1..=8),
            flushes: rng.u32(0..30),
            reads: rng.u32(0..30),
            zeroes: small(one_of(rng, &[0, 0, 5, 20])),
            disk_errors: small(one_of(rng, &[0, 0, 3, 12])),
            damage: small(one_of(rng, &[0, 0, 0, 300])),
            step_faults: small(one_of(rng, &[0, 5, 15, 50])),
            patience: times(rng, &[30, 200, 2000]),
            pulls: small(one_of(rng, &[0, 50, 100])),
            mistakes: small(one_of(rng, &[0, 5, 30])),
            lazy_flush: rng.u32(0..4) == 0,
            kinds,
            clocks: [rng.u64(700..=1400), rng.u64(700..=1400)],
            until: rng.u64(2..=12) * SECOND,
        }
    }
}

/// A person does something, or leaves it.
pub fn operate(world: &mut World) {
    if world.healed {
        return;
    }
    if world.rng.u32(0..100) < world.options.mistakes {
        mistake(world);
    } else {
        go_on(world);
    }
    let wait = world.about(world.options.operator);
    world.after(wait, Event::Operator);
}

/// Anything that can be done.
fn mistake(world: &mut World) {
    let here = world.rng.usize(0..2);
    let power = world.hosts[here].vm.power;
    match (world.rng.u32(0..8), power) {
        (0, Power::Running) => guest::stop(world, here),
        (1, Power::Stopped) => resume(world, here),
        (2, Power::Running | Power::Stopped) => guest::quit(world, here),
        (3, Power::Off) => guest::boot(world, here),
        (4, Power::Off) => arrive(world, here),
        (5, _) => cancel(world, here),
        (6, _) => release(world, here),
        (7, _) if world.hosts[here].up && world.hosts[here].source.is_none() => {
            source::begin(world, here);
        }
        _ => {}
    }
}

/// The next thing that brings a move on, or a VM to its disk.
fn go_on(world: &mut World) {
    let serving = (0..2).find(|&here| world.hosts[here].device.is_open());
    let Some(here) = serving else {
        return bring_vm(world);
    };
    if world.hosts[1 - here].vm.is_still()
        && world.once_in(4)
        && power_at(world, here) != Power::Off
    {
        return guest::quit(world, 1 - here);
    }
    let power = power_at(world, here);
    match &world.hosts[here].source {
        None => begin(world, here, power),
        Some(source) if matches!(source.stage, Stage::InSync) => {
            let pull = source.attempt.number * 37 % 100 < world.options.pulls;
            hand_over(world, here, power, pull);
        }
        Some(_) => {}
    }
    if world.once_in(200) {
        cancel(world, here);
    }
}

/// Where the disk is served and not moved.
fn begin(world: &mut World, here: usize, power: Power) {
    match power {
        Power::Running if !world.hosts[1 - here].up && !world.once_in(20) => {}
        Power::Running if world.once_in(3) => source::begin(world, here),
        Power::Running => {}
        Power::Stopped => resume(world, here),
        Power::Off if world.hosts[1 - here].vm.is_still() => arrive(world, here),
        Power::Off if world.once_in(2) => guest::boot(world, here),
        Power::Off => source::begin(world, here),
    }
}

/// The copy is in sync: the VM leaves, and the disk follows it or is sent.
fn hand_over(world: &mut World, here: usize, power: Power, pull: bool) {
    let host = &world.hosts[here];
    match power {
        _ if world.rng.bool() => {}
        Power::Running => guest::stop(world, here),
        Power::Stopped if !host.vm.is_still() => {}
        // Its rings were started by a VMM that came back.
        Power::Stopped if host.device.rings_run => guest::stop(world, here),
        _ if pull => bring_vm_to(world, 1 - here),
        _ => release(world, here),
    }
}

fn power_at(world: &World, here: usize) -> Power {
    world.hosts[here].vm.power
}

/// Nobody serves: the VM goes to where the disk is granted, or stays where it was.
fn bring_vm(world: &mut World) {
    let granted = (0..2).find(|&here| world.hosts[here].owns());
    let to = granted.unwrap_or_else(|| world.rng.usize(0..2));
    if granted.is_some() || world.once_in(8) {
        bring_vm_to(world, to);
    }
}

fn bring_vm_to(world: &mut World, here: usize) {
    match power_at(world, here) {
        Power::Off if world.hosts[1 - here].vm.is_still() => arrive(world, here),
        Power::Off if power_at(world, 1 - here) == Power::Running => guest::stop(world, 1 - here),
        Power::Off if world.hosts[1 - here].vm.is_there() => {}
        Power::Off if world.once_in(3) => guest::boot(world, here),
        Power::Stopped => resume(world, here),
        _ => {}
    }
}

fn resume(world: &mut World, here: usize) {
    if world.hosts[here].vm.is_still() {
        guest::resume(world, here);
    }
}

fn arrive(world: &mut World, here: usize) {
    let there = &world.hosts[1 - here];
    if there.vm.is_still() && there.vm.waiting.is_empty() && !there.device.rings_run {
        guest::arrive(world, here);
    }
}

fn cancel(world: &mut World, here: usize) {
    if let Some(source) = &mut world.hosts[here].source
        && source.is_before_release()
    {
        source.cancelled = true;
        source::wake(world, here);
    }
}

/// An orchestrator that waits for this releases the disk at once, with the last writes under way.
pub fn rings_stand(world: &mut World, here: usize) {
    if !world.healed && world.rng.u32(0..100) >= world.options.pulls && world.rng.bool() {
        release(world, here);
    }
}

fn release(world: &mut World, here: usize) {
    let now = world.clock(here);
    let patience = world.about(5 * SECOND);
    if let Some(source) = &mut world.hosts[here].source
        && matches!(source.stage, Stage::InSync)
        && source.wanted.is_none()
    {
        source.wanted = Some(now + patience);
        tell!(world, "the disk is to be released at {}", NAMES[here]);
        source::wake(world, here);
    }
}

/// Something breaks.
pub fn fault(world: &mut World) {
    let mean = world.options.faults;
    if world.healed || mean == 0 {
        return;
    }
    // Nothing breaks before there is anything.
    if world.now > 0 {
        break_something(world);
    }
    let wait = world.about(mean);
    world.after(wait, Event::Fault);
}

/// Right after a step of a handover, when it hurts most.
pub fn after_a_step(world: &mut World, here: usize) {
    let odds = world.options.step_faults;
    if world.healed || odds == 0 || !world.once_in(odds) {
        return;
    }
    let of = if world.once_in(4) { 1 - here } else { here };
    break_at(world, of);
}

fn break_something(world: &mut World) {
    let here = world.rng.usize(0..2);
    break_at(world, here);
}

fn break_at(world: &mut World, here: usize) {
    if world.options.kinds.is_empty() {
        return;
    }
    let kinds = &world.options.kinds;
    match kinds[world.rng.usize(0..kinds.len())] {
        Fault::Kill => daemon::kill(world, here),
        Fault::PowerCut => daemon::power_cut(world, here),
        Fault::Suspend => daemon::suspend(world, here),
        Fault::Cut => {
            tell!(world, "the link is cut");
            world.saw(Happened::LinkCut);
            wire::cut_all(world);
        }
        Fault::Stall => {
            let mean = if world.rng.bool() {
                SECOND / 4
            } else {
                6 * SECOND
            };
            let wait = world.about(mean);
            tell!(world, "the link stalls for {wait} us");
            world.saw(Happened::LinkStalls);
            world.wire.blocked_until = world.now + wait;
        }
        Fault::Store => {
            let seed = world.rng.u64(..);
            tell!(world, "the record at {} cannot be written", NAMES[here]);
            world.saw(Happened::StoreFails);
            world.hosts[here].shelf.fail(Some(seed));
            let wait = world.about(2 * SECOND);
            world.after(wait, Event::StoreMended(here));
        }
    }
}

/// Nothing goes wrong from now on, and what is broken is mended.
pub fn heal(world: &mut World) {
    tell!(world, "HEALED");
    world.healed = true;
    world.wire.blocked_until = world.now;
    for here in 0..2 {
        world.hosts[here].shelf.fail(None);
        daemon::wake(world, here);
        if !world.hosts[here].up {
            daemon::start(world, here);
        }
    }
}
