//! The verified load on real disks: one thread per queue, one oracle.
//!
//! ```text
//!   Generator --draw--> Worker --start--> Port --(disk)--> reap --> Worker
//!                          \__ begin ____ Oracle ____ complete, check __/
//! ```
//!
//! A [`Port`] is a queue of some disk: a virtqueue of a vhost-user server
//! ([`BlkPort`](crate::blk::BlkPort)) or an io_uring on a device
//! . [`Verifier`] starts a worker for
//! each, and on `stop` drains them and reads everything written once more.

mod shared;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::error::BenchError;
use crate::rng::mix;
use crate::stamp::{Initial, Kind, Mix, Shape, Span};

use shared::Shared;
pub use shared::{Finding, Progress};
use worker::Worker;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// Failed.
    Failed,
    /// The disk does not know how; no error, but not done either.
    Refused,
}

/// One queue of a disk. Slots are numbered from 0 to `slots().len()`, each with
/// a buffer; a slot belongs to the disk from `start` until `reap` names it.
pub trait Port: Send + 'static {
    /// Buffer sizes in bytes, whole sectors each.
    fn slots(&self) -> &[usize];
    /// Most sectors of an operation of this kind; zero if it is not served.
    fn sectors_max(&self, kind: Kind) -> u64;
    /// Lets `with` fill the first `bytes` of a slot's buffer.
    fn fill(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&mut [u8]));
    /// Shows the first `bytes` of a slot's buffer to `with`.
    fn show(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&[u8]));
    /// Queues an operation; the disk may see it at once or at the next `reap`.
    fn start(&mut self, slot: usize, kind: Kind, span: Span) -> Result<(), BenchError>;
    /// Sends what is queued and collects what is done, waiting at most `wait`
    /// for the first.
    fn reap(&mut self, wait: Duration, done: &mut Vec<(usize, Outcome)>) -> Result<(), BenchError>;
}

/// What to run.
#[derive(Debug, Clone)]
pub struct VerifyPlan {
    /// Sectors of the disk that may be touched.
    pub sectors: u64,
    /// Grid of the spans, in sectors: the disk's block.
    pub align: u64,
    /// Longest operation.
    pub sectors_max: u64,
    /// What stands on the disk.
    pub initial: Initial,
    /// What to draw.
    pub mix: Mix,
    /// Draws the load; the same seed draws the same.
    pub seed: u64,
    /// Tells this run's stamps from those of earlier runs on the disk.
    pub run: u64,
}

/// The end of a verified run.
#[derive(Debug)]
pub struct Verdict {
    /// The counts at the end.
    pub progress: Progress,
    /// Sectors of the last reading.
    pub sectors_checked: u64,
    /// The first few mismatches.
    pub findings: Vec<Finding>,
    /// Latencies in nanoseconds, of the load without the last reading.
    pub latency_ns: Histogram<u64>,
}

impl Verdict {
    /// Nothing failed and nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.progress.errors == 0 && self.progress.mismatches == 0
    }
}

type Running<P> = JoinHandle<Result<Worker<P>, BenchError>>;

/// A verified load under way.
pub struct Verifier<P: Port> {
    shared: Arc<Shared>,
    threads: Vec<Running<P>>,
}

impl<P: Port> Verifier<P> {
    /// Starts one thread per port.
    pub fn start(ports: Vec<P>, plan: &VerifyPlan) -> Result<Self, BenchError> {
        Self::start_with(ports, plan, |_| {})
    }

    /// As `start`; every thread first calls `prepare` with its number, to pin
    /// itself for instance.
    pub fn start_with(
        ports: Vec<P>,
        plan: &VerifyPlan,
        prepare: impl Fn(usize) + Clone + Send + 'static,
    ) -> Result<Self, BenchError> {
        let shared = Arc::new(Shared::new(plan));
        let mut threads = Vec::with_capacity(ports.len());
        for (i, port) in ports.into_iter().enumerate() {
            let shape = Shape {
                sectors: plan.sectors,
                align: plan.align,
                sectors_max: plan.sectors_max,
            };
            let seed = mix(plan.seed ^ mix(i as u64));
            let worker = Worker::new(port, shared.clone(), seed, plan.seed, shape, plan.mix);
            let prepare = prepare.clone();
            threads.push(spawn(i, worker, move |worker| {
                prepare(i);
                worker.load()
            })?);
        }
        Ok(Self { shared, threads })
    }

    /// Counts so far.
    pub fn progress(&self) -> Progress {
        self.shared.progress()
    }

    /// The longest time without any completion since the last call, or the start. Taken just
    /// before a handover and just after it, it is the handover's blackout.
    pub fn take_gap(&self) -> Duration {
        self.shared.take_gap()
    }

    /// Mismatches found since the last call, at most the first few of a run.
    pub fn new_findings(&self) -> Vec<Finding> {
        self.shared.new_findings()
    }

    /// Whether a thread has ended, which before `stop` only a failure does.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends the load: nothing new is started, what is in flight is awaited.
    /// Returns at once; `finish` waits.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for the load to end after `stop`, then reads everything written
    /// once more. `during` is called now and then with the sectors read so far
    /// and their number.
    pub fn finish(self, mut during: impl FnMut(u64, u64)) -> Result<Verdict, BenchError> {
        self.stop();
        let workers = join(self.threads)?;
        let smallest = workers
            .iter()
            .flat_map(|w| w.port().slots().iter().min())
            .min();
        let piece = (*smallest.unwrap_or(&512) / 512).max(1) as u64;
        let total = self.shared.plan_sweep(piece);
        let mut latency_ns = worker::histogram();
        let mut threads = Vec::with_capacity(workers.len());
        for (i, worker) in workers.into_iter().enumerate() {
            // Same bounds, so they add.
            let _ = latency_ns.add(worker.latency_ns());
            threads.push(spawn(i, worker, Worker::sweep)?);
        }
        while threads.iter().any(|t| !t.is_finished()) {
            during(self.shared.checked(), total);
            std::thread::sleep(Duration::from_millis(20));
        }
        join(threads)?;
        Ok(Verdict {
            progress: self.shared.progress(),
            sectors_checked: self.shared.checked(),
            findings: self.shared.findings(),
            latency_ns,
        })
    }
}

fn spawn<P: Port>(
    i: usize,
    mut worker: Worker<P>,
    run: impl FnOnce(&mut Worker<P>) -> Result<(), BenchError> + Send + 'static,
) -> Result<Running<P>, BenchError> {
    std::thread::Builder::new()
        .name(format!("verify-{i}"))
        .spawn(move || {
            let result = run(&mut worker);
            if result.is_err() {
                // The others must not go on for ever because one cannot.
                worker.give_up();
            }
            result.map(|()| worker)
        })
        .map_err(|source| BenchError::Host {
            what: "a thread",
            source,
        })
}

/// The threads' results, or the first error after all have ended.
fn join<P: Port>(threads: Vec<Running<P>>) -> Result<Vec<Worker<P>>, BenchError> {
    let ends: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
    ends.into_iter()
        .map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect()
}

#[cfg(test)]
mod tests;
