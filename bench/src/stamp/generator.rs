//! Draws the load from a seed.
//!
//! Half of the operations fall near a few hot spots or on top of a recent one,
//! so that requests overlap in flight and reads find something to check. Sizes
//! halve in frequency as they double.

use super::Span;
use crate::rng::Rng;

const HOT_SPOTS: u64 = 16;
const RECENT: usize = 64;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read and check.
    Read,
    /// Write stamps.
    Write,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Make durable; its span is empty.
    Flush,
}

/// How often each kind is drawn, relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Reads.
    pub read: u32,
    /// Writes.
    pub write: u32,
    /// Discards.
    pub discard: u32,
    /// Write-zeroes.
    pub write_zeroes: u32,
    /// Flushes.
    pub flush: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            read: 50,
            write: 40,
            discard: 3,
            write_zeroes: 4,
            flush: 3,
        }
    }
}

impl Mix {
    /// Draws this kind no more.
    pub fn drop_kind(&mut self, kind: Kind) {
        *match kind {
            Kind::Read => &mut self.read,
            Kind::Write => &mut self.write,
            Kind::Discard => &mut self.discard,
            Kind::WriteZeroes => &mut self.write_zeroes,
            Kind::Flush => &mut self.flush,
        } = 0;
    }
}

/// The disk to draw for.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Sectors that may be touched, from 0.
    pub sectors: u64,
    /// Every span starts and ends on a multiple of this many sectors.
    pub align: u64,
    /// Longest span.
    pub sectors_max: u64,
}

/// What to do next, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub kind: Kind,
    /// Where.
    pub span: Span,
}

/// An endless load.
#[derive(Debug, Clone)]
pub struct Generator {
    rng: Rng,
    shape: Shape,
    mix: Mix,
    hot: Vec<u64>,
    recent: Vec<Span>,
    next_recent: usize,
}

impl Generator {
    /// The hot spots follow from `spots`, which several generators on one disk
    /// share so that they meet; all else from `seed`.
    pub fn new(seed: u64, spots: u64, shape: Shape, mix: Mix) -> Self {
        let mut rng = Rng::new(spots);
        let hot = (0..HOT_SPOTS).map(|_| rng.below(shape.sectors)).collect();
        Self {
            rng: Rng::new(seed),
            shape,
            mix,
            hot,
            recent: Vec::new(),
            next_recent: 0,
        }
    }

    /// What to do next.
    pub fn draw(&mut self) -> Planned {
        let kind = self.kind();
        if kind == Kind::Flush {
            return Planned {
                kind,
                span: Span {
                    start: 0,
                    sectors: 0,
                },
            };
        }
        let sectors = self.length();
        let span = self.place(sectors);
        if kind != Kind::Read {
            self.remember(span);
        }
        Planned { kind, span }
    }

    /// Draws a kind no more, for a disk that turned out not to take it.
    pub fn drop_kind(&mut self, kind: Kind) {
        self.mix.drop_kind(kind);
    }

    fn kind(&mut self) -> Kind {
        let m = self.mix;
        let table = [
            (Kind::Read, m.read),
            (Kind::Write, m.write),
            (Kind::Discard, m.discard),
            (Kind::WriteZeroes, m.write_zeroes),
            (Kind::Flush, m.flush),
        ];
        let mut at = self
            .rng
            .below(table.iter().map(|(_, w)| u64::from(*w)).sum());
        for (kind, weight) in table {
            if at < u64::from(weight) {
                return kind;
            }
            at -= u64::from(weight);
        }
        Kind::Read
    }

    fn length(&mut self) -> u64 {
        let most = self.shape.sectors_max.min(self.shape.sectors);
        let doublings = u64::from((most / self.shape.align).max(1).ilog2()) + 1;
        // Half draw the smallest step, a quarter the next, and so on; one in ten
        // draws any step, so that large ones are seen soon.
        let step = if self.rng.percent(10) {
            self.rng.below(doublings)
        } else {
            u64::from(self.rng.next_u64().trailing_zeros()).min(doublings - 1)
        };
        let base = self.shape.align << step;
        let extra = self.rng.below(base / self.shape.align) * self.shape.align;
        (base + extra).clamp(
            self.shape.align,
            (most / self.shape.align).max(1) * self.shape.align,
        )
    }

    fn place(&mut self, sectors: u64) -> Span {
        let room = self.shape.sectors.saturating_sub(sectors);
        let near = match self.rng.below(10) {
            0..5 => self.rng.below(room + 1),
            5..7 => {
                let spot = usize::try_from(self.rng.below(HOT_SPOTS)).unwrap_or(0);
                let back = self.rng.below(sectors + 16);
                self.hot[spot].saturating_sub(back)
            }
            _ => self.near_recent(sectors),
        };
        let start = near.min(room) / self.shape.align * self.shape.align;
        Span { start, sectors }
    }

    fn near_recent(&mut self, sectors: u64) -> u64 {
        if self.recent.is_empty() {
            return 0;
        }
        let i = usize::try_from(self.rng.below(self.recent.len() as u64)).unwrap_or(0);
        let span = self.recent[i];
        let back = self.rng.below(sectors);
        (span.start + self.rng.below(span.sectors)).saturating_sub(back)
    }

    fn remember(&mut self, span: Span) {
        if self.recent.len() < RECENT {
            self.recent.push(span);
        } else {
            self.recent[self.next_recent] = span;
            self.next_recent = (self.next_recent + 1) % RECENT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stay_on_the_disk_and_on_the_grid() {
        for (sectors, align, sectors_max) in [(8, 8, 2048), (1 << 20, 1, 2048), (5000, 8, 2048)] {
            let shape = Shape {
                sectors,
                align,
                sectors_max,
            };
            let mut generator = Generator::new(1, 2, shape, Mix::default());
            let mut largest = 0;
            for _ in 0..20_000 {
                let Planned { kind, span } = generator.draw();
                if kind == Kind::Flush {
                    continue;
                }
                assert!(span.sectors > 0 && span.end() <= sectors, "{span:?}");
                assert!(span.sectors <= sectors_max);
                assert!(
                    span.start % align == 0 && span.sectors % align == 0,
                    "{span:?}"
                );
                largest = largest.max(span.sectors);
            }
            assert!(
                largest * 2 > sectors_max.min(sectors),
                "large ones are drawn: {largest}"
            );
        }
    }

    #[test]
    fn a_seed_draws_the_same_load_again() {
        let shape = Shape {
            sectors: 4096,
            align: 1,
            sectors_max: 64,
        };
        let draw = |seed| {
            let mut g = Generator::new(seed, 0, shape, Mix::default());
            (0..100).map(|_| g.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }

    #[test]
    fn a_dropped_kind_is_not_drawn() {
        let shape = Shape {
            sectors: 4096,
            align: 1,
            sectors_max: 64,
        };
        let mut g = Generator::new(5, 0, shape, Mix::default());
        g.drop_kind(Kind::Discard);
        assert!((0..10_000).all(|_| g.draw().kind != Kind::Discard));
    }
}
