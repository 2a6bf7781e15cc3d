//! Disks that come and go at a daemon, as machines are deployed and deleted.
//!
//! One cycle: clone a base, add the clone to the daemon, connect, read what the base holds, write,
//! read back, disconnect, remove the disk, delete the clone and its record. Every byte read is
//! judged. Several threads cycle at once.
//!
//! What a cycle leaves behind is what counts: before the first and after the last counted cycle the
//! daemon's memory, descriptors, threads, mappings, disks and files are looked at, with nobody
//! connected. Cycles that are not counted come first, as a daemon may keep what it uses again.

mod base;
mod cycle;
mod daemon;
mod figures;
mod report;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::BenchError;

use base::Base;
use cycle::Cycler;
use daemon::Daemon;
use figures::Figures;
use report::Tally;

pub use base::CLUSTER_BYTES;
pub use report::{Report, Stage};

/// Most threads that cycle at once.
pub const PARALLEL_MAX: u16 = 256;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Whose daemon is used.
#[derive(Debug, Clone)]
pub enum Server {
    /// One that is started for the run: this program.
    Start(PathBuf),
    /// One that runs, by its control socket.
    Running(PathBuf),
}

/// A run of `ferry-bench churn`.
#[derive(Debug, Clone)]
pub struct ChurnPlan {
    /// Whose daemon.
    pub server: Server,
    /// Where the base, the clones and a started daemon's files go; a folder in it is made, and
    /// removed at the end. The system's folder for such unless given.
    pub dir: Option<PathBuf>,
    /// Cycles that are counted.
    pub cycles: u64,
    /// Cycles before those.
    pub warm_up: u64,
    /// Threads that cycle.
    pub parallel: u16,
    /// Polling threads of a daemon that is started.
    pub workers: u16,
    /// Size of the base in bytes.
    pub base_bytes: u64,
    /// Draws where a cycle reads and writes.
    pub seed: u64,
    /// How long any one answer or request may take.
    pub timeout: Duration,
}

impl ChurnPlan {
    /// What can be judged before anything is started.
    pub fn check(&self) -> Result<(), BenchError> {
        let fail = |message: String| Err(BenchError::Usage(message));
        if self.cycles == 0 {
            return fail("--cycles 0 shows nothing; use 1 or more".into());
        }
        if self.parallel == 0 || self.parallel > PARALLEL_MAX {
            return fail(format!(
                "--parallel {} is not in 1 to {PARALLEL_MAX}",
                self.parallel
            ));
        }
        if self.workers == 0 || self.workers > 256 {
            return fail(format!("--workers {} is not in 1 to 256", self.workers));
        }
        let least = CLUSTER_BYTES * cycle::PLACES;
        if self.base_bytes < least || !self.base_bytes.is_multiple_of(CLUSTER_BYTES) {
            return fail(format!(
                "--base-size {} is not a multiple of {CLUSTER_BYTES}, or less than {least}; use 64M \
                 for instance",
                self.base_bytes
            ));
        }
        if self.timeout.is_zero() {
            return fail("--timeout 0 waits for nothing; use 1 or more".into());
        }
        Ok(())
    }
}

/// Runs it. `tell` learns how many counted cycles are done.
pub fn run(plan: &ChurnPlan, tell: &mut dyn FnMut(u64)) -> Result<Report, BenchError> {
    plan.check()?;
    let dir = folder(plan)?;
    let base = Base::create(&dir.path().join("base.raw"), plan.base_bytes, plan.seed)?;
    let daemon = Daemon::new(plan, dir.path())?;
    cycles(plan, &daemon, &base, 0..plan.warm_up, &mut |_| ())?;
    let before = Figures::at_rest(&daemon, dir.path())?;
    let began = Instant::now();
    let counted = plan.warm_up..plan.warm_up + plan.cycles;
    let tally = cycles(plan, &daemon, &base, counted, tell)?;
    let elapsed = began.elapsed();
    let after = Figures::back_at(&before, &daemon, dir.path())?;
    let stopped = daemon.stop()?;
    Ok(Report::new(plan, elapsed, &tally, &before, &after, stopped))
}

fn folder(plan: &ChurnPlan) -> Result<tempfile::TempDir, BenchError> {
    let parent = plan.dir.clone().unwrap_or_else(std::env::temp_dir);
    tempfile::Builder::new()
        .prefix("ferry-churn-")
        .tempdir_in(&parent)
        .map_err(|source| BenchError::Target {
            what: "make a folder in",
            path: parent,
            source,
            mend: "name one that can be written to with --dir",
        })
}

/// Cycles with these numbers, on all threads. The first failure ends them all.
fn cycles(
    plan: &ChurnPlan,
    daemon: &Daemon,
    base: &Base,
    numbers: std::ops::Range<u64>,
    tell: &mut dyn FnMut(u64),
) -> Result<Tally, BenchError> {
    let (next, done) = (AtomicU64::new(numbers.start), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    let work = || -> Result<Tally, BenchError> {
        let mut cycler = Cycler::new(plan, daemon, base)?;
        let mut tally = Tally::new();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                break;
            }
            tally.record(&cycler.cycle(number)?);
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(tally)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.parallel)
            .map(|_| scope.spawn(|| work().inspect_err(|_| failed.store(true, Ordering::Relaxed))))
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            tell(done.load(Ordering::Relaxed));
            std::thread::sleep(TELL_EVERY);
        }
        let mut sum = Tally::new();
        for thread in threads {
            let tally = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            sum.add(&tally);
        }
        Ok(sum)
    })
}
