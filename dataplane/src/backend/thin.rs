//! A thin disk: a qcow2 image, as a rule an overlay that holds what was written since it was cloned
//! from a base.
//!
//! The format is the business of the crate `imago`, whose calls block; a small pool of threads
//! ([`pool`]) makes them for all workers. This module opens images with care, and keeps an order
//! that `imago` alone does not:
//!
//! - **Acknowledged is in the file.** Before a change that needed a cluster is answered, every
//!   table it changed has been written to the file. A killed process leaves the page cache to the
//!   kernel, so what was acknowledged is there; a FLUSH makes it durable.
//! - **Counted before it is used.** A count reaches the file before the table that relies on it,
//!   and a cluster before the pointer that leads to it (`storage`). Killed in between, an image
//!   loses space, never data.
//! - **Looked through before it is written to** (`check`): an image whose tables do not agree is
//!   refused, and what was counted wrong by a crash of the host does no harm.
//!
//! Changes that need a cluster are made one at a time per image; reads, and writes into clusters
//! that the image has already, go side by side.

mod base;
mod check;
mod create;
mod error;
mod header;
pub mod pool;
mod storage;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::Mapping;
use imago::format::PreallocateMode;

pub use create::{LinkedClone, create};
pub use error::ThinError;
pub use header::Format;

use crate::backend::file::{ImageError, lock, names};
use crate::buffer::AlignedBuf;
use crate::lifecycle::Geometry;
use crate::limits::SECTOR_BYTES;
use crate::sys;
use header::Header;
use storage::{Access, Pointers, ThinFile, size_of};

/// Whether the image's tables are as the file has them.
#[derive(Debug, Default)]
struct Tables {
    /// Writing them out failed: until it succeeds, even a write into an old cluster may rest on an
    /// entry that is in memory alone.
    unwritten: bool,
}

/// An open, locked qcow2 image. All its methods may block.
#[derive(Debug)]
pub struct ThinImage {
    access: Arc<Access>,
    /// The description that does the I/O and holds the lock.
    file: Arc<File>,
    pointers: Arc<Pointers>,
    path: PathBuf,
    header: Header,
    capacity_bytes: AtomicU64,
    read_only: bool,
    /// Read by those who leave the tables as they are, written by those who change them.
    tables: RwLock<Tables>,
    /// Of the base, 0 without one.
    base_bytes: u64,
}

impl ThinImage {
    /// Opens an existing qcow2 image and takes its lock, exclusive or, when read-only, shared, and
    /// shared locks of all that it rests on.
    pub fn open(path: &Path, read_only: bool) -> Result<ThinImage, ThinError> {
        let failed = |source| ThinError::Io {
            path: path.to_owned(),
            source,
        };
        pool::start().map_err(failed)?;
        let file = Arc::new(base::open_file(path, !read_only)?);
        lock(&file, path, read_only)?;
        if !names(path, &file).map_err(failed)? {
            return Err(ImageError::Replaced {
                path: path.to_owned(),
            }
            .into());
        }
        let file_bytes = size_of(&file).map_err(failed)?;
        let header = Header::read(&file, path, file_bytes)?;
        if !read_only {
            header.check_writable(path)?;
            check::whole(&file, path, &header, file_bytes)?;
        }
        let below = header.backing.as_ref();
        let below = below.map(|below| base::of(path, below)).transpose()?;
        let base_bytes = below.as_ref().map_or(0, |below| below.access.size());
        let pointers = Arc::new(Pointers::of(&header));
        let storage = ThinFile::new(file.clone(), Some(pointers.clone()));
        let access = Arc::new(base::driver(storage, !read_only, below).map_err(failed)?);
        pointers.guard(&access);
        Ok(ThinImage {
            access,
            file,
            pointers,
            path: path.to_owned(),
            capacity_bytes: AtomicU64::new(header.size_bytes),
            header,
            read_only,
            tables: RwLock::default(),
            base_bytes,
        })
    }

    /// The image's shape. It is read and written through the page cache, so a block is a sector.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            capacity_bytes: self.capacity_bytes.load(Ordering::Acquire),
            block_bytes: 512,
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn reading(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `buf` from the disk at `offset_bytes`.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let _tables = self.reading();
        self.access.read(buf, offset_bytes)
    }

    /// As [`ThinImage::read`], into `buf[..len]`.
    pub fn read_at(&self, offset_bytes: u64, buf: &mut AlignedBuf, len: usize) -> io::Result<()> {
        self.read(offset_bytes, &mut buf[..len])
    }

    /// Writes `bytes` at `offset_bytes`. When it returns, they and the tables that lead to them are
    /// in the file.
    pub fn write(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        {
            let tables = self.reading();
            let range = offset_bytes..offset_bytes + bytes.len() as u64;
            if !tables.unwritten && self.has(range)? {
                return self.access.write(bytes, offset_bytes);
            }
        }
        self.change(|access| access.write(bytes, offset_bytes))
    }

