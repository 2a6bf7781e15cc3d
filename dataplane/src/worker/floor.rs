//! The poll floor: how soon a queue that gave something is looked at again.
//!
//! A worker that is faster than its guest finds one request in every poll, and both spend their time
//! on moving cache lines to and fro. Leaving the queue alone for [`POLL_FLOOR_NS`] after a poll that
//! found something lets a batch gather: measured, 45 ns a request in place of 129. A guest that has
//! one request at a time gains nothing by it and waits for it, so the floor takes itself away after
//! [`FLOOR_SINGLES`] such polls, and is tried again after a while that doubles each time it is of no
//! use.

use crate::limits::{FLOOR_PAUSE_MAX, FLOOR_PAUSE_MIN, FLOOR_SINGLES, POLL_FLOOR_NS};

/// The floor under one queue.
#[derive(Debug)]
pub(super) struct PollFloor {
    /// Not to be polled before.
    until_ns: u64,
    /// Polls in a row that found one request.
    singles: u32,
    /// Polls that found something until the floor is tried again; 0 while it is there.
    pause: u32,
    /// The next pause.
    pause_next: u32,
}

impl Default for PollFloor {
    fn default() -> PollFloor {
        PollFloor {
            until_ns: 0,
            singles: 0,
            pause: 0,
            pause_next: FLOOR_PAUSE_MIN,
        }
    }
}

impl PollFloor {
    /// Whether the queue may be polled at `now_ns`.
    pub fn allows(&self, now_ns: u64) -> bool {
        now_ns >= self.until_ns
    }

    /// A poll at `now_ns` found `count` requests, one or more.
    pub fn found(&mut self, now_ns: u64, count: usize) {
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        if count > 1 {
            self.singles = 0;
            self.pause_next = FLOOR_PAUSE_MIN;
        } else {
            self.singles += 1;
        }
        if self.singles >= FLOOR_SINGLES {
            self.singles = 0;
            self.pause = self.pause_next;
            self.pause_next = (self.pause_next * 2).min(FLOOR_PAUSE_MAX);
        } else {
            self.until_ns = now_ns + POLL_FLOOR_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_the_floor_and_single_requests_take_it_away() {
        let mut floor = PollFloor::default();
        for now_ns in (0..100_000).step_by(1_000) {
            floor.found(now_ns, 3);
            assert!(!floor.allows(now_ns + POLL_FLOOR_NS - 1));
            assert!(floor.allows(now_ns + POLL_FLOOR_NS));
        }
        // How many of a long run of single requests have to wait.
        let run = 1_000_000;
        let waited = (0..run)
            .filter(|poll| {
                let now_ns = 200_000 + poll * 1_000;
                floor.found(now_ns, 1);
                !floor.allows(now_ns)
            })
            .count();
        assert!(waited > 0, "it is tried again");
        assert!(waited < 200, "{waited} of {run} single requests waited");
        // And once there is a batch when it is tried, it is back.
        let mut now_ns = 2_000_000_000;
        for _ in 0..=FLOOR_PAUSE_MAX {
            now_ns += 1_000;
            floor.found(now_ns, 2);
        }
        assert!(!floor.allows(now_ns));
    }
}
