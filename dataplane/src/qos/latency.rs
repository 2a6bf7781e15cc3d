//! Latencies, counted by one worker and read by anybody at any time.
//!
//! Buckets are a sixteenth of an octave wide, from a microsecond to a minute, so that a quantile is
//! within 3 % of the truth. A crate's histogram would do, but for being read while it is written: here
//! a reader asks no worker.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::metrics::add;

/// Below 2^FIRST nanoseconds all is one bucket.
const FIRST: u32 = 10;
/// Octaves after it.
const OCTAVES: usize = 26;
const SUB_BITS: u32 = 4;
const BUCKETS: usize = 1 + (OCTAVES << SUB_BITS);

/// Latencies of one kind, as one worker counted them.
#[derive(Debug)]
pub struct Latencies {
    sum_ns: AtomicU64,
    /// They wrap around: differences are what counts.
    counts: [AtomicU32; BUCKETS],
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            sum_ns: AtomicU64::new(0),
            counts: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns >> FIRST == 0 {
        return 0;
    }
    let octave = ns.ilog2() - FIRST;
    let sub = (ns >> (octave + FIRST - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    let at = 1 + ((octave as usize) << SUB_BITS) + usize::try_from(sub).expect("four bits");
    at.min(BUCKETS - 1)
}

/// The middle of a bucket, in nanoseconds.
fn middle_ns(bucket: usize) -> u64 {
    let Some(at) = bucket.checked_sub(1) else {
        return 1 << (FIRST - 1);
    };
    let (octave, sub) = (at >> SUB_BITS, at & ((1 << SUB_BITS) - 1));
    let width = 1u64 << (octave + FIRST as usize - SUB_BITS as usize);
    (((1 << SUB_BITS) + sub) as u64) * width + width / 2
}

impl Latencies {
    /// Counts some requests of one latency.
    pub(crate) fn count(&self, ns: u64, requests: u32) {
        let bucket = &self.counts[bucket_of(ns)];
        let count = bucket.load(Ordering::Relaxed);
        bucket.store(count.wrapping_add(requests), Ordering::Relaxed);
        add(&self.sum_ns, ns.wrapping_mul(requests.into()));
    }

    /// Adds what was counted so far to a sum over workers.
    pub fn add_to(&self, all: &mut Counted) {
        all.sum_ns = all.sum_ns.wrapping_add(self.sum_ns.load(Ordering::Relaxed));
        for (sum, count) in all.counts.iter_mut().zip(&self.counts) {
            *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
        }
    }
}

/// A reading of [`Latencies`], of several workers or of the time between two readings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    sum_ns: u64,
    counts: Box<[u32; BUCKETS]>,
}

impl Default for Counted {
    fn default() -> Counted {
        Counted {
            sum_ns: 0,
            counts: Box::new([0; BUCKETS]),
        }
    }
}

impl Counted {
    /// What was counted since an earlier reading of the same.
    pub fn since(&self, earlier: &Counted) -> Counted {
        let mut between = self.clone();
        between.sum_ns = self.sum_ns.wrapping_sub(earlier.sum_ns);
        for (count, was) in between.counts.iter_mut().zip(&*earlier.counts) {
            *count = count.wrapping_sub(*was);
        }
        between
    }

    /// Requests.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// Their latencies, added up, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The buckets that are not empty: the middle of each, in nanoseconds, and how many are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u32)> {
        let counts = self.counts.iter().enumerate();
        let filled = counts.filter(|(_, count)| **count > 0);
        filled.map(|(bucket, &count)| (middle_ns(bucket), count))
    }

    /// Counts requests that took no time.
    pub fn add_instant(&mut self, requests: u32) {
        self.counts[0] = self.counts[0].wrapping_add(requests);
    }

    /// Their mean in nanoseconds; `None` of none.
    pub fn mean_ns(&self) -> Option<u64> {
        self.sum_ns.checked_div(self.count())
    }

    /// The latency that a part of them, 0 to 1, did not exceed, in nanoseconds, within 3 %.
    pub fn quantile_ns(&self, part: f64) -> Option<u64> {
        let count = self.count();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let rank = ((count as f64) * part.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return Some(middle_ns(bucket));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_percent() {
        for ns in [
            1_500,
            10_000,
            123_456,
            30_000_000,
            7_000_000_000,
            60_000_000_000,
        ] {
            let latencies = Latencies::default();
            latencies.count(ns, 1);
            let mut read = Counted::default();
            latencies.add_to(&mut read);
            #[allow(clippy::cast_precision_loss)]
            let error = read.quantile_ns(0.5).unwrap() as f64 / ns as f64 - 1.0;
            assert!(error.abs() <= 0.032, "{ns}: {error}");
            assert_eq!(read.mean_ns(), Some(ns));
        }
    }

    #[test]
    fn every_latency_has_a_bucket_and_they_are_in_order() {
        let mut last = 0;
        for shift in 0..64 {
            for ns in [1u64 << shift, (1u64 << shift) | (1u64 << shift >> 1)] {
                let bucket = bucket_of(ns);
                assert!(bucket >= last && bucket < BUCKETS);
                last = bucket;
            }
        }
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_time_between_two_readings() {
        let latencies = Latencies::default();
        latencies.count(1_000_000, 10);
        let mut earlier = Counted::default();
        latencies.add_to(&mut earlier);
        latencies.count(5_000_000, 90);
        latencies.count(50_000_000, 10);
        let mut later = Counted::default();
        latencies.add_to(&mut later);
        let between = later.since(&earlier);
        assert_eq!(between.count(), 100);
        assert_eq!(between.mean_ns(), Some(9_500_000));
        let p90 = between.quantile_ns(0.9).unwrap();
        assert!((4_800_000..5_200_000).contains(&p90), "{p90}");
        assert!(between.quantile_ns(0.91).unwrap() > 48_000_000);
        assert_eq!(Counted::default().quantile_ns(0.5), None);
        assert_eq!(Counted::default().mean_ns(), None);
    }
}
