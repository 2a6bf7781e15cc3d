//! What there is: two hosts, what is durable on them and what is not, and what is on the wire.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use ferry_migration::handover::{Datastore, Step, Word};
use ferry_migration::ids::MigrationId;
use ferry_migration::phase::{Event, Phase, State, next};
use uuid::Uuid;

/// How much may happen.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Moves begun.
    pub migrations: u8,
    /// Writes acknowledged to the guest.
    pub writes: u8,
    /// VMs booted besides the first.
    pub boots: u8,
    /// Crashes, power cuts, cuts of the link, repeated messages.
    pub faults: u8,
    /// Messages on the wire at a time.
    pub letters: usize,
    /// Both hosts see one image.
    pub shared: Option<Shared>,
}

/// What may happen to a disk that both hosts see.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// So many times a host may take it over.
    pub takeovers: u8,
    /// What keeps the old owner from writing.
    pub fence: Fence,
}

/// Whose an epoch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Claim {
    pub owner: u8,
    /// The number of the attempt by which it came to be; 0 for a takeover.
    pub through: u8,
    /// Nobody from before it serves any more.
    pub settled: bool,
}

/// As in a datastore's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fence {
    /// The image's lock: a stopped process keeps it, a dead one does not.
    LockCoherent,
    /// Locks do not hold between the hosts: the old owner is turned off.
    Command,
}

/// One attempt: its number, and the epoch it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    pub number: u8,
    pub epoch: u64,
}

impl Attempt {
    pub fn migration(self) -> MigrationId {
        MigrationId(Uuid::from_u128(u128::from(self.number)))
    }

    pub fn of(migration: MigrationId, epoch: u64) -> Attempt {
        let number = u8::try_from(migration.0.as_u128()).expect("made by `migration`");
        Attempt { number, epoch }
    }
}

/// What goes over the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Letter {
    Hello,
    Ready,
    No,
    Word(Word),
    HandBack { though_granted: bool },
    Pull { base: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    pub to: usize,
    pub attempt: Attempt,
    pub letter: Letter,
}

/// A guest's writes are numbered; an image is as good as its newest. The guest flushes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Image {
    pub written: u8,
    pub flushed: u8,
}

/// The source's part in a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    Idle,
    Offered(Attempt),
    Copying(Attempt),
    /// Every write goes to both sides.
    InSync(Attempt),
    /// Given up: finding out who owns the disk.
    Resolving(Attempt),
}

/// A VMM's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vm {
    Off,
    /// Its rings stand still.
    Stopped,
    Running,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    pub up: bool,
    /// The record; durable.
    pub state: State,
    pub image: Image,
    /// The device serves the guest's requests.
    pub serves: bool,
    pub source: Source,
    /// The copy that is being received.
    pub session: Option<Attempt>,
    /// What the daemon is about to do. Lost with it.
    pub todo: VecDeque<(Attempt, Step)>,
    pub vm: Vm,
    /// Which machine that is: 0 is the one that moves, others were booted fresh.
    pub machine: u8,
    /// Where its ring is.
    pub index: u8,
    /// Where the ring of the machine was, and which it was, when the disk was last released here.
    pub released: Ring,
    /// Where the ring of the machine is that the disk came with; others are not served.
    pub expected: Option<u8>,
    /// Its processes are stopped, and keep what they have.
    pub suspended: bool,
    /// It could not renew its lease, and has stopped serving.
    pub lapsed: bool,
    /// It takes the disk over from one that is silent; else it goes on with a claim of before.
    pub silent: bool,
    /// It has claimed the disk, and is to look whether that one is back.
    pub outlasts: bool,
}

