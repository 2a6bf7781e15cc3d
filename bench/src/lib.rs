//! Load on block devices, and proof that they kept what they were given.
//!
//! - [`frontend`]: a vhost-user block front-end, for the load generator, the
//!   demo and the tests.
//! - [`stamp`]: a verified load as pure logic: what to do next, and what a
//!   correct disk may answer.
pub mod frontend;
pub mod rng;
pub mod stamp;
