//! The engine: polled io_uring workers that carry requests from queues to backends.
//!
//! ```text
//!              RequestQueue (a virtqueue, in crate ferry-vhost)
//!   fetch: pop, copy, validate │                       ▲ complete, publish: used ring, one call
//!                              ▼                       │
//!   worker thread:  slot ─► admit ─► start ─► io_uring / copy ─► finish ─► deliver
//!                    │       │                     │                │
//!                    │       └ waits: range, buffer│                └ waits: mirror, delay
//!                    └ owns guest memory, bounce buffer until the CQE
//!                                                  ▼
//!                              Backend: image (O_DIRECT), memory, null, thin (a pool)
//! ```
//!
//! # Glossary
//!
//! - **worker** ([`worker`]): a thread with one io_uring, the only owner of the queues it polls.
//! - **queue** ([`queue::RequestQueue`]): where requests come from. The engine knows no vhost-user.
//! - **slot** ([`slots`]): a request in hand; owns what the kernel may touch.
//! - **lane**: one disk on one worker. **disk** ([`disk::Disk`]): its lanes and where its queues are.
//! - **placement** ([`placement`], [`rebalance`]): which queue should be on which worker.
//! - **backend** ([`backend`]): where the bytes go.
//! - **datastore**, **window**, **shares** ([`qos`]): who gets how much of a device that is shared.
//! - **net** ([`net`]): what is known of a frame between NICs, and decided about it.
//! - **tap**, **range lock**, **gate** ([`lifecycle`]): what a migration needs of a disk.
//!
//! Control reaches a worker as bounded messages between two polls. Time is read in one place
//! ([`clock`]) and passed on. Every bound has a name ([`limits`]). Unsafe code is in `ring`, `sys`,
//! `buffer`, `guard`, `segments`, `backend::mapped`, `backend::delay::words` and
//! `backend::thin::storage` alone.

pub mod backend;
pub mod buffer;
pub mod clock;
pub mod disk;
pub mod guard;
pub mod lifecycle;
pub mod limits;
pub mod metrics;
pub mod net;
pub mod placement;
pub mod qos;
pub mod queue;
pub mod rebalance;
pub mod request;
mod ring;
pub mod segments;
pub mod slots;
pub mod sys;
pub mod worker;
