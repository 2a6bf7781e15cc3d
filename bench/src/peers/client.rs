//! The client of the comparison: one thread that polls, and never sleeps.
//!
//! Every server gets the same client. It asks for no calls, so a server pays for
//! none; it kicks only who asks for kicks. Time is read for each request at
//! depth 1, where the latency is what is measured, and beyond that only for one
//! request in flight at a time, which is timed as a sample.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::cell::Mix;
use crate::draw::Blocks;
use crate::error::BenchError;
use crate::frontend::{ExpressQueue, PeerWatch, Status};
use crate::rng::{Rng, mix};

/// Loops between two looks at the clock.
const LOOK_UP: u32 = 64;
/// Longest time without any completion.
const STUCK: Duration = Duration::from_secs(20);

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Reads, writes, or both.
    pub mix: Mix,
    /// Blocks at random, or one after the other.
    pub random: bool,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Bytes of the disk to use.
    pub span_bytes: u64,
    /// Draws the blocks.
    pub seed: u64,
}

/// One queue and what is asked of it.
#[derive(Debug)]
pub struct Lane {
    queue: ExpressQueue,
    blocks: Blocks,
    put: u64,
}

impl Lane {
    /// Lanes of one run differ in their number.
    pub fn new(queue: ExpressQueue, load: &Load, number: u64) -> Self {
        let blocks = Blocks {
            count: load.span_bytes / u64::from(load.block_bytes),
            block_bytes: load.block_bytes,
            random: load.random,
            read_percent: load.mix.read_percent(),
            at: 0,
            rng: Rng::new(mix(load.seed ^ mix(number))),
        };
        Self {
            queue,
            blocks,
            put: 0,
        }
    }

    /// Requests that were put into the ring.
    pub fn put_in_all(&self) -> u64 {
        self.put
    }

    #[inline]
    fn put(&mut self, slot: u16) {
        let (op, sector) = self.blocks.draw();
        self.queue.put(slot, op, sector);
        self.put += 1;
    }
}

/// What a client saw.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Requests completed inside the measured time.
    pub ops: u64,
    /// Of these and those of the warm-up, requests that failed.
    pub errors: u64,
    /// The measured time.
    pub elapsed: Duration,
    /// Latencies in nanoseconds: of all at depth 1, of a sample beyond.
    pub latency_ns: Histogram<u64>,
}

/// How long to run, and who watches.
pub struct Run<'a> {
    /// Not measured.
    pub warm_up: Duration,
    /// Measured.
    pub duration: Duration,
    /// Ends the run when the server leaves.
    pub watch: Option<&'a PeerWatch>,
    /// Called at the start and at the end of the measured time.
    pub mark: &'a mut dyn FnMut(),
}

/// A request whose time is taken.
#[derive(Clone, Copy)]
struct Probe {
    lane: usize,
    slot: u16,
    since: Instant,
}

/// Drives the lanes in turn on this thread. They are empty before and after.
pub fn drive(lanes: &mut [Lane], run: Run<'_>) -> Result<Tally, BenchError> {
    let depth: u64 = lanes.iter().map(|l| u64::from(l.queue.depth())).sum();
    let mut driver = Driver {
        single: depth == 1,
        lanes,
        ops: 0,
        errors: 0,
        latency_ns: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds"),
        last: Instant::now(),
        probe: None,
        refill: true,
    };
    driver.prime()?;
    driver.poll_for(run.warm_up, run.watch)?;
    driver.latency_ns.reset();
    let before = driver.ops;
    (run.mark)();
    let began = Instant::now();
    driver.last = began;
    driver.poll_for(run.duration, run.watch)?;
    let elapsed = began.elapsed();
    (run.mark)();
    let ops = driver.ops - before;
    driver.drain(run.watch)?;
    Ok(Tally {
        ops,
        errors: driver.errors,
        elapsed,
        latency_ns: driver.latency_ns,
    })
}

struct Driver<'a> {
    single: bool,
    lanes: &'a mut [Lane],
    ops: u64,
    errors: u64,
    latency_ns: Histogram<u64>,
    /// Depth 1: when the request in flight was sent, which is when the last came back.
    last: Instant,
    probe: Option<Probe>,
    refill: bool,
}

impl Driver<'_> {
    fn prime(&mut self) -> Result<(), BenchError> {
        for lane in self.lanes.iter_mut() {
            for slot in 0..lane.queue.depth() {
                lane.put(slot);
            }
            lane.queue.commit()?;
        }
        Ok(())
    }

    fn poll_for(
        &mut self,
        duration: Duration,
        watch: Option<&PeerWatch>,
    ) -> Result<(), BenchError> {
        let end = Instant::now() + duration;
        let mut seen = (self.ops, Instant::now());
        loop {
            for _ in 0..LOOK_UP {
                self.turn()?;
            }
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            if self.ops != seen.0 {
                seen = (self.ops, now);
            } else {
                self.look_up(now - seen.1, watch)?;
            }
            if !self.single && self.probe.is_none() {
                self.probe = Some(Probe {
                    lane: usize::MAX,
                    slot: 0,
                    since: now,
                });
            }
        }
    }

    /// One look at each lane.
    #[inline]
    fn turn(&mut self) -> Result<(), BenchError> {
        for number in 0..self.lanes.len() {
            let lane = &mut self.lanes[number];
            let ready = lane.queue.ready()?;
            if ready == 0 {
                std::hint::spin_loop();
                continue;
            }
            if self.single {
                let now = Instant::now();
                let ns = now.duration_since(self.last).as_nanos();
                self.latency_ns
                    .saturating_record(u64::try_from(ns).unwrap_or(u64::MAX));
                self.last = now;
            }
            for i in 0..ready {
                let (slot, status) = lane.queue.take()?;
                self.errors += u64::from(status != Status::Ok);
                if let Some(probe) = &mut self.probe {
                    if probe.lane == number && probe.slot == slot {
                        let ns = probe.since.elapsed().as_nanos();
                        self.latency_ns
                            .saturating_record(u64::try_from(ns).unwrap_or(u64::MAX));
                        self.probe = None;
                    } else if probe.lane == usize::MAX && i + 1 == ready {
                        // The last of the batch is sent next, and timed.
                        *probe = Probe {
                            lane: number,
                            slot,
                            since: Instant::now(),
                        };
                    }
                }
                if self.refill {
                    lane.put(slot);
                }
            }
            self.ops += u64::from(ready);
            lane.queue.commit()?;
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.lanes
            .iter()
            .map(|l| usize::from(l.queue.in_flight()))
            .sum()
    }

    fn look_up(&self, silent: Duration, watch: Option<&PeerWatch>) -> Result<(), BenchError> {
        if silent < Duration::from_millis(50) {
            return Ok(());
        }
        let in_flight = self.in_flight();
        if watch.is_some_and(PeerWatch::gone) {
            return Err(BenchError::Gone { in_flight });
        }
        if silent > STUCK {
            return Err(BenchError::Stuck {
                after: STUCK,
                in_flight,
            });
        }
        Ok(())
    }

    fn drain(&mut self, watch: Option<&PeerWatch>) -> Result<(), BenchError> {
        self.refill = false;
        self.probe = None;
        let (mut ops, mut since) = (self.ops, Instant::now());
        while self.in_flight() > 0 {
            self.turn()?;
            if ops != self.ops {
                (ops, since) = (self.ops, Instant::now());
            }
            self.look_up(since.elapsed(), watch)?;
        }
        Ok(())
    }
}
