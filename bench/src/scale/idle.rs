//! What disks cost that do nothing.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::client::Client;
use super::server::{Server, Shape};
use super::{Cores, ScalePlan, host};
use crate::blk::{self, BlkPlan, Pattern, Watcher};
use crate::error::BenchError;
use crate::spread::Spread;
use crate::sys;

/// A disk without bytes: nothing but the path is measured.
const DISK: &str = "null:1G";

/// Disks of [`Quiet`], and how long they are watched.
const QUIET_DISKS: usize = 10;
const QUIET_TIME: Duration = Duration::from_secs(10);

/// One busy disk, alone and beside idle ones, on one worker.
#[derive(Debug, Serialize)]
pub struct Idle {
    /// Idle disks, each with a front-end whose ring has been used.
    pub disks: usize,
    /// Alternations.
    pub rounds: usize,
    /// 4 KiB reads a second at depth 32, alone.
    pub alone_iops: Spread,
    /// The same beside the idle disks.
    pub beside_iops: Spread,
    /// What the idle disks cost of it, in percent, by pairs.
    pub cost_percent: Spread,
    /// The median latency at depth 1, alone, in microseconds.
    pub alone_us: Spread,
    /// The same beside the idle disks.
    pub beside_us: Spread,
    /// What the idle disks add to it, in percent, by pairs.
    pub latency_cost_percent: Spread,
    /// Memory of the server for each idle disk, in bytes: its own pages, without the guest's.
    pub bytes_per_disk: u64,
    /// Descriptors of the server for each.
    pub descriptors_per_disk: f64,
    /// Threads of the server for each.
    pub threads_per_disk: f64,
    /// What the server with all idle disks took of a core while nothing was asked, in percent.
    pub core_percent: f64,
}

/// Ten idle disks for ten seconds.
#[derive(Debug, Serialize)]
pub struct Quiet {
    /// Disks.
    pub disks: usize,
    /// What the server took of a core, in percent.
    pub core_percent: f64,
}

struct Silent;

impl Watcher for Silent {
    fn at(&mut self, _: Duration, _: Duration) {}
    fn sweeping(&mut self, _: u64, _: u64) {}
}

/// Load on one disk, without a look at the data.
pub(super) fn load(
    socket: PathBuf,
    duration: Duration,
    (depth, queues, block_bytes): (u16, u16, u32),
    spin: Duration,
) -> Result<blk::Report, BenchError> {
    let plan = BlkPlan {
        socket,
        pattern: Pattern {
            random: true,
            read_percent: 100,
        },
        block_bytes,
        depth,
        queues,
        duration,
        verify: false,
        fresh: false,
        seed: 1,
        span_bytes: None,
        span_default: None,
        indirect: false,
        spin,
        timeout: Duration::from_secs(30),
    };
    blk::run(&plan, &mut Silent)
}

pub(super) const ALWAYS: Duration = Duration::from_secs(1);

