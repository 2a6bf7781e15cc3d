//! A limit: so much a second, of all workers together.
//!
//! Requests book their time in turn, as in the generic cell rate algorithm (ATM Forum, Traffic
//! Management 4.0, 1996): one number says when the next is due, and whoever takes a place moves it on.
//! There is no refill that comes late, no part of the rate that lies idle at another worker, and no
//! race for a token: a place in time that was booked is kept. It is one compare-and-swap for a
//! request, or for a lease of several where the rate is high.

use std::sync::atomic::{AtomicU64, Ordering};

/// What may be made up for after a pause, in nanoseconds of the rate: four milliseconds. A guest that
/// asks for one request after the other loses nothing by waking up late, and a burst stays below
/// 0.5 % of a second.
pub const BURST_NS: u64 = 4_000_000;

/// What a lane takes at once where the rate is high, in nanoseconds of the rate.
const LEASE_NS: f64 = 20_000.0;

/// How long it may keep what it did not use, in nanoseconds.
const LEASE_KEPT_NS: u64 = 1_000_000;

/// See the module.
#[derive(Debug)]
pub struct Pacer {
    /// When the next is due. Only this one changes on the path.
    due_ns: AtomicU64,
    /// What one takes of the time, in nanoseconds, as the bits of an `f64`; 0 for no limit.
    each_ns: AtomicU64,
}

impl Default for Pacer {
    fn default() -> Pacer {
        Pacer {
            due_ns: AtomicU64::new(0),
            each_ns: AtomicU64::new(0),
        }
    }
}

impl Pacer {
    /// Sets the rate, or takes it away. What was booked keeps its place; what is booked from now on
    /// does not wait for more than a burst of the old rate.
    pub fn set_rate(&self, now_ns: u64, per_second: Option<f64>) {
        let per_second = per_second.filter(|rate| rate.is_finite() && *rate > 0.0);
        let each_ns = per_second.map_or(0.0, |rate| 1e9 / rate);
        let was = self.each_ns.swap(each_ns.to_bits(), Ordering::AcqRel);
        if was != each_ns.to_bits() {
            self.due_ns.fetch_min(now_ns + BURST_NS, Ordering::AcqRel);
        }
    }

    fn each_ns(&self) -> f64 {
        f64::from_bits(self.each_ns.load(Ordering::Relaxed))
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.each_ns.load(Ordering::Relaxed) != 0
    }

