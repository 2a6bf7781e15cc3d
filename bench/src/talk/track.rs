//! Which numbers came: exactly, for all of a session.

use std::time::{Duration, Instant};

use super::report::Numbers;

/// Most numbers of a session; what comes beyond them counts as foreign.
const NUMBERS_MAX: u64 = 1 << 26;
/// Most ranges and numbers that a report names.
const NAMED_MAX: usize = 256;

/// Numbers as they came, and when.
#[derive(Debug)]
pub(super) struct Track {
    /// A bit for each.
    seen: Vec<u64>,
    /// One past the highest.
    next: u64,
    received: u64,
    doubled: u64,
    reordered: u64,
    /// The first that came twice.
    twice: Vec<u64>,
    silence: Silence,
}

/// The longest time without a sign of life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    last: Instant,
    longest: Duration,
}

impl Silence {
    pub(super) fn since(now: Instant) -> Self {
        Self {
            last: now,
            longest: Duration::ZERO,
        }
    }

    /// What was silent up to now was so by right.
    pub(super) fn begin(&mut self, now: Instant) {
        self.last = now;
    }

    /// A sign of life.
    pub(super) fn end(&mut self, now: Instant) {
        let silent = now.saturating_duration_since(self.last);
        self.longest = self.longest.max(silent);
        self.last = now;
    }

    pub(super) fn longest_ms(&self) -> f64 {
        self.longest.as_secs_f64() * 1e3
    }
}

impl Track {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            seen: Vec::new(),
            next: 0,
            received: 0,
            doubled: 0,
            reordered: 0,
            twice: Vec::new(),
            silence: Silence::since(now),
        }
    }

    /// Takes a number; false when it can be none of the session.
    pub(super) fn note(&mut self, number: u64, now: Instant) -> bool {
        if number >= NUMBERS_MAX {
            return false;
        }
        // Below the limit, which fits.
        let (word, bit) = (usize::try_from(number / 64).unwrap_or(0), number % 64);
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & 1 << bit != 0 {
            self.doubled += 1;
            if self.twice.len() < NAMED_MAX {
                self.twice.push(number);
            }
            return true;
        }
        self.silence.end(now);
        self.seen[word] |= 1 << bit;
        self.received += 1;
        self.reordered += u64::from(number < self.next);
        self.next = self.next.max(number + 1);
        true
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The time up to now was silent, if nothing came.
    pub(super) fn stop(&mut self, now: Instant) {
        self.silence.end(now);
    }

    fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        self.seen
            .get(word)
            .is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    /// The verdict when `sent` were sent.
    pub(super) fn numbers(&self, sent: u64) -> Numbers {
        let mut missing: Vec<[u64; 2]> = Vec::new();
        for number in (0..sent.min(NUMBERS_MAX)).filter(|number| !self.has(*number)) {
            match missing.last_mut() {
                Some([_, last]) if *last + 1 == number => *last = number,
                _ => missing.push([number, number]),
            }
        }
        missing.truncate(NAMED_MAX);
        Numbers {
            sent,
            received: self.received,
            lost: sent.saturating_sub(self.received),
            doubled: self.doubled,
            reordered: self.reordered,
            longest_gap_ms: self.silence.longest_ms(),
            missing,
            twice: self.twice.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(numbers: &[u64], sent: u64) -> Numbers {
        let now = Instant::now();
        let mut track = Track::new(now);
        for number in numbers {
            assert!(track.note(*number, now));
        }
        track.numbers(sent)
    }

    #[test]
    fn all_in_order_is_clean() {
        let all: Vec<u64> = (0..200).collect();
        let found = after(&all, 200);
        assert_eq!((found.received, found.lost), (200, 0));
        assert_eq!((found.doubled, found.reordered), (0, 0));
        assert!(found.missing.is_empty());
    }

    #[test]
    fn what_is_missing_is_named_the_tail_too() {
        let found = after(&[0, 3, 4, 64, 66], 70);
        assert_eq!((found.received, found.lost), (5, 65));
        assert_eq!(found.missing, [[1, 2], [5, 63], [65, 65], [67, 69]]);
    }

    #[test]
    fn twice_is_doubled_however_late_and_early_is_reordered() {
        let found = after(&[0, 2, 1, 0, 900, 2], 901);
        assert_eq!((found.doubled, found.reordered), (2, 1));
        assert_eq!(found.twice, [0, 2]);
        assert_eq!(found.received, 4);
    }

    #[test]
    fn the_longest_gap_is_the_longest_also_at_the_end() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut track = Track::new(began);
        for (number, ms) in [(0, 10), (1, 20), (2, 120), (3, 125)] {
            track.note(number, at(ms));
        }
        assert!((track.numbers(4).longest_gap_ms - 100.0).abs() < 0.1);
        track.stop(at(400));
        assert!((track.numbers(4).longest_gap_ms - 275.0).abs() < 0.1);
    }

    #[test]
    fn a_number_beyond_reason_is_foreign() {
        let now = Instant::now();
        assert!(!Track::new(now).note(u64::MAX, now));
    }
}
