//! What may happen next, and what comes of it.

use std::fmt;

use ferry_migration::handover::{self, Datastore, Step, Word};
use ferry_migration::phase::{Event, Phase};

use super::shared;
use super::world::{Attempt, Image, Letter, Limits, Packet, Ring, Source, Vm, World};

/// One step of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// The operator moves the disk away from here.
    Begin(usize),
    /// The copy is equal.
    CopyDone(usize),
    /// The guest here writes, and hears that it is done.
    Write(usize),
    /// The orchestrator has the disk released here.
    Release(usize),
    /// The daemon here does its next step.
    Do(usize),
    /// A message arrives.
    Deliver(Packet),
    /// It arrives, and will once more.
    Repeat(Packet),
    /// The connection of the move is cut.
    Cut,
    /// The daemon here notices that its connection is gone.
    Notice(usize),
    /// The VM's first request at a granted disk.
    FirstRequest(usize),
    /// Rings were started at a copy: the source is asked.
    Pull(usize),
    /// The source asks who owns the disk.
    Ask(usize),
    /// The VMM stops the VM here.
    Stop(usize),
    /// It lets it go on.
    Resume(usize),
    /// The VM arrives here from the other host, and stands still.
    Arrive(usize),
    /// The VMM here ends.
    Quit(usize),
    /// A fresh VM is started here.
    Boot(usize),
    /// The daemon here is killed.
    Kill(usize),
    /// The host here loses power.
    PowerCut(usize),
    /// The daemon here starts.
    Start(usize),
    /// What may happen to a shared disk besides.
    Shared(shared::Move),
}

/// Everything that may happen.
pub fn possible(limits: &Limits, world: &World, into: &mut Vec<Move>) {
    let fault = world.faults < limits.faults;
    for packet in &world.net {
        if world.hosts[packet.to].is_free() {
            into.push(Move::Deliver(*packet));
            if fault {
                into.push(Move::Repeat(*packet));
            }
        }
    }
    if fault && world.link.is_some() {
        into.push(Move::Cut);
    }
    for here in 0..2 {
        of_host(limits, world, here, fault, into);
        shared::possible(limits, world, here, fault, into);
    }
}

fn of_host(limits: &Limits, world: &World, here: usize, fault: bool, into: &mut Vec<Move>) {
    let (host, other) = (&world.hosts[here], &world.hosts[1 - here]);
    let mut add = |may: bool, what: Move| {
        if may {
            into.push(what);
        }
    };
    add(host.vm == Vm::Running, Move::Stop(here));
    add(host.vm == Vm::Stopped, Move::Resume(here));
    add(host.vm == Vm::Stopped, Move::Quit(here));
    add(
        host.vm == Vm::Off && other.vm == Vm::Stopped,
        Move::Arrive(here),
    );
    add(
        host.vm == Vm::Off && world.boots < limits.boots,
        Move::Boot(here),
    );
    if !host.up {
        return add(true, Move::Start(here));
    }
    if host.suspended {
        return;
    }
    let running = host.vm == Vm::Running;
    add(fault, Move::Kill(here));
    add(fault, Move::PowerCut(here));
    // The worker serves whatever the daemon does meanwhile.
    let mirrored = match host.source {
        Source::InSync(attempt) => connected(world, here, attempt),
        _ => true,
    };
    add(
        running && host.serves && mirrored && world.newest < limits.writes,
        Move::Write(here),
    );
    if !host.todo.is_empty() {
        return add(true, Move::Do(here));
    }
    add(notices(world, here), Move::Notice(here));
    add(
        running && matches!(host.phase(), Phase::Granted { .. }) && fits(world, here),
        Move::FirstRequest(here),
    );
    add(
        running
            && host.session.is_some()
            && matches!(host.phase(), Phase::Incoming { .. })
            && fits(world, here),
        Move::Pull(here),
    );
    let quiet = world.begun < limits.migrations && host.source == Source::Idle;
    add(
        quiet && host.serves && world.link.is_none() && other.up,
        Move::Begin(here),
    );
    match host.source {
        Source::Copying(attempt) => add(connected(world, here, attempt), Move::CopyDone(here)),
        Source::InSync(attempt) => add(
            !running && connected(world, here, attempt),
            Move::Release(here),
        ),
        Source::Resolving(_) => add(true, Move::Ask(here)),
        Source::Idle | Source::Offered(_) => {}
    }
}

/// Whether the device lets the rings here start (`BlkDevice`'s `expected`).
fn fits(world: &World, here: usize) -> bool {
    let host = &world.hosts[here];
    host.expected.is_none_or(|index| index == host.index)
}

