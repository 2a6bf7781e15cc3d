//! Hosts, their clocks, the datastore, and what may go wrong.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

use fastrand::Rng;
use ferry_migration::handover::{self, Step};
use ferry_migration::ids::DaemonId;
use ferry_migration::lease::beat::{Holder, Observer};
use ferry_migration::lease::chain::{self, Link, Shelf};
use ferry_migration::lease::shared::{self, ClaimError};
use ferry_migration::phase::{Event, Phase, State, next};
use uuid::Uuid;

const MS: u64 = 1_000_000;
const LEASE: u64 = 500 * MS;
/// The longest I/O.
const IO: u64 = 50 * MS;
const TICK: u64 = 10 * MS;
const HOSTS: usize = 3;

/// How often each thing happened.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub takeovers: u64,
    pub lost_claims: u64,
    pub lapses: u64,
    pub resumed: u64,
    pub taken: u64,
    pub fenced: u64,
    pub waited_for_lock: u64,
    pub kills: u64,
    pub stops: u64,
    pub outlasted: u64,
    pub unsettled: u64,
}

impl Seen {
    fn all(&self) -> [u64; 11] {
        [
            self.takeovers,
            self.lost_claims,
            self.lapses,
            self.resumed,
            self.taken,
            self.fenced,
            self.waited_for_lock,
            self.kills,
            self.stops,
            self.outlasted,
            self.unsettled,
        ]
    }

    pub fn add(&mut self, other: &Seen) {
        self.takeovers += other.takeovers;
        self.lost_claims += other.lost_claims;
        self.lapses += other.lapses;
        self.resumed += other.resumed;
        self.taken += other.taken;
        self.fenced += other.fenced;
        self.waited_for_lock += other.waited_for_lock;
        self.kills += other.kills;
        self.stops += other.stops;
        self.outlasted += other.outlasted;
        self.unsettled += other.unsettled;
    }

