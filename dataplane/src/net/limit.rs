//! Limits of a port: packets and bits a second, as token buckets.
//!
//! A bucket fills with the time that goes by, up to one burst; a frame takes out what it is worth,
//! or does not pass. Levels are kept in billionths of a packet or a bit, so that a rate times
//! nanoseconds is added as it is: no division, and nothing lost to rounding however often it is
//! filled.

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

/// The state of a [`RateLimit`]. Times are of one clock, in nanoseconds; one before the last is
/// taken for it.
#[derive(Debug, Clone)]
pub struct Bucket {
    packets: Option<Level>,
    bits: Option<Level>,
    filled_ns: u64,
    /// The frame that was refused last, if none has passed since.
    refused_bytes: Option<usize>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(limit: RateLimit, now_ns: u64) -> Bucket {
        Bucket {
            packets: limit.packets_per_s.map(Level::packets),
            bits: limit.bits_per_s.map(Level::bits),
            filled_ns: now_ns,
            refused_bytes: None,
        }
    }

    /// Whether a frame passes now; if so, it is counted. One of more than [`FRAME_BYTES_MAX`] counts
    /// as that long.
    pub fn admit(&mut self, frame_bytes: usize, now_ns: u64) -> bool {
        self.fill(now_ns);
        let bits = bits_of(frame_bytes);
        let enough = self.levels(bits).all(|(level, want)| level.has(want));
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
        let new = Bucket::new(limit, self.filled_ns);
        let kept = |new: Option<Level>, old: Option<Level>| {
            new.map(|level| level.with_at_most(old.map_or(u128::MAX, |old| old.held)))
        };
        self.packets = kept(new.packets, self.packets);
        self.bits = kept(new.bits, self.bits);
        self.refused_bytes = None;
    }

    /// The levels that there are, with what a frame of so many bits takes of each.
    fn levels(&self, bits: u64) -> impl Iterator<Item = (Level, u64)> {
        let packets = self.packets.map(|level| (level, 1));
        packets
            .into_iter()
            .chain(self.bits.map(|level| (level, bits)))
    }

    fn fill(&mut self, now_ns: u64) {
        let gone_ns = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns += gone_ns;
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
    fn packets(rate: u64) -> Level {
        Level::full(rate, BURST_PACKETS_MIN)
    }

    fn bits(rate: u64) -> Level {
        Level::full(rate, BURST_BITS_MIN)
    }

    fn full(rate: u64, least: u64) -> Level {
        let least = u128::from(least) * PARTS;
        let burst = match rate {
            0 => 0,
            rate => least.max(u128::from(rate) * u128::from(BURST_NS)),
        };
        Level {
            rate,
            held: burst,
            burst,
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
