//! Whether an image holds together: every cluster that a table points to is inside the file, is
//! used once, and is counted as used.
//!
//! An image is looked through whole before it is written to. It costs the reading of its tables, a
//! few clusters for a fresh clone, and means that what the format driver meets later is what Ferry
//! wrote itself; a crash of the host that left a cluster in use but not counted, which a later
//! write would hand out a second time, is found before it can do harm.

use std::fs::File;
use std::path::Path;

use super::error::ThinError;
use super::header::{Header, be64, read_up_to};
use crate::limits::THIN_FILE_BYTES_MAX;

/// Bits of a table entry that hold an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// An entry of the second table is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bits of an entry of the first or the reference table that must be 0.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const REFTABLE_RESERVED: u64 = 0x1ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

struct Check<'a> {
    file: &'a File,
    path: &'a Path,
    header: &'a Header,
    clusters: u64,
    /// A bit for each cluster of the file.
    used: Vec<u64>,
    /// Clusters with compressed data, which share them.
    compressed: Vec<u64>,
}

/// Looks through the whole image of `file_bytes`.
pub(super) fn whole(
    file: &File,
    path: &Path,
    header: &Header,
    file_bytes: u64,
) -> Result<(), ThinError> {
    if file_bytes > THIN_FILE_BYTES_MAX {
        return Err(ThinError::Unsupported {
            path: path.to_owned(),
            what: format!("more than {THIN_FILE_BYTES_MAX} bytes"),
            mend: "copy it: qemu-img convert".into(),
        });
    }
    let clusters = file_bytes.div_ceil(header.cluster_bytes());
    let words = usize::try_from(clusters.div_ceil(64)).expect("bounded just above");
    let mut check = Check {
        file,
        path,
        header,
        clusters,
        used: vec![0; words],
        compressed: Vec::new(),
    };
    check.run()
}

