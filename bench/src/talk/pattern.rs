//! What a stream carries: each byte is known from its session, connection, direction and offset.

use crate::rng::mix;

/// Which end sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Server,
}

impl Side {
    pub(super) fn other(self) -> Side {
        match self {
            Side::Caller => Side::Server,
            Side::Server => Side::Caller,
        }
    }
}

/// The bytes of one direction of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern(u64);

impl Pattern {
    pub(super) fn new(session: u64, connection: u16, sender: Side) -> Self {
        let direction = u64::from(sender == Side::Server);
        Self(mix(session ^ mix(u64::from(connection) << 1 | direction)))
    }

    fn word(self, index: u64) -> [u8; 8] {
        mix(self.0.wrapping_add(index)).to_le_bytes()
    }

    /// Writes what stands from `offset` on.
    pub(super) fn fill(self, offset: u64, out: &mut [u8]) {
        let mut offset = offset;
        let mut left = out;
        while !left.is_empty() {
            let word = self.word(offset / 8);
            // Below eight.
            let skip = usize::try_from(offset % 8).unwrap_or(0);
            let count = left.len().min(8 - skip);
            let (now, rest) = left.split_at_mut(count);
            now.copy_from_slice(&word[skip..skip + count]);
            offset += count as u64;
            left = rest;
        }
    }

    /// The first of `bytes`, which stand from `offset` on, that is another than it must be.
    pub(super) fn differs(self, offset: u64, bytes: &[u8]) -> Option<u64> {
        const PIECE: usize = 512;
        let mut wanted = [0; PIECE];
        let mut offset = offset;
        for piece in bytes.chunks(PIECE) {
            let wanted = &mut wanted[..piece.len()];
            self.fill(offset, wanted);
            if piece != wanted {
                let at = piece.iter().zip(wanted).position(|(a, b)| *a != *b);
                return Some(offset + at.unwrap_or(0) as u64);
            }
            offset += piece.len() as u64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_however_it_is_cut() {
        let pattern = Pattern::new(7, 3, Side::Caller);
        let mut whole = [0; 2000];
        pattern.fill(0, &mut whole);
        for (from, to) in [(0, 1), (1, 9), (5, 700), (13, 2000), (1999, 2000)] {
            let mut part = vec![0; to - from];
            pattern.fill(from as u64, &mut part);
            assert_eq!(part, whole[from..to]);
            assert_eq!(pattern.differs(from as u64, &part), None);
        }
    }

    #[test]
    fn a_byte_that_changed_or_stands_elsewhere_is_seen() {
        let pattern = Pattern::new(7, 3, Side::Caller);
        let mut whole = [0; 2000];
        pattern.fill(64, &mut whole);
        assert!(pattern.differs(65, &whole).is_some());
        whole[777] ^= 1;
        assert_eq!(pattern.differs(64, &whole), Some(64 + 777));
    }

    #[test]
    fn no_two_directions_are_alike() {
        let mut seen = std::collections::HashSet::new();
        for session in 0..3 {
            for connection in 0..100 {
                for side in [Side::Caller, Side::Server] {
                    let mut bytes = [0; 16];
                    Pattern::new(session, connection, side).fill(0, &mut bytes);
                    assert!(seen.insert(bytes));
                }
            }
        }
    }
}
