//! The file under the format driver, and the order in which the driver's pointers reach it.
//!
//! The driver keeps second tables and reference counts in memory and writes them out in the right
//! order, counts before the tables that rely on them. What it writes at once are the pointers above
//! those: entries of the first table and of the reference table, and the header. It writes the
//! cluster that such a pointer leads to before the pointer, but not the count of that cluster; a
//! process killed in between would leave a table in use that is not counted, and `qemu-img check`
//! would call the image corrupt. So a write of a pointer is held here until all that the driver has
//! in memory is written.
//!
//! It is safe to call the driver again from inside its own write because changes of one image's
//! tables are made by one thread at a time ([`super::ThinImage`]), and because the driver holds
//! none of the locks that writing out takes while it writes one of these pointers. The exception is
//! an entry of the reference table while clusters wait to be freed, and there are none within an
//! allocation: whoever frees clusters writes everything out before the next change, and the
//! reference table itself, which when it moves frees the old one, is never moved.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{FormatAccess, Storage};

use super::header::{Header, be32, be64, read_up_to};
use crate::sys;

/// The driver over such a file.
pub(super) type Access = FormatAccess<ThinFile>;

/// See [`Pointers::watcher`].
#[cfg(test)]
pub(super) struct Watcher(pub Box<dyn Fn(&File) + Send>);

#[cfg(test)]
impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

/// Where an image's pointers are, and who writes out what they rely on.
#[derive(Debug)]
pub(super) struct Pointers {
    cluster_bytes: u64,
    reftable: Range<u64>,
    l1_start: AtomicU64,
    l1_end: AtomicU64,
    /// Set once the image is open.
    image: OnceLock<Weak<Access>>,
    /// Looks at the file after each write.
    #[cfg(test)]
    pub watcher: std::sync::Mutex<Option<Watcher>>,
    /// A pointer could not be written: the driver's memory and the file differ, and no later write
    /// would mend that.
    broken: AtomicBool,
}

impl Pointers {
    pub fn of(header: &Header) -> Pointers {
        let reftable_bytes = u64::from(header.reftable_clusters) << header.cluster_bits;
        Pointers {
            cluster_bytes: header.cluster_bytes(),
            reftable: header.reftable_offset..header.reftable_offset + reftable_bytes,
            l1_start: AtomicU64::new(header.l1_offset),
            l1_end: AtomicU64::new(header.l1_offset + u64::from(header.l1_entries) * 8),
            image: OnceLock::new(),
            #[cfg(test)]
            watcher: Default::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// From now on pointers are held back for what `image` has in memory.
    pub fn guard(&self, image: &Arc<Access>) {
        let _ = self.image.set(Arc::downgrade(image));
    }

    pub fn broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn holds(&self, offset: u64) -> bool {
        let l1 = self.l1_start.load(Ordering::Acquire)..self.l1_end.load(Ordering::Acquire);
        offset < self.cluster_bytes || l1.contains(&offset) || self.reftable.contains(&offset)
    }

    /// Writes out what the pointers in `bytes` rely on. Says whether `bytes` are pointers.
    fn write_out(&self, bytes: &[u8], offset: u64) -> io::Result<bool> {
        if !self.holds(offset) {
            return Ok(false);
        }
        let Some(image) = self.image.get().and_then(Weak::upgrade) else {
            return Ok(false); // being opened, made or closed
        };
        if offset == 0 && bytes.len() >= 60 {
            let table = be64(bytes, 48);
            let end = table + u64::from(be32(bytes, 56)) * self.cluster_bytes;
            if (table..end) != self.reftable {
                return Err(io::Error::other(
                    "the image's reference table is full, and is not made larger",
                ));
            }
        }
        image.flush()?;
        Ok(true)
    }

    fn written(&self, bytes: &[u8], offset: u64) {
        if offset == 0 && bytes.len() >= 48 {
            let start = be64(bytes, 40);
            self.l1_start.store(start, Ordering::Release);
            let end = start + u64::from(be32(bytes, 36)) * 8;
            self.l1_end.store(end, Ordering::Release);
        }
    }
}

/// A file or block device as the driver sees it: read and written through the page cache, on the
/// very description that holds the lock.
pub struct ThinFile {
    file: Arc<File>,
    /// None for a base, which is not written.
    pointers: Option<Arc<Pointers>>,
    helper: CommonStorageHelper,
}

impl ThinFile {
    pub(super) fn new(file: Arc<File>, pointers: Option<Arc<Pointers>>) -> ThinFile {
        ThinFile {
            file,
            pointers,
            helper: CommonStorageHelper::default(),
        }
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let Some(pointers) = &self.pointers else {
            return self.file.write_all_at(bytes, offset);
        };
        let done = pointers.write_out(bytes, offset).and_then(|held| {
            self.file.write_all_at(bytes, offset)?;
            #[cfg(test)]
            if let Some(watcher) = &*pointers.watcher.lock().expect("no watcher panics") {
                (watcher.0)(&self.file);
            }
            if held {
                pointers.written(bytes, offset);
            }
            Ok(())
        });
        if done.is_err() && pointers.holds(offset) {
            pointers.broken.store(true, Ordering::Release);
        }
        done
    }
}

/// Gives the range's clusters back to the image; they read as zeroes then. `_alone` says that
/// nobody else uses the image.
pub(super) fn discard(
    access: &Access,
    range: &Range<u64>,
    _alone: &mut super::Tables,
) -> io::Result<()> {
    // SAFETY: nobody uses a mapping of the image meanwhile: all its I/O holds its tables' lock, and
    // the caller holds it alone, as the `&mut` shows.
    unsafe { access.discard_to_zero_unsafe(range.start, range.end - range.start) }
}

/// Size of a file or block device in bytes.
pub(super) fn size_of(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        sys::block_device_bytes(file)
    } else {
        Ok(metadata.len())
    }
}

impl Storage for ThinFile {
    fn size(&self) -> io::Result<u64> {
        size_of(&self.file)
    }

    // SAFETY: the trait has the caller keep overlapping writes apart, which matters to the bytes
    // that end up in the file alone; nothing here touches memory but through safe calls.
    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut slice in bufv.into_inner() {
            let got = read_up_to(&self.file, &mut slice, offset)?;
            slice[got..].fill(0); // past the end
            offset += slice.len() as u64;
        }
        Ok(())
    }

    // SAFETY: as above.
    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        for slice in bufv.into_inner() {
            self.write(&slice, offset)?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(()) // nothing is kept here
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    // SAFETY: as above; there is no cache to lose.
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.file.set_len(new_size)
    }
}

impl fmt::Debug for ThinFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThinFile")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ThinFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("file")
    }
}
