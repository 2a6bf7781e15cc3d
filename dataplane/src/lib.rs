//! The engine.
pub mod backend;
pub mod buffer;
pub mod clock;
pub mod disk;
pub mod lifecycle;
pub mod limits;
pub mod metrics;
pub mod queue;
pub mod request;
mod ring;
pub mod segments;
pub mod slots;
pub mod sys;
pub mod worker;
