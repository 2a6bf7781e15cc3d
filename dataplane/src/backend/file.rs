//! An image: a regular file or a block device, opened once, locked on that very description, and
//! read and written with O_DIRECT, through the page cache ([`Cache`]), or, on tmpfs, by copies to
//! and from a mapping.
//!
//! The lock is an open-file-description lock over the whole file. It is taken on the description
//! that does the I/O, because requests a killed process left in the kernel hold a reference to it:
//! a successor that waits for the lock cannot race a zombie's write. A copy of the descriptor in
//! another process would keep the lock for ever, so it is never passed on; duplicates inside this
//! process are fine. A whole-file lock also conflicts with QEMU's lock bytes (offsets 100 and 200),
//! so `qemu-img` refuses a live image.

mod lock;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::grow::GrowError;
use super::mapped::Mapping;
use crate::buffer::AlignedBuf;
use crate::lifecycle::Geometry;
use crate::segments::Segments;
use crate::sys;
pub(in crate::backend) use lock::lock;

/// Whether the host's page cache stands between a disk and its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// It does not: direct I/O. A flush makes the device's own cache durable.
    #[default]
    None,
    /// It does: nothing need be aligned, and what was not flushed is lost with the host.
    Writeback,
}

/// How the bytes are reached.
#[derive(Debug)]
enum Access {
    Direct,
    Cached,
    Mapped(Mapping),
}

/// Why an image cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// `open` failed.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Someone else serves the image.
    #[error(
        "{path} is in use: another process holds its lock. Stop the one that serves it (fuser \
         {path} names it)"
    )]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// The path names another file by now.
    #[error(
        "{path} was renamed or replaced while its lock was awaited: whoever served it may have \
         moved it away. See what is there now (ferry disk list on the hosts), and try again"
    )]
    Replaced {
        /// The image.
        path: PathBuf,
    },
    /// The size is not whole blocks.
    #[error(
        "{path} is {size} bytes, which is not a multiple of the device's {block} byte block; grow \
         it: truncate -s %{block} {path}"
    )]
    Ragged {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The device's block in bytes.
        block: u32,
    },
    /// Nothing to serve.
    #[error("{path} is empty; make it larger first: truncate -s 1G {path}")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    Kind {
        /// The image.
        path: PathBuf,
    },
}

/// An open, locked image. Its blocking methods are for threads that may block; a worker drives the
/// same description through its ring.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    capacity_bytes: AtomicU64,
    block_bytes: u32,
    /// Alignment that direct I/O asks of memory, in bytes.
    memory_align: u32,
    is_device: bool,
    read_only: bool,
    access: Access,
}

impl Image {
    /// Opens an existing image without the page cache, see [`Image::open_with`].
    pub fn open(path: &Path, read_only: bool) -> Result<Image, ImageError> {
        Image::open_with(path, read_only, Cache::None)
    }

    /// Opens an existing image and takes its lock: exclusive, or shared when read-only.
    pub fn open_with(path: &Path, read_only: bool, cache: Cache) -> Result<Image, ImageError> {
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        let failed = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        let (file, direct) = match cache {
            Cache::None => open_direct(&options, path)?,
            Cache::Writeback => (options.open(path).map_err(failed)?, false),
        };
        Image::adopt(file, path, read_only, direct)
    }

    /// Creates an image without the page cache, see [`Image::create_with`].
    pub fn create(path: &Path, size_bytes: u64) -> Result<Image, ImageError> {
        Image::create_with(path, size_bytes, Cache::None)
    }