pub(super) fn beside(plan: &ScalePlan, cores: Cores) -> Result<Idle, BenchError> {
    let shape = |disks| Shape {
        workers: 1,
        disks,
        disk: DISK,
        queues: 1,
        core: cores.server,
        back: cores.client,
        ..Shape::default()
    };
    let one = Server::start(&plan.server, &shape(1))?;
    let many = Server::start(&plan.server, &shape(1 + plan.disks))?;
    let mut idle = Vec::new();
    for at in 1..=plan.disks {
        let mut client = Client::attach(&many.socket(at))?;
        client.read()?;
        idle.push(client);
    }
    let core_percent = share_of_a_core(&many, Duration::from_secs(2))?;
    let (small, large) = (one.size()?, many.size()?);
    let each = |small: u64, large: u64| large.saturating_sub(small) as f64 / plan.disks as f64;
    let mut iops = [Vec::new(), Vec::new()];
    let mut latency = [Vec::new(), Vec::new()];
    for round in 0..plan.rounds {
        for turn in 0..2 {
            let side = (round + turn) % 2; // who goes first changes
            let server = [&one, &many][side];
            let deep = load(server.socket(0), plan.duration, (32, 1, 4096), ALWAYS)?;
            iops[side].push(deep.iops);
            let shallow = load(server.socket(0), plan.duration, (1, 1, 4096), ALWAYS)?;
            latency[side].push(shallow.p50_us);
        }
    }
    drop(idle);
    let cost = |alone: &[f64], beside: &[f64], more: fn(f64) -> f64| {
        let pairs = alone.iter().zip(beside);
        Spread::of_some(pairs.map(|(a, b)| more(b / a) * 100.0).collect())
    };
    let cost_percent = cost(&iops[0], &iops[1], |ratio| 1.0 - ratio);
    let latency_cost_percent = cost(&latency[0], &latency[1], |ratio| ratio - 1.0);
    let [alone_iops, beside_iops] = iops.map(Spread::of_some);
    let [alone_us, beside_us] = latency.map(Spread::of_some);
    Ok(Idle {
        disks: plan.disks,
        rounds: plan.rounds,
        alone_iops,
        beside_iops,
        cost_percent,
        alone_us,
        beside_us,
        latency_cost_percent,
        bytes_per_disk: large.anonymous_bytes.saturating_sub(small.anonymous_bytes)
            / plan.disks as u64,
        descriptors_per_disk: each(small.descriptors, large.descriptors),
        threads_per_disk: each(small.threads, large.threads),
        core_percent,
    })
}

/// What a server takes of a core, in percent.
pub(super) fn share_of_a_core(server: &Server, time: Duration) -> Result<f64, BenchError> {
    std::thread::sleep(Duration::from_millis(500));
    let (before, began) = (server.cpu_ns()?, Instant::now());
    std::thread::sleep(time);
    let spent = server.cpu_ns()?.saturating_sub(before);
    Ok(spent as f64 / began.elapsed().as_nanos() as f64 * 100.0)
}

pub(super) fn quiet(plan: &ScalePlan, cores: Cores) -> Result<Quiet, BenchError> {
    let shape = Shape {
        workers: 1,
        disks: QUIET_DISKS,
        disk: DISK,
        queues: 1,
        core: cores.server,
        back: cores.client,
        ..Shape::default()
    };
    let server = Server::start(&plan.server, &shape)?;
    if let Some(core) = cores.client {
        sys::pin(&[core]).map_err(host("to pin a thread to a core"))?;
    }
    let mut guests = Vec::new();
    for at in 0..QUIET_DISKS {
        let mut client = Client::attach(&server.socket(at))?;
        client.read()?;
        guests.push(client);
    }
    Ok(Quiet {
        disks: QUIET_DISKS,
        core_percent: share_of_a_core(&server, QUIET_TIME)?,
    })
}

impl Idle {
    pub(super) fn lines(&self) -> Vec<String> {
        vec![
            format!(
                "{} idle disks beside a busy one, {} alternations, median (least to greatest):",
                self.disks, self.rounds
            ),
            format!(
                "  depth 32: {} IOPS alone, {} beside them: they cost {} %",
                self.alone_iops, self.beside_iops, self.cost_percent
            ),
            format!(
                "  depth 1: {} us alone, {} beside them: they add {} %",
                self.alone_us, self.beside_us, self.latency_cost_percent
            ),
            format!(
                "  each takes {:.1} KiB of the server's own memory, {:.1} descriptors, {:.1} threads; \
                 all together {:.2} % of a core",
                self.bytes_per_disk as f64 / 1024.0,
                self.descriptors_per_disk,
                self.threads_per_disk,
                self.core_percent
            ),
        ]
    }
}

impl Quiet {
    pub(super) fn line(&self) -> String {
        format!(
            "{} idle disks for {} s: {:.3} % of a core",
            self.disks,
            QUIET_TIME.as_secs(),
            self.core_percent
        )
    }
}
