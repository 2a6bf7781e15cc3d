//! What is copied, being copied and dirty. Pure: it is told what happened and says what is next.
//!
//! One cursor walks the disk once, in steps of whole extents: data in chunks, holes in long runs.
//! What went wrong behind it is marked dirty and copied again afterwards, until nothing is dirty.
//! An extent's mark is taken off before the extent is read, so a mark that comes meanwhile stays.

use std::ops::Range;

/// The unit of copying.
pub const EXTENT_BYTES: u64 = 64 * 1024;
/// Most data read under one lock: small enough that a guest's write never waits long for it.
pub const CHUNK_BYTES: u64 = 256 * 1024;
/// Longest hole sent as one frame: a destination that cannot punch has to write that many zeroes.
pub const HOLE_BYTES_MAX: u64 = 64 << 20;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(EXTENT_BYTES));
const _: () = assert!(HOLE_BYTES_MAX.is_multiple_of(EXTENT_BYTES));

/// The next step of the cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read and send it.
    Data(Range<u64>),
    /// Send it as zeroes.
    Hole(Range<u64>),
}

impl Step {
    /// The bytes it covers.
    pub fn range(&self) -> Range<u64> {
        match self {
            Step::Data(range) | Step::Hole(range) => range.clone(),
        }
    }
}

/// The plan of one disk's copy.
#[derive(Debug)]
pub struct Extents {
    capacity_bytes: u64,
    cursor_bytes: u64,
    dirty: Vec<u64>,
    dirty_count: usize,
    /// Where the search for dirty extents goes on, so that one busy extent does not starve others.
    next_dirty: usize,
}

impl Extents {
    /// Nothing copied yet.
    pub fn new(capacity_bytes: u64) -> Extents {
        let extents = usize::try_from(capacity_bytes.div_ceil(EXTENT_BYTES)).unwrap_or(usize::MAX);
        Extents {
            capacity_bytes,
            cursor_bytes: 0,
            dirty: vec![0; extents.div_ceil(64)],
            dirty_count: 0,
            next_dirty: 0,
        }
    }

    /// Everything below was copied once.
    pub fn cursor_bytes(&self) -> u64 {
        self.cursor_bytes
    }

    /// Extents to copy again.
    pub fn dirty_count(&self) -> usize {
        self.dirty_count
    }

    /// Whether the two sides are equal, but for what is on its way.
    pub fn complete(&self) -> bool {
        self.cursor_bytes >= self.capacity_bytes && self.dirty_count == 0
    }

    /// Bytes copied or known to be holes.
    pub fn bytes_done(&self) -> u64 {
        let dirty = self.dirty_count as u64 * EXTENT_BYTES;
        self.cursor_bytes.saturating_sub(dirty)
    }

    /// The cursor's next step, given the first run of data at or after it; `None` at the end.
    pub fn step(&self, data: Option<Range<u64>>) -> Option<Step> {
        let (at, end) = (self.cursor_bytes, self.capacity_bytes);
        if at >= end {
            return None;
        }
        // A run that ends before it begins, or behind the cursor, tells nothing: read.
        let data = data.map_or(end..end, |run| run.start.max(at)..run.end.max(at));
        let hole_end = if data.start >= end {
            end
        } else {
            data.start / EXTENT_BYTES * EXTENT_BYTES
        };
        if hole_end > at {
            return Some(Step::Hole(
                at..hole_end.min(at.saturating_add(HOLE_BYTES_MAX)),
            ));
        }
        let data_end = data
            .end
            .max(at + 1)
            .div_ceil(EXTENT_BYTES)
            .saturating_mul(EXTENT_BYTES);
        Some(Step::Data(at..data_end.min(at + CHUNK_BYTES).min(end)))
    }

    /// Everything below `to` was handed to the channel.
    pub fn advance(&mut self, to: u64) {
        self.cursor_bytes = self.cursor_bytes.max(to.min(self.capacity_bytes));
    }

    /// The sides may differ somewhere in here.
    pub fn mark_dirty(&mut self, offset_bytes: u64, len_bytes: u64) {
        let end = offset_bytes
            .saturating_add(len_bytes)
            .min(self.capacity_bytes);
        if offset_bytes >= end {
            return;
        }
        for extent in index(offset_bytes)..=index(end - 1) {
            let (word, bit) = (extent / 64, 1u64 << (extent % 64));
            if self.dirty[word] & bit == 0 {
                self.dirty[word] |= bit;
                self.dirty_count += 1;
            }
        }
    }

    /// A run of dirty extents of at most a chunk, still marked.
    pub fn dirty_run(&mut self) -> Option<Range<u64>> {
        let first = self
            .find_dirty(self.next_dirty)
            .or_else(|| self.find_dirty(0))?;
        let most = usize::try_from(CHUNK_BYTES / EXTENT_BYTES).unwrap_or(1);
        let len = (1..most).take_while(|at| self.is_dirty(first + at)).count() + 1;
        self.next_dirty = first + len;
        let start = first as u64 * EXTENT_BYTES;
        Some(start..(start + len as u64 * EXTENT_BYTES).min(self.capacity_bytes))
    }

    /// Takes the marks off a run that is about to be read.
    pub fn clear(&mut self, run: &Range<u64>) {
        if run.is_empty() {
            return;
        }
        for extent in index(run.start)..=index(run.end - 1) {
            if self.is_dirty(extent) {
                self.dirty[extent / 64] &= !(1u64 << (extent % 64));
                self.dirty_count -= 1;
            }
        }
    }

    fn is_dirty(&self, extent: usize) -> bool {
        self.dirty
            .get(extent / 64)
            .is_some_and(|word| word & (1 << (extent % 64)) != 0)
    }

    fn find_dirty(&self, from: usize) -> Option<usize> {
        if self.dirty_count == 0 {
            return None;
        }
        let (first_word, skip) = (from / 64, from % 64);
        self.dirty
            .iter()
            .enumerate()
            .skip(first_word)
            .find_map(|(at, word)| {
                let word = if at == first_word {
                    word & (u64::MAX << skip)
                } else {
                    *word
                };
                (word != 0).then(|| at * 64 + word.trailing_zeros() as usize)
            })
    }
}

fn index(offset_bytes: u64) -> usize {
    usize::try_from(offset_bytes / EXTENT_BYTES).unwrap_or(usize::MAX)
}

/// Splits bytes that begin at an extent's start into runs of extents that are all zero or not.
pub fn zero_runs(data: &[u8]) -> Vec<(Range<usize>, bool)> {
    let extent = usize::try_from(EXTENT_BYTES).unwrap_or(usize::MAX);
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for start in (0..data.len()).step_by(extent) {
        let end = (start + extent).min(data.len());
        let zero = is_zero(&data[start..end]);
        match runs.last_mut() {
            Some((run, same)) if *same == zero => run.end = end,
            _ => runs.push((start..end, zero)),
        }
    }
    runs
}

/// Folded in pieces, so that it vectorises and still stops early.
fn is_zero(data: &[u8]) -> bool {
    data.chunks(256)
        .all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

#[cfg(test)]
mod tests;