    /// Creates an image of `size_bytes` that reads as zeroes. Fails if the path exists; what it made
    /// itself is removed again when a later step fails.
    pub fn create_with(path: &Path, size_bytes: u64, cache: Cache) -> Result<Image, ImageError> {
        let failed = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o660);
        let made = options.open(path).map_err(failed)?;
        let image = made
            .set_len(size_bytes)
            .map_err(failed)
            .and_then(|()| Image::open_with(path, false, cache));
        // Whoever holds a lock on it, or put another file there, uses what is there.
        if let Err(error) = &image
            && !matches!(error, ImageError::Locked { .. })
            && names(path, &made).unwrap_or(false)
        {
            let _ = std::fs::remove_file(path);
        }
        image
    }

    fn adopt(file: File, path: &Path, read_only: bool, direct: bool) -> Result<Image, ImageError> {
        let failed = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        let kind = file.metadata().map_err(failed)?.file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(ImageError::Kind {
                path: path.to_owned(),
            });
        }
        lock(&file, path, read_only)?;
        // Whoever held the lock may have moved the disk away meanwhile, and set its image aside.
        if !names(path, &file).map_err(failed)? {
            return Err(ImageError::Replaced {
                path: path.to_owned(),
            });
        }
        let size = if is_device {
            sys::block_device_bytes(&file).map_err(failed)?
        } else {
            file.metadata().map_err(failed)?.len()
        };
        let mapped = !is_device && sys::is_tmpfs(&file).unwrap_or(false);
        // Neither a copy nor the page cache asks for any alignment.
        let align = if direct && !mapped {
            sys::direct_io_align(&file).map_err(failed)?
        } else {
            sys::DirectIoAlign::none()
        };
        let block = align.offset_bytes.max(512);
        if size == 0 {
            return Err(ImageError::Empty {
                path: path.to_owned(),
            });
        }
        if size % u64::from(block) != 0 {
            return Err(ImageError::Ragged {
                path: path.to_owned(),
                size,
                block,
            });
        }
        let access = if mapped {
            let same = file.try_clone().map_err(failed)?;
            Access::Mapped(Mapping::of_tmpfs(same, size, !read_only).map_err(failed)?)
        } else if direct {
            Access::Direct
        } else {
            Access::Cached
        };
        Ok(Image {
            file,
            path: path.to_owned(),
            capacity_bytes: AtomicU64::new(size),
            block_bytes: block,
            memory_align: align.memory_bytes,
            is_device,
            read_only,
            access,
        })
    }

    /// Whether the page cache stands before it. What could not be written from there is told to one
    /// of those who ask, whoever that is.
    pub fn is_cached(&self) -> bool {
        matches!(self.access, Access::Cached)
    }

    /// The image's shape; `block_bytes` is what direct I/O asks of offsets and lengths.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            capacity_bytes: self.capacity_bytes.load(Ordering::Acquire),
            block_bytes: self.block_bytes,
        }
    }

    /// The image's bytes, if it is on tmpfs: they are copied, and no request of it needs the ring.
    pub fn mapping(&self) -> Option<&Mapping> {
        match &self.access {
            Access::Mapped(mapping) => Some(mapping),
            Access::Direct | Access::Cached => None,
        }
    }

    /// Whether the kernel can transfer these segments as they are.
    pub fn takes(&self, segments: &Segments) -> bool {
        match &self.access {
            Access::Direct => segments.aligned(self.memory_align, self.block_bytes),
            Access::Cached | Access::Mapped(_) => true,
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether writes were ruled out at opening.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The description that holds the lock, for the ring.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads `buf[..len]` at `offset_bytes`; both must suit the block.
    pub fn read_at(&self, offset_bytes: u64, buf: &mut AlignedBuf, len: usize) -> io::Result<()> {
        match &self.access {
            Access::Mapped(mapping) => mapping.read(offset_bytes, &mut buf[..len]),
            Access::Direct | Access::Cached => {
                self.file.read_exact_at(&mut buf[..len], offset_bytes)
            }
        }
    }

    /// Writes `buf[..len]` at `offset_bytes`; both must suit the block.
    pub fn write_at(&self, offset_bytes: u64, buf: &AlignedBuf, len: usize) -> io::Result<()> {
        match &self.access {
            Access::Mapped(mapping) => mapping.write(offset_bytes, &buf[..len]),
            Access::Direct | Access::Cached => self.file.write_all_at(&buf[..len], offset_bytes),
        }
    }

    /// Makes the range read as zeroes, giving space back where the file system or device can.
    pub fn zero(&self, range: Range<u64>) -> io::Result<()> {
        if let Some(mapping) = self.mapping() {
            return mapping.zero(range);
        }
        let punched = sys::fallocate(&self.file, sys::PUNCH_HOLE, range.clone());
        match punched {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.write_zeroes(range)
            }
            other => other,
        }
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let zeroes = AlignedBuf::new(1 << 20);
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at)
                .unwrap_or(usize::MAX)
                .min(zeroes.len());
            self.write_at(at, &zeroes, len)?;
            at += len as u64;
        }
        Ok(())
    }

    /// Makes every write so far durable.
    pub fn flush(&self) -> io::Result<()> {
        if let Some(mapping) = self.mapping() {
            mapping.flush()?;
        }
        self.file.sync_data()
    }

    /// Makes the disk larger: the file, or as much of the device as is there by now. Whole blocks,
    /// and no less than before.
    pub(in crate::backend) fn grow(&self, capacity_bytes: u64) -> Result<(), GrowError> {
        if self.mapping().is_some() {
            return Err(GrowError::Fixed(
                "an image on tmpfs is mapped as large as it is, and keeps its size while it is \
                 served; remove the disk, truncate -s SIZE its image, and add it again",
            ));
        }
        if self.is_device {
            let has = sys::block_device_bytes(&self.file)?;
            if has < capacity_bytes {
                return Err(GrowError::Device { has });
            }
        } else if self.file.metadata()?.len() < capacity_bytes {
            self.file.set_len(capacity_bytes)?;
            // Before the guest puts anything there.
            self.file.sync_all()?;
        }
        self.capacity_bytes.store(capacity_bytes, Ordering::Release);
        Ok(())
    }

    /// The first run of data at or after `offset_bytes`, or `None` when only a hole follows. A
    /// device, or a file system that cannot tell, answers all that is left.
    pub fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.geometry().capacity_bytes;
        if offset_bytes >= end {
            return Ok(None);
        }
        if self.is_device {
            return Ok(Some(offset_bytes..end));
        }
        let data = sys::next_data(&self.file, offset_bytes, end)?;
        // The hole behind a file's end is none: the bytes are gone.
        if data.is_none() && self.file.metadata()?.len() < end {
            return Err(io::Error::other(format!(
                "{} was truncated while it was served",
                self.path.display()
            )));
        }
        Ok(data)
    }
}

