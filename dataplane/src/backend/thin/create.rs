//! Making images: an overlay on a base, or an empty one.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;

use super::base;
use super::error::ThinError;
use super::header::Format;
use super::storage::{Access, ThinFile};
use crate::backend::file::ImageError;
use crate::limits::SECTOR_BYTES;

/// A clone that is to be made.
#[derive(Debug)]
pub struct LinkedClone<'a> {
    /// What it is cloned from; not written while the clone exists.
    pub base: &'a Path,
    /// What the base holds.
    pub base_format: Format,
    /// Where the overlay is made.
    pub overlay: &'a Path,
    /// Size of the clone's disk in bytes; the base's unless given.
    pub size_bytes: Option<u64>,
}

impl LinkedClone<'_> {
    /// Makes the overlay; its size in bytes.
    pub fn make(&self) -> Result<u64, ThinError> {
        let found = std::fs::canonicalize(self.base).map_err(|source| ImageError::Open {
            path: self.base.to_owned(),
            source,
        })?;
        // With its lock: a base that somebody writes is none.
        let base = base::open(&found, self.base_format, 1)?;
        let base_bytes = base.access.size().next_multiple_of(SECTOR_BYTES);
        let size = self.size_bytes.unwrap_or(base_bytes);
        let refused = |what: String, mend: &str| {
            Err(ThinError::Unsupported {
                path: self.overlay.to_owned(),
                what,
                mend: mend.into(),
            })
        };
        if size < base_bytes {
            let what = format!("{size} bytes asked of it, less than its base's {base_bytes}");
            return refused(what, "leave the size out, or make it larger");
        }
        let Some(name) = found.to_str().filter(|name| name.len() <= 1023) else {
            let what = format!("a base {} whose name a header cannot hold", found.display());
            return refused(what, "move it to a shorter path of plain text");
        };
        make(self.overlay, size, Some((name, self.base_format)))?;
        Ok(size)
    }
}

/// Makes an image of `size_bytes` that reads as zeroes and takes no space yet.
pub fn create(path: &Path, format: Format, size_bytes: u64) -> Result<(), ThinError> {
    match format {
        Format::Qcow2 => make(path, size_bytes, None),
        Format::Raw => crate::backend::file::Image::create(path, size_bytes)
            .map(drop)
            .map_err(ThinError::from),
    }
}

fn make(path: &Path, size: u64, base: Option<(&str, Format)>) -> Result<(), ThinError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o660);
    let file = options.open(path).map_err(|source| ImageError::Open {
        path: path.to_owned(),
        source,
    })?;
    format(ThinFile::new(Arc::new(file), None), size, base).map_err(|source| {
        let _ = std::fs::remove_file(path);
        ThinError::Io {
            path: PathBuf::from(path),
            source,
        }
    })
}

fn format(file: ThinFile, size: u64, base: Option<(&str, Format)>) -> io::Result<()> {
    let mut builder = Qcow2::<ThinFile, Arc<Access>>::create_builder(file).size(size);
    if let Some((name, format)) = base {
        builder = builder.backing(name.to_owned(), format.name().to_owned());
    }
    builder.create()
}