/// Whether both ends of the attempt's connection are there.
fn connected(world: &World, source: usize, attempt: Attempt) -> bool {
    let there = &world.hosts[1 - source];
    world.link == Some(attempt) && there.is_free() && there.session == Some(attempt)
}

/// Whether a connection of this host is gone, and it does not know.
fn notices(world: &World, here: usize) -> bool {
    let host = &world.hosts[here];
    let gone = |attempt: Attempt| world.link != Some(attempt);
    let as_source = match host.source {
        Source::Offered(attempt) | Source::Copying(attempt) | Source::InSync(attempt) => {
            gone(attempt)
        }
        Source::Idle | Source::Resolving(_) => false,
    };
    as_source || host.session.is_some_and(gone)
}

/// Makes one move that is possible.
pub fn make(world: &mut World, step: Move) {
    match step {
        Move::Begin(here) => begin(world, here),
        Move::CopyDone(here) => {
            if let Source::Copying(attempt) = world.hosts[here].source {
                world.image(1 - here).written = world.image(here).written;
                world.hosts[here].source = Source::InSync(attempt);
            }
        }
        Move::Write(here) => write(world, here),
        Move::Release(here) => {
            if let Source::InSync(attempt) = world.hosts[here].source {
                release(world, here, attempt, false);
            }
        }
        Move::Do(here) => carry_out_one(world, here),
        Move::Deliver(packet) => {
            world.net.remove(&packet);
            deliver(world, packet);
        }
        Move::Repeat(packet) => {
            world.faults += 1;
            deliver(world, packet);
        }
        Move::Cut => {
            world.faults += 1;
            world.link = None;
        }
        Move::Notice(here) => notice(world, here),
        Move::FirstRequest(here) => {
            let datastore = world.datastore();
            let released = world.hosts[1 - here].released;
            // Of rings that were never used nothing can be told: there a person's word counts.
            let other = world.hosts[here].machine != released.machine;
            world.stolen |= other && (released.index > 0 || released.pulled);
            let host = &mut world.hosts[here];
            if let Phase::Granted { migration, epoch } = host.phase() {
                let attempt = Attempt::of(migration, epoch);
                let steps = handover::on_first_request(migration, epoch, datastore);
                host.todo
                    .extend(steps.into_iter().map(|step| (attempt, step)));
            }
        }
        Move::Pull(here) => {
            let host = &world.hosts[here];
            if let Some(attempt) = host.session {
                let base = host.index;
                world.send(1 - here, attempt, Letter::Pull { base });
            }
        }
        Move::Ask(here) => {
            let host = &world.hosts[here];
            if let Source::Resolving(attempt) = host.source {
                let though_granted = host.vm == Vm::Running;
                world.send(1 - here, attempt, Letter::HandBack { though_granted });
            }
        }
        Move::Stop(here) => world.hosts[here].vm = Vm::Stopped,
        Move::Resume(here) => world.hosts[here].vm = Vm::Running,
        Move::Arrive(here) => {
            let (machine, index) = {
                let other = &world.hosts[1 - here];
                (other.machine, other.index)
            };
            let host = &mut world.hosts[here];
            (host.vm, host.machine, host.index) = (Vm::Stopped, machine, index);
        }
        Move::Quit(here) => world.hosts[here].vm = Vm::Off,
        Move::Boot(here) => {
            world.boots += 1;
            let host = &mut world.hosts[here];
            (host.vm, host.machine, host.index) = (Vm::Running, world.boots, 0);
        }
        Move::Kill(here) => {
            world.faults += 1;
            kill(world, here);
        }
        Move::PowerCut(here) => {
            world.faults += 1;
            power_off(world, here);
        }
        Move::Start(here) => start(world, here),
        Move::Shared(step) => shared::make(world, step),
    }
}

fn begin(world: &mut World, here: usize) {
    world.begun += 1;
    let attempt = Attempt {
        number: world.begun,
        epoch: world.hosts[here].phase().epoch() + 1,
    };
    world.hosts[here].source = Source::Offered(attempt);
    world.link = Some(attempt);
    world.send(1 - here, attempt, Letter::Hello);
}

fn write(world: &mut World, here: usize) {
    world.newest += 1;
    let newest = world.newest;
    let mirrored = matches!(world.hosts[here].source, Source::InSync(_));
    let host = &mut world.hosts[here];
    // Sixteen bits of each ring: two machines are not taken to stand at the same place by chance.
    host.index = host.index.max(host.machine * 64) + 1;
    *world.image(here) = Image {
        written: newest,
        flushed: newest,
    };
    if mirrored {
        world.image(1 - here).written = newest;
    }
}

