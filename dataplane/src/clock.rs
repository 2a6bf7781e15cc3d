//! The one place that reads a clock. Everything with logic takes the time as an argument.

use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds on the monotonic clock since the process first asked.
pub fn now_ns() -> u64 {
    static BASE: OnceLock<Instant> = OnceLock::new();
    let elapsed = BASE.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}
