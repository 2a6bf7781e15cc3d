//! The device that a daemon has for the disk: rings, the gate, requests in flight, and the mirror's
//! order as `lifecycle.rs` draws it.

use std::collections::VecDeque;
use std::ops::Range;

use super::coverage::Happened;
use super::guest;
use super::image::{Block, PARTS, byte_of};
use super::mirror::{self, Change};
use super::rings::drained;
use super::source;
use super::world::{Attempt, Event, Job, MILLI, NAMES, Time, World, tell};

/// Whether the disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    Open,
    #[default]
    Held,
    /// From the first request on, if the record can be made to say so.
    Armed(Attempt),
}

/// Who is told when rings are started on a disk that is out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRestart {
    #[default]
    Nobody,
    Source,
    Session(usize),
}

/// Where the rings begin of the machine that came with the disk.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub base: u16,
    pub or_boots: bool,
}

impl Expected {
    pub fn fits(self, base: u16) -> bool {
        base == self.base || self.or_boots && base == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Write { zeroes: bool },
    Flush,
    Read,
}

/// A guest's request. It stays the guest's until it is answered; a daemon may die over it.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: u32,
    pub op: Op,
    pub first: usize,
    pub count: usize,
    /// The write's number.
    pub stamp: u32,
    /// Its VMM is still there to be answered.
    pub awaited: bool,
    /// What a flush has to make durable.
    pub covers: Vec<Block>,
    /// Its number among the mirrored changes, and since when it is one.
    seq: u64,
    tapped: Time,
    landed: bool,
    failed: bool,
}

impl Request {
    pub fn new(id: u32, op: Op, first: usize, count: usize) -> Request {
        Request {
            id,
            op,
            first,
            count,
            stamp: 0,
            awaited: true,
            covers: Vec::new(),
            seq: 0,
            tapped: 0,
            landed: false,
            failed: false,
        }
    }

    pub fn changes(&self) -> bool {
        matches!(self.op, Op::Write { .. })
    }

    pub fn overlaps(&self, range: &Range<usize>) -> bool {
        self.first < range.end && range.start < self.first + self.count
    }

    pub fn blocks(&self) -> Range<usize> {
        self.first..self.first + self.count
    }

    fn data(&self) -> Vec<Block> {
        let zeroes = self.op == Op::Write { zeroes: true };
        let stamp = if zeroes { 0 } else { self.stamp };
        vec![[stamp; PARTS]; self.count]
    }
}

#[derive(Debug)]
pub struct Tap {
    seq: u64,
    acked: u64,
    mirrored_below: u64,
}

#[derive(Debug, Default)]
pub struct Device {
    pub gate: Gate,
    pub on_restart: OnRestart,
    pub rings_run: bool,
    /// The VMM that has started them, and its machine.
    pub boot: u32,
    pub machine: u16,
    /// The VMM waits for its rings to be drained.
    pub leaving: bool,
    /// Where they begin, or have stopped.
    pub base: u16,
    /// What the driver negotiated; what it left, when its VMM is gone.
    pub features: u64,
    pub departed: bool,
    pub expected: Option<Expected>,
    pub tap: Option<Tap>,
    lock: Option<Range<usize>>,
    in_flight: Vec<Request>,
    /// They wait for the lock.
    waiting: VecDeque<Request>,
    /// Somebody is finding out whether the first request may be served.
    pub asked: bool,
}

impl Device {
    pub fn is_open(&self) -> bool {
        self.gate == Gate::Open
    }

    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.in_flight.iter().chain(&self.waiting)
    }

    pub fn is_drained(&self) -> bool {
        self.in_flight.is_empty() && self.waiting.is_empty()
    }

    /// A VMM is gone: nobody is there to be answered.
    pub fn forsake(&mut self, boot: u32, index: u16) {
        if self.boot == boot {
            self.base = index;
            let requests = self.in_flight.iter_mut().chain(&mut self.waiting);
            requests.for_each(|request| request.awaited = false);
        }
    }

    /// Nothing in flight changes the locked range.
    pub fn lock_is_settled(&self) -> bool {
        let busy = |range: &Range<usize>| {
            let changes = |r: &&Request| r.changes() && !r.landed && r.overlaps(range);
            self.in_flight.iter().any(|r| changes(&r))
        };
        self.lock.as_ref().is_some_and(|range| !busy(range))
    }
}

