//! Counters of disks, queues and workers. Each worker writes sets of its own, each on cache lines
//! of its own, so that no two cores write one line; readers add them up.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::request::{Op, Status};

/// What one worker did for one disk.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    other: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    errors: AtomicU64,
}

/// A reading of [`Counters`], or a sum of several.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Read requests ended.
    pub reads: u64,
    /// Write requests ended.
    pub writes: u64,
    /// Flushes, discards and write-zeroes ended.
    pub other: u64,
    /// Bytes of the reads.
    pub read_bytes: u64,
    /// Bytes of the writes.
    pub written_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// Bytes of requests that cost a worker about as much again as a request does by itself: copying or
/// submitting them takes as long as all the rest.
const BYTES_PER_UNIT: u64 = 16 << 10;

/// What one queue asked of its worker, in units of about equal cost: one for each request, and one
/// for each 16 KiB of it. Moves with the queue.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueLoad {
    units: AtomicU64,
}

impl QueueLoad {
    pub(crate) fn count(&self, bytes: u64) {
        add(&self.units, 1 + bytes / BYTES_PER_UNIT);
    }

    /// Units since the start.
    pub fn units(&self) -> u64 {
        self.units.load(Ordering::Relaxed)
    }
}

/// What one worker does with its time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WorkerLoad {
    busy_ns: AtomicU64,
    polling_ns: AtomicU64,
    asleep_ns: AtomicU64,
    sleeps: AtomicU64,
    requests: AtomicU64,
    queues: AtomicU64,
}

/// A reading of a worker's counters, since its start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct WorkerTotals {
    /// Time in turns that found something to do, in nanoseconds.
    pub busy_ns: u64,
    /// Time in turns that found nothing, in nanoseconds.
    pub polling_ns: u64,
    /// Time asleep, in nanoseconds.
    pub asleep_ns: u64,
    /// How often it fell asleep.
    pub sleeps: u64,
    /// Requests ended.
    pub requests: u64,
    /// Queues it holds now.
    pub queues: u64,
}

impl WorkerLoad {
    pub fn awake(&self, ns: u64, worked: bool) {
        let spent = if worked {
            &self.busy_ns
        } else {
            &self.polling_ns
        };
        add(spent, ns);
    }

    pub fn slept(&self, ns: u64) {
        add(&self.asleep_ns, ns);
        add(&self.sleeps, 1);
    }

    pub fn ended(&self) {
        add(&self.requests, 1);
    }

    pub fn queues(&self, count: u64) {
        self.queues.store(count, Ordering::Relaxed);
    }

    pub fn totals(&self) -> WorkerTotals {
        WorkerTotals {
            busy_ns: self.busy_ns.load(Ordering::Relaxed),
            polling_ns: self.polling_ns.load(Ordering::Relaxed),
            asleep_ns: self.asleep_ns.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            queues: self.queues.load(Ordering::Relaxed),
        }
    }
}

/// One writer: a load and a store, no locked instruction.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn count(&self, op: Op, bytes: u64, status: Status) {
        match op {
            Op::Read => {
                add(&self.reads, 1);
                add(&self.read_bytes, bytes);
            }
            Op::Write => {
                add(&self.writes, 1);
                add(&self.written_bytes, bytes);
            }
            Op::Flush | Op::Discard | Op::WriteZeroes { .. } => add(&self.other, 1),
        }
        if status != Status::Ok {
            add(&self.errors, 1);
        }
    }

    /// Adds this set's counts to `totals`.
    pub fn add_to(&self, totals: &mut Totals) {
        totals.reads += self.reads.load(Ordering::Relaxed);
        totals.writes += self.writes.load(Ordering::Relaxed);
        totals.other += self.other.load(Ordering::Relaxed);
        totals.read_bytes += self.read_bytes.load(Ordering::Relaxed);
        totals.written_bytes += self.written_bytes.load(Ordering::Relaxed);
        totals.errors += self.errors.load(Ordering::Relaxed);
    }
}
