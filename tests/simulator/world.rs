//! What there is: two hosts with a daemon and a VMM each, a link, and the agenda of what happens when.
//!
//! Everything a daemon does is a [`Job`] of one of its lives. A killed daemon's jobs are void; those
//! of one that is suspended wait for it, as what it held does. Only the kernel goes on meanwhile.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use ferry_migration::ids::{Claim, DiskId, MigrationId};
use ferry_migration::lease::Ownership;
use ferry_migration::phase::{Event as Change, Phase};
use uuid::Uuid;

use super::chaos::{self, Options};
use super::coverage::{Happened, Seen};
use super::guest;
use super::host::Host;
use super::image::Image;
use super::oracle::Oracle;
use super::source;
use super::wire::Wire;
use super::{daemon, destination, device, mirror, rings, tasks, wire};

/// In microseconds, since the world began.
pub type Time = u64;
pub const MILLI: Time = 1000;
pub const SECOND: Time = 1_000_000;

/// One attempt to move the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub number: u32,
    pub epoch: u64,
}

impl Attempt {
    pub fn migration(self) -> MigrationId {
        MigrationId(Uuid::from_u128(u128::from(self.number)))
    }

    pub fn of(migration: MigrationId, epoch: u64) -> Attempt {
        let number = u32::try_from(migration.0.as_u128()).expect("made by `migration`");
        Attempt { number, epoch }
    }

    pub fn claim(self) -> Claim {
        Claim {
            migration: self.migration(),
            disk: disk_id(),
            epoch: self.epoch,
        }
    }
}

pub fn disk_id() -> DiskId {
    "disk".parse().expect("a good name")
}

pub const DISK_UUID: Uuid = Uuid::from_u128(0xd15c);

/// What a daemon does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// The migration's thread looks for something to do.
    Source,
    /// It has set itself an alarm for it.
    Alarm,
    /// The mirror's writer does.
    Writer,
    /// The next step of a list.
    Step(u32),
    /// Something arrived on a connection.
    Hear(usize),
    /// A connection is found broken.
    Lost(usize),
    /// Has the other side been silent for too long?
    Silence(usize),
    /// The session says that it lives, and asks for the disk if rings wait for it.
    Beat(usize),
    /// A request's I/O has ended.
    Reap(u32),
    /// The mirror's patience is looked at.
    Patience,
    /// A request waits at a granted disk.
    FirstRequest,
    /// A granted disk whose activation could not be recorded waits for its request again.
    Arm(Attempt),
    /// A VMM stops its rings, starts them, or is gone. Which of the host's VMMs it is.
    StopRings(u32),
    StartRings(u32),
    VmmGone(u32),
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Job {
        here: usize,
        life: u32,
        job: Job,
    },
    /// The kernel has done a request's I/O.
    Landed {
        here: usize,
        life: u32,
        request: u32,
    },
    /// The guest thinks of something to do.
    Guest {
        here: usize,
        boot: u32,
    },
    /// Operators do something, right or wrong.
    Operator,
    /// Something breaks.
    Fault,
    /// The daemon is started.
    Start {
        here: usize,
        life: u32,
    },
    /// The suspended daemon goes on.
    Wake {
        here: usize,
        life: u32,
    },
    /// The records can be written again.
    StoreMended(usize),
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    at: Time,
    order: u64,
    event: Event,
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

pub struct World {
    pub now: Time,
    pub rng: fastrand::Rng,
    agenda: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pub events: u64,
    pub options: Options,
    pub hosts: [Host; 2],
    pub wire: Wire,
    pub oracle: Oracle,
    pub seen: Seen,
    /// Lines, where they are wanted.
    pub trace: Option<Vec<String>>,
    /// The promise that was broken first.
    pub broken: Option<String>,
    /// Nothing goes wrong any more.
    pub healed: bool,
    pub attempts: u32,
    pub machines: u16,
    /// Counts images, tasks and requests.
    count: u32,
}

/// A line of the trace. Nothing is formatted where none is wanted.
macro_rules! tell {
    ($world:expr, $($what:tt)*) => {
        if $world.trace.is_some() {
            $world.note(format!($($what)*));
        }
    };
}
pub(crate) use tell;

pub const NAMES: [&str; 2] = ["A", "B"];

