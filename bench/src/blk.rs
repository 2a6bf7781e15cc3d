//! Load on any vhost-user-blk server.
//!
//! Plain load measures and does not look at the data; a verified run
//! ([`crate::verify`]) looks at all of it. Both drive one [`BlkQueue`] per
//! thread, and both notice a server that leaves or hangs.
//!
//! [`BlkQueue`]: crate::frontend::BlkQueue

mod load;
mod port;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::BenchError;
use crate::frontend::{GuestDevice, GuestMemory, QueueOptions, Vmm, VmmOptions, feature};
use crate::stamp::{Initial, Mix};
use crate::verify::{Verifier, VerifyPlan};

pub use port::{BlkPort, slot_sizes};
pub use report::Report;

/// Largest ring that servers take.
const RING_MAX: u16 = 1024;
/// Longest request of a verified run.
const LARGEST: u64 = 1 << 20;

/// Where requests fall and what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// At random, or one after the other.
    pub random: bool,
    /// Share of reads, 0 to 100.
    pub read_percent: u8,
}

/// A run of `ferry-bench blk`.
#[derive(Debug, Clone)]
pub struct BlkPlan {
    /// The server's socket.
    pub socket: PathBuf,
    /// What requests do.
    pub pattern: Pattern,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Queues, one thread each.
    pub queues: u16,
    /// How long.
    pub duration: Duration,
    /// Stamp and check instead of measuring alone.
    pub verify: bool,
    /// The disk is known to be all zero at the start.
    pub fresh: bool,
    /// Draws the load.
    pub seed: u64,
    /// Bytes of the disk to use, from its start; an error if it has fewer.
    pub span_bytes: Option<u64>,
    /// Bytes to use if `span_bytes` is not given; the disk's own if fewer.
    pub span_default: Option<u64>,
    /// Put chains into indirect tables.
    pub indirect: bool,
    /// How long to poll before sleeping on the call eventfd.
    pub spin: Duration,
    /// How long the server may go without any completion.
    pub timeout: Duration,
}

impl BlkPlan {
    /// What can be judged without the server.
    pub fn check(&self) -> Result<(), BenchError> {
        let fail = |message: String| Err(BenchError::Usage(message));
        if self.block_bytes == 0 || !self.block_bytes.is_multiple_of(512) {
            return fail(format!(
                "--block-size {} is not a multiple of 512; use 512, 4k or 64k for instance",
                self.block_bytes
            ));
        }
        if self.block_bytes > 64 << 20 {
            return fail("--block-size is over 64M; use less".into());
        }
        if self.queues == 0 || self.queues > 256 {
            return fail(format!("--queues {} is not in 1 to 256", self.queues));
        }
        if self.depth == 0 || self.depth > self.depth_max() {
            return fail(format!(
                "--depth {} is not in 1 to {}{}",
                self.depth,
                self.depth_max(),
                if self.indirect {
                    ""
                } else {
                    "; --indirect takes up to 1024"
                }
            ));
        }
        if self.duration.is_zero() {
            return fail("--seconds 0 measures nothing; use 1 or more".into());
        }
        Ok(())
    }

    fn depth_max(&self) -> u16 {
        RING_MAX / if self.indirect { 1 } else { 3 }
    }

    /// Segments that every request of the depth can have at once.
    fn segments_room(&self) -> u16 {
        if self.indirect {
            64
        } else {
            RING_MAX / self.depth - 2
        }
    }

    fn ring_size(&self, segments: u16) -> u16 {
        let per_request = if self.indirect { 1 } else { segments + 2 };
        let wanted = u32::from(self.depth) * u32::from(per_request);
        u16::try_from(wanted.next_power_of_two().clamp(128, u32::from(RING_MAX)))
            .unwrap_or(RING_MAX)
    }

    /// Guest memory besides the data buffers: rings, headers, tables, and what
    /// aligning them wastes.
    fn overhead(&self) -> u64 {
        let per_slot = 4096 + 2048;
        u64::from(self.queues) * (u64::from(self.depth) * per_slot + (64 << 10))
    }

    fn queue_options(&self, segments_max: u16) -> QueueOptions {
        QueueOptions {
            depth: self.depth,
            segments_max,
            indirect: self.indirect,
        }
    }
}

/// Told about the run as it goes.
pub trait Watcher {
    /// So much of the run's time is over.
    fn at(&mut self, elapsed: Duration, total: Duration);
    /// The last reading has checked so many of so many sectors.
    fn sweeping(&mut self, checked: u64, total: u64);
}

