//! A disk on a datastore that both hosts see: claims, leases and takeovers.

use std::cell::RefCell;
use std::fmt;
use std::io;

use ferry_migration::handover::{self, Datastore, Step};
use ferry_migration::ids::DaemonId;
use ferry_migration::lease::chain::{self, Link, Shelf};
use ferry_migration::lease::shared::{self, ClaimError};
use ferry_migration::phase::{Event, Phase};
use uuid::Uuid;

use super::moves;
use super::world::{Attempt, Claim, Fence, Limits, Source, Vm, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// The daemon's process is stopped.
    Suspend(usize),
    /// It goes on.
    Continue(usize),
    /// The lease is not renewed in time: the daemon stops serving and frees the lock.
    Lapse(usize),
    /// The daemon has renewed, and looks at the claims.
    Tend(usize),
    /// The other's lease is over, as far as is seen from here.
    TakeOver(usize),
    /// The VM here wants its disk back, and the other daemon does not answer.
    Reclaim(usize),
}

/// The claims as the production code sees them.
struct Claims<'a>(RefCell<&'a mut Vec<Claim>>);

fn daemon(here: usize) -> DaemonId {
    DaemonId(Uuid::from_u128(here as u128 + 1))
}

fn link(here: usize, through: u8) -> Link {
    let attempt = Attempt {
        number: through,
        epoch: 0,
    };
    Link {
        owner: daemon(here),
        address: String::new(),
        through: (through > 0).then(|| attempt.migration()),
    }
}

fn at(epoch: u64) -> usize {
    usize::try_from(epoch).unwrap() - 1
}

impl Shelf for Claims<'_> {
    fn create_new(&self, epoch: u64, link: &Link) -> io::Result<bool> {
        let mut claims = self.0.borrow_mut();
        let number = |migration| Attempt::of(migration, epoch).number;
        let claim = Claim {
            owner: u8::try_from(link.owner.0.as_u128() - 1).unwrap(),
            through: link.through.map_or(0, number),
            settled: false,
        };
        let free = claims.len() == at(epoch);
        if free {
            claims.push(claim);
        }
        Ok(free)
    }

    fn read(&self, epoch: u64) -> io::Result<Option<Link>> {
        let claims = self.0.borrow();
        let claim = claims.get(at(epoch));
        Ok(claim.map(|claim| link(claim.owner.into(), claim.through)))
    }

    fn settle(&self, epoch: u64) -> io::Result<()> {
        self.0.borrow_mut()[at(epoch)].settled = true;
        Ok(())
    }

    fn is_settled(&self, epoch: u64) -> io::Result<bool> {
        Ok(self.0.borrow()[at(epoch)].settled)
    }

    fn newest(&self) -> io::Result<Option<u64>> {
        Ok(Some(self.0.borrow().len() as u64))
    }
}

/// The newest epoch and its owner.
fn newest(world: &World) -> (u64, usize) {
    let claim = world.claims.last();
    let owner = claim.expect("it was claimed when it was made").owner;
    (world.claims.len() as u64, owner.into())
}

/// Whether the epoch was claimed by this host.
pub fn has(world: &World, here: usize, epoch: u64) -> bool {
    let claim = world.claims.get(at(epoch));
    claim.is_some_and(|claim| usize::from(claim.owner) == here)
}

pub fn possible(
    limits: &Limits,
    world: &World,
    here: usize,
    fault: bool,
    into: &mut Vec<moves::Move>,
) {
    let Some(shared) = limits.shared else {
        return;
    };
    let host = &world.hosts[here];
    let mut add = |may: bool, step: Move| {
        if may {
            into.push(moves::Move::Shared(step));
        }
    };
    if host.up && host.suspended {
        return add(true, Move::Continue(here));
    }
    if !host.up {
        return;
    }
    add(fault, Move::Suspend(here));
    if !host.is_free() {
        return;
    }
    let (epoch, owner) = newest(world);
    let phase = host.phase();
    let owns = matches!(phase, Phase::Serving { .. } | Phase::Granted { .. });
    add(fault && host.serves, Move::Lapse(here));
    add(
        owns && (host.lapsed || owner != here || epoch != phase.epoch()),
        Move::Tend(here),
    );
    add(
        world.takeovers < shared.takeovers && may_take_over(world, here),
        Move::TakeOver(here),
    );
    add(
        matches!(host.source, Source::Resolving(_)) && host.vm == Vm::Running,
        Move::Reclaim(here),
    );
}

