//! Storage I/O Control as it is configured: what disks and groups of disks are to get, how a
//! datastore is steered, and what of it is against good practice.
//!
//! The words of the configuration and of the commands are here; what they mean to the engine is in
//! `ferry_dataplane::qos`. The daemon is known only by what it keeps.
//!
//! - [`disk`]: shares, limits and the reservation of a disk; [`group`]: limits of several together.
//! - [`datastore`]: mode, medium and threshold of a datastore.
//! - [`device`]: which device a datastore is on.
//! - [`lint`]: what is better done otherwise.

pub mod datastore;
pub mod device;
pub mod disk;
pub mod group;
pub mod lint;
pub mod picture;
pub mod said;
pub mod shares;

#[cfg(test)]
mod tests;

/// Bytes in a megabyte, as `limit_mbps` and `ferry iostat` count them.
pub const MB: u64 = 1_000_000;

/// The most that a limit or a reservation may be, in a second; more is no limit of anything.
const A_SECOND_MAX: u64 = 1_000_000_000;

/// Whether a number can be a limit; if not, what to do about it.
fn check_limit(key: &str, limit: Option<u64>) -> Result<(), String> {
    match limit {
        Some(0) => Err(format!(
            "{key} = 0 would serve nothing; give a number above 0, or leave it out (none)"
        )),
        Some(limit) if limit > A_SECOND_MAX => Err(format!(
            "{key} is at most {A_SECOND_MAX}; leave it out for no limit (none)"
        )),
        _ => Ok(()),
    }
}
