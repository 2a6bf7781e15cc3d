//! The rig of the QEMU tests: processes that die with the harness, a QMP
//! client, guests driven over a serial port, two Ferry daemons, and the
//! moves of a guest between them.
//!
//! ```text
//!   Trial --- TestDir                      one folder, its logs shown on failure
//!     Pair --- Daemon A, Daemon B          `ferry daemon`, driven by `ferry ...`
//!       |----- Link                     a relay between them that can be slow
//!       |----- Guest --- Qemu --- Qmp      commands and states
//!       |                  `----- Serial   one line in, markers out
//!       `----- Verifier                    ferry-bench inside the guest
//!     NetPair --- Segment --- Network      the same with a NIC, in networks
//!       `----- Talk                        traffic to the guest, verified
//! ```
//!
//! Every wait has a deadline and says what it waited for. Nothing panics on
//! what a child does: a check returns a [`Failure`], which the trial prints
//! with the tails of all logs.

pub mod daemon;
pub mod dir;
pub mod failure;
pub mod guest;
pub mod image;
pub mod link;
pub mod net_pair;
pub mod network;
pub mod pair;
pub mod process;
pub mod qmp;
pub mod serial;
pub mod serve;
pub mod storage_daemon;
pub mod talk;
pub mod trial;
pub mod verifier;
pub mod wait;

pub use dir::TestDir;
pub use failure::{Check, Failure};
