//! Storage I/O Control: disks that share a datastore get their shares of it when it is congested.
//!
//! ```text
//!   a request ──► held while a limit is used up ──► held while the window is full ──► backend
//!                 pacer: one for each disk, of      scheduler: one for each worker
//!                 all workers                       and datastore
//!
//!   every 10 ms   governor: demand of each disk on each worker ──► windows, weights, reservations
//!   every period  governor: latency of the datastore ──► its window ──► this host's part of it
//!                 statistics file: what each host did, and wants
//! ```
//!
//! Until the datastore's latency passes its threshold nothing is held back but what has a limit: the
//! window is open, and a request is counted and passes. Then the window of the whole datastore is
//! steered so that its latency is the threshold's, and divided so that every disk has its share of
//! it, or less if it wants less (max-min fairness); whoever does not use its part gives it to the
//! others.
//!
//! The sources: PARDA (Gulati, Ahmad, Waldspurger, FAST 2009) for windows steered by latency, without
//! messages between hosts; mClock (Gulati, Merchant, Varman, OSDI 2010) for reservations, limits and
//! shares on one host. What differs from them, and why, stands in decision 18 (`docs/adr`).
//!
//! All of it but the statistics file is pure: it takes the time as an argument and does no I/O, so that the
//! same code runs under the simulated array of `ferry-bench sioc`.
//!
//! - [`cost`], [`medium`]: what a request counts for, and what latency a medium may have.
//! - [`pacer`]: limits. [`scheduler`], [`window`]: who is next on a worker, and when.
//! - [`governor`]: control of a datastore in one process. It joins [`controller`] (the window),
//!   [`division`] (between whom), [`coordinator`] (on which worker) and [`unmanaged`] (outsiders).
//! - [`stats_file`]: what hosts tell each other. [`threshold`]: one that nobody has set.

pub mod controller;
pub mod coordinator;
pub mod cost;
pub mod division;
pub mod domain;
pub mod governor;
mod heap;
pub mod latency;
pub mod medium;
pub mod pacer;
pub mod scheduler;
pub mod stats_file;
pub mod threshold;
pub mod unmanaged;
pub mod window;

pub use cost::{COST_ONE, Cost, CostModel, UNIT_BYTES};
pub use medium::Medium;

/// Shares of a disk that nothing else was said of.
pub const SHARES_NORMAL: u32 = 1000;
/// Half of the normal.
pub const SHARES_LOW: u32 = 500;
/// Twice the normal.
pub const SHARES_HIGH: u32 = 2000;
/// The most that a disk may have.
pub const SHARES_MAX: u32 = 1_000_000;

/// What a disk is to get of its datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Its part under congestion, in proportion to the others'; 1 to [`SHARES_MAX`].
    pub shares: u32,
    /// No more than so many I/Os a second, as the datastore's cost model counts them.
    pub limit_iops: Option<u64>,
    /// No more than so many bytes a second.
    pub limit_bytes: Option<u64>,
    /// At least so many I/Os a second, counted in the same way, whatever the window. 0 for none.
    pub reservation_iops: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            shares: SHARES_NORMAL,
            limit_iops: None,
            limit_bytes: None,
            reservation_iops: 0,
        }
    }
}
