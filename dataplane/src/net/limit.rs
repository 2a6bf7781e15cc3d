//! Limits of a port: packets and bits a second, as token buckets.
//!
//! A bucket fills with the time that goes by, up to one burst; a frame takes out what it is worth,
//! or does not pass. Levels are kept in billionths of a packet or a bit, so that a rate times
//! nanoseconds is added as it is: no division, and nothing lost to rounding however often it is
//! filled.
//!
//! Queues of one NIC may be on several workers. Each has a bucket then, and the buckets share one time:
//! what has gone by since the last of them was filled fills whichever is found short next, and no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::header::FRAME_BYTES_MAX;

/// A bucket holds what comes in this time, in nanoseconds, if that is more than the least burst.
/// Longer than a worker may be away, so that it can make up for it.
pub const BURST_NS: u64 = 10_000_000;

/// Least burst in packets: what a queue is likely to show at a time.
pub const BURST_PACKETS_MIN: u64 = 32;

/// Least burst in bits: the longest frame.
pub const BURST_BITS_MIN: u64 = FRAME_BYTES_MAX as u64 * 8;

/// Parts of a packet or bit in which levels are kept; nanoseconds in a second.
const PARTS: u128 = 1_000_000_000;

/// What a port may carry in one direction; `None` for as much as it can, 0 for nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Packets a second. A long frame is one packet.
    pub packets_per_s: Option<u64>,
    /// Bits a second, of frames without preamble, checksum and gap.
    pub bits_per_s: Option<u64>,
}

/// The time that several buckets of one limit are filled by.
#[derive(Debug, Clone)]
pub struct SharedTime {
    filled_ns: Arc<AtomicU64>,
    buckets: u16,
}

impl SharedTime {
    /// For so many.
    pub fn new(buckets: u16) -> SharedTime {
        SharedTime {
            filled_ns: Arc::default(),
            buckets: buckets.max(1),
        }
    }

    /// What has gone by since it was last taken, in nanoseconds. Each moment is given once.
    fn take(&self, now_ns: u64) -> u64 {
        // It orders nothing else.
        let before = self.filled_ns.fetch_max(now_ns, Ordering::Relaxed);
        now_ns.saturating_sub(before)
    }
}

/// The state of a [`RateLimit`]. Times are of one clock, in nanoseconds; one before the last is
/// taken for it.
#[derive(Debug, Clone)]
pub struct Bucket {
    packets: Option<Level>,
    bits: Option<Level>,
    filled_ns: u64,
    shared: Option<SharedTime>,
    /// The frame that was refused last, if none has passed since.
    refused_bytes: Option<usize>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(limit: RateLimit, now_ns: u64) -> Bucket {
        Bucket::of(limit, now_ns, None)
    }

    /// One of several that are filled by the same time; full with its part of a burst.
    pub fn sharing(limit: RateLimit, now_ns: u64, shared: SharedTime) -> Bucket {
        shared.take(now_ns);
        Bucket::of(limit, now_ns, Some(shared))
    }

    fn of(limit: RateLimit, now_ns: u64, shared: Option<SharedTime>) -> Bucket {
        let part = shared.as_ref().map_or(1, |it| it.buckets);
        let packets = |rate| Level::packets(rate, part);
        let bits = |rate| Level::bits(rate, part);
        Bucket {
            packets: limit.packets_per_s.map(packets),
            bits: limit.bits_per_s.map(bits),
            filled_ns: now_ns,
            shared,
            refused_bytes: None,
        }
    }

    /// Whether a frame passes now; if so, it is counted. One of more than [`FRAME_BYTES_MAX`] counts
    /// as that long.
    pub fn admit(&mut self, frame_bytes: usize, now_ns: u64) -> bool {
        let bits = bits_of(frame_bytes);
        // Time that others could use is taken when it is needed.
        if self.shared.is_none() || !self.has(bits) {
            self.fill(now_ns);
        }
        let enough = self.has(bits);
        self.refused_bytes = (!enough).then_some(frame_bytes);
        if enough {
            self.packets.iter_mut().for_each(|level| level.take(1));
            self.bits.iter_mut().for_each(|level| level.take(bits));
        }
        enough
    }

