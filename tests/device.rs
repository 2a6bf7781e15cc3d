//! The device as a front-end sees it, served and driven in this process: requests, rings that break
//! the rules, stop and start, what a dead predecessor left, the dirty log, the mirror and the gate.
//!
//! ```text
//!   cargo test --test device            all of them
//!   cargo test --test device mirror     one part
//! ```
#![allow(clippy::cast_possible_truncation)] // the numbers of these tests are small

#[path = "device/balance.rs"]
mod balance;
#[path = "device/bottleneck.rs"]
mod bottleneck;
#[path = "device/gate.rs"]
mod gate;
#[path = "device/hostile.rs"]
mod hostile;
#[path = "device/idle.rs"]
mod idle;
#[path = "device/inflight.rs"]
mod inflight;
#[path = "device/log.rs"]
mod log;
#[path = "device/messages.rs"]
mod messages;
#[path = "device/mirror.rs"]
mod mirror;
#[path = "device/nic_control.rs"]
mod nic_control;
#[path = "device/nic_hostile.rs"]
mod nic_hostile;
#[path = "device/nic_rig.rs"]
mod nic_rig;
#[path = "device/pinned.rs"]
mod pinned;
#[path = "device/places.rs"]
mod places;
#[path = "device/requests.rs"]
mod requests;
#[path = "device/resize.rs"]
mod resize;
#[path = "device/rig.rs"]
mod rig;
#[path = "device/stop.rs"]
mod stop;
#[path = "device/subblock.rs"]
mod subblock;
#[path = "device/thin.rs"]
mod thin;
#[path = "device/throttle.rs"]
mod throttle;
#[path = "device/tmpfs.rs"]
mod tmpfs;