impl World {
    /// The disk is at A, and so is its VM.
    pub fn new(seed: u64, traced: bool) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let options = Options::draw(&mut rng);
        let blocks = options.blocks;
        let mut world = World {
            now: 0,
            agenda: BinaryHeap::new(),
            order: 0,
            events: 0,
            hosts: [Host::new(0xa), Host::new(0xb)],
            wire: Wire::default(),
            oracle: Oracle::new(blocks),
            seen: Seen::default(),
            trace: traced.then(Vec::new),
            broken: None,
            healed: false,
            attempts: 0,
            machines: 0,
            count: 0,
            rng,
            options,
        };
        tell!(world, "{:?}", world.options);
        for host in &mut world.hosts {
            host.clock = world.options.clocks[usize::from(host.id.0.as_u128() == 0xb)];
        }
        world.hosts[0].image = Some(Image::blank(0, blocks));
        let shelf = Box::new(world.hosts[0].shelf.clone());
        let record = Ownership::open(shelf, DISK_UUID, world.hosts[0].id);
        let created = record.expect("an empty shelf").apply(Change::Create);
        created.expect("a new disk is created");
        daemon::start(&mut world, 0);
        daemon::start(&mut world, 1);
        guest::boot(&mut world, 0);
        world.after(0, Event::Operator);
        world.after(0, Event::Fault);
        world
    }

    pub fn number(&mut self) -> u32 {
        self.count += 1;
        self.count
    }

    /// True once in `of` times.
    pub fn once_in(&mut self, of: u32) -> bool {
        self.rng.u32(0..of) == 0
    }

    /// About as long as `mean`.
    pub fn about(&mut self, mean: Time) -> Time {
        self.rng.u64(mean / 4..=mean * 7 / 4)
    }

    pub fn after(&mut self, delay: Time, event: Event) {
        self.order += 1;
        self.agenda.push(Reverse(Entry {
            at: self.now + delay,
            order: self.order,
            event,
        }));
    }

    pub fn job(&mut self, here: usize, delay: Time, job: Job) {
        let life = self.hosts[here].life;
        self.after(delay, Event::Job { here, life, job });
    }

    /// After a time by the host's own clock.
    pub fn timer(&mut self, here: usize, wait: Time, job: Job) {
        self.job(here, wait * 1000 / self.hosts[here].clock, job);
    }

    /// A moment by the host's own clock, which only differences of mean something.
    pub fn clock(&self, here: usize) -> Time {
        self.now * self.hosts[here].clock / 1000
    }

    /// The time that a thread takes to come to something.
    pub fn soon(&mut self) -> Time {
        self.rng.u64(10..=400)
    }

    pub fn saw(&mut self, what: Happened) {
        self.seen.count(what);
    }

    pub fn note(&mut self, what: String) {
        let line = format!("{:>12.6}  {what}", self.now as f64 / 1e6);
        if let Some(trace) = &mut self.trace {
            trace.push(line);
        }
    }

    pub fn break_promise(&mut self, what: impl Into<String>) {
        let what = what.into();
        tell!(self, "VIOLATED: {what}");
        self.broken.get_or_insert(what);
    }

    pub fn keep_promise(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.break_promise(what);
        }
    }

    /// Makes the next event happen; false when nothing will happen any more.
    pub fn step(&mut self) -> bool {
        let Some(Reverse(entry)) = self.agenda.pop() else {
            return false;
        };
        self.now = entry.at;
        self.events += 1;
        match entry.event {
            Event::Job { here, life, job } => self.work(here, life, job),
            Event::Landed {
                here,
                life,
                request,
            } => device::landed(self, here, life, request),
            Event::Guest { here, boot } => guest::think(self, here, boot),
            Event::Operator => chaos::operate(self),
            Event::Fault => chaos::fault(self),
            Event::Start { here, life } if life == self.hosts[here].life => {
                daemon::start(self, here);
            }
            Event::Wake { here, life } if life == self.hosts[here].life => {
                daemon::wake(self, here);
            }
            Event::Start { .. } | Event::Wake { .. } => {}
            Event::StoreMended(here) => self.hosts[here].shelf.fail(None),
        }
        self.check();
        true
    }

    fn work(&mut self, here: usize, life: u32, job: Job) {
        let host = &mut self.hosts[here];
        if !host.up || host.life != life {
            return;
        }
        if host.suspended {
            return host.later.push(job);
        }
        match job {
            Job::Source => source::look(self, here),
            Job::Alarm => source::rings(self, here),
            Job::Writer => mirror::write(self, here),
            Job::Step(task) => tasks::carry_out_one(self, here, task),
            Job::Hear(conn) => wire::hear(self, here, conn),
            Job::Lost(conn) => wire::lost(self, here, conn),
            Job::Silence(conn) => wire::silence(self, here, conn),
            Job::Beat(conn) => destination::beat(self, here, conn),
            Job::Reap(request) => device::reap(self, here, request),
            Job::Patience => device::check_patience(self, here),
            Job::FirstRequest => destination::first_request(self, here),
            Job::Arm(attempt) => destination::arm_again(self, here, attempt),
            Job::StopRings(boot) => rings::stop_rings(self, here, boot),
            Job::StartRings(boot) => rings::start_rings(self, here, boot),
            Job::VmmGone(boot) => rings::vmm_gone(self, here, boot),
        }
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        let [a, b] = &self.hosts;
        if a.device.is_open() && b.device.is_open() {
            self.break_promise("two hosts serve the disk");
        } else if [a, b]
            .iter()
            .all(|h| matches!(h.phase(), Phase::Serving { .. }))
        {
            self.break_promise("two records say that the disk is served");
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (host, name) in self.hosts.iter().zip(NAMES) {
            writeln!(
                f,
                "  {name}: {:?}{}{}{}, vm {}, move {:?}",
                host.phase(),
                if host.up { "" } else { ", down" },
                if host.suspended { ", suspended" } else { "" },
                if host.device.is_open() {
                    ", serves"
                } else {
                    ""
                },
                host.vm,
                host.source
                    .as_ref()
                    .map(|source| (source.attempt, source.stage_name())),
            )?;
        }
        Ok(())
    }
}