/// Whether the newest claim is that of a grant which was handed back.
fn is_returned(world: &World, here: usize, epoch: u64) -> bool {
    let claim = world.claims[at(epoch)];
    match world.hosts[here].phase() {
        Phase::Returned {
            migration,
            epoch: at,
        } => {
            let attempt = Attempt::of(migration, at);
            at == epoch && usize::from(claim.owner) == here && claim.through == attempt.number
        }
        _ => false,
    }
}

/// As `Datastore::tend_disk` has it.
pub fn may_take_over(world: &World, here: usize) -> bool {
    let (epoch, owner) = newest(world);
    let other = &world.hosts[1 - here];
    match world.hosts[here].phase() {
        Phase::Serving { .. } | Phase::Granted { .. } | Phase::Incoming { .. } => false,
        Phase::Released { epoch: at, .. } | Phase::Handed { epoch: at, .. } if epoch < at => false,
        // Handed back: it is the source's to claim the next.
        _ if is_returned(world, here, epoch) => !other.runs(),
        _ if owner == here => true,
        _ => !other.runs() || other.lapsed,
    }
}

pub fn make(world: &mut World, step: Move) {
    match step {
        Move::Suspend(here) => {
            world.faults += 1;
            world.hosts[here].suspended = true;
        }
        Move::Continue(here) => world.hosts[here].suspended = false,
        Move::Lapse(here) => {
            world.faults += 1;
            lapse(world, here);
        }
        Move::Tend(here) => tend(world, here),
        Move::TakeOver(here) => {
            world.takeovers += 1;
            take_over(world, here);
        }
        Move::Reclaim(here) => {
            if let Source::Resolving(attempt) = world.hosts[here].source {
                let steps = handover::reclaim(attempt.migration(), attempt.epoch);
                let todo = &mut world.hosts[here].todo;
                todo.extend(steps.into_iter().map(|step| (attempt, step)));
            }
        }
    }
}

fn lapse(world: &mut World, here: usize) {
    let host = &mut world.hosts[here];
    (host.serves, host.lapsed) = (false, true);
    let_go(world, here);
}

pub fn tend(world: &mut World, here: usize) {
    let (epoch, owner) = newest(world);
    let phase = world.hosts[here].phase();
    if owner != here || epoch != phase.epoch() {
        let_go(world, here);
        let host = &mut world.hosts[here];
        (host.serves, host.source) = (false, Source::Idle);
        host.lapsed = false;
        host.record(Event::TakenOver { epoch });
        return;
    }
    if world.hosts[here].lapsed && take(world, here) {
        let host = &mut world.hosts[here];
        host.lapsed = false;
        host.serves = matches!(phase, Phase::Serving { .. });
    }
}

/// `Datastore::take_over`.
pub fn take_over(world: &mut World, here: usize) {
    let (newest, _) = newest(world);
    let commands = world.fence == Fence::Command;
    if commands && old(world, here, newest) {
        moves::power_off(world, 1 - here);
    }
    let silent = !has(world, here, newest) || is_returned(world, here, newest);
    let last = world.claims[at(newest)];
    let fits = last.through == 0 && world.hosts[here].phase().epoch() < newest;
    if commands && !silent {
        world.claims[at(newest)].settled = true;
    }
    let epoch = newest + u64::from(silent || !fits);
    // A number that no migration has.
    let attempt = Attempt { number: 0, epoch };
    let host = &mut world.hosts[here];
    host.silent = silent;
    let steps = handover::take_over(epoch);
    host.todo
        .extend(steps.into_iter().map(|step| (attempt, step)));
}

/// Those before an open claim, with the owner of `newest` if that is not this host's.
fn old(world: &mut World, here: usize, newest: u64) -> bool {
    let other = 1 - here;
    let silent = !has(world, here, newest) || is_returned(world, here, newest);
    let claims = Claims(RefCell::new(&mut world.claims));
    let before = chain::unsettled(&claims, newest, &link(here, 0)).unwrap();
    silent || before.iter().any(|link| link.owner == daemon(other))
}

