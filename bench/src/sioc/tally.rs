//! What clients had, counted in small pieces of time.

use std::ops::Range;

/// What ended in a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Requests.
    pub ios: u64,
    /// What they counted for, in parts of [`COST_ONE`](ferry_dataplane::qos::COST_ONE).
    pub cost: u64,
    /// How long they were at the array, in nanoseconds.
    pub device_ns: u64,
    /// How long they took in all, in nanoseconds.
    pub guest_ns: u64,
    /// The time, in nanoseconds.
    pub span_ns: u64,
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn over(count: u64, by: f64) -> f64 {
    count as f64 / by
}

impl Tally {
    /// Requests a second.
    pub fn iops(&self) -> f64 {
        over(self.ios, over(self.span_ns, 1e9))
    }

    /// Units of 32 KiB a second.
    pub fn units(&self) -> f64 {
        let one = f64::from(ferry_dataplane::qos::COST_ONE);
        over(self.cost, over(self.span_ns, 1e9)) / one
    }

    /// Mean latency of the array, in milliseconds; no number if nothing ended.
    pub fn device_ms(&self) -> f64 {
        over(self.device_ns, over(self.ios, 1.0)) / 1e6
    }

    /// Mean latency that the guest sees, in milliseconds.
    pub fn guest_ms(&self) -> f64 {
        over(self.guest_ns, over(self.ios, 1.0)) / 1e6
    }

    /// With another's, in the same time.
    pub fn and(self, other: Tally) -> Tally {
        Tally {
            ios: self.ios + other.ios,
            cost: self.cost + other.cost,
            device_ns: self.device_ns + other.device_ns,
            guest_ns: self.guest_ns + other.guest_ns,
            span_ns: self.span_ns.max(other.span_ns),
        }
    }
}

/// What one client had, piece by piece.
#[derive(Debug, Clone)]
pub struct Series {
    piece_ns: u64,
    pieces: Vec<Tally>,
}

impl Series {
    /// In pieces of so many nanoseconds.
    pub fn new(piece_ns: u64) -> Series {
        Series {
            piece_ns,
            pieces: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, now_ns: u64, cost: u64, device_ns: u64, guest_ns: u64) {
        let at = usize::try_from(now_ns / self.piece_ns).unwrap_or(usize::MAX);
        if self.pieces.len() <= at {
            self.pieces.resize(at + 1, Tally::default());
        }
        let piece = &mut self.pieces[at];
        piece.ios += 1;
        piece.cost += cost;
        piece.device_ns += device_ns;
        piece.guest_ns += guest_ns;
    }

    /// The sum of a time that begins and ends with a piece.
    pub fn sum(&self, time_ns: Range<u64>) -> Tally {
        let piece = |at: u64| usize::try_from(at / self.piece_ns).unwrap_or(usize::MAX);
        let pieces = self.pieces.iter().take(piece(time_ns.end));
        let sum = pieces.skip(piece(time_ns.start)).copied();
        Tally {
            span_ns: time_ns.end - time_ns.start,
            ..sum.fold(Tally::default(), Tally::and)
        }
    }
}
