//! What a stamped sector looks like.
//!
//! Eight-byte little-endian words: magic, run, operation, sector, checksum, then
//! filler. The filler follows from run, operation and sector, so a sector of
//! which only a part is new never passes for whole, whatever part that is.

use super::SECTOR;
use crate::rng::mix;

const MAGIC: u64 = u64::from_le_bytes(*b"FERRYSTM");
const WORDS: usize = SECTOR / 8;
const FILLER: usize = 5;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a sector says of itself, when it says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The run that wrote it.
    pub run: u64,
    /// The operation within the run.
    pub op: u64,
    /// The sector it was written to.
    pub sector: u64,
    /// Whether the whole sector agrees with the claim.
    pub intact: bool,
}

/// What was found in a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// All zero.
    Zero,
    /// A whole stamp of this run.
    Stamp {
        /// Who wrote it.
        op: u64,
        /// Where it was written to.
        sector: u64,
    },
    /// Anything else: torn, of another run, or not ours at all.
    Foreign {
        /// Of all bytes, to know the same contents again.
        hash: u64,
        /// What the head of the sector says, if it has our magic.
        claim: Option<Claim>,
    },
}

/// Writes and reads the stamps of one run.
#[derive(Debug, Clone, Copy)]
pub struct Stamper {
    run: u64,
}

impl Stamper {
    /// `run` tells this run's stamps from those of earlier ones on the disk.
    pub fn new(run: u64) -> Self {
        Self { run }
    }

    /// Fills whole sectors, the first of which goes to `sector`.
    pub fn fill(self, op: u64, sector: u64, out: &mut [u8]) {
        for (at, chunk) in (sector..).zip(out.chunks_exact_mut(SECTOR)) {
            for (bytes, word) in chunk.chunks_exact_mut(8).zip(words(self.run, op, at)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Reads one sector.
    pub fn look(self, sector: &[u8]) -> Seen {
        let mut found = sector.chunks_exact(8).map(word);
        if found.clone().all(|w| w == 0) {
            return Seen::Zero;
        }
        let claim = claim(sector);
        match claim {
            Some(c) if c.intact && c.run == self.run => Seen::Stamp {
                op: c.op,
                sector: c.sector,
            },
            _ => {
                let hash = found.by_ref().fold(0, |h, w| mix(h ^ w).wrapping_add(STEP));
                Seen::Foreign { hash, claim }
            }
        }
    }

    /// Reads every sector of a buffer.
    pub fn look_all(self, data: &[u8]) -> Vec<Seen> {
        data.chunks_exact(SECTOR).map(|s| self.look(s)).collect()
    }
}

fn claim(sector: &[u8]) -> Option<Claim> {
    let mut head = [0; 4];
    for (out, bytes) in head.iter_mut().zip(sector.chunks_exact(8)) {
        *out = word(bytes);
    }
    let [magic, run, op, at] = head;
    if magic != MAGIC {
        return None;
    }
    let intact = sector.chunks_exact(8).map(word).eq(words(run, op, at));
    Some(Claim {
        run,
        op,
        sector: at,
        intact,
    })
}

fn words(run: u64, op: u64, sector: u64) -> impl Iterator<Item = u64> {
    let base = mix(run ^ mix(op ^ mix(sector)));
    let check = mix(base ^ MAGIC);
    let head = [MAGIC, run, op, sector, check];
    let filler = (FILLER..WORDS).map(move |i| {
        base.rotate_left(u32::try_from(i).unwrap_or(0)) ^ STEP.wrapping_mul(i as u64)
    });
    head.into_iter().chain(filler)
}

fn word(bytes: &[u8]) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(bytes);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_known_again_and_any_flipped_bit_is_seen() {
        let stamper = Stamper::new(7);
        let mut data = vec![0; 2 * SECTOR];
        stamper.fill(3, 100, &mut data);
        assert_eq!(
            stamper.look(&data[..SECTOR]),
            Seen::Stamp { op: 3, sector: 100 }
        );
        assert_eq!(
            stamper.look(&data[SECTOR..]),
            Seen::Stamp { op: 3, sector: 101 }
        );
        for bit in 0..SECTOR * 8 {
            data[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(stamper.look(&data[..SECTOR]), Seen::Foreign { .. }),
                "bit {bit}"
            );
            data[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn every_tear_is_seen() {
        let stamper = Stamper::new(7);
        let (mut old, mut new) = (vec![0; SECTOR], vec![0; SECTOR]);
        stamper.fill(1, 5, &mut old);
        stamper.fill(2, 5, &mut new);
        // The first two words, magic and run, are the same in both.
        for cut in 3..SECTOR / 8 {
            let torn = [&new[..cut * 8], &old[cut * 8..]].concat();
            assert!(
                matches!(stamper.look(&torn), Seen::Foreign { .. }),
                "cut at word {cut}"
            );
        }
    }

    #[test]
    fn another_run_is_foreign_but_legible() {
        let mut data = vec![0; SECTOR];
        Stamper::new(1).fill(9, 4, &mut data);
        let Seen::Foreign {
            claim: Some(claim), ..
        } = Stamper::new(2).look(&data)
        else {
            panic!("not foreign")
        };
        assert_eq!(
            (claim.run, claim.op, claim.sector, claim.intact),
            (1, 9, 4, true)
        );
    }
}