pub fn attach_tap(world: &mut World, here: usize) {
    world.hosts[here].device.tap = Some(Tap {
        seq: 0,
        acked: 0,
        mirrored_below: 0,
    });
    world.timer(here, 50 * MILLI, Job::Patience);
}

/// What waited for the other side completes by its local result.
pub fn detach_tap(world: &mut World, here: usize) {
    let device = &mut world.hosts[here].device;
    if device.tap.take().is_none() {
        return;
    }
    device.lock = None;
    for request in &mut device.in_flight {
        request.seq = 0;
    }
    complete_landed(world, here, |_| true);
    go_on(world, here);
}

fn fail_mirror(world: &mut World, here: usize, why: &'static str) {
    tell!(world, "{} gives the mirror up: {why}", NAMES[here]);
    world.saw(Happened::MirrorGivenUp);
    mirror::tapped(world, here, Change::Failed);
    detach_tap(world, here);
}

/// Holds writes to the range back; false when the mirror is gone.
pub fn lock(world: &mut World, here: usize, range: Range<usize>) -> bool {
    let device = &mut world.hosts[here].device;
    let mirrored = device.tap.is_some();
    device.lock = mirrored.then_some(range);
    mirrored
}

pub fn unlock(world: &mut World, here: usize, mirrored_below: u64) -> bool {
    let device = &mut world.hosts[here].device;
    device.lock = None;
    let mirrored = device.tap.as_mut();
    let is_mirrored = mirrored
        .map(|tap| tap.mirrored_below = mirrored_below)
        .is_some();
    go_on(world, here);
    is_mirrored
}

/// Those that waited for the lock begin.
fn go_on(world: &mut World, here: usize) {
    let waiting = std::mem::take(&mut world.hosts[here].device.waiting);
    for request in waiting {
        begin(world, here, request);
    }
}

/// A request is popped.
pub fn begin(world: &mut World, here: usize, mut request: Request) {
    let now = world.now;
    let covers = (request.op == Op::Flush).then(|| world.oracle.to_flush(here));
    let device = &mut world.hosts[here].device;
    let locked = device
        .lock
        .as_ref()
        .is_some_and(|lock| request.overlaps(lock));
    if request.changes() && locked {
        world.saw(Happened::WriteWaitsForCopier);
        return world.hosts[here].device.waiting.push_back(request);
    }
    // Numbered now and at every new attempt, so that numbers go up in each block.
    if let Op::Write { zeroes } = request.op {
        request.stamp = world.oracle.issue(request.first, request.count, zeroes);
    }
    let device = &mut world.hosts[here].device;
    request.covers = covers.unwrap_or_default();
    let start = byte_of(request.first);
    if let Some(tap) = &mut device.tap
        && request.changes()
        && start < tap.mirrored_below
    {
        tap.seq += 1;
        (request.seq, request.tapped) = (tap.seq, now);
        let change = Change::Write {
            seq: tap.seq,
            first: request.first,
            blocks: request.data(),
        };
        if !mirror::tapped(world, here, change) {
            fail_mirror(world, here, "its queue is full");
            request.seq = 0;
        }
    }
    let (life, id) = (world.hosts[here].life, request.id);
    world.hosts[here].device.in_flight.push(request);
    let wait = world.about(world.options.storage);
    let request = id;
    world.after(
        wait,
        Event::Landed {
            here,
            life,
            request,
        },
    );
}