/// Runs a plan. The plan has passed [`BlkPlan::check`].
pub fn run(plan: &BlkPlan, watcher: &mut dyn Watcher) -> Result<Report, BenchError> {
    let mut vmm = Vmm::connect(&plan.socket, VmmOptions::default())?;
    let span_bytes = usable_span(plan, &vmm)?;
    if plan.verify {
        verified(plan, &mut vmm, span_bytes, watcher)
    } else {
        load::measure(plan, &mut vmm, span_bytes, watcher)
    }
}

/// Bytes of the disk that the load may touch: whole blocks.
fn usable_span(plan: &BlkPlan, vmm: &Vmm) -> Result<u64, BenchError> {
    let config = vmm.config();
    let writes = plan.verify || plan.pattern.read_percent < 100;
    if writes && vmm.features() & feature::RO != 0 {
        return Err(BenchError::ReadOnly);
    }
    let disk = config.capacity_sectors * 512;
    let span = plan
        .span_bytes
        .unwrap_or(plan.span_default.map_or(disk, |s| s.min(disk)));
    let block = u64::from(plan.block_bytes);
    let device_block = u64::from(block_size(vmm));
    if !block.is_multiple_of(device_block) {
        return Err(BenchError::Usage(format!(
            "--block-size {block} is not a multiple of the disk's block of {device_block} bytes"
        )));
    }
    if span > disk || span < block {
        return Err(BenchError::Usage(format!(
            "a span of {span} bytes with blocks of {block} does not fit a disk of {disk} bytes; \
             change --span or --block-size"
        )));
    }
    Ok(span / block * block)
}

/// The disk's block in bytes, made safe to divide by.
fn block_size(vmm: &Vmm) -> u32 {
    let told = vmm.config().blk_size;
    let known = vmm.features() & feature::BLK_SIZE != 0;
    if known && told.is_multiple_of(512) && told > 0 {
        told
    } else {
        512
    }
}

fn verified(
    plan: &BlkPlan,
    vmm: &mut Vmm,
    span_bytes: u64,
    watcher: &mut dyn Watcher,
) -> Result<Report, BenchError> {
    let (features, config) = (vmm.features(), vmm.config());
    let segments_max = config
        .segments_max(features)
        .min(plan.segments_room())
        .min(16);
    let largest = u64::from(config.segment_bytes_max(features)) * u64::from(segments_max);
    let largest = usize::try_from(largest.min(LARGEST)).unwrap_or(0) / 4096 * 4096;
    let sizes = slot_sizes(usize::from(plan.depth), largest.max(4096));
    let per_queue: u64 = sizes.iter().map(|s| *s as u64).sum();
    let memory = GuestMemory::new(per_queue * u64::from(plan.queues) + plan.overhead())?;
    let device = GuestDevice::new(&memory, plan.queues, plan.ring_size(segments_max))?;
    let mut ports = Vec::new();
    for i in 0..usize::from(plan.queues) {
        let queue = device.blk_queue(i, features, plan.queue_options(segments_max))?;
        let seed = crate::rng::mix(plan.seed ^ i as u64);
        let port = BlkPort::new(queue, &memory, &sizes, features, config, seed)?;
        ports.push(
            port.with_spin(plan.spin)
                .with_watch(vmm.watch()?)
                .with_timeout(plan.timeout),
        );
    }
    vmm.start(&device)?;
    let load = VerifyPlan {
        sectors: span_bytes / 512,
        align: u64::from(block_size(vmm)) / 512,
        sectors_max: LARGEST / 512,
        initial: if plan.fresh {
            Initial::Zero
        } else {
            Initial::Unknown
        },
        mix: Mix::default(),
        seed: plan.seed,
        run: run_id(plan.seed),
    };
    let verifier = Verifier::start(ports, &load)?;
    let began = std::time::Instant::now();
    while began.elapsed() < plan.duration && !verifier.has_failed() {
        watcher.at(began.elapsed(), plan.duration);
        std::thread::sleep(Duration::from_millis(50).min(plan.duration));
    }
    let elapsed = began.elapsed();
    let at_end = verifier.progress();
    let verdict = verifier.finish(|checked, total| watcher.sweeping(checked, total))?;
    vmm.stop()?;
    Ok(Report::of_verdict(plan, elapsed, at_end, verdict))
}

/// Runs differ even when their seeds agree, or a run would take the stamps of
/// the one before for its own.
pub fn run_id(seed: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |d| u64::from(d.subsec_nanos()) ^ (d.as_secs() << 30));
    crate::rng::mix(seed ^ crate::rng::mix(nanos ^ u64::from(std::process::id())))
}
