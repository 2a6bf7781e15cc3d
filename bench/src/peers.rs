//! Ferry beside its peers: one command, one table of ratios.
//!
//! ```text
//!   for each kind of disk:   start every server that can serve it, on the server's core
//!     for each cell:         mix, block size, depth
//!       for each round:      round trip, run, round trip, run, ... in turns
//! ```
//!
//! Figures of a shared machine mean little by themselves and move by the second.
//! So the servers take turns within each round, each ratio is of two runs of one
//! round, and a pair counts only if the cache-line round trips around both runs
//! agree ([`stats::steady`]) and nobody else had much of the two cores meanwhile
//! ([`strangers`]). Rounds are added, up to twice the number asked for, until
//! each pair has its number.

mod ceiling;
pub mod cell;
mod client;
mod copy;
mod fio;
mod meter;
mod nets;
mod roundtrip;
mod runs;
mod server;
mod stage;
mod stats;
mod strangers;
mod svg;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::sys;
use cell::{Backend, Cell, Mix};
use runs::{Contestant, Cores, Course, Peer, Sample};
use stage::Stage;

pub use nets::{NetPlanned, NetResult, NetRun, NetTable, View};
pub use svg::chart;
pub use table::{CellResult, LeftOut, Table};

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program to compare.
    pub ferry: PathBuf,
    /// Kinds of disk.
    pub backends: Vec<Backend>,
    /// Reads, writes, both.
    pub mixes: Vec<Mix>,
    /// Bytes of a request.
    pub block_bytes: Vec<u32>,
    /// Requests in flight.
    pub depths: Vec<u16>,
    /// Also the rows on how throughput grows with queues and disks.
    pub growth: bool,
    /// Also the rows on NICs.
    pub net: Option<NetPlanned>,
    /// Rounds of each cell.
    pub alternations: usize,
    /// Measured time of a run.
    pub duration: Duration,
    /// Where files are made, on a disk.
    pub dir: PathBuf,
    /// Where files are made on tmpfs.
    pub tmpfs_dir: PathBuf,
    /// Bytes of a memory disk and of a file.
    pub span_bytes: u64,
    /// How long to wait, in all, for others to leave the two cores.
    pub patience: Duration,
    /// The server's core; the first this process may use unless given.
    pub server_core: Option<usize>,
    /// The client's core; the last this process may use unless given.
    pub client_core: Option<usize>,
}

/// Told about the run as it goes.
pub trait Watcher {
    /// So many of so many runs are done, and this is the next.
    fn at(&mut self, done: u64, total: u64, next: &str);
    /// Something that the reader should know at once.
    fn note(&mut self, text: &str);
}

/// Rounds in which too many pairs were disturbed are added up to this many times
/// the number asked for.
const ROUNDS_FACTOR: usize = 2;

/// Rows on growth: this pattern on null and memory.
const GROWTH: Cell = Cell {
    backend: Backend::Null,
    mix: Mix::Read,
    block_bytes: 4096,
    depth: 32,
    queues: 1,
    disks: 1,
};

impl Plan {
    /// What can be judged before anything is started.
    pub fn check(&self) -> Result<(), BenchError> {
        let fail = |message: String| Err(BenchError::Usage(message));
        let no_disks = self.backends.is_empty() && self.net.is_none();
        let empty = no_disks || self.mixes.is_empty() || self.depths.is_empty();
        if empty || self.block_bytes.is_empty() || self.alternations == 0 {
            return fail(
                "nothing is chosen: name a backend, a mix, a depth and a block size".into(),
            );
        }
        if let Some(depth) = self.depths.iter().find(|d| !(1..=256).contains(*d)) {
            return fail(format!("--depth {depth} is not in 1 to 256"));
        }
        let odd = |b: &&u32| !b.is_multiple_of(4096) || **b == 0 || **b > 1 << 20;
        if let Some(bytes) = self.block_bytes.iter().find(odd) {
            return fail(format!(
                "--block-size {bytes} is not a multiple of 4k up to 1M; use 4k or 128k"
            ));
        }
        if self.span_bytes < 16 << 20 || !self.span_bytes.is_multiple_of(1 << 20) {
            return fail("--size is at least 16M, in whole MiB".into());
        }
        if let Some(net) = &self.net {
            net.check()?;
        }
        if !self.ferry.is_file() {
            return fail(format!(
                "{} is not there; build it (cargo build --release) or name it with --ferry",
                self.ferry.display()
            ));
        }
        Ok(())
    }

    fn cores(&self) -> Result<Cores, BenchError> {
        let have = sys::cores().map_err(|source| BenchError::Host {
            what: "the cores of this process",
            source,
        })?;
        let cores = Cores {
            server: self.server_core.unwrap_or(have[0]),
            client: self.client_core.unwrap_or(have[have.len() - 1]),
        };
        if cores.server == cores.client {
            return Err(BenchError::Usage(
                "server and client need a core each: run on a machine with two, or name them with \
                 --server-core and --client-core"
                    .into(),
            ));
        }
        for core in [cores.server, cores.client] {
            if !have.contains(&core) {
                return Err(BenchError::Usage(format!(
                    "core {core} is not one of those this process may use: {have:?}"
                )));
            }
        }
        Ok(cores)
    }

    fn cells(&self, backend: Backend) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &block_bytes in &self.block_bytes {
            for &mix in &self.mixes {
                for &depth in &self.depths {
                    cells.push(Cell {
                        backend,
                        mix,
                        block_bytes,
                        depth,
                        queues: 1,
                        disks: 1,
                    });
                }
            }
        }
        cells
    }

    /// Cells that share servers, in the order they are run.
    fn groups(&self) -> Vec<Vec<Cell>> {
        let mut groups: Vec<_> = self.backends.iter().map(|b| self.cells(*b)).collect();
        let grows = [Backend::Null, Backend::Memory];
        for backend in grows
            .iter()
            .filter(|b| self.growth && self.backends.contains(b))
        {
            for (queues, disks) in [(2, 1), (4, 1), (1, 2), (1, 4), (1, 16)] {
                groups.push(vec![Cell {
                    backend: *backend,
                    queues,
                    disks,
                    ..GROWTH
                }]);
            }
        }
        groups
    }
}

