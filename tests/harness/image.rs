//! Disk images as files: made, measured, compared.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Check;
use super::failure::Context;
use crate::fail;

/// A MiB.
pub const MIB: u64 = 1 << 20;

/// The unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// Makes an empty, sparse image.
pub fn create(path: &Path, bytes: u64) -> Check {
    File::create(path)?.set_len(bytes)?;
    Ok(())
}

/// Makes an image in which no block is a hole and no two extents are alike.
pub fn create_full(path: &Path, bytes: u64) -> Check {
    use std::io::Write;
    let mut file = File::create(path)?;
    let mut block = vec![0_u8; 4096];
    for index in 0..bytes / 4096 {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = index.to_le_bytes()[at % 8] ^ 0xa5;
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

/// The bytes that the image takes on its file system.
pub fn allocated(path: &Path) -> Check<u64> {
    Ok(fs::metadata(path)?.blocks() * STAT_BLOCK)
}

/// Fails unless both files hold the same bytes, naming the first difference.
pub fn ensure_equal(mut left: &File, mut right: &File) -> Check {
    use std::io::{Seek, SeekFrom};
    let (left_len, right_len) = (left.metadata()?.len(), right.metadata()?.len());
    if left_len != right_len {
        fail!("images differ in size: {left_len} and {right_len}");
    }
    left.seek(SeekFrom::Start(0))?;
    right.seek(SeekFrom::Start(0))?;
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < left_len {
        let want = usize::try_from((left_len - offset).min(1 << 20))?;
        left.read_exact(&mut a[..want])
            .context(|| format!("reading at {offset}"))?;
        right
            .read_exact(&mut b[..want])
            .context(|| format!("reading at {offset}"))?;
        if a[..want] != b[..want] {
            fail!("{}", difference(&a[..want], &b[..want], offset));
        }
        offset += want as u64;
    }
    Ok(())
}

fn difference(a: &[u8], b: &[u8], offset: u64) -> String {
    let sectors: Vec<u64> = a
        .chunks(512)
        .zip(b.chunks(512))
        .zip(0_u64..)
        .filter(|((x, y), _)| x != y)
        .map(|(_, index)| offset / 512 + index)
        .collect();
    let first = usize::try_from(sectors[0] * 512 - offset).unwrap_or_default();
    format!(
        "images differ in {} sectors of the MiB at {offset}, first in sector {}: {:02x?} and {:02x?}",
        sectors.len(),
        sectors[0],
        &a[first..first + 16],
        &b[first..first + 16],
    )
}
