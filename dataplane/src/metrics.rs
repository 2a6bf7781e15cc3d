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
    taken: AtomicU64,
    /// Of the last error of the host: its number, 0 for none, where it struck, and when.
    error_code: AtomicU64,
    error_offset_bytes: AtomicU64,
    error_at_ns: AtomicU64,
}

/// How far a disk has come with its requests. What is between the two is in flight.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Requests taken from the guest since the start.
    pub taken: u64,
    /// Requests ended since the start.
    pub ended: u64,
}

impl Flow {
    /// Requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.taken.saturating_sub(self.ended)
    }
}

/// The last request that the host could not carry out. Two errors at one time may be mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastError {
    /// The system's number for it.
    pub os_error: i32,
    /// The request's first byte on the disk.
    pub offset_bytes: u64,
    /// When, on the clock of [`crate::clock::now_ns`].
    pub at_ns: u64,
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
pub(crate) fn add(counter: &AtomicU64, by: u64) {
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

    /// So many requests were taken: once for a batch.
    pub(crate) fn took(&self, count: u64) {
        add(&self.taken, count);
    }

    /// Notes what the host could not do. Not on the path of requests that succeed.
    pub(crate) fn note_error(&self, error: LastError) {
        let code = u64::try_from(error.os_error).unwrap_or(0);
        self.error_offset_bytes
            .store(error.offset_bytes, Ordering::Relaxed);
        self.error_at_ns.store(error.at_ns, Ordering::Relaxed);
        self.error_code.store(code, Ordering::Release);
    }

    /// The last error of the host, if there was one.
    pub fn last_error(&self) -> Option<LastError> {
        let code = self.error_code.load(Ordering::Acquire);
        let os_error = i32::try_from(code).ok().filter(|&code| code > 0)?;
        Some(LastError {
            os_error,
            offset_bytes: self.error_offset_bytes.load(Ordering::Relaxed),
            at_ns: self.error_at_ns.load(Ordering::Relaxed),
        })
    }

    /// Adds this set's flow to `flow`. The ends are read first, so that no request is counted as
    /// ended and not as taken.
    pub fn add_flow_to(&self, flow: &mut Flow) {
        let counts = [&self.reads, &self.writes, &self.other];
        let ended: u64 = counts.iter().map(|it| it.load(Ordering::Acquire)).sum();
        flow.ended += ended;
        flow.taken += self.taken.load(Ordering::Relaxed).max(ended);
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