/// Runs a plan that has passed [`Plan::check`]. `stop` ends it between two runs: the
/// table then has the cells that were finished.
pub fn run(plan: &Plan, stop: &AtomicBool, watcher: &mut dyn Watcher) -> Result<Table, BenchError> {
    let cores = plan.cores()?;
    let groups = plan.groups();
    let mut show = Show {
        plan,
        course: Course {
            cores: cores.clone(),
            span_bytes: plan.span_bytes,
            warm_up: (plan.duration / 10).max(Duration::from_millis(20)),
            duration: plan.duration,
        },
        stop,
        watcher,
        patience: plan.patience,
        done: 0,
        total: 0,
    };
    let mut stage = Stage::new(plan)?;
    for left_out in &stage.left_out {
        show.watcher.note(&left_out.to_string());
    }
    show.total = groups
        .iter()
        .map(|cells| cells.len() * stage.peers(&cells[0]).len() * plan.alternations)
        .sum::<usize>() as u64;
    if let Some(net) = &plan.net {
        show.total += nets::runs(net, plan.alternations);
    }
    runs::pin(cores.client)?;
    let mut results = Vec::new();
    let mut interrupted = false;
    for cells in groups {
        match show.group(&mut stage, &cells, &mut results) {
            // What was measured is worth having.
            Err(BenchError::Interrupted) if !results.is_empty() => interrupted = true,
            other => other?,
        }
        if interrupted {
            break;
        }
    }
    let mut net = None;
    if !interrupted && let Some(planned) = &plan.net {
        match show.nets(planned, stage.dir()) {
            Err(BenchError::Interrupted) if !results.is_empty() => interrupted = true,
            other => net = Some(other?),
        }
    }
    let left_out = stage.left_out.clone();
    Ok(Table {
        interrupted,
        net,
        ..Table::new(plan, cores, results, left_out)
    })
}

/// A run of the whole plan.
struct Show<'a> {
    plan: &'a Plan,
    course: Course,
    stop: &'a AtomicBool,
    watcher: &'a mut dyn Watcher,
    patience: Duration,
    done: u64,
    total: u64,
}

impl Show<'_> {
    /// All cells of one set of servers.
    fn group(
        &mut self,
        stage: &mut Stage,
        cells: &[Cell],
        results: &mut Vec<CellResult>,
    ) -> Result<(), BenchError> {
        let mut contestants = stage.open(&cells[0], &self.course)?;
        // Without Ferry there is nothing to compare with.
        if !contestants.iter().any(|c| c.peer() == Peer::Ferry) {
            return Ok(());
        }
        for cell in cells {
            results.push(self.cell(cell, &mut contestants)?);
            stage.settle(cell)?;
        }
        Ok(())
    }

    /// The rows on NICs.
    fn nets(&mut self, planned: &NetPlanned, dir: &Path) -> Result<NetTable, BenchError> {
        let left_out = nets::missing();
        if let Some(why) = &left_out {
            let note = format!("LEFT OUT: testpmd, and so the rows on NICs: {why}");
            self.watcher.note(&note);
        }
        let rows = match left_out {
            None => nets::run(self, planned, dir)?,
            Some(_) => Vec::new(),
        };
        Ok(NetTable {
            ring: planned.ring,
            rows,
            left_out,
        })
    }

    /// Another run begins, unless it is time to stop.
    fn next(&mut self, what: &str) -> Result<(), BenchError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        self.watcher.at(self.done, self.total, what);
        self.done += 1;
        Ok(())
    }

    fn cell(
        &mut self,
        cell: &Cell,
        contestants: &mut [Contestant],
    ) -> Result<CellResult, BenchError> {
        let wanted = self.plan.alternations;
        let mut result = CellResult::new(*cell, contestants.iter().map(Contestant::peer));
        for round in 0..ROUNDS_FACTOR * wanted {
            self.await_quiet();
            if round >= wanted && result.steady_pairs() >= wanted {
                break;
            }
            if round >= wanted {
                self.total += contestants.len() as u64;
            }
            // Each round starts with the next one, so that none is always first.
            contestants.rotate_left(1);
            let mut before = self.round_trip()?;
            for contestant in contestants.iter() {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(BenchError::Interrupted);
                }
                let what = format!("{} {}", table::cell_name(cell), contestant.peer().name());
                self.watcher.at(self.done, self.total, &what);
                let run = contestant.run(cell, &self.course)?;
                let after = self.round_trip()?;
                result.add(
                    contestant.peer(),
                    Sample {
                        round_trips_ns: [before, after],
                        ..run
                    },
                );
                before = after;
                self.done += 1;
            }
        }
        Ok(result)
    }

    /// Waits while others are busy on the cores and there is patience left.
    fn await_quiet(&mut self) {
        let cores = [self.course.cores.server, self.course.cores.client];
        while !self.patience.is_zero() && !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            if strangers::quiet(&cores) {
                return;
            }
            let what = format!(
                "waiting for others to end, {} s at most",
                self.patience.as_secs()
            );
            self.watcher.at(self.done, self.total, &what);
            self.patience = self.patience.saturating_sub(began.elapsed());
        }
    }

    fn round_trip(&self) -> Result<f64, BenchError> {
        roundtrip::measure(self.course.cores.server)
    }
}
