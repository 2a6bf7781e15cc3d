//! The engine.
pub mod backend;
pub mod buffer;
pub mod lifecycle;
pub mod sys;
pub mod units;
