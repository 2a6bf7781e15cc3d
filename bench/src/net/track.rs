//! Which segments of a flow came, came twice, or came late.

/// Segments that are remembered behind the newest. Whatever a switch holds back
/// is far less; a segment that is later still counts as out of order, even if it
/// came before.
const WINDOW: u64 = 1 << 17;

/// One flow at its receiver.
#[derive(Debug, Clone)]
pub struct Track {
    /// One past the newest.
    next: u64,
    /// A bit for each of the last segments, by its number.
    seen: Vec<u64>,
    /// Different segments that came.
    pub unique: u64,
    /// Segments that came again.
    pub duplicated: u64,
    /// Segments that came after a newer one.
    pub out_of_order: u64,
}

impl Track {
    /// Expects the flow's first segment.
    pub fn new() -> Self {
        Self {
            next: 0,
            seen: vec![0; usize::try_from(WINDOW / 64).unwrap_or(0)],
            unique: 0,
            duplicated: 0,
            out_of_order: 0,
        }
    }

    /// Takes a segment by its number, which may have wrapped; true unless it came
    /// before.
    #[inline]
    pub fn note(&mut self, seq: u32) -> bool {
        let [.., a, b, c, d] = self.next.to_be_bytes();
        let ahead = seq.wrapping_sub(u32::from_be_bytes([a, b, c, d]));
        if ahead < 1 << 31 {
            self.advance(u64::from(ahead));
            self.unique += 1;
            return true;
        }
        let behind = u64::from(ahead.wrapping_neg());
        if behind <= WINDOW.min(self.next) {
            let (word, bit) = place(self.next - behind);
            if self.seen[word] & bit != 0 {
                self.duplicated += 1;
                return false;
            }
            self.seen[word] |= bit;
        }
        self.out_of_order += 1;
        self.unique += 1;
        true
    }

    /// Segment `next + ahead` came: those before it did not, yet.
    #[inline]
    fn advance(&mut self, ahead: u64) {
        if ahead >= WINDOW {
            self.seen.fill(0);
        } else {
            for number in self.next..self.next + ahead {
                let (word, bit) = place(number);
                self.seen[word] &= !bit;
            }
        }
        let (word, bit) = place(self.next + ahead);
        self.seen[word] |= bit;
        self.next += ahead + 1;
    }
}

impl Default for Track {
    fn default() -> Self {
        Self::new()
    }
}

#[inline]
fn place(number: u64) -> (usize, u64) {
    let at = number % WINDOW;
    // Below the window, which fits.
    (usize::try_from(at / 64).unwrap_or(0), 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(track: &Track) -> (u64, u64, u64) {
        (track.unique, track.duplicated, track.out_of_order)
    }

    fn after(seqs: &[u32]) -> (u64, u64, u64) {
        let mut track = Track::new();
        for seq in seqs {
            track.note(*seq);
        }
        counts(&track)
    }

    #[test]
    fn in_order_nothing_is_wrong_and_gaps_are_no_more_than_missing() {
        assert_eq!(after(&[0, 1, 2, 3]), (4, 0, 0));
        assert_eq!(after(&[0, 3, 4]), (3, 0, 0));
    }

    #[test]
    fn twice_is_duplicated_and_late_is_out_of_order() {
        assert_eq!(after(&[0, 1, 1, 2]), (3, 1, 0));
        assert_eq!(after(&[0, 2, 1, 3]), (4, 0, 1));
        assert_eq!(after(&[0, 2, 1, 1, 2, 0]), (3, 3, 1));
    }

    #[test]
    fn a_number_seen_a_window_ago_is_not_taken_for_a_duplicate() {
        let window = u32::try_from(WINDOW).unwrap();
        assert_eq!(after(&[5, window + 4, window + 5]), (3, 0, 0));
        assert_eq!(after(&[5, 3 * window + 6, 2 * window + 6]), (3, 0, 1));
    }

    #[test]
    fn numbers_wrap() {
        let mut track = Track::new();
        track.next = (1 << 32) - 2;
        for seq in [u32::MAX - 1, u32::MAX, 0, 1, u32::MAX, 2] {
            track.note(seq);
        }
        assert_eq!(counts(&track), (5, 1, 0));
        assert_eq!(track.next, (1 << 32) + 3);
    }
}
