//! Who asks the array for something: a disk of a host, or somebody whom no host knows.

use std::ops::Range;

use ferry_dataplane::qos::{CostModel, Policy};
use ferry_dataplane::request::Op;

use crate::rng::Rng;

/// A millisecond, in nanoseconds.
pub const MS: u64 = 1_000_000;
/// A second, in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// A disk's queue at one worker.
#[derive(Debug, Clone, Copy)]
pub struct Lane {
    /// Which of the host's workers.
    pub worker: usize,
    /// Requests that are kept under way.
    pub depth: u32,
}

/// What a client is like.
#[derive(Debug, Clone)]
pub struct ClientSpec {
    /// Its name in tables.
    pub name: String,
    /// Its host; none for one that goes to the array by itself.
    pub host: Option<usize>,
    /// What it is to get.
    pub policy: Policy,
    /// Its queues, at different workers.
    pub lanes: Vec<Lane>,
    /// Bytes of a request.
    pub bytes: u64,
    /// Writes, of 100 requests.
    pub write_percent: u64,
    /// So many requests a second, one by one, each on the queue whose turn it is; without: the next
    /// one when one has ended.
    pub rate: Option<f64>,
    /// When it has something to do; nothing for always.
    pub on: Vec<Range<u64>>,
    /// Policies that it is given later, and when.
    pub changes: Vec<(u64, Policy)>,
}

impl ClientSpec {
    /// A disk of a host that keeps so many reads of 16 KiB under way, always, by one worker.
    pub fn disk(host: usize, shares: u32, depth: u32) -> ClientSpec {
        let policy = Policy {
            shares,
            ..Policy::default()
        };
        ClientSpec {
            name: String::new(),
            host: Some(host),
            policy,
            lanes: vec![Lane { worker: 0, depth }],
            bytes: 16 << 10,
            write_percent: 0,
            rate: None,
            on: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// The same load from somebody whom no host knows.
    pub fn stranger(depth: u32) -> ClientSpec {
        ClientSpec {
            host: None,
            ..ClientSpec::disk(0, 1, depth)
        }
    }

    /// With a name.
    pub fn named(self, name: impl Into<String>) -> ClientSpec {
        let name = name.into();
        ClientSpec { name, ..self }
    }

    /// With something to do in this time, and in other times that are said.
    pub fn during(mut self, time_ns: Range<u64>) -> ClientSpec {
        self.on.push(time_ns);
        self
    }

    /// Requests that it keeps under way in all.
    pub fn depth(&self) -> u32 {
        self.lanes.iter().map(|lane| lane.depth).sum()
    }

    /// What one of its requests counts for, in I/Os.
    pub fn units(&self) -> f64 {
        let cost = CostModel::default().cost(Op::Read, self.bytes);
        f64::from(cost) / f64::from(ferry_dataplane::qos::COST_ONE)
    }
}

/// A client under way.
#[derive(Debug)]
pub(super) struct Client {
    pub spec: ClientSpec,
    /// Its number among the disks of its host.
    pub disk: usize,
    pub on: bool,
    /// Requests under way, by lane.
    pub under_way: Vec<u32>,
    turn: usize,
    rng: Rng,
}

impl Client {
    pub fn new(spec: ClientSpec, disk: usize, seed: u64) -> Client {
        Client {
            on: spec.on.is_empty(),
            under_way: vec![0; spec.lanes.len()],
            disk,
            turn: 0,
            rng: Rng::new(seed),
            spec,
        }
    }

    /// Whether the next request is a write.
    pub fn writes(&mut self) -> bool {
        self.spec.write_percent > 0 && self.rng.percent(self.spec.write_percent)
    }

    /// Requests that are to be begun on a lane now, because others have ended.
    pub fn missing(&self, lane: usize) -> u32 {
        if !self.on || self.spec.rate.is_some() {
            return 0;
        }
        self.spec.lanes[lane]
            .depth
            .saturating_sub(self.under_way[lane])
    }

    /// The lane for a request whose time has come, if it has room.
    pub fn turn(&mut self) -> Option<usize> {
        self.turn = (self.turn + 1) % self.spec.lanes.len();
        let room = self.under_way[self.turn] < self.spec.lanes[self.turn].depth;
        (self.on && room).then_some(self.turn)
    }

    /// Nanoseconds between two requests, of one with a rate.
    pub fn gap_ns(&self) -> Option<u64> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let gap = |rate: f64| ((1e9 / rate) as u64).max(1);
        self.spec.rate.map(gap)
    }
}
