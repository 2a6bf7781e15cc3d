//! vhost-user sessions, virtqueues, and the devices on them.
//!
//! ```text
//!   front-end ──socket──► session ──► Device<Kind> ──(its state, a mutex)──► Kind ──commands──► worker
//!                                                                                                 │
//!   guest memory ◄───────────────── vring ◄── the kind's queue (blk: parse, complete) ◄── polled ─┘
//! ```
//!
//! Each device has one control thread, which runs the front-end's messages to their end: a message
//! that changes a running queue is answered after the queue's worker has applied it. A queue object
//! belongs to its worker while it runs and to the device otherwise. What the messages mean is the
//! same for every kind of device and stands in `device`; a kind says what it offers and who serves
//! its rings.
//!
//! The devices stand on the `vhost` crate's request handler, not on the vhost-user-backend
//! framework: see `docs/adr/0001`.

mod back_channel;
pub mod blk;
pub mod device;
mod early;
pub mod inflight;
pub mod memory;
pub mod net;
pub mod session;
pub mod vring;
