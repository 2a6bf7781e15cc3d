//! Waiting with a deadline.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Check, Failure};

const POLL: Duration = Duration::from_millis(20);

/// Asks `ready` again and again until it gives a value, fails, or the time is
/// up. `what` finishes the sentence "waited in vain for ...".
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Check<Option<T>>,
) -> Check<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            return Err(Failure(format!("waited {limit:?} in vain for {what}")));
        }
        sleep(POLL);
    }
}

/// Seconds, short to write.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
