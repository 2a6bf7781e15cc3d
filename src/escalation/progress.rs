//! How old what is in flight is, by looking from outside: workers count what they take and what
//! they end, and an observer that looks every so often ages it on its own clock. No logic here reads
//! one. What is seen is late by the time between two looks, and never early.

use std::collections::VecDeque;

use ferry_dataplane::metrics::Flow;

/// Looks remembered at which more had been taken than before.
const MARKS_MAX: usize = 64;

/// Longest time between two looks that counts in full, in looks that were wanted.
const LOOKS_LATE_MAX: u64 = 4;

/// The observer's clock: it stands still while the observer does. A process that was stopped, or a
/// host that was suspended, would otherwise find every disk stalled for that long when it goes on.
#[derive(Debug, Default)]
pub struct WatchClock {
    seen_ns: Option<u64>,
    watched_ns: u64,
}

impl WatchClock {
    /// The time watched so far, at `now_ns` of the monotonic clock.
    pub fn advance(&mut self, now_ns: u64, interval_ns: u64) -> u64 {
        let passed_ns = now_ns.saturating_sub(self.seen_ns.unwrap_or(now_ns));
        self.watched_ns += passed_ns.min(interval_ns.saturating_mul(LOOKS_LATE_MAX));
        self.seen_ns = Some(now_ns);
        self.watched_ns
    }

    /// The time watched up to the last look.
    pub fn now_ns(&self) -> u64 {
        self.watched_ns
    }
}

/// At this look, so many had been taken.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at_ns: u64,
    taken: u64,
}

/// What was seen of one disk.
#[derive(Debug, Default)]
pub struct Progress {
    flow: Option<Flow>,
    ended_at_ns: Option<u64>,
    /// Oldest first; those behind which all has ended are dropped.
    marks: VecDeque<Mark>,
}

/// Ages of a disk's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ages {
    pub in_flight: u64,
    /// The oldest request in flight is at least so old.
    pub oldest_ns: Option<u64>,
    /// Since the last completion that was seen.
    pub completed_ns: Option<u64>,
    /// Requests are in flight, and none has ended for so long.
    pub stalled_ns: Option<u64>,
}

impl Progress {
    /// Takes a look.
    pub fn look(&mut self, now_ns: u64, flow: Flow) {
        let before = self.flow.replace(flow);
        if before.is_some_and(|before| before.ended != flow.ended) {
            self.ended_at_ns = Some(now_ns);
        }
        if before.is_none_or(|before| before.taken != flow.taken) {
            // Without room the last mark stands for both, and what it says is too young: an age
            // that is "at least" may be that.
            if self.marks.len() == MARKS_MAX {
                self.marks.pop_back();
            }
            self.marks.push_back(Mark {
                at_ns: now_ns,
                taken: flow.taken,
            });
        }
        // If they end in order, all up to here have. If not, what is left is older still.
        while self.marks.front().is_some_and(|m| m.taken <= flow.ended) {
            self.marks.pop_front();
        }
    }

    /// What is known at `now_ns`.
    pub fn ages(&self, now_ns: u64) -> Ages {
        let flow = self.flow.unwrap_or_default();
        let since = |at_ns| now_ns.saturating_sub(at_ns);
        let oldest = self.marks.front().filter(|_| flow.in_flight() > 0);
        let oldest_ns = oldest.map(|mark| since(mark.at_ns));
        let completed_ns = self.ended_at_ns.map(since);
        Ages {
            in_flight: flow.in_flight(),
            oldest_ns,
            completed_ns,
            stalled_ns: oldest_ns.map(|ns| ns.min(completed_ns.unwrap_or(ns))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(taken: u64, ended: u64) -> Flow {
        Flow { taken, ended }
    }

    #[test]
    fn an_idle_disk_has_no_age() {
        let mut progress = Progress::default();
        for now_ns in 0..100 {
            progress.look(now_ns, flow(7, 7));
        }
        assert_eq!(progress.ages(100), Ages::default());
    }

    #[test]
    fn what_does_not_end_ages_from_when_it_was_first_seen() {
        let mut progress = Progress::default();
        progress.look(0, flow(4, 4));
        progress.look(10, flow(6, 5));
        let ages = |oldest, completed, stalled| Ages {
            in_flight: 1,
            oldest_ns: Some(oldest),
            completed_ns: Some(completed),
            stalled_ns: Some(stalled),
        };
        assert_eq!(progress.ages(30), ages(20, 20, 20));
        // Another begins and ends: there is progress, with one that is old.
        progress.look(40, flow(7, 6));
        let seen = progress.ages(50);
        assert_eq!((seen.completed_ns, seen.stalled_ns), (Some(10), Some(10)));
        progress.look(60, flow(7, 7));
        assert_eq!(
            (progress.ages(70).oldest_ns, progress.ages(70).in_flight),
            (None, 0)
        );
        // The next one is as old as it is, and not as the last completion.
        progress.look(100, flow(8, 7));
        assert_eq!(progress.ages(105), ages(5, 45, 5));
    }

    #[test]
    fn under_load_the_oldest_is_as_old_as_the_wait() {
        let mut progress = Progress::default();
        // Ten a look, each of which takes five looks.
        for n in 0..1000 {
            let ended = 10 * n - (10 * n).min(50);
            progress.look(n, flow(10 * n, ended));
            let oldest_ns = progress.ages(n).oldest_ns.unwrap_or(0);
            assert!(
                oldest_ns <= 5 && (n < 10 || oldest_ns >= 4),
                "{n}: {oldest_ns}"
            );
        }
    }

    #[test]
    fn marks_are_bounded_and_then_say_too_little() {
        let mut progress = Progress::default();
        for n in 1..1000 {
            progress.look(n, flow(n, 0));
        }
        assert_eq!(progress.marks.len(), MARKS_MAX);
        assert_eq!(progress.ages(1000).oldest_ns, Some(999));
        // Those in between are the ones that were not kept.
        progress.look(1000, flow(999, 500));
        assert_eq!(progress.ages(1000).oldest_ns, Some(1));
    }

    #[test]
    fn the_clock_stands_while_nobody_watches() {
        let mut clock = WatchClock::default();
        assert_eq!(clock.advance(1_000_000, 10), 0);
        assert_eq!(clock.advance(1_000_010, 10), 10);
        assert_eq!(clock.advance(1_000_030, 10), 30);
        assert_eq!(clock.advance(9_000_000, 10), 70);
    }
}