/// Out of service, the tail flushed at the destination, and then the list.
fn release(world: &mut World, here: usize, attempt: Attempt, pulled: bool) {
    let there = world.image(1 - here);
    there.flushed = there.written;
    let datastore = world.datastore();
    let host = &mut world.hosts[here];
    host.released = Ring {
        machine: host.machine,
        index: host.index,
        pulled,
    };
    host.serves = false;
    host.source = Source::Resolving(attempt);
    let steps = handover::release(attempt.migration(), datastore);
    host.todo
        .extend(steps.into_iter().map(|step| (attempt, step)));
}

/// The next step of a daemon's list; when it fails, the rest is dropped.
pub fn carry_out_one(world: &mut World, here: usize) {
    if world.hosts[here].outlasts {
        return shared::outlast(world, here);
    }
    let released = world.hosts[1 - here].released.index;
    let host = &mut world.hosts[here];
    let Some((attempt, step)) = host.todo.pop_front() else {
        return;
    };
    let (migration, epoch) = (attempt.migration(), attempt.epoch);
    match step {
        Step::Flush => {
            let image = world.image(here);
            image.flushed = image.written;
        }
        Step::Take | Step::LetGo | Step::Claim { .. } => {
            shared::carry_out(world, here, attempt, step);
        }
        // What was released comes with the grant.
        Step::Record(Event::Grant { .. }) if host.vm == Vm::Running && host.index != released => {
            // The device does not take the state: the copy is given up, and the record says so.
            host.record(Event::Discard { migration });
            shared::let_go(world, here);
        }
        Step::Record(event) => {
            let was = host.phase();
            let took = host.record(event);
            if took && matches!(event, Event::Grant { .. }) {
                host.expected = Some(released);
            }
            if !took {
                host.todo.retain(|(_, step)| *step == Step::Answer);
            } else if let Event::ActivatedThere { .. } = event {
                host.source = Source::Idle;
                world.link.take_if(|&mut link| link == attempt);
            } else if let (Event::HandBack { .. } | Event::Settle { .. }, Phase::Returned { .. }) =
                (event, host.phase())
                && was != host.phase()
            {
                shared::let_go(world, here);
            }
        }
        Step::Say(word) => world.send(1 - here, attempt, Letter::Word(word)),
        Step::Answer => {
            if let Some(word) = handover::answer(&host.state, migration, epoch) {
                world.send(1 - here, attempt, Letter::Word(word));
            }
        }
        Step::Serve => {
            host.serves = true;
            host.expected = None;
            host.source = Source::Idle;
        }
    }
}

fn deliver(world: &mut World, packet: Packet) {
    let Packet {
        to,
        attempt,
        letter,
    } = packet;
    let (migration, epoch) = (attempt.migration(), attempt.epoch);
    let datastore = world.datastore();
    let host = &mut world.hosts[to];
    let receives = matches!(host.phase(), Phase::Incoming { .. });
    let mut list = |steps: &[Step]| host.todo.extend(steps.iter().map(|&step| (attempt, step)));
    match letter {
        Letter::Hello => hello(world, to, attempt),
        Letter::Ready if host.source == Source::Offered(attempt) => {
            host.source = Source::Copying(attempt);
        }
        Letter::No if host.source == Source::Offered(attempt) => host.source = Source::Idle,
        // The record has the answer.
        Letter::Word(Word::Grant) if host.session == Some(attempt) && !receives => {
            list(&[Step::Answer]);
        }
        Letter::Word(Word::Grant) if host.session == Some(attempt) => {
            list(&handover::on_grant(migration, epoch, datastore));
        }
        Letter::Word(Word::Grant) => {}
        Letter::Word(word) if host.source == Source::Resolving(attempt) => {
            list(&handover::on_word(word, migration, epoch, datastore));
        }
        Letter::HandBack { though_granted } => {
            list(&handover::on_hand_back(migration, epoch, though_granted));
        }
        Letter::Pull { base }
            if host.source == Source::InSync(attempt) && host.vm != Vm::Running =>
        {
            pulled(world, to, attempt, base);
        }
        _ => {}
    }
}

fn hello(world: &mut World, here: usize, attempt: Attempt) {
    let (migration, epoch) = (attempt.migration(), attempt.epoch);
    let datastore = world.datastore();
    let host = &mut world.hosts[here];
    let takes = handover::takes_offers(&host.phase()) && host.source == Source::Idle;
    if takes && world.link == Some(attempt) && host.record(Event::Accept { migration, epoch }) {
        host.session = Some(attempt);
        host.expected = None;
        if datastore == Datastore::Own {
            host.image = Image::default();
        }
        world.send(1 - here, attempt, Letter::Ready);
    } else {
        world.send(1 - here, attempt, Letter::No);
    }
}

