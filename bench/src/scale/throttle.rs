//! What Storage I/O Control takes of a request, with many disks on the worker.

use std::path::Path;

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
    /// `counted`: no more than that; `scheduled`: through limits and scheduler.
    pub name: &'static str,
    /// What it is compared with: `base`, another build, or `counted`.
    pub against: &'static str,
    /// 4 KiB reads a second of the busy disk there.
    pub against_iops: Spread,
    /// The same here.
    pub iops: Spread,
    /// What it costs, in percent, by pairs.
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
    /// What was compared.
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
    let program = plan.server.as_path();
    let counted = ("counted", program, "");
    let scheduled = ("scheduled", program, FAR);
    let (first, others) = match &plan.base {
        Some(base) => (("base", base.as_path(), ""), vec![counted, scheduled]),
        None => (counted, vec![scheduled]),
    };
    // Two at a time: each idle disk takes descriptors of this process.
    let start = |(name, program, each)| Running::start(name, program, plan, cores, each);
    let first = start(first)?;
    let mut sides = Vec::new();
    for other in others {
        let other = start(other)?;
        let mut iops = [Vec::new(), Vec::new()];
        for round in 0..plan.rounds {
            for turn in 0..2 {
                let at = (round + turn) % 2; // who goes first changes
                let socket = [&first, &other][at].server.socket(0);
                let report = load(socket, plan.duration, (DEPTH, 1, 4096), super::idle::ALWAYS)?;
                iops[at].push(report.iops);
            }
        }
        sides.push(Side::of(first.name, other.name, &iops));
    }
    Ok(Throttled {
        disks: plan.disks,
        rounds: plan.rounds,
        sides,
    })
}

impl Side {
    fn of(first: &'static str, name: &'static str, iops: &[Vec<f64>; 2]) -> Side {
        let compared = |cost: fn(f64, f64) -> f64| {
            let pairs = iops[0].iter().zip(&iops[1]);
            Spread::of_some(pairs.map(|(&a, &b)| cost(a, b)).collect())
        };
        Side {
            name,
            against: first,
            against_iops: Spread::of_some(iops[0].clone()),
            iops: Spread::of_some(iops[1].clone()),
            cost_percent: compared(|a, b| (1.0 - b / a) * 100.0),
            cost_ns: compared(|a, b| 1e9 / b - 1e9 / a),
        }
    }
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
                "  {} against {}: {} IOPS against {}; costs {} ns a request, {} %",
                side.name,
                side.against,
                side.iops,
                side.against_iops,
                side.cost_ns,
                side.cost_percent
            )
        }));
        lines
    }
}
