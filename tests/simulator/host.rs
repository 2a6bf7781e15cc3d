//! One host: its daemon, its storage, its VMM.

use ferry_migration::ids::DaemonId;
use ferry_migration::lease::{Ownership, Peer};
use ferry_migration::phase::Phase;
use uuid::Uuid;

use super::destination::Session;
use super::device::Device;
use super::guest::Vm;
use super::image::Image;
use super::release::GivenUp;
use super::source::Source;
use super::store::Shelf;
use super::tasks::Task;
use super::world::{Attempt, Job};

pub struct Host {
    pub id: DaemonId,
    /// Counts the daemon's starts.
    pub life: u32,
    pub up: bool,
    pub suspended: bool,
    /// What a suspended daemon will do.
    pub later: Vec<Job>,
    /// How fast its clock runs, in thousandths.
    pub clock: u64,
    /// Durable.
    pub shelf: Shelf,
    /// Durable but for its cache.
    pub image: Option<Image>,
    /// What the daemon holds in memory; there while it runs.
    pub record: Option<Ownership>,
    pub device: Device,
    pub source: Option<Source>,
    /// The copy that is there or arrives, until it is served.
    pub arrival: Option<Attempt>,
    pub sessions: Vec<Session>,
    pub tasks: Vec<Task>,
    pub vm: Vm,
    /// The machine that was served here last.
    pub driver: u16,
    /// As the disk was last given up here.
    pub given_up: GivenUp,
}

impl Host {
    pub fn new(id: u128) -> Host {
        Host {
            id: DaemonId(Uuid::from_u128(id)),
            life: 0,
            up: false,
            suspended: false,
            later: Vec::new(),
            clock: 1000,
            shelf: Shelf::default(),
            image: None,
            record: None,
            device: Device::default(),
            source: None,
            arrival: None,
            sessions: Vec::new(),
            tasks: Vec::new(),
            vm: Vm::default(),
            driver: 0,
            given_up: GivenUp::default(),
        }
    }

    /// The daemon's record while it runs, otherwise what it would find.
    pub fn phase(&self) -> Phase {
        match &self.record {
            Some(record) => record.phase(),
            None => self.shelf.record().map_or(Phase::Vacant, |r| r.state.phase),
        }
    }

    pub fn owns(&self) -> bool {
        matches!(self.phase(), Phase::Serving { .. } | Phase::Granted { .. })
    }

    pub fn record(&self) -> &Ownership {
        self.record
            .as_ref()
            .expect("a daemon that runs has its record")
    }

    pub fn peer(&self) -> Peer {
        Peer {
            address: "there".to_owned(),
            daemon: self.id,
        }
    }
}
