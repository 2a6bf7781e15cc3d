//! What Storage I/O Control takes of a request, with many disks on the worker.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::client::Client;
use super::idle::load;
use super::server::{Server, Shape};
use super::{Cores, ScalePlan};
use crate::error::BenchError;
use crate::spread::Spread;

const DISK: &str = "null:1G";
/// A limit that nobody reaches: each request books its place and passes the scheduler all the same.
const FAR: &str = "limit_iops = 1000000000\n";
const DEPTH: u16 = 128;

/// One side of the comparison.
#[derive(Debug, Serialize)]
pub struct Side {
    /// What is different.
    pub name: &'static str,
    /// 4 KiB reads a second of the busy disk.
    pub iops: Spread,
    /// What it costs of the first side's, in percent, by pairs.
    pub cost_percent: Spread,
    /// The same for each request, in nanoseconds.
    pub cost_ns: Spread,
}

/// A busy null disk among idle ones on one worker, with and without control.
#[derive(Debug, Serialize)]
pub struct Throttled {
    /// Disks on the worker.
    pub disks: usize,
    /// Alternations.
    pub rounds: usize,
    /// The first one is what the others are compared with.
    pub sides: Vec<Side>,
}

struct Running {
    name: &'static str,
    server: Server,
    _idle: Vec<Client>,
}

impl Running {
    fn start(
        name: &'static str,
        program: &Path,
        plan: &ScalePlan,
        cores: Cores,
        each: &'static str,
    ) -> Result<Running, BenchError> {
        let shape = Shape {
            workers: 1,
            disks: plan.disks,
            disk: DISK,
            queues: 1,
            each,
            core: cores.server,
            back: cores.client,
            ..Shape::default()
        };
        let server = Server::start(program, &shape)?;
        let mut idle = Vec::new();
        for at in 1..plan.disks {
            let mut client = Client::attach(&server.socket(at))?;
            client.read()?;
            idle.push(client);
        }
        Ok(Running {
            name,
            server,
            _idle: idle,
        })
    }
}

pub(super) fn measure(plan: &ScalePlan, cores: Cores) -> Result<Throttled, BenchError> {
    let base: Option<&PathBuf> = plan.base.as_ref();
    let mut sides = Vec::new();
    if let Some(base) = base {
        sides.push(Running::start("base", base, plan, cores, "")?);
    }
    sides.push(Running::start("counted", &plan.server, plan, cores, "")?);
    sides.push(Running::start("scheduled", &plan.server, plan, cores, FAR)?);
    let mut iops = vec![Vec::new(); sides.len()];
    for round in 0..plan.rounds {
        for turn in 0..sides.len() {
            let side = (round + turn) % sides.len(); // who goes first changes
            let socket = sides[side].server.socket(0);
            let report = load(socket, plan.duration, (DEPTH, 1, 4096), super::idle::ALWAYS)?;
            iops[side].push(report.iops);
        }
    }
    let first = iops[0].clone();
    let compared = |of: &[f64], cost: fn(f64, f64) -> f64| {
        Spread::of_some(first.iter().zip(of).map(|(&a, &b)| cost(a, b)).collect())
    };
    let sides = sides.iter().zip(&iops).map(|(side, rates)| Side {
        name: side.name,
        iops: Spread::of_some(rates.clone()),
        cost_percent: compared(rates, |a, b| (1.0 - b / a) * 100.0),
        cost_ns: compared(rates, |a, b| 1e9 / b - 1e9 / a),
    });
    Ok(Throttled {
        disks: plan.disks,
        rounds: plan.rounds,
        sides: sides.collect(),
    })
}

impl Throttled {
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "a null disk at depth {DEPTH} among {} on one worker, {} alternations, median (least to \
             greatest):",
            self.disks, self.rounds
        )];
        lines.extend(self.sides.iter().map(|side| {
            format!(
                "  {}: {} IOPS; costs {} ns a request, {} %",
                side.name, side.iops, side.cost_ns, side.cost_percent
            )
        }));
        lines
    }
}