    /// From when on the frame that was just refused would pass, in nanoseconds; `u64::MAX` for
    /// never. If none was refused, the time of the last call.
    pub fn next_ns(&self) -> u64 {
        let Some(frame_bytes) = self.refused_bytes else {
            return self.filled_ns;
        };
        let waits = self.levels(bits_of(frame_bytes));
        let longest = waits.map(|(level, want)| level.wait_ns(want)).max();
        self.filled_ns.saturating_add(longest.unwrap_or(0))
    }

    /// Changes the limit. What is in the bucket stays, up to the new burst, so that changing it
    /// again and again lets no more through; what was not limited before starts full.
    pub fn set_limit(&mut self, limit: RateLimit, now_ns: u64) {
        self.fill(now_ns);
        let new = Bucket::of(limit, self.filled_ns, self.shared.clone());
        let kept = |new: Option<Level>, old: Option<Level>| {
            new.map(|level| level.with_at_most(old.map_or(u128::MAX, |old| old.held)))
        };
        self.packets = kept(new.packets, self.packets);
        self.bits = kept(new.bits, self.bits);
        self.refused_bytes = None;
    }

    fn has(&self, bits: u64) -> bool {
        self.levels(bits).all(|(level, want)| level.has(want))
    }

    /// The levels that there are, with what a frame of so many bits takes of each.
    fn levels(&self, bits: u64) -> impl Iterator<Item = (Level, u64)> {
        let packets = self.packets.map(|level| (level, 1));
        packets
            .into_iter()
            .chain(self.bits.map(|level| (level, bits)))
    }

    fn fill(&mut self, now_ns: u64) {
        let own_ns = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns += own_ns;
        let gone_ns = match &self.shared {
            Some(shared) => shared.take(now_ns),
            None => own_ns,
        };
        let levels = self.packets.iter_mut().chain(&mut self.bits);
        levels.for_each(|level| level.fill(gone_ns));
    }
}

fn bits_of(frame_bytes: usize) -> u64 {
    frame_bytes.min(FRAME_BYTES_MAX) as u64 * 8
}

/// What is held of one kind, in [`PARTS`].
#[derive(Debug, Clone, Copy)]
struct Level {
    rate: u64,
    held: u128,
    burst: u128,
}

impl Level {
    fn packets(rate: u64, part: u16) -> Level {
        Level::full(rate, BURST_PACKETS_MIN, part)
    }

    fn bits(rate: u64, part: u16) -> Level {
        Level::full(rate, BURST_BITS_MIN, part)
    }

    /// One of `part` that are full together. Each can hold the least burst by itself, or the longest
    /// frame would never pass.
    fn full(rate: u64, least: u64, part: u16) -> Level {
        let (least, part) = (u128::from(least) * PARTS, u128::from(part));
        let whole = match rate {
            0 => 0,
            rate => least.max(u128::from(rate) * u128::from(BURST_NS)),
        };
        Level {
            rate,
            held: whole / part,
            burst: whole.min(least.max(whole / part)),
        }
    }

    fn with_at_most(self, held: u128) -> Level {
        Level {
            held: self.held.min(held),
            ..self
        }
    }

    fn fill(&mut self, gone_ns: u64) {
        // Neither can overflow: 64 bits times 64, and a burst is far below 128.
        let more = u128::from(self.rate) * u128::from(gone_ns);
        self.held = self.burst.min(self.held.saturating_add(more));
    }

    fn has(&self, want: u64) -> bool {
        self.rate > 0 && self.held >= u128::from(want) * PARTS
    }

    fn take(&mut self, count: u64) {
        self.held -= u128::from(count) * PARTS;
    }

    /// Until there is so much, in nanoseconds.
    fn wait_ns(&self, want: u64) -> u64 {
        if self.rate == 0 {
            return u64::MAX;
        }
        let missing = (u128::from(want) * PARTS).saturating_sub(self.held);
        let ns = missing.div_ceil(u128::from(self.rate));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