    pub fn is_everything(&self) -> bool {
        self.all().iter().all(|&count| count > 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Lock,
    Command,
}

#[derive(Debug)]
struct Host {
    /// Its CLOCK_BOOTTIME: where it began, and its rate in thousandths.
    offset: u64,
    rate: u64,
    up: bool,
    /// Stopped until then, on the true clock; it keeps what it has.
    stopped_until: u64,
    holder: Holder,
    /// A heartbeat on its way: begun then by its own clock, durable then by the true one.
    beating: Option<(u64, u64)>,
    beat_at: u64,
    storage_slow_until: u64,
    /// Whom it watches, and since which epoch.
    watched: Option<(u64, Observer)>,
    state: State,
    serves: bool,
    todo: VecDeque<Step>,
    /// The owner before, and its last beat when its lease was found to be over.
    from: Option<(usize, Option<u64>)>,
    /// It has claimed the disk, and is to look whether that owner is back.
    claimed: bool,
}

#[derive(Debug)]
pub struct World {
    rng: Rng,
    fence: Fence,
    now: u64,
    hosts: Vec<Host>,
    /// The owner of each epoch from 1 on, and whether the claim is settled.
    claims: RefCell<Vec<(usize, bool)>>,
    lock: Option<usize>,
    beats: [u64; HOSTS],
    traced: bool,
    pub seen: Seen,
}

fn link(here: usize) -> Link {
    Link {
        owner: DaemonId(Uuid::from_u128(here as u128)),
        address: String::new(),
        through: None,
    }
}

impl Shelf for World {
    fn create_new(&self, epoch: u64, link: &Link) -> io::Result<bool> {
        let mut claims = self.claims.borrow_mut();
        let free = claims.len() as u64 + 1 == epoch;
        if free {
            let owner = usize::try_from(link.owner.0.as_u128()).unwrap();
            claims.push((owner, false));
        }
        Ok(free)
    }

    fn read(&self, epoch: u64) -> io::Result<Option<Link>> {
        let at = usize::try_from(epoch).unwrap() - 1;
        Ok(self.claims.borrow().get(at).map(|&(owner, _)| link(owner)))
    }

    fn settle(&self, epoch: u64) -> io::Result<()> {
        self.claims.borrow_mut()[usize::try_from(epoch).unwrap() - 1].1 = true;
        Ok(())
    }

    fn is_settled(&self, epoch: u64) -> io::Result<bool> {
        Ok(self.claims.borrow()[usize::try_from(epoch).unwrap() - 1].1)
    }

    fn newest(&self) -> io::Result<Option<u64>> {
        Ok(Some(self.claims.borrow().len() as u64))
    }
}

impl World {
    pub fn new(seed: u64, traced: bool) -> World {
        let mut rng = Rng::with_seed(seed);
        let host = |rng: &mut Rng, first: bool| Host {
            offset: rng.u64(0..1_000_000) * MS,
            rate: rng.u64(970..=1030),
            up: true,
            stopped_until: 0,
            holder: Holder::new(LEASE),
            beating: None,
            beat_at: 0,
            storage_slow_until: 0,
            watched: None,
            state: State {
                phase: if first {
                    Phase::Serving {
                        epoch: 1,
                        through: None,
                    }
                } else {
                    Phase::Vacant
                },
                refused: Vec::new(),
            },
            serves: false,
            todo: VecDeque::new(),
            from: None,
            claimed: false,
        };
        let hosts = (0..HOSTS).map(|here| host(&mut rng, here == 0)).collect();
        World {
            fence: if rng.bool() {
                Fence::Lock
            } else {
                Fence::Command
            },
            rng,
            now: 1,
            hosts,
            claims: RefCell::new(vec![(0, false)]),
            lock: None,
            beats: [0; HOSTS],
            traced,
            seen: Seen::default(),
        }
    }

    fn tell(&self, here: usize, what: &str) {
        if self.traced {
            println!("{:8.3} s  {here}: {what}", self.now as f64 / 1e9);
        }
    }

    fn clock(&self, here: usize) -> u64 {
        let host = &self.hosts[here];
        host.offset + self.now / 1000 * host.rate
    }

    fn runs(&self, here: usize) -> bool {
        self.hosts[here].up && self.hosts[here].stopped_until <= self.now
    }

    fn owner(&self) -> (u64, usize) {
        let claims = self.claims.borrow();
        (claims.len() as u64, claims.last().unwrap().0)
    }

    /// One thing may go wrong.
    pub fn trouble(&mut self) {
        if self.rng.u32(0..60) > 0 {
            return;
        }
        let here = self.rng.usize(0..HOSTS);
        let until = self.now + self.rng.u64(1..8) * LEASE / 2;
        match self.rng.u32(0..4) {
            0 if self.hosts[here].up => {
                self.tell(here, "is killed");
                self.seen.kills += 1;
                self.off(here);
            }
            1 if self.runs(here) => {
                self.tell(here, "is stopped");
                self.seen.stops += 1;
                self.hosts[here].stopped_until = until;
            }
            2 => self.hosts[here].storage_slow_until = until,
            _ if !self.hosts[here].up => self.start(here),
            _ => {}
        }
    }

    pub fn heal(&mut self) {
        for here in 0..HOSTS {
            self.hosts[here].stopped_until = 0;
            self.hosts[here].storage_slow_until = 0;
            if !self.hosts[here].up {
                self.start(here);
            }
        }
    }

    /// One host serves it, by its record, the claims, the lock and a lease.
    pub fn is_whole(&self) -> bool {
        let serving = (0..HOSTS).filter(|&here| self.hosts[here].serves);
        serving.count() == 1
    }

    fn off(&mut self, here: usize) {
        self.lock.take_if(|holder| *holder == here);
        let host = &mut self.hosts[here];
        host.up = false;
        host.serves = false;
        host.stopped_until = 0;
        host.beating = None;
        host.watched = None;
        host.todo.clear();
        host.from = None;
        host.claimed = false;
    }

    fn start(&mut self, here: usize) {
        self.tell(here, "starts");
        let (epoch, owner) = self.owner();
        let host = &mut self.hosts[here];
        host.up = true;
        host.holder = Holder::new(LEASE);
        host.beat_at = self.now;
        if let Phase::Serving { epoch: at, .. } = host.state.phase
            && (owner != here || epoch != at)
        {
            self.record(here, Event::TakenOver { epoch });
            self.seen.taken += 1;
        }
    }

    fn record(&mut self, here: usize, event: Event) -> bool {
        let done = next(&self.hosts[here].state, event);
        if let Ok(state) = &done {
            self.hosts[here].state = state.clone();
        }
        done.is_ok()
    }

    pub fn tick(&mut self) -> Result<(), String> {
        self.now += TICK + self.rng.u64(0..TICK);
        let first = self.rng.usize(0..HOSTS);
        for turn in 0..HOSTS {
            let here = (first + turn) % HOSTS;
            if !self.runs(here) {
                continue;
            }
            self.guard(here);
            self.write(here)?;
            self.beat(here)?;
            if self.hosts[here].claimed {
                self.outlast(here);
            } else if let Some(step) = self.hosts[here].todo.pop_front() {
                self.carry_out(here, step);
            }
        }
        Ok(())
    }

    /// `ferry-guard`.
    fn guard(&mut self, here: usize) {
        let now = self.clock(here);
        let host = &mut self.hosts[here];
        if host.serves && !host.holder.holds(now) {
            host.serves = false;
            self.seen.lapses += 1;
            self.lock.take_if(|holder| *holder == here);
            self.tell(here, "has no lease any more, and stops serving");
        }
    }

    /// The guest writes, where the disk is served.
    fn write(&self, here: usize) -> Result<(), String> {
        if !self.hosts[here].serves {
            return Ok(());
        }
        let others = (0..HOSTS).filter(|&other| other != here && self.hosts[other].serves);
        // A command has turned the other off; a stopped one still has the lock.
        let unlocked = self.fence == Fence::Lock && self.lock != Some(here);
        let counts = |other| self.fence == Fence::Command || self.runs(other);
        if others.clone().any(counts) || unlocked {
            return Err(format!("two hosts serve, {here} is one: {self:?}"));
        }
        let epoch = self.hosts[here].state.phase.epoch();
        // Without the lock who was turned off and is back serves until it looks at the claims; who has
        // claimed the next epoch turns it off again before it serves.
        if self.fence == Fence::Lock && self.owner() != (epoch, here) {
            return Err(format!("{here} serves what it does not own: {self:?}"));
        }
        Ok(())
    }

    /// `ferry-lease`, and `ferry-tend` after it.
    fn beat(&mut self, here: usize) -> Result<(), String> {
        let now = self.clock(here);
        if let Some((began, done_at)) = self.hosts[here].beating {
            if done_at > self.now {
                return Ok(());
            }
            self.beats[here] += 1;
            let host = &mut self.hosts[here];
            host.beating = None;
            host.holder.renewed(began);
            host.beat_at = self.now + LEASE / 5;
            return self.tend(here);
        }
        if self.hosts[here].beat_at <= self.now {
            let slow = self.hosts[here].storage_slow_until.max(self.now);
            let done_at = slow + self.rng.u64(0..LEASE / 10);
            self.hosts[here].beating = Some((now, done_at));
        }
        Ok(())
    }

    fn tend(&mut self, here: usize) -> Result<(), String> {
        if !self.hosts[here].todo.is_empty() {
            return Ok(());
        }
        let (epoch, owner) = self.owner();
        let now = self.clock(here);
        if let Phase::Serving { epoch: at, .. } = self.hosts[here].state.phase {
            if owner != here || epoch != at {
                self.tell(here, "finds that it was taken over");
                self.seen.taken += 1;
                self.lock.take_if(|holder| *holder == here);
                self.hosts[here].serves = false;
                self.record(here, Event::TakenOver { epoch });
            } else if !self.hosts[here].serves
                && self.hosts[here].holder.holds(now)
                && (self.fence == Fence::Command || self.lock.is_none_or(|holder| holder == here))
            {
                self.lock = Some(here);
                self.hosts[here].serves = true;
                self.seen.resumed += 1;
                self.tell(here, "serves again");
            }
            return Ok(());
        }
        if owner == here {
            self.turn_off_unsettled(here, epoch);
            // Before anything else, as in `Datastore::take_over`.
            if self.fence == Fence::Command {
                self.settle(epoch).unwrap();
            }
            self.begin(here, epoch);
            return Ok(());
        }
        let seen = Some(self.beats[owner]);
        let host = &mut self.hosts[here];
        let (_, watch) = match &mut host.watched {
            Some(watched) if watched.0 == epoch => watched,
            other => other.insert((epoch, Observer::default())),
        };
        watch.look(seen, now, LEASE);
        if watch.expired(LEASE, IO) {
            self.fence(here, epoch, owner)?;
        }
        Ok(())
    }

    fn fence(&mut self, here: usize, epoch: u64, owner: usize) -> Result<(), String> {
        if self.fence == Fence::Command {
            let its_clock = self.clock(owner);
            if self.runs(owner)
                && self.hosts[owner].serves
                && self.hosts[owner].holder.holds(its_clock)
            {
                return Err(format!(
                    "{here} turns {owner} off, which holds its lease: {self:?}"
                ));
            }
            self.tell(here, "has the owner turned off");
            self.seen.fenced += 1;
            let watched = self.hosts[here].watched.as_ref();
            let counter = watched.and_then(|(_, watch)| watch.counter());
            self.hosts[here].from = Some((owner, counter));
            self.off(owner);
            self.turn_off_unsettled(here, epoch);
        }
        self.begin(here, epoch + 1);
        Ok(())
    }

    /// Those before an open claim.
    fn turn_off_unsettled(&mut self, here: usize, newest: u64) {
        if self.fence == Fence::Lock {
            return;
        }
        for old in chain::unsettled(self, newest, &link(here)).unwrap() {
            let owner = usize::try_from(old.owner.0.as_u128()).unwrap();
            self.tell(here, "has one from before an open claim turned off");
            self.seen.unsettled += 1;
            self.off(owner);
        }
    }

    fn begin(&mut self, here: usize, epoch: u64) {
        self.tell(here, "begins a takeover");
        self.hosts[here].todo = handover::take_over(epoch).into();
    }

    /// As `Datastore::outlast`.
    fn outlast(&mut self, here: usize) {
        self.hosts[here].claimed = false;
        let (epoch, owner) = self.owner();
        if owner != here {
            return; // lost since; its next step shows it
        }
        if let Some((owner, before)) = self.hosts[here].from.take()
            && Some(self.beats[owner]) != before
        {
            self.tell(here, "has the owner turned off again, as it is back");
            self.seen.outlasted += 1;
            self.off(owner);
        }
        self.settle(epoch).unwrap();
    }

    fn carry_out(&mut self, here: usize, step: Step) {
        let given_up = match step {
            Step::Take if self.fence == Fence::Command => false,
            Step::Take if self.lock.is_some_and(|holder| holder != here) => {
                self.seen.waited_for_lock += 1;
                true
            }
            Step::Take => {
                self.lock = Some(here);
                false
            }
            Step::Claim { epoch, .. } => match shared::claim(self, epoch, &link(here), None) {
                Ok(()) => {
                    self.hosts[here].claimed = true;
                    false
                }
                Err(ClaimError::Taken { .. } | ClaimError::Failed { .. }) => {
                    self.seen.lost_claims += 1;
                    true
                }
            },
            Step::Record(event) => !self.record(here, event),
            Step::Serve => {
                self.seen.takeovers += 1;
                self.tell(here, "has taken over");
                // As ever, while there is a lease.
                let now = self.clock(here);
                self.hosts[here].serves = self.hosts[here].holder.holds(now);
                if !self.hosts[here].serves {
                    self.lock.take_if(|holder| *holder == here);
                }
                false
            }
            _ => false,
        };
        if given_up {
            self.hosts[here].todo.clear();
            self.lock.take_if(|holder| *holder == here);
        }
    }
}
