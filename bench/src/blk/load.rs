//! Load without a look at the data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::report::{Report, Tally};
use super::{BlkPlan, Watcher};
use crate::draw::Blocks;
use crate::error::BenchError;
use crate::frontend::{BlkQueue, GuestDevice, GuestMemory, PeerWatch, Segment, Status, Vmm};
use crate::rng::{Rng, mix};

/// How often a thread that polls looks up from its ring.
const LOOK_UP: Duration = Duration::from_millis(50);

pub(super) fn measure(
    plan: &BlkPlan,
    vmm: &mut Vmm,
    span_bytes: u64,
    watcher: &mut dyn Watcher,
) -> Result<Report, BenchError> {
    let segments = segments_needed(plan, vmm)?;
    let buffers = u64::from(plan.queues) * u64::from(plan.depth);
    let per_buffer = u64::from(plan.block_bytes).next_multiple_of(4096);
    let memory = GuestMemory::new(buffers * per_buffer + plan.overhead())?;
    let device = GuestDevice::new(&memory, plan.queues, plan.ring_size(segments))?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut drivers = Vec::new();
    for i in 0..plan.queues {
        let blocks = blocks(plan, i, span_bytes);
        drivers.push(Driver::new(
            plan,
            vmm,
            &device,
            (usize::from(i), blocks),
            segments,
            stop.clone(),
        )?);
    }
    vmm.start(&device)?;
    let began = Instant::now();
    let mut threads = Vec::new();
    for (i, driver) in drivers.into_iter().enumerate() {
        let thread = std::thread::Builder::new()
            .name(format!("load-{i}"))
            .spawn(move || driver.run())
            .map_err(|source| BenchError::Host {
                what: "a thread",
                source,
            })?;
        threads.push(thread);
    }
    while began.elapsed() < plan.duration && threads.iter().all(|t| !t.is_finished()) {
        watcher.at(began.elapsed(), plan.duration);
        let left = plan.duration.saturating_sub(began.elapsed());
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    stop.store(true, Ordering::Relaxed);
    let elapsed = began.elapsed();
    let ends: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
    let mut tally = Tally::new();
    for end in ends {
        tally.add(&end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    vmm.stop()?;
    Ok(Report::of_load(plan, elapsed, &tally))
}

/// Segments of a request: more than one only where the server limits their size.
fn segments_needed(plan: &BlkPlan, vmm: &Vmm) -> Result<u16, BenchError> {
    let (features, config) = (vmm.features(), vmm.config());
    let limit = config.segment_bytes_max(features);
    let needed = u16::try_from(plan.block_bytes.div_ceil(limit)).unwrap_or(u16::MAX);
    let most = config.segments_max(features).min(plan.segments_room());
    if needed > most {
        return Err(BenchError::Usage(format!(
            "--block-size {} takes {needed} segments of the server's {limit} bytes, and {most} is \
             the most at this depth; use smaller blocks or a smaller --depth",
            plan.block_bytes
        )));
    }
    Ok(needed)
}

/// One queue's thread.
struct Driver {
    queue: BlkQueue,
    buffers: Vec<Vec<Segment>>,
    free: Vec<usize>,
    /// By the queue's slot: our buffer, and when it was submitted.
    flights: Vec<(usize, Instant)>,
    blocks: Blocks,
    stop: Arc<AtomicBool>,
    watch: PeerWatch,
    spin: Duration,
    timeout: Duration,
    tally: Tally,
}

impl Driver {
    fn new(
        plan: &BlkPlan,
        vmm: &Vmm,
        device: &GuestDevice,
        (queue, blocks): (usize, Blocks),
        segments: u16,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, BenchError> {
        let (features, len) = (vmm.features(), plan.block_bytes);
        let limit = vmm.config().segment_bytes_max(features);
        let queue = device.blk_queue(queue, features, plan.queue_options(segments))?;
        let mut buffers = Vec::new();
        for _ in 0..plan.depth {
            let addr = device.memory().alloc(u64::from(len), 4096)?;
            buffers.push(Segment::cut(addr, len, limit));
        }
        Ok(Self {
            queue,
            free: (0..buffers.len()).collect(),
            flights: vec![(0, Instant::now()); buffers.len()],
            buffers,
            blocks,
            stop,
            watch: vmm.watch()?,
            spin: plan.spin,
            timeout: plan.timeout,
            tally: Tally::new(),
        })
    }

    fn run(mut self) -> Result<Tally, BenchError> {
        let mut last_seen = Instant::now();
        loop {
            let stop = self.stop.load(Ordering::Relaxed);
            if stop && self.queue.in_flight() == 0 {
                return Ok(self.tally);
            }
            if !stop {
                self.refill()?;
            }
            if self.collect()? > 0 {
                last_seen = Instant::now();
            } else {
                self.idle(last_seen)?;
            }
        }
    }

    fn refill(&mut self) -> Result<(), BenchError> {
        if self.free.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        while let Some(buffer) = self.free.pop() {
            let (op, sector) = self.blocks.draw();
            let token = self.queue.submit(op, sector, &self.buffers[buffer])?;
            self.flights[token.slot()] = (buffer, now);
        }
        self.queue.commit()?;
        Ok(())
    }

    fn collect(&mut self) -> Result<usize, BenchError> {
        let mut count = 0;
        let mut now = None;
        while let Some(done) = self.queue.pop()? {
            let now = *now.get_or_insert_with(Instant::now);
            let (buffer, began) = self.flights[done.token.slot()];
            self.free.push(buffer);
            self.tally.record(now - began, done.status == Status::Ok);
            count += 1;
        }
        Ok(count)
    }

    /// Polls for a while, then sleeps, looking up now and then.
    fn idle(&mut self, last_seen: Instant) -> Result<(), BenchError> {
        let began = Instant::now();
        let spin = self.spin.min(LOOK_UP);
        while began.elapsed() < spin {
            for _ in 0..32 {
                if self.queue.has_completion() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
        }
        let polls_only = self.spin >= LOOK_UP;
        if polls_only || !self.queue.wait(LOOK_UP)? {
            self.look_up(last_seen)?;
        }
        Ok(())
    }

    fn look_up(&self, last_seen: Instant) -> Result<(), BenchError> {
        let in_flight = self.queue.in_flight();
        if in_flight > 0 && self.watch.gone() {
            return Err(BenchError::Gone { in_flight });
        }
        if in_flight > 0 && last_seen.elapsed() > self.timeout {
            return Err(BenchError::Stuck {
                after: self.timeout,
                in_flight,
            });
        }
        Ok(())
    }
}

/// What a queue asks for.
fn blocks(plan: &BlkPlan, queue: u16, span_bytes: u64) -> Blocks {
    let count = span_bytes / u64::from(plan.block_bytes);
    Blocks {
        count,
        block_bytes: plan.block_bytes,
        random: plan.pattern.random,
        read_percent: u64::from(plan.pattern.read_percent),
        // Sequential queues start apart, so they do not chase each other.
        at: count / u64::from(plan.queues) * u64::from(queue),
        rng: Rng::new(mix(plan.seed ^ mix(u64::from(queue)))),
    }
}

/// A histogram of nanoseconds up to a minute, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds are sound")
}