/// Opens with O_DIRECT where the file system can, without it where it cannot; says which.
fn open_direct(options: &OpenOptions, path: &Path) -> Result<(File, bool), ImageError> {
    let failed = |source| ImageError::Open {
        path: path.to_owned(),
        source,
    };
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(path = %path.display(), "no O_DIRECT here: the page cache is used");
            Ok((options.open(path).map_err(failed)?, false))
        }
        other => Ok((other.map_err(failed)?, true)),
    }
}

/// Whether `path` leads to this very file.
pub(super) fn names(path: &Path, file: &File) -> io::Result<bool> {
    let held = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl AsRawFd for Image {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn create_clears_up_after_itself_and_after_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        // Not whole blocks: found out only when the file is there.
        assert!(Image::create(&path, 1000).is_err());
        assert!(!path.exists(), "a failed creation leaves a file");
        std::fs::write(&path, b"mine").unwrap();
        assert!(Image::create(&path, 4096).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn an_image_that_is_renamed_while_its_lock_is_awaited_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let first = Image::create(&path, 1 << 20).unwrap();
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || Image::open(&path, false).map(drop))
        };
        std::thread::sleep(Duration::from_millis(200));
        std::fs::rename(&path, dir.path().join("image.moved.2")).unwrap();
        drop(first);
        let outcome = waiting.join().unwrap();
        assert!(
            matches!(outcome, Err(ImageError::Replaced { .. })),
            "{outcome:?}"
        );
    }
}
