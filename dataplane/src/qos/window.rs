//! How much may be at the device at a time, on average.
//!
//! A window is a number of slots with a fraction, because shares of 500 and 2000 at four slots are
//! 0.8 and 3.2. What fits goes at once. What fits in part only (the half slot of 1.5, or a request
//! larger than the window) goes while the account of slot-time is above zero: it gains
//! `slots - in flight` for every nanosecond, so that the average is kept exactly whatever the device's
//! latency is, and no rate has to be guessed.

use super::cost::{COST_ONE, Cost};

/// What the account may be ahead, in slot-nanoseconds: one slot for a millisecond.
const AHEAD: f64 = 1e6;
/// What it may be behind: a request of a mebibyte that takes two seconds.
const BEHIND: f64 = -64e9;

/// See the module.
#[derive(Debug)]
pub struct Window {
    /// Infinite while it is open.
    slots: f64,
    in_flight: u64,
    account: f64,
    at_ns: u64,
}

fn slots_of(cost: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let cost = cost as f64;
    cost / f64::from(COST_ONE)
}

impl Default for Window {
    fn default() -> Window {
        Window {
            slots: f64::INFINITY,
            in_flight: 0,
            account: 0.0,
            at_ns: 0,
        }
    }
}

impl Window {
    /// Whether nothing is held back for it.
    pub fn is_open(&self) -> bool {
        self.slots.is_infinite()
    }

    /// The slots; infinite while it is open.
    pub fn slots(&self) -> f64 {
        self.slots
    }

    /// The cost of what is at the device.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Changes the number of slots; infinity opens it. What is not a positive number changes nothing.
    pub fn set(&mut self, now_ns: u64, slots: f64) {
        if slots.is_nan() || slots <= 0.0 {
            return;
        }
        self.settle(now_ns);
        if slots.is_infinite() || self.is_open() {
            self.account = 0.0;
            self.at_ns = self.at_ns.max(now_ns);
        }
        self.slots = slots;
    }

    fn settle(&mut self, now_ns: u64) {
        if self.is_open() {
            return; // nothing is accounted for
        }
        #[allow(clippy::cast_precision_loss)]
        let elapsed = now_ns.saturating_sub(self.at_ns) as f64;
        let gained = (self.slots - slots_of(self.in_flight)) * elapsed;
        self.account = (self.account + gained).clamp(BEHIND, AHEAD);
        self.at_ns = self.at_ns.max(now_ns);
    }

    /// Whether a request may go to the device.
    pub fn allows(&mut self, now_ns: u64, cost: Cost) -> bool {
        if self.is_open() {
            return true;
        }
        self.settle(now_ns);
        let used = slots_of(self.in_flight);
        let fits = used + slots_of(cost.into()) <= self.slots;
        fits || (used < self.slots && self.account > 0.0)
    }

    /// When a request that was not allowed may go, if nothing ends before. `None`: not before something
    /// ends.
    pub fn next_ns(&self, now_ns: u64) -> Option<u64> {
        let free = self.slots - slots_of(self.in_flight);
        if free <= 0.0 {
            return None;
        }
        // A moment later than zero: it must be above.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let wait = (-self.account / free).max(0.0) as u64; // saturates
        Some(now_ns.saturating_add(wait).saturating_add(1))
    }

    /// A request went to the device.
    pub fn begin(&mut self, now_ns: u64, cost: Cost) {
        self.settle(now_ns);
        self.in_flight += u64::from(cost);
    }

    /// The device ended a request.
    pub fn end(&mut self, now_ns: u64, cost: Cost) {
        self.settle(now_ns);
        debug_assert!(
            self.in_flight >= u64::from(cost),
            "ended without a beginning"
        );
        self.in_flight = self.in_flight.saturating_sub(u64::from(cost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps a window full for a second of virtual time, at a latency; mean slots in use.
    fn mean(slots: f64, latency_ns: u64, cost: Cost) -> f64 {
        let mut window = Window::default();
        window.set(0, slots);
        let mut ends = std::collections::BinaryHeap::new();
        let (mut now, mut area) = (0u64, 0.0);
        let end = 20_000_000_000;
        while now < end {
            while window.allows(now, cost) {
                window.begin(now, cost);
                ends.push(std::cmp::Reverse(now + latency_ns));
            }
            let first = ends.peek().map(|it| it.0).into_iter();
            let next = first.chain(window.next_ns(now)).min().expect("one of them");
            area += slots_of(window.in_flight()) * (next - now) as f64;
            now = next;
            while ends.peek().is_some_and(|it| it.0 <= now) {
                ends.pop();
                window.end(now, cost);
            }
        }
        area / now as f64
    }

    #[test]
    fn the_mean_is_the_windows_whatever_the_latency() {
        for slots in [0.1, 0.4, 0.8, 1.0, 1.5, 3.2, 7.0, 7.9, 64.0] {
            for latency_ns in [50_000, 1_000_000, 30_000_000] {
                let mean = mean(slots, latency_ns, COST_ONE);
                let error = (mean / slots - 1.0).abs();
                assert!(error < 0.02, "{slots} slots at {latency_ns} ns: {mean}");
            }
        }
    }

    #[test]
    fn large_requests_get_no_more_of_it_and_no_less() {
        for slots in [0.5, 2.0, 9.0] {
            let mean = mean(slots, 2_000_000, 16 * COST_ONE);
            assert!((mean / slots - 1.0).abs() < 0.03, "{slots} slots: {mean}");
        }
    }

    #[test]
    fn it_opens_and_closes_and_minds_no_nonsense() {
        let mut window = Window::default();
        window.begin(0, COST_ONE * 40);
        assert!(window.allows(0, COST_ONE));
        window.set(1, 4.0);
        assert!(!window.allows(2, COST_ONE), "what is there counts");
        assert_eq!(window.next_ns(2), None);
        for nonsense in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            window.set(3, nonsense);
            assert_eq!(window.slots(), 4.0);
        }
        window.end(4, COST_ONE * 40);
        assert!(window.allows(4, COST_ONE));
        window.set(5, f64::INFINITY);
        assert!(window.allows(5, COST_ONE * 1000));
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut window = Window::default();
        window.set(0, 0.5);
        let hour = 3_600_000_000_000;
        assert!(window.allows(hour, COST_ONE));
        window.begin(hour, COST_ONE);
        window.end(hour + 10_000_000, COST_ONE);
        assert!(!window.allows(hour + 10_000_000, COST_ONE));
        let next = window.next_ns(hour + 10_000_000).unwrap();
        assert!(next > hour + 10_000_000 + 7_000_000, "{}", next - hour);
    }
}
