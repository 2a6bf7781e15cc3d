//! What VMMs do with the device: they start its rings, stop them, and go.

use super::coverage::Happened;
use super::device::{Gate, OnRestart, begin, complete_landed};
use super::world::{Job, MILLI, NAMES, World, tell};
use super::{destination, guest, source};

/// GET_VRING_BASE: what has landed is answered at once, the rest is waited for.
pub fn stop_rings(world: &mut World, here: usize, boot: u32) {
    let device = &mut world.hosts[here].device;
    if !device.rings_run {
        return guest::rings_stopped(world, here, boot);
    }
    if device.boot != boot {
        return again(world, here, Job::StopRings(boot));
    }
    device.leaving = true;
    complete_landed(world, here, |_| true);
}

pub fn drained(world: &mut World, here: usize) {
    let device = &mut world.hosts[here].device;
    if !device.is_drained() {
        return;
    }
    if device.leaving {
        (device.leaving, device.rings_run) = (false, false);
        let boot = device.boot;
        guest::rings_stopped(world, here, boot);
    }
    source::wake(world, here);
}

/// Another VMM is still attached, whose rings are being drained.
fn again(world: &mut World, here: usize, job: Job) {
    world.job(here, MILLI, job);
}

/// The VMM has attached and starts its rings.
pub fn start_rings(world: &mut World, here: usize, boot: u32) {
    let host = &mut world.hosts[here];
    let (base, machine, device) = (host.vm.index, host.vm.machine, &mut host.device);
    if host.vm.boot != boot || !host.vm.is_there() || device.rings_run && device.boot == boot {
        return;
    }
    if device.rings_run {
        return again(world, here, Job::StartRings(boot));
    }
    if device.expected.is_some_and(|expected| !expected.fits(base)) {
        tell!(
            world,
            "{} does not start the rings of another machine",
            NAMES[here]
        );
        return world.saw(Happened::StrangerHeld);
    }
    (device.rings_run, device.base, device.departed) = (true, base, false);
    (device.features, device.boot, device.machine) = (1, boot, machine);
    let on_restart = device.on_restart;
    tell!(world, "rings run at {} from {base}", NAMES[here]);
    match on_restart {
        OnRestart::Source => source::restarted(world, here),
        OnRestart::Session(conn) => destination::pull(world, here, conn),
        OnRestart::Nobody => {}
    }
    pump(world, here);
}

/// Serves what waits in the rings, if it may.
pub fn pump(world: &mut World, here: usize) {
    let host = &mut world.hosts[here];
    if !host.up || host.suspended || !host.device.rings_run || host.device.leaving {
        return;
    }
    if host.device.boot != host.vm.boot {
        return;
    }
    match host.device.gate {
        Gate::Open => {
            host.driver = host.vm.machine;
            for request in std::mem::take(&mut host.vm.waiting) {
                begin(world, here, request);
            }
        }
        Gate::Armed(_) if !host.vm.waiting.is_empty() && !host.device.asked => {
            host.device.asked = true;
            world.job(here, 50, Job::FirstRequest);
        }
        _ => {}
    }
}

/// The VMM is gone: its rings stop, and where they stood is remembered.
pub fn vmm_gone(world: &mut World, here: usize, boot: u32) {
    let device = &mut world.hosts[here].device;
    if device.boot != boot {
        return;
    }
    device.departed |= device.features != 0;
    if device.rings_run {
        device.leaving = true;
        complete_landed(world, here, |_| true);
    }
}
