//! The search for a threshold, while nothing else uses the datastore: random reads of what its disks hold,
//! at one depth after another, until more brings no more (`qos/threshold.rs` in the engine). It stops at
//! the first request of a guest's, and begins anew when the datastore is idle again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferry_dataplane::buffer::AlignedBuf;
use ferry_dataplane::disk::Disk;
use ferry_dataplane::qos::threshold::{Sample, next_depth, threshold_ns};

use super::Datastore;
use crate::events::What;
use crate::qos::datastore::{Sioc, THRESHOLD_MS, Threshold, ms};
use crate::spec::CacheMode;

/// Most reads at a time, each on a thread of its own.
const DEPTH_MAX: u32 = 64;

/// How long each depth is tried.
const TRY: Duration = Duration::from_millis(500);

const READ_BYTES: usize = 4096;

/// Places looked at for data, of each disk.
const PLACES: u64 = 64;

/// Less than this says more of caches than of the datastore.
const DATA_BYTES_MIN: u64 = 8 << 20;

/// Where there is data to be read.
struct Extent {
    disk: Arc<Disk>,
    range: Range<u64>,
}

/// A search that may be under way.
#[derive(Default)]
pub struct Probe {
    stop: Arc<AtomicBool>,
}

impl Probe {
    /// Begins, if a threshold is wanted and none was found yet.
    pub fn start(&mut self, datastore: &Arc<Datastore>) {
        let wanted = {
            let steering = datastore.steering();
            steering.settings.sioc != Sioc::Off
                && steering.settings.threshold == Threshold::Auto
                && steering.found_ns.is_none()
        };
        if !wanted || datastore.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.stop = Arc::default();
        let (own, stop) = (datastore.clone(), self.stop.clone());
        let spawned = std::thread::Builder::new()
            .name("ferry-probe".into())
            .spawn(move || {
                search(&own, &stop);
                own.probing.store(false, Ordering::Release);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no threshold is looked for");
            datastore.probing.store(false, Ordering::Release);
        }
    }

    /// Somebody else needs the datastore.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn search(datastore: &Datastore, stop: &AtomicBool) {
    let extents = extents(datastore);
    let bytes: u64 = extents.iter().map(|it| it.range.end - it.range.start).sum();
    if bytes < DATA_BYTES_MIN {
        tracing::info!(datastore = %datastore.path.display(),
            "its disks hold too little to find a threshold with; its medium's is used meanwhile");
        return;
    }
    let mut samples: Vec<Sample> = Vec::new();
    while let Some(depth) = next_depth(&samples, DEPTH_MAX) {
        match measure(&extents, depth, stop) {
            Some(sample) => samples.push(sample),
            None => return,
        }
    }
    let Some(found_ns) = threshold_ns(&samples) else {
        return;
    };
    let found_ns = within_bounds(found_ns);
    let peak = samples.iter().map(|it| it.iops).fold(0.0, f64::max);
    let text = format!(
        "its threshold is {:.2} ms from now on: its latency at 90 % of the {peak:.0} reads a second that \
         it can do",
        ms(found_ns)
    );
    datastore.note(What::ThresholdFound, text);
    datastore.found(found_ns);
}

#[expect(clippy::cast_possible_truncation, reason = "bounds are small")]
#[expect(clippy::cast_sign_loss, reason = "bounds are above zero")]
fn within_bounds(ns: u64) -> u64 {
    let (least, most) = THRESHOLD_MS;
    ns.clamp((least * 1e6) as u64, (most * 1e6) as u64)
}

/// What its disks hold, as far as they are served here, and not from the page cache.
fn extents(datastore: &Datastore) -> Vec<Extent> {
    let disks: Vec<Arc<Disk>> = {
        let steering = datastore.steering();
        let served = steering.members.iter().filter_map(|it| it.served.upgrade());
        let served =
            served.filter(|it| it.ownership.may_serve() && it.config.cache == CacheMode::None);
        served.map(|it| it.device.disk().clone()).collect()
    };
    disks.iter().flat_map(data_of).collect()
}

/// Runs of data all over a disk, none twice.
fn data_of(disk: &Arc<Disk>) -> Vec<Extent> {
    const BLOCK: u64 = READ_BYTES as u64;
    let bytes = disk.geometry().capacity_bytes;
    let mut extents = Vec::new();
    let mut seen = 0;
    for place in 0..PLACES {
        let from = seen.max(bytes / PLACES * place);
        let Ok(Some(data)) = disk.next_data(from) else {
            break; // only holes follow
        };
        seen = data.end;
        let range = data.start.next_multiple_of(BLOCK)..data.end / BLOCK * BLOCK;
        if !range.is_empty() {
            let disk = disk.clone();
            extents.push(Extent { disk, range });
        }
    }
    extents
}

/// Reads at one depth; `None` when it was stopped, or nothing could be read.
fn measure(extents: &[Extent], depth: u32, stop: &AtomicBool) -> Option<Sample> {
    let began = Instant::now();
    let read = || {
        let mut random = Random::new();
        let mut buffer = AlignedBuf::new(READ_BYTES);
        let (mut reads, mut sum) = (0u32, Duration::ZERO);
        while began.elapsed() < TRY && !stop.load(Ordering::Relaxed) {
            let at = random.below(extents.len() as u64);
            let Extent { disk, range } = &extents[usize::try_from(at).unwrap_or(0)];
            let blocks = (range.end - range.start) / READ_BYTES as u64;
            let offset = range.start + random.below(blocks) * READ_BYTES as u64;
            let asked = Instant::now();
            if disk.read_at(offset, &mut buffer, READ_BYTES).is_err() {
                break;
            }
            sum += asked.elapsed();
            reads += 1;
        }
        (reads, sum)
    };
    let (reads, sum) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..depth).map(|_| scope.spawn(read)).collect();
        let each = readers.into_iter().filter_map(|it| it.join().ok());
        each.fold((0u32, Duration::ZERO), |all, it| {
            (all.0 + it.0, all.1 + it.1)
        })
    });
    let seconds = began.elapsed().as_secs_f64();
    (reads > 0 && !stop.load(Ordering::Relaxed)).then(|| Sample {
        depth,
        iops: f64::from(reads) / seconds,
        latency_ns: sum.as_secs_f64() * 1e9 / f64::from(reads),
    })
}

/// Places that no read-ahead foresees (SplitMix64).
struct Random(u64);

impl Random {
    fn new() -> Random {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        Random(high ^ low)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}