/// The kernel has done it, whether or not the daemon can know.
pub fn landed(world: &mut World, here: usize, life: u32, id: u32) {
    if world.hosts[here].life != life || !world.hosts[here].up {
        return;
    }
    let odds = world.options.disk_errors;
    let fails = odds > 0 && !world.healed && world.once_in(odds);
    let host = &mut world.hosts[here];
    let Some(request) = host.device.in_flight.iter_mut().find(|r| r.id == id) else {
        return;
    };
    let (image, at) = (host.image.as_mut().expect("served"), request.first);
    match request.op {
        Op::Write { .. } if fails => {
            request.failed = true;
            let data = request.data();
            let some = world.rng.usize(0..data.len());
            image.write(at, &data[..some]);
        }
        Op::Write { .. } => image.write(at, &request.data()),
        Op::Flush => image.flush(),
        Op::Read => {
            let seen = world.oracle.check(here, image, at, request.count);
            world.keep_promise(seen);
        }
    }
    world.job(here, 0, Job::Reap(id));
}

/// The daemon learns of it.
pub fn reap(world: &mut World, here: usize, id: u32) {
    let device = &mut world.hosts[here].device;
    let Some(request) = device.in_flight.iter_mut().find(|r| r.id == id) else {
        return;
    };
    request.landed = true;
    if request.failed {
        let change = Change::Dirty {
            first: request.first,
            count: request.count,
        };
        world.saw(Happened::WriteFailed);
        if world.hosts[here].device.tap.is_some() && !mirror::tapped(world, here, change) {
            fail_mirror(world, here, "a failed write could not be reported");
        }
    }
    if world.hosts[here].device.lock.is_some() {
        source::wake(world, here);
    }
    complete_landed(world, here, |request| request.id == id);
}

/// Answers those that wait for nobody, or not any more.
pub fn complete_landed(world: &mut World, here: usize, which: impl Fn(&Request) -> bool) {
    let mut at = 0;
    loop {
        let device = &mut world.hosts[here].device;
        let (leaving, acked) = (device.leaving, device.tap.as_ref().map(|tap| tap.acked));
        let done = |r: &Request| {
            r.landed && (leaving || acked.is_none_or(|acked| r.seq <= acked)) && which(r)
        };
        let Some(next) = device.in_flight[at..].iter().position(done) else {
            break;
        };
        at += next;
        let request = device.in_flight.swap_remove(at);
        if request.awaited {
            guest::answered(world, here, &request, request.failed);
        }
    }
    drained(world, here);
}

/// The other side has applied everything up to `seq`.
pub fn acknowledge(world: &mut World, here: usize, seq: u64) {
    if let Some(tap) = &mut world.hosts[here].device.tap {
        tap.acked = tap.acked.max(seq);
        complete_landed(world, here, |_| true);
    }
}

/// Gives the mirror up when it keeps a guest's request too long.
pub fn check_patience(world: &mut World, here: usize) {
    let (now, patience) = (world.now, world.options.patience);
    let device = &world.hosts[here].device;
    let Some(tap) = &device.tap else { return };
    let late = |r: &Request| r.landed && r.seq > tap.acked && now - r.tapped > patience;
    if device.in_flight.iter().any(late) {
        fail_mirror(world, here, "a write waited too long for the other side");
    } else {
        world.timer(here, 50 * MILLI, Job::Patience);
    }
}

/// The daemon died over these; what was in flight may have landed, in whole or in part.
pub fn died(world: &mut World, here: usize) -> Vec<Request> {
    let device = std::mem::take(&mut world.hosts[here].device);
    let mut left = Vec::new();
    for mut request in device.in_flight.into_iter().chain(device.waiting) {
        let begun = request.changes() && request.stamp > 0;
        let lands = begun && !request.landed && world.rng.bool();
        if lands && let Some(image) = &mut world.hosts[here].image {
            let some = world.rng.usize(1..=request.count);
            image.write(request.first, &request.data()[..some]);
        }
        (request.seq, request.stamp) = (0, 0);
        (request.landed, request.failed) = (false, false);
        if request.awaited {
            left.push(request);
        }
    }
    left
}
