//! Storage I/O Control beside what was published of it: disks that share an array, on many hosts, in
//! virtual time.
//!
//! The schedulers, the limits and the control are the daemon's own code; only the array, the guests
//! and the time are simulated. What everybody should have is worked out by other means.
//!
//! - [`array`]: the array; [`client`]: who asks it for something; [`spec`]: hosts, and what goes wrong;
//!   [`world`]: all of it in virtual time; [`tally`]: what was had.
//! - [`ideal`]: what each should have had; [`rows`]: what was published, that, and ours; [`chart`].

pub mod array;
pub mod chart;
pub mod client;
mod file;
mod host;
pub mod ideal;
pub mod rows;
pub mod spec;
mod steering;
pub mod tally;
pub mod world;
