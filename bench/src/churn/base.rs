//! The base that all clones rest on: full of stamps, so that each sector says where it belongs.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::BenchError;
use crate::stamp::{SECTOR, Stamper};

/// What a clone allocates at once; a cycle reads this much around each write.
pub const CLUSTER_BYTES: u64 = CLUSTER as u64;

/// The same, as a length.
pub(super) const CLUSTER: usize = 64 << 10;

/// Sectors of a cluster.
pub(super) const CLUSTER_SECTORS: u64 = CLUSTER_BYTES / SECTOR as u64;

/// The operation that wrote the base; a cycle writes with its number and one.
pub(super) const BASE_OP: u64 = 0;

/// A base on disk.
#[derive(Debug)]
pub(super) struct Base {
    pub path: PathBuf,
    pub clusters: u64,
    pub stamper: Stamper,
}

impl Base {
    pub fn create(path: &Path, bytes: u64, seed: u64) -> Result<Base, BenchError> {
        let stamper = Stamper::new(crate::blk::run_id(seed));
        let clusters = bytes / CLUSTER_BYTES;
        write(path, clusters, stamper).map_err(|source| BenchError::Target {
            what: "write",
            path: path.to_owned(),
            source,
            mend: "free some space, or take a smaller --base-size or another --dir",
        })?;
        Ok(Base {
            path: path.to_owned(),
            clusters,
            stamper,
        })
    }
}

fn write(path: &Path, clusters: u64, stamper: Stamper) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create_new(path)?);
    let mut cluster = vec![0; CLUSTER];
    for number in 0..clusters {
        stamper.fill(BASE_OP, number * CLUSTER_SECTORS, &mut cluster);
        out.write_all(&cluster)?;
    }
    // Now, and not in the middle of the cycles.
    out.into_inner()?.sync_all()
}
