//! Where a disk's bytes go.
pub mod file;