    /// Whether the image has its own clusters for all of the range.
    fn has(&self, range: Range<u64>) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let (mapping, len) = self.access.get_mapping(at, range.end - at)?;
            if len == 0 || !matches!(mapping, Mapping::Raw { writable: true, .. }) {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Makes a change that may change tables, and writes them out.
    fn change<T>(&self, change: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        let mut tables = self.changing();
        let changed = if self.pointers.broken() {
            Err(io::Error::other(
                "a table of the image could not be written; the disk must be added again",
            ))
        } else {
            change(&self.access)
        };
        // After a failure too: clusters that were taken for it are given back.
        let written = self.write_out(&mut tables);
        let changed = changed?;
        written?;
        Ok(changed)
    }

    /// Brings the tables to the file: what was changed is there if the process is killed now.
    fn write_out(&self, tables: &mut Tables) -> io::Result<()> {
        let written = self.access.flush();
        if let Err(error) = &written
            && !tables.unwritten
        {
            tracing::error!(path = %self.path.display(), %error, "tables could not be written");
        }
        tables.unwritten = written.is_err();
        written
    }

    /// Makes every write so far durable.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.write_out(&mut self.changing())?;
        self.file.sync_data()
    }

    /// Makes the range read as zeroes. With `unmap`, whole clusters are given back, to the image
    /// and to the file system.
    pub fn zero(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        if !unmap {
            return self.change(|access| access.write_zeroes(range.start, range.end - range.start));
        }
        let cluster = self.header.cluster_bytes();
        let capacity = self.geometry().capacity_bytes;
        let start = range.start.next_multiple_of(cluster).min(range.end);
        let whole_end = if range.end == capacity {
            range.end
        } else {
            range.end / cluster * cluster
        };
        let end = whole_end.max(start);
        for edge in [range.start..start, end..range.end] {
            if !edge.is_empty() {
                self.change(|access| access.write_zeroes(edge.start, edge.end - edge.start))?;
            }
        }
        // Under one second table at a time: the next may be put where clusters of this one were,
        // which have to be out of the file by then.
        let reach = self.header.l1_entry_bytes();
        let mut at = start;
        while at < end {
            let next = (at / reach * reach + reach).min(end);
            self.give_back(at..next)?;
            at = next;
        }
        Ok(())
    }

    fn give_back(&self, range: Range<u64>) -> io::Result<()> {
        let mut tables = self.changing();
        if self.pointers.broken() || tables.unwritten {
            drop(tables);
            return self.change(|access| access.write_zeroes(range.start, range.end - range.start));
        }
        let freed = self.own_clusters(range.clone())?;
        let done = storage::discard(&self.access, &range, &mut tables);
        self.write_out(&mut tables)?;
        done?;
        for extent in freed {
            // Advice: the space is the image's to use again in any case.
            let _ = sys::fallocate(&self.file, sys::PUNCH_HOLE, extent);
        }
        Ok(())
    }

    /// Where the image has the range's clusters in its file.
    fn own_clusters(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let cluster = self.header.cluster_bytes();
        let (mut at, mut own) = (range.start, Vec::new());
        while at < range.end {
            let (mapping, len) = self.access.get_mapping(at, range.end - at)?;
            if let Mapping::Raw {
                offset,
                writable: true,
                ..
            } = mapping
            {
                own.push(offset..(offset + len).next_multiple_of(cluster));
            }
            if len == 0 {
                break;
            }
            at += len;
        }
        Ok(own)
    }

    /// The first run at or after `offset_bytes` that may hold data, through all that the image
    /// rests on; `None` when only zeroes follow.
    pub fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        let _tables = self.reading();
        let end = self.geometry().capacity_bytes;
        let mut at = offset_bytes;
        while at < end {
            let (mapping, len) = self.access.get_mapping(at, end - at)?;
            if len == 0 {
                return Ok(None);
            }
            match mapping {
                Mapping::Zero { .. } => {}
                Mapping::Raw {
                    storage, offset, ..
                } => {
                    // A hole in a raw base, or in a cluster that nothing was written to yet.
                    let data = sys::next_data(storage.file(), offset, offset + len);
                    match data.unwrap_or_else(|_| Some(offset..offset + len)) {
                        Some(data) if data.start < offset + len => {
                            let start = at + (data.start - offset);
                            return Ok(Some(whole_sectors(start..at + (data.end - offset), end)));
                        }
                        _ => {}
                    }
                }
                _ => return Ok(Some(at..at + len)),
            }
            at += len;
        }
        Ok(None)
    }

    /// Makes the disk larger. What is new reads as zeroes, whatever the base holds there.
    pub fn grow(&self, capacity_bytes: u64) -> io::Result<()> {
        let wanted = self.header.clusters_wanted(capacity_bytes);
        if wanted > self.header.clusters_counted() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the image's reference table is too small for that; copy it to a new image with \
                 larger clusters: qemu-img convert -O qcow2",
            ));
        }
        let mode = if self.base_bytes > self.geometry().capacity_bytes {
            PreallocateMode::Zero
        } else {
            PreallocateMode::None
        };
        self.change(|access| access.resize_grow(capacity_bytes, mode))?;
        self.capacity_bytes.store(capacity_bytes, Ordering::Release);
        Ok(())
    }
}

/// A range of the disk, made of whole sectors.
fn whole_sectors(range: Range<u64>, end: u64) -> Range<u64> {
    range.start / SECTOR_BYTES * SECTOR_BYTES..range.end.next_multiple_of(SECTOR_BYTES).min(end)
}

#[cfg(test)]
mod tests;
