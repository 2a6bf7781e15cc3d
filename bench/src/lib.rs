//! Load on virtual disks and NICs, and proof that they kept what they were given.
//!
//! - [`frontend`]: a vhost-user front-end, for the load generator, the
//!   demo and the tests.
//! - [`stamp`]: a verified load as pure logic: what to do next, and what a
//!   correct disk may answer.
//! - [`verify`]: that load on real disks, through any [`verify::Port`].
//! - [`peers`]: Ferry beside other servers; [`stock`]: one of those, the usual
//!   framework used in the usual way.
//! - [`scale`]: what idle disks and waking up cost a `ferry daemon`, and what a
//!   second worker brings.
//! - [`sioc`]: disks that share an array, on many hosts, in virtual time.
//! - [`blk`]: load on a vhost-user server; [`device`]: the verified load on a
//!   block device or file.
//! - [`net`]: frames through a vhost-user-net server, sent at one port and judged
//!   at another.
//! - [`talk`]: verified traffic between two hosts through their kernels' sockets.
//! - [`draw`]: the blocks of a load that is not verified.
//! - [`churn`]: devices attached, used and detached again and again at a daemon.

pub mod blk;
pub mod churn;
pub mod device;
pub mod draw;
pub mod error;
pub mod frontend;
pub mod net;
pub mod peers;
pub mod rng;
pub mod scale;
pub mod sioc;
pub mod spread;
pub mod stamp;
pub mod stock;
pub mod sys;
pub mod talk;
pub mod verify;
