//! The one place that reads a clock. Everything with logic takes the time as an argument.

use std::sync::OnceLock;
use std::time::Instant;

use crate::sys;

/// Nanoseconds on the monotonic clock since the process first asked.
pub fn now_ns() -> u64 {
    static BASE: OnceLock<Instant> = OnceLock::new();
    let elapsed = BASE.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// What to add to [`now_ns`] for the time of the clock that all processes of this host share.
pub fn host_offset_ns() -> u64 {
    // The two are read one after the other: the quickest of a few tries is the truest.
    let try_once = || {
        let before = now_ns();
        let host = sys::monotonic_ns();
        (now_ns() - before, host.saturating_sub(before))
    };
    let tries = (0..OFFSET_TRIES).map(|_| try_once());
    tries.min().map_or(0, |(_, offset_ns)| offset_ns)
}

const OFFSET_TRIES: usize = 16;
