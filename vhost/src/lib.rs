//! vhost-user sessions, virtqueues, and the devices on them.
//!
//! ```text
//!   front-end ──socket──► session ──(device's state, a mutex)──► Disk ──commands──► worker
//!                                                                                     │
//!   guest memory ◄────────────── vring ◄── blk::queue (parse, complete) ◄── polled ───┘
//! ```
//!
//! Each device has one control thread, which runs the front-end's messages to their end: a message
//! that changes a running queue is answered after the queue's worker has applied it. A queue object
//! belongs to its worker while it runs and to the device otherwise.
//!
//! The devices stand on the `vhost` crate's request handler, not on the vhost-user-backend
//! framework: see `docs/adr/0001`.

pub mod blk;
pub mod inflight;
pub mod memory;
pub mod session;
pub mod vring;