    /// Takes the next place for `amount`; when that is. Not after `now_ns`: at once.
    pub fn book(&self, now_ns: u64, amount: f64) -> u64 {
        let each_ns = self.each_ns();
        if each_ns == 0.0 {
            return now_ns;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let takes_ns = (amount * each_ns).round() as u64; // saturates
        let oldest = now_ns.saturating_sub(BURST_NS);
        let mut due = self.due_ns.load(Ordering::Relaxed);
        loop {
            let at = due.max(oldest);
            let next = at.saturating_add(takes_ns);
            match self
                .due_ns
                .compare_exchange_weak(due, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return at,
                Err(other) => due = other,
            }
        }
    }

    /// How far ahead of the time it is booked, in nanoseconds of the rate; negative: so much may be
    /// made up for.
    pub fn booked_ns(&self, now_ns: u64) -> i64 {
        let due = self.due_ns.load(Ordering::Relaxed);
        let ahead = i128::from(due.max(now_ns.saturating_sub(BURST_NS))) - i128::from(now_ns);
        i64::try_from(ahead).unwrap_or(i64::MAX)
    }

    /// Takes over what is booked elsewhere, as by [`Pacer::booked_ns`].
    pub fn set_booked(&self, now_ns: u64, ahead_ns: i64) {
        let due = now_ns.saturating_add_signed(ahead_ns.clamp(-(1 << 40), 1 << 40));
        self.due_ns.store(due, Ordering::Relaxed);
    }
}

/// What one lane has taken of a pacer and not used yet.
#[derive(Debug, Default)]
pub struct Lease {
    left: f64,
    at_ns: u64,
}

impl Lease {
    /// As [`Pacer::book`], for a small amount several at once.
    pub fn book(&mut self, pacer: &Pacer, now_ns: u64, amount: f64) -> u64 {
        let each_ns = pacer.each_ns();
        if amount * each_ns >= LEASE_NS {
            return pacer.book(now_ns, amount);
        }
        if self.left < amount || now_ns > self.at_ns.saturating_add(LEASE_KEPT_NS) {
            if each_ns == 0.0 {
                return now_ns;
            }
            self.left = (LEASE_NS / each_ns).max(amount);
            self.at_ns = pacer.book(now_ns, self.left);
        }
        self.left -= amount;
        self.at_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_second_has_what_the_rate_says() {
        for rate in [1.0, 10.0, 1000.0, 33_333.0, 1e6] {
            let pacer = Pacer::default();
            pacer.set_rate(0, Some(rate));
            // Whoever asks always asks for the next when the last has gone.
            let mut now = SECOND;
            let mut count = 0;
            while now < 2 * SECOND {
                now = now.max(pacer.book(now, 1.0));
                count += 1;
            }
            let most = rate * (1.0 + BURST_NS as f64 / 1e9) + 2.0;
            assert!(
                f64::from(count) >= rate.floor() && f64::from(count) <= most,
                "{rate}: {count}"
            );
        }
    }

    #[test]
    fn four_lanes_have_no_more_than_one() {
        let pacer = Pacer::default();
        pacer.set_rate(0, Some(100_000.0));
        let mut lanes: [(Lease, u64); 4] = Default::default();
        let mut count = 0u32;
        let (mut now, end) = (SECOND, 2 * SECOND);
        for (_, at) in &mut lanes {
            *at = now;
        }
        while now < end {
            for (lease, at) in &mut lanes {
                if *at <= now {
                    count += 1;
                    *at = lease.book(&pacer, now, 1.0);
                }
            }
            now += 1_000;
        }
        assert!((99_500..=100_500).contains(&count), "{count}");
    }

    #[test]
    fn who_wakes_up_late_makes_up_for_it() {
        let pacer = Pacer::default();
        pacer.set_rate(0, Some(1000.0));
        let mut now = SECOND;
        let mut count = 0;
        while now < 2 * SECOND {
            // Each goes up to 0.7 ms late.
            now = now.max(pacer.book(now, 1.0)) + 700_000 * (count % 2);
            count += 1;
        }
        assert!((1000..=1005).contains(&count), "{count}");
    }

    #[test]
    fn a_pause_is_made_up_for_by_no_more_than_a_burst() {
        let pacer = Pacer::default();
        pacer.set_rate(0, Some(1000.0));
        let now = 100 * SECOND;
        let at_once = (0..100).filter(|_| pacer.book(now, 1.0) <= now).count();
        assert_eq!(at_once, 5, "a burst of four, and the one that is due");
    }

    #[test]
    fn a_new_rate_does_not_wait_for_the_old() {
        let pacer = Pacer::default();
        pacer.set_rate(0, Some(1.0));
        let now = 10 * SECOND;
        for _ in 0..10 {
            pacer.book(now, 1.0);
        }
        pacer.set_rate(now, Some(1000.0));
        assert!(pacer.book(now, 1.0) <= now + BURST_NS);
        pacer.set_rate(now, None);
        assert!(!pacer.is_limited());
        assert_eq!(pacer.book(now, 1e12), now);
    }

    #[test]
    fn what_is_booked_moves() {
        let (here, there) = (Pacer::default(), Pacer::default());
        for pacer in [&here, &there] {
            pacer.set_rate(0, Some(100.0));
        }
        let now = 5 * SECOND;
        for _ in 0..20 {
            here.book(now, 1.0);
        }
        let other = 777 * SECOND;
        there.set_booked(other, here.booked_ns(now));
        assert_eq!(there.book(other, 1.0) - other, here.book(now, 1.0) - now);
    }
}