impl Check<'_> {
    fn run(&mut self) -> Result<(), ThinError> {
        let header = self.header;
        self.take(0, "the header")?;
        let reftable = self.table(
            header.reftable_offset,
            u64::from(header.reftable_clusters) << header.cluster_bits,
        )?;
        self.take_run(
            header.reftable_offset,
            reftable.len(),
            "the reference table",
        )?;
        let l1 = self.table(header.l1_offset, u64::from(header.l1_entries) * 8)?;
        self.take_run(header.l1_offset, l1.len(), "the first table")?;
        for entry in entries(&reftable) {
            if entry & REFTABLE_RESERVED != 0 {
                return self.broken(format!("the reference table has an entry {entry:#x}"));
            }
            if entry != 0 {
                self.take(entry, "a block of reference counts")?;
            }
        }
        for entry in entries(&l1) {
            if entry & L1_RESERVED != 0 {
                return self.broken(format!("the first table has an entry {entry:#x}"));
            }
            let offset = entry & OFFSET_MASK;
            if offset != 0 {
                self.take(offset, "a second table")?;
                self.second_table(offset)?;
            }
        }
        self.compressed.sort_unstable();
        self.compressed.dedup();
        self.counted(&reftable)
    }

    fn second_table(&mut self, offset: u64) -> Result<(), ThinError> {
        let table = self.table(offset, self.header.cluster_bytes())?;
        for entry in entries(&table) {
            if entry & COMPRESSED != 0 {
                self.take_compressed(entry)?;
                continue;
            }
            if entry & L2_RESERVED != 0 {
                return self.broken(format!("a second table has an entry {entry:#x}"));
            }
            if entry & OFFSET_MASK != 0 {
                self.take(entry & OFFSET_MASK, "data")?;
            }
        }
        Ok(())
    }

    fn take_compressed(&mut self, entry: u64) -> Result<(), ThinError> {
        let header = self.header;
        let offset_bits = 62 - (header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        let end = (offset & !511) + (sectors + 1) * 512;
        let (first, last) = (
            offset >> header.cluster_bits,
            (end - 1) >> header.cluster_bits,
        );
        for cluster in first..=last {
            // The last sectors may be past the end: the length is an upper bound.
            if cluster >= self.clusters && cluster == first {
                return self.broken(format!("compressed data at {offset:#x} is past its end"));
            }
            if cluster < self.clusters {
                self.compressed.push(cluster);
            }
        }
        Ok(())
    }

    /// Reads a table; what lies past the end of the file reads as zeroes.
    fn table(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, ThinError> {
        let mut table = vec![0; usize::try_from(bytes).expect("tables are bounded")];
        read_up_to(self.file, &mut table, offset).map_err(|source| ThinError::Io {
            path: self.path.to_owned(),
            source,
        })?;
        Ok(table)
    }

    fn take_run(&mut self, offset: u64, bytes: usize, what: &str) -> Result<(), ThinError> {
        let clusters = (bytes as u64).div_ceil(self.header.cluster_bytes());
        for n in 0..clusters {
            self.take(offset + n * self.header.cluster_bytes(), what)?;
        }
        Ok(())
    }

    /// Notes that a cluster is used, by `what`.
    fn take(&mut self, offset: u64, what: &str) -> Result<(), ThinError> {
        if !offset.is_multiple_of(self.header.cluster_bytes()) {
            return self.broken(format!("{what} is at {offset:#x}, not at a cluster"));
        }
        let cluster = offset >> self.header.cluster_bits;
        if cluster >= self.clusters {
            return self.broken(format!("{what} at {offset:#x} is past its end"));
        }
        let (word, bit) = place(cluster);
        if self.used[word] & bit != 0 {
            return self.broken(format!("{what} at {offset:#x} is something else as well"));
        }
        self.used[word] |= bit;
        Ok(())
    }

    /// Whether each cluster in use is counted.
    fn counted(&self, reftable: &[u8]) -> Result<(), ThinError> {
        let per_block = self.header.refblock_entries();
        let mut block: Option<(u64, Vec<u8>)> = None;
        let used = (0..self.clusters).filter(|&cluster| {
            let (word, bit) = place(cluster);
            self.used[word] & bit != 0
        });
        for cluster in used.chain(self.compressed.iter().copied()) {
            let index = cluster / per_block;
            if block.as_ref().is_none_or(|(loaded, _)| *loaded != index) {
                let at = usize::try_from(index * 8).unwrap_or(usize::MAX);
                let offset = match reftable.get(at..at.saturating_add(8)) {
                    Some(entry) => be64(entry, 0),
                    None => 0,
                };
                let counts = if offset == 0 {
                    vec![0; usize::try_from(self.header.cluster_bytes()).expect("2 MiB at most")]
                } else {
                    self.table(offset, self.header.cluster_bytes())?
                };
                block = Some((index, counts));
            }
            let (_, counts) = block.as_ref().expect("just loaded");
            let count = count_of(counts, cluster % per_block, self.header.refcount_bits);
            let offset = cluster << self.header.cluster_bits;
            let shared = self.compressed.binary_search(&cluster).is_ok();
            if count == 0 {
                return self.broken(format!(
                    "the cluster at {offset:#x} is used and not counted"
                ));
            }
            let (word, bit) = place(cluster);
            if self.used[word] & bit != 0 && (count > 1 || shared) {
                return self.broken(format!(
                    "the cluster at {offset:#x} is counted {count} times"
                ));
            }
        }
        Ok(())
    }

    fn broken(&self, what: String) -> Result<(), ThinError> {
        Err(ThinError::Inconsistent {
            path: self.path.to_owned(),
            what,
        })
    }
}

fn place(cluster: u64) -> (usize, u64) {
    let word = usize::try_from(cluster / 64).expect("inside the file");
    (word, 1 << (cluster % 64))
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.chunks_exact(8).map(|entry| be64(entry, 0))
}

/// A reference count within its block; big-endian, and below a byte from the lowest bits up.
fn count_of(block: &[u8], index: u64, bits: u32) -> u64 {
    let index = usize::try_from(index).expect("within a block");
    match bits {
        1 | 2 | 4 => {
            let per_byte = 8 / bits as usize;
            let shift = (index % per_byte) * bits as usize;
            u64::from(block[index / per_byte] >> shift) & ((1 << bits) - 1)
        }
        _ => {
            let bytes = bits as usize / 8;
            let at = index * bytes;
            block[at..at + bytes]
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        }
    }
}