/// `Datastore::outlast`: who was turned off and is back is turned off again.
pub fn outlast(world: &mut World, here: usize) {
    world.hosts[here].outlasts = false;
    if world.fence == Fence::Command && world.hosts[here].silent && world.hosts[1 - here].up {
        moves::power_off(world, 1 - here);
    }
    let claim = world.claims.last_mut();
    claim.expect("it was just made").settled = true;
}

fn take(world: &mut World, here: usize) -> bool {
    if world.fence == Fence::Command {
        return true;
    }
    let free = world.lock.is_none_or(|holder| holder == here);
    if free {
        world.lock = Some(here);
    }
    free
}

pub fn let_go(world: &mut World, here: usize) {
    world.lock.take_if(|holder| *holder == here);
}

/// A daemon that starts opens what is its own, or waits for the lock with it.
pub fn start(world: &mut World, here: usize) {
    let phase = world.hosts[here].phase();
    if !matches!(phase, Phase::Serving { .. } | Phase::Granted { .. }) {
        return;
    }
    let (epoch, owner) = newest(world);
    if owner != here || epoch != phase.epoch() {
        world.hosts[here].record(Event::TakenOver { epoch });
    } else {
        world.hosts[here].lapsed = !take(world, here);
    }
}

pub fn carry_out(world: &mut World, here: usize, attempt: Attempt, step: Step) {
    debug_assert_eq!(world.datastore(), Datastore::Shared);
    match step {
        Step::Take if !take(world, here) => give_up(world, here, attempt),
        Step::LetGo => let_go(world, here),
        Step::Claim {
            epoch,
            through,
            or_peer,
        } => {
            let through = through.map_or(0, |migration| Attempt::of(migration, epoch).number);
            let claims = Claims(RefCell::new(&mut world.claims));
            let peer = or_peer.then_some(daemon(1 - here));
            match shared::claim(&claims, epoch, &link(here, through), peer) {
                Ok(()) if attempt.number == 0 => world.hosts[here].outlasts = true,
                Ok(()) => {}
                Err(ClaimError::Taken { epoch, link }) => {
                    let mine = link.owner == daemon(here) && attempt.number > 0;
                    let next = epoch == attempt.epoch + 1;
                    // `have_back`: claimed before, when it could not be recorded.
                    if !(mine && next && link.through == Some(attempt.migration())) {
                        lost(world, here, attempt, epoch, link.owner);
                    }
                }
                Err(ClaimError::Failed { .. }) => give_up(world, here, attempt),
            }
        }
        _ => {}
    }
}

/// The rest of the list is not carried out.
fn give_up(world: &mut World, here: usize, attempt: Attempt) {
    let host = &mut world.hosts[here];
    host.todo.retain(|(_, step)| *step == Step::Answer);
    if let Phase::Incoming { .. } = host.phase() {
        let migration = attempt.migration();
        host.record(Event::Discard { migration });
    }
    if !matches!(host.phase(), Phase::Granted { .. }) {
        let_go(world, here);
    }
}

fn lost(world: &mut World, here: usize, attempt: Attempt, epoch: u64, owner: DaemonId) {
    let host = &mut world.hosts[here];
    // By a takeover that was not recorded: that is to be ended first.
    let mine = owner == daemon(here);
    let granted_after_all = epoch == attempt.epoch && owner == daemon(1 - here);
    match host.phase() {
        Phase::Incoming { .. } => {
            host.record(Event::TakenOver { epoch });
        }
        Phase::Released { .. } | Phase::Handed { .. }
            if attempt.number > 0 && !granted_after_all && !mine =>
        {
            host.record(Event::TakenOver { epoch });
            host.source = Source::Idle;
        }
        _ => {}
    }
    give_up(world, here, attempt);
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |here: &usize| ["A", "B"][*here];
        match self {
            Move::Suspend(h) => write!(f, "the daemon at {} is stopped", name(h)),
            Move::Continue(h) => write!(f, "the daemon at {} goes on", name(h)),
            Move::Lapse(h) => write!(f, "the lease of {} is not renewed", name(h)),
            Move::Tend(h) => write!(f, "{} renews, and looks at the claims", name(h)),
            Move::TakeOver(h) => write!(f, "{} takes over", name(h)),
            Move::Reclaim(h) => write!(f, "{} claims back what it released", name(h)),
        }
    }
}
