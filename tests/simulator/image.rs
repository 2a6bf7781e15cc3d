//! A disk's bytes on one host: what reads see, what a power cut leaves, and what lies between.

use std::ops::Range;

use ferry_migration::extents::EXTENT_BYTES;

/// What a guest writes at a time at least.
pub const BLOCK_BYTES: u64 = 16 * 1024;
pub const BLOCKS_PER_EXTENT: usize = 4;
const _: () = assert!(EXTENT_BYTES == BLOCK_BYTES * BLOCKS_PER_EXTENT as u64);

/// Parts of a block that a power cut may tear.
pub const PARTS: usize = 2;

/// A block holds the number of the write it is from, in each of its parts; 0 reads as zeroes. So a
/// few bytes stand for 16 KiB.
pub type Block = [u32; PARTS];

/// Writes that the kernel leaves in its cache at most.
const UNFLUSHED_MAX: usize = 512;

#[derive(Debug)]
pub struct Image {
    /// Which one: a copy that was thrown away is not the one that came after it.
    pub id: u32,
    blocks: Vec<Block>,
    durable: Vec<Block>,
    /// In their order.
    unflushed: Vec<(usize, Block)>,
}

impl Image {
    pub fn blank(id: u32, blocks: usize) -> Image {
        Image {
            id,
            blocks: vec![[0; PARTS]; blocks],
            durable: vec![[0; PARTS]; blocks],
            unflushed: Vec::new(),
        }
    }

    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub fn write(&mut self, first: usize, data: &[Block]) {
        for (at, block) in (first..).zip(data) {
            self.blocks[at] = *block;
            self.unflushed.push((at, *block));
        }
        if self.unflushed.len() > UNFLUSHED_MAX {
            for (at, block) in self.unflushed.drain(..UNFLUSHED_MAX / 2) {
                self.durable[at] = block;
            }
        }
    }

    pub fn flush(&mut self) {
        for (at, block) in self.unflushed.drain(..) {
            self.durable[at] = block;
        }
    }

    /// Each unflushed write is there or is not, in whole or in part. Answers how many are not.
    pub fn power_cut(&mut self, rng: &mut fastrand::Rng) -> usize {
        let survive = rng.u32(0..=4);
        let mut lost = 0;
        for (at, block) in self.unflushed.drain(..) {
            let torn = rng.u32(0..8) == 0;
            let whole = rng.u32(0..4) < survive;
            lost += usize::from(torn || !whole);
            for (part, stamp) in block.into_iter().enumerate() {
                if if torn { rng.bool() } else { whole } {
                    self.durable[at][part] = stamp;
                }
            }
        }
        self.blocks.clone_from(&self.durable);
        lost
    }

    /// The first run of data at or after a byte, as `DiskLifecycle::next_data` has it.
    pub fn next_data(&self, offset_bytes: u64) -> Option<Range<u64>> {
        let at = block_of(offset_bytes);
        let data = |block: &Block| *block != [0; PARTS];
        let start = at + self.blocks.get(at..)?.iter().position(data)?;
        let run = self.blocks[start..].iter().take_while(|block| data(block));
        Some(byte_of(start)..byte_of(start + run.count()))
    }
}

pub fn block_of(offset_bytes: u64) -> usize {
    usize::try_from(offset_bytes / BLOCK_BYTES).expect("a small disk")
}

pub fn byte_of(block: usize) -> u64 {
    block as u64 * BLOCK_BYTES
}

/// Blocks as they go over the wire.
pub fn pack(blocks: &[Block]) -> Vec<u8> {
    let stamps = blocks.iter().flatten();
    stamps.flat_map(|stamp| stamp.to_le_bytes()).collect()
}

pub fn unpack(bytes: &[u8]) -> Vec<Block> {
    let (stamps, _) = bytes.as_chunks::<4>();
    let (blocks, _) = stamps.as_chunks::<PARTS>();
    let stamp = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    blocks
        .iter()
        .map(|b| [stamp(&b[0]), stamp(&b[1])])
        .collect()
}
