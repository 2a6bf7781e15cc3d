//! Counters of a disk. Each worker has its own set for each disk, so that no two cores write one
//! cache line; readers add them up.

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

impl Counters {
    pub(crate) fn count(&self, op: Op, bytes: u64, status: Status) {
        let add = |counter: &AtomicU64, by: u64| {
            // One writer: a load and a store, no locked instruction.
            counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
        };
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
