//! A stamped, verified load as pure logic: no I/O, no clock.
//!
//! Every sector written carries who wrote it ([`Stamper`]). The [`Oracle`] is
//! told when each operation begins and ends, and keeps for every sector the set
//! of values that a correct disk may return. The [`Generator`] draws the load
//! from a seed, with overlaps on purpose.
//!
//! ```text
//!   op.begin ............ op.complete(ok)
//!        \___ its value may be seen from here on
//!                          \___ values whose writer ended before op began are dead
//! ```
//!
//! - Writes in flight together on a sector may land in either order: both stay
//!   candidates. A read during whose whole flight no write was in flight shows
//!   which one won, and from then on the disk must stick to it: a winner that
//!   changes later, after a move say, is a mismatch.
//! - A read that overlaps a write may see any value that was possible at any
//!   time of its flight, or a torn sector. Without a write in flight a torn
//!   sector is a mismatch.
//! - A failed write may or may not have landed. A discard leaves zero or what
//!   was there. Both are values that may be, and that kill no other.

mod format;
mod generator;
mod oracle;

pub use format::{Claim, Seen, Stamper};
pub use generator::{Generator, Kind, Mix, Planned, Shape};
pub use oracle::{Initial, Mismatch, MismatchKind, OpId, Oracle, Value};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A range of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First sector.
    pub start: u64,
    /// Number of sectors.
    pub sectors: u64,
}

impl Span {
    /// The first sector past the range.
    pub fn end(self) -> u64 {
        self.start + self.sectors
    }

    /// Length in bytes.
    pub fn bytes(self) -> usize {
        usize::try_from(self.sectors).map_or(usize::MAX, |n| n.saturating_mul(SECTOR))
    }
}

#[cfg(test)]
mod tests;
