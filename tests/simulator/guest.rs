//! The machines: what they ask of the disk, and where their VMMs take them.

use std::fmt;

use super::chaos;
use super::coverage::Happened;
use super::device::{Op, Request};
use super::rings;
use super::world::{Event, Job, NAMES, World, tell};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Power {
    #[default]
    Off,
    /// It stands still, or is about to: its rings are being drained.
    Stopped,
    Running,
}

/// A VMM's machine.
#[derive(Debug, Default)]
pub struct Vm {
    pub power: Power,
    /// Counts the VMMs of this host, so that an old one's thoughts are void.
    pub boot: u32,
    /// Which machine it is; 0 is none.
    pub machine: u16,
    /// Where its ring is: counts what was answered.
    pub index: u16,
    /// The VMM waits for the daemon to stop the rings.
    pub stopping: bool,
    /// In the ring, and not popped; or popped by a daemon that is dead.
    pub waiting: Vec<Request>,
}

impl Vm {
    pub fn is_there(&self) -> bool {
        self.power != Power::Off
    }

    /// It stands, and so do its rings.
    pub fn is_still(&self) -> bool {
        self.power == Power::Stopped && !self.stopping
    }
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (power, waiting) = (self.power, self.waiting.len());
        write!(
            f,
            "{power:?} {} at {}, {waiting} waiting",
            self.machine, self.index
        )
    }
}

/// Another machine begins here, at 0.
pub fn boot(world: &mut World, here: usize) {
    world.machines += 1;
    let machine = world.machines;
    tell!(world, "machine {machine} boots at {}", NAMES[here]);
    appear(world, here, machine, 0);
    resume(world, here);
}

fn appear(world: &mut World, here: usize, machine: u16, index: u16) {
    let vm = &mut world.hosts[here].vm;
    let boot = vm.boot + 1;
    *vm = Vm {
        power: Power::Stopped,
        boot,
        machine,
        index,
        ..Vm::default()
    };
    let gap = world.options.guest;
    world.after(gap, Event::Guest { here, boot });
}

/// The machine comes from the other host, and stands still.
pub fn arrive(world: &mut World, here: usize) {
    let (machine, index) = {
        let other = &world.hosts[1 - here].vm;
        (other.machine, other.index)
    };
    tell!(world, "machine {machine} arrives at {}", NAMES[here]);
    appear(world, here, machine, index);
}

pub fn stop(world: &mut World, here: usize) {
    tell!(world, "the machine at {} is stopped", NAMES[here]);
    let host = &mut world.hosts[here];
    host.vm.power = Power::Stopped;
    if host.up {
        host.vm.stopping = true;
        let boot = host.vm.boot;
        world.job(here, 20, Job::StopRings(boot));
    }
}

pub fn rings_stopped(world: &mut World, here: usize, boot: u32) {
    let host = &mut world.hosts[here];
    if host.vm.boot == boot && host.vm.is_there() {
        host.vm.stopping = false;
        host.device.base = host.vm.index;
    }
    tell!(world, "rings stand at {}", NAMES[here]);
    chaos::rings_stand(world, here);
}

pub fn resume(world: &mut World, here: usize) {
    tell!(world, "the machine at {} goes on", NAMES[here]);
    let vm = &mut world.hosts[here].vm;
    vm.power = Power::Running;
    let boot = vm.boot;
    if world.hosts[here].up {
        world.job(here, 20, Job::StartRings(boot));
    }
}

/// The VMM ends, or dies. What its guest was not told it will never know.
pub fn quit(world: &mut World, here: usize) {
    tell!(world, "the VMM at {} ends", NAMES[here]);
    let vm = &mut world.hosts[here].vm;
    (vm.power, vm.stopping) = (Power::Off, false);
    vm.waiting.clear();
    let boot = vm.boot;
    if world.hosts[here].up {
        let index = world.hosts[here].vm.index;
        world.hosts[here].device.forsake(boot, index);
        world.job(here, 0, Job::VmmGone(boot));
    }
}

/// The daemon is back, and so the VMM starts the rings of a machine that has a driver again; even
/// of one that stands still.
pub fn reconnect(world: &mut World, here: usize) {
    let vm = &world.hosts[here].vm;
    if vm.power == Power::Running || vm.is_there() && vm.index > 0 && world.rng.bool() {
        let boot = vm.boot;
        world.job(here, 100, Job::StartRings(boot));
    }
}

pub fn think(world: &mut World, here: usize, boot: u32) {
    let vm = &world.hosts[here].vm;
    if vm.boot != boot || !vm.is_there() {
        return;
    }
    let busy = vm.waiting.len() + world.hosts[here].device.requests().count();
    if vm.power == Power::Running && busy < world.options.depth {
        ask(world, here);
    }
    let gap = world.about(world.options.guest);
    world.after(gap, Event::Guest { here, boot });
}

fn ask(world: &mut World, here: usize) {
    let options = &world.options;
    let (blocks, most) = (options.blocks, options.write_blocks.min(options.blocks));
    let count = world.rng.usize(1..=most);
    let first = world.rng.usize(0..=blocks - count);
    let op = match world.rng.u32(0..100) {
        n if n < world.options.flushes => Op::Flush,
        n if n < world.options.flushes + world.options.reads => Op::Read,
        n => Op::Write {
            zeroes: n >= 100 - world.options.zeroes,
        },
    };
    let mut request = Request::new(0, op, first, count);
    let host = &world.hosts[here];
    let mut others = host.vm.waiting.iter().chain(host.device.requests());
    // What two writes at the same time make of a block is nobody's promise.
    let clash = request.changes() && others.any(|r| r.changes() && r.overlaps(&request.blocks()));
    drop(others);
    if clash {
        return;
    }
    request.id = world.number();
    world.hosts[here].vm.waiting.push(request);
    rings::pump(world, here);
}

/// The guest learns that its request is done, or has failed.
pub fn answered(world: &mut World, here: usize, request: &Request, failed: bool) {
    let vm = &mut world.hosts[here].vm;
    // Sixteen bits of each ring: two machines are not taken to stand at the same place by chance.
    let least = vm.machine.wrapping_mul(2000);
    vm.index = if vm.index == 0 {
        least + 1
    } else {
        vm.index.wrapping_add(1).max(1)
    };
    match request.op {
        _ if failed => {}
        Op::Write { .. } => {
            let Request {
                first,
                count,
                stamp,
                ..
            } = *request;
            tell!(
                world,
                "write {stamp} of blocks {first}+{count} is done at {}",
                NAMES[here]
            );
            world.oracle.acknowledge(here, first, count, stamp);
        }
        Op::Flush => {
            tell!(world, "a flush is done at {}", NAMES[here]);
            world.oracle.flushed(here, &request.covers);
        }
        Op::Read => {
            world.saw(Happened::ReadChecked);
            world.oracle.answered += 1;
        }
    }
}
