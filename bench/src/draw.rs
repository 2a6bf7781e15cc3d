//! Which block comes next: of a plain load, with nothing to verify.

use crate::frontend::Op;
use crate::rng::Rng;

/// Draws reads and writes of whole blocks.
#[derive(Debug)]
pub struct Blocks {
    /// Blocks of the disk that are used.
    pub count: u64,
    /// Bytes of each; a multiple of 512.
    pub block_bytes: u32,
    /// Anywhere, or one after the other.
    pub random: bool,
    /// Share of reads, in percent.
    pub read_percent: u64,
    /// The block before the first, of those that come one after the other.
    pub at: u64,
    /// Where chance comes from.
    pub rng: Rng,
}

impl Blocks {
    /// What to do, and from which sector.
    #[inline]
    pub fn draw(&mut self) -> (Op, u64) {
        let block = if self.random {
            self.rng.below(self.count)
        } else {
            self.at = (self.at + 1) % self.count;
            self.at
        };
        let read = match self.read_percent {
            0 => false,
            100 => true,
            percent => self.rng.percent(percent),
        };
        let op = if read { Op::Read } else { Op::Write };
        (op, block * (u64::from(self.block_bytes) / 512))
    }
}