/// The destination's rings ask for the disk.
fn pulled(world: &mut World, here: usize, attempt: Attempt, base: u8) {
    let mine = [u16::from(world.hosts[here].index)];
    if !connected(world, here, attempt) || handover::prove(&mine, &[u16::from(base)]).is_err() {
        return;
    }
    world.pulled = true;
    release(world, here, attempt, true);
}

/// The daemon finds its connection gone.
pub fn notice(world: &mut World, here: usize) {
    let link = world.link;
    let host = &mut world.hosts[here];
    let gone = |attempt: Attempt| link != Some(attempt);
    if let Source::Offered(attempt) | Source::Copying(attempt) | Source::InSync(attempt) =
        host.source
        && gone(attempt)
    {
        host.source = Source::Idle;
    }
    if let Some(attempt) = host.session.take_if(|&mut attempt| gone(attempt)) {
        let migration = attempt.migration();
        host.record(Event::Discard { migration });
    }
}

fn kill(world: &mut World, here: usize) {
    shared::let_go(world, here);
    let host = &mut world.hosts[here];
    (host.up, host.suspended, host.lapsed) = (false, false, false);
    host.serves = false;
    host.source = Source::Idle;
    host.todo.clear();
    (host.outlasts, host.silent) = (false, false);
    let had = host.session.take();
    let link = world.link;
    if had.is_some() || link.is_some() {
        world.link = None;
    }
}

/// With the power goes what was not flushed, and the VM.
pub fn power_off(world: &mut World, here: usize) {
    kill(world, here);
    if world.datastore() == Datastore::Own {
        let image = world.image(here);
        image.written = image.flushed;
    }
    world.hosts[here].vm = Vm::Off;
}

/// As `lease/restart.rs` has it.
pub fn start(world: &mut World, here: usize) {
    if world.datastore() == Datastore::Shared {
        shared::start(world, here);
    }
    let host = &mut world.hosts[here];
    host.up = true;
    match host.phase() {
        Phase::Serving { .. } => host.serves = !host.lapsed,
        Phase::Incoming { migration, .. } => {
            host.record(Event::Discard { migration });
        }
        Phase::Released { migration, epoch } | Phase::Handed { migration, epoch } => {
            host.source = Source::Resolving(Attempt::of(migration, epoch));
        }
        Phase::Vacant
        | Phase::Granted { .. }
        | Phase::Returned { .. }
        | Phase::Moved { .. }
        | Phase::Taken { .. } => {}
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |here: &usize| ["A", "B"][*here];
        match self {
            Move::Begin(h) => write!(f, "a move away from {} begins", name(h)),
            Move::CopyDone(h) => write!(f, "the copy of {} is equal", name(h)),
            Move::Write(h) => write!(f, "the guest at {} writes", name(h)),
            Move::Release(h) => write!(f, "the disk is to be released at {}", name(h)),
            Move::Do(h) => write!(f, "{} does its next step", name(h)),
            Move::Deliver(p) => write!(f, "{} gets {:?} of {:?}", name(&p.to), p.letter, p.attempt),
            Move::Repeat(p) => write!(
                f,
                "{} gets {:?} of {:?}, which will come again",
                name(&p.to),
                p.letter,
                p.attempt
            ),
            Move::Cut => write!(f, "the link is cut"),
            Move::Notice(h) => write!(f, "{} notices that its connection is gone", name(h)),
            Move::FirstRequest(h) => write!(f, "the first request at {}", name(h)),
            Move::Pull(h) => write!(f, "rings were started at {}, which asks", name(h)),
            Move::Ask(h) => write!(f, "{} asks who owns the disk", name(h)),
            Move::Stop(h) => write!(f, "the VM at {} is stopped", name(h)),
            Move::Resume(h) => write!(f, "the VM at {} goes on", name(h)),
            Move::Arrive(h) => write!(f, "the VM arrives at {}", name(h)),
            Move::Quit(h) => write!(f, "the VMM at {} ends", name(h)),
            Move::Boot(h) => write!(f, "another VM boots at {}", name(h)),
            Move::Kill(h) => write!(f, "the daemon at {} is killed", name(h)),
            Move::PowerCut(h) => write!(f, "the power of {} is cut", name(h)),
            Move::Start(h) => write!(f, "the daemon at {} starts", name(h)),
            Move::Shared(step) => step.fmt(f),
        }
    }
}
