//! What is left when nothing goes wrong any more.

use ferry_migration::handover::Datastore;
use ferry_migration::phase::Phase;

use super::moves::{self, Move};
use super::shared;
use super::world::{Letter, Source, World};

/// More rounds than any quarrel takes.
const ROUNDS: usize = 16;

/// Whether one host owns the disk once both daemons run, every message has arrived and the daemons
/// have asked what they want to know. No VMM does anything for it.
pub fn has_one_owner(world: &World) -> bool {
    let mut world = world.clone();
    world.link = None;
    for _ in 0..ROUNDS {
        let before = world.clone();
        round(&mut world);
        if world == before {
            break;
        }
    }
    let owns = |phase: Phase| matches!(phase, Phase::Serving { .. } | Phase::Granted { .. });
    let owners = world.hosts.iter().filter(|host| owns(host.phase()));
    let doubt = |phase: Phase| matches!(phase, Phase::Released { .. });
    owners.count() == 1 && !world.hosts.iter().any(|host| doubt(host.phase()))
}

fn renew(world: &mut World, here: usize) {
    let phase = world.hosts[here].phase();
    if matches!(phase, Phase::Serving { .. } | Phase::Granted { .. }) {
        shared::tend(world, here);
    } else if shared::may_take_over(world, here) {
        shared::take_over(world, here);
        while !world.hosts[here].todo.is_empty() {
            moves::carry_out_one(world, here);
        }
    }
}

fn round(world: &mut World) {
    for here in 0..2 {
        world.hosts[here].suspended = false;
        if !world.hosts[here].up {
            moves::start(world, here);
        }
        while !world.hosts[here].todo.is_empty() {
            moves::carry_out_one(world, here);
        }
        moves::notice(world, here);
        if world.datastore() == Datastore::Shared {
            renew(world, here);
        }
        if let Source::Resolving(attempt) = world.hosts[here].source {
            let though_granted = false;
            world.send(1 - here, attempt, Letter::HandBack { though_granted });
        }
    }
    let letters: Vec<_> = world.net.iter().copied().collect();
    for packet in letters {
        moves::make(world, Move::Deliver(packet));
        while !world.hosts[packet.to].todo.is_empty() {
            moves::carry_out_one(world, packet.to);
        }
    }
}