/// A machine's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ring {
    pub machine: u8,
    pub index: u8,
    /// Rings at the other host asked for it, and not a person.
    pub pulled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub hosts: [Host; 2],
    pub net: BTreeSet<Packet>,
    /// The connection of the newest attempt, while it stands.
    pub link: Option<Attempt>,
    /// The newest acknowledged write.
    pub newest: u8,
    pub begun: u8,
    pub boots: u8,
    pub faults: u8,
    /// A VM got the disk by its rings.
    pub pulled: bool,
    /// One that was not the disk's got it.
    pub stolen: bool,
    /// Of a shared disk, the owner of each epoch from 1 on.
    pub claims: Vec<Claim>,
    /// Which daemon has the lock of the shared image, where locks hold between the hosts.
    pub lock: Option<usize>,
    pub fence: Fence,
    pub takeovers: u8,
}

impl Host {
    fn new(phase: Phase, vm: Vm) -> Host {
        Host {
            up: true,
            state: State {
                phase,
                refused: Vec::new(),
            },
            image: Image::default(),
            serves: matches!(phase, Phase::Serving { .. }),
            source: Source::Idle,
            session: None,
            todo: VecDeque::new(),
            vm,
            machine: 0,
            index: 0,
            released: Ring::default(),
            expected: None,
            suspended: false,
            lapsed: false,
            silent: false,
            outlasts: false,
        }
    }

    pub fn phase(&self) -> Phase {
        self.state.phase
    }

    pub fn is_serving_by_record(&self) -> bool {
        matches!(self.state.phase, Phase::Serving { .. })
    }

    /// Whether the disk came here by a move.
    pub fn moved_in(&self) -> bool {
        matches!(
            self.state.phase,
            Phase::Serving {
                through: Some(_),
                ..
            }
        )
    }

    /// Applies an event as the daemon does; whether the table took it.
    pub fn record(&mut self, event: Event) -> bool {
        match next(&self.state, event) {
            Ok(state) => {
                self.state = state;
                true
            }
            Err(_) => false,
        }
    }

    /// Whether the daemon is at rest: it does one thing of a disk at a time.
    pub fn is_free(&self) -> bool {
        self.runs() && self.todo.is_empty()
    }

    pub fn runs(&self) -> bool {
        self.up && !self.suspended
    }
}

impl World {
    pub fn new(shared: Option<Shared>) -> World {
        let fence = shared.map_or(Fence::LockCoherent, |shared| shared.fence);
        let locks = shared.is_some() && fence == Fence::LockCoherent;
        let serving = Phase::Serving {
            epoch: 1,
            through: None,
        };
        World {
            hosts: [
                Host::new(serving, Vm::Running),
                Host::new(Phase::Vacant, Vm::Off),
            ],
            net: BTreeSet::new(),
            link: None,
            newest: 0,
            begun: 0,
            boots: 0,
            faults: 0,
            pulled: false,
            stolen: false,
            claims: shared.iter().map(|_| Claim::default()).collect(),
            lock: locks.then_some(0),
            fence,
            takeovers: 0,
        }
    }

    pub fn datastore(&self) -> Datastore {
        if self.claims.is_empty() {
            Datastore::Own
        } else {
            Datastore::Shared
        }
    }

    /// The image that a host sees.
    pub fn image(&mut self, here: usize) -> &mut Image {
        let at = match self.datastore() {
            Datastore::Own => here,
            Datastore::Shared => 0,
        };
        &mut self.hosts[at].image
    }

    /// Whether it has all that was acknowledged.
    pub fn is_whole(&self, here: usize) -> bool {
        let mut world = self.clone();
        world.image(here).written == self.newest
    }

    pub fn send(&mut self, to: usize, attempt: Attempt, letter: Letter) {
        self.net.insert(Packet {
            to,
            attempt,
            letter,
        });
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (host, name) in self.hosts.iter().zip(["A", "B"]) {
            write!(
                f,
                "{name}: {} epoch {}{}{}, image {} of {}, vm {:?} {} at {}; ",
                host.phase().name(),
                host.phase().epoch(),
                match (host.up, host.suspended) {
                    (false, _) => " (down)",
                    (_, true) => " (stopped)",
                    _ => "",
                },
                if host.serves { " (serves)" } else { "" },
                host.image.written,
                self.newest,
                host.vm,
                host.machine,
                host.index,
            )?;
        }
        Ok(())
    }
}
