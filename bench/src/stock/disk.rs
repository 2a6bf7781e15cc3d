//! Where the bytes go: a file, memory, or nowhere.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, MmapRegion, VolatileMemory};

use super::request::Piece;
use crate::error::BenchError;

/// Most segments of one `preadv`.
const IOVECS_MAX: usize = 128;

/// What to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StockKind {
    /// Nothing, of so many bytes.
    Null(u64),
    /// Memory, in bytes.
    Memory(u64),
    /// A file or block device.
    File {
        /// Where it is.
        path: PathBuf,
        /// Past the page cache.
        direct: bool,
    },
}

/// An open disk.
#[derive(Debug)]
pub enum StockDisk {
    /// Of so many bytes.
    Null(u64),
    /// Anonymous memory.
    Memory(MmapRegion),
    /// The file, its size in bytes, and its block.
    File(File, u64, u32),
}

impl StockDisk {
    /// Opens or makes it.
    pub fn open(kind: &StockKind) -> Result<Self, BenchError> {
        match kind {
            StockKind::Null(bytes) => Ok(StockDisk::Null(*bytes)),
            StockKind::Memory(bytes) => {
                let len = usize::try_from(*bytes).unwrap_or(usize::MAX);
                let region = MmapRegion::new(len).map_err(|error| BenchError::Host {
                    what: "memory for the disk",
                    source: io::Error::other(error),
                })?;
                Ok(StockDisk::Memory(region))
            }
            StockKind::File { path, direct } => {
                let opened = Self::open_file(path, *direct);
                opened.map_err(|source| BenchError::Target {
                    what: "open",
                    path: path.clone(),
                    source,
                    mend: "name a file that can be read and written",
                })
            }
        }
    }

    fn open_file(path: &PathBuf, direct: bool) -> io::Result<Self> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        let meta = file.metadata()?;
        let bytes = if meta.file_type().is_block_device() {
            io::Seek::seek(&mut &file, io::SeekFrom::End(0))?
        } else {
            meta.len()
        };
        Ok(StockDisk::File(
            file,
            bytes / 4096 * 4096,
            if direct { 4096 } else { 512 },
        ))
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            StockDisk::Null(bytes) | StockDisk::File(_, bytes, _) => *bytes,
            StockDisk::Memory(region) => region.size() as u64,
        }
    }

    /// What requests should be multiples of.
    pub fn block_bytes(&self) -> u32 {
        match self {
            StockDisk::File(_, _, block) => *block,
            _ => 512,
        }
    }

    /// Makes writes durable.
    pub fn flush(&self) -> io::Result<()> {
        match self {
            StockDisk::File(file, ..) => file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Moves a request's data. The range is inside the disk.
    pub fn transfer(
        &self,
        reads: bool,
        offset: u64,
        data: &[Piece],
        memory: &GuestMemoryMmap,
    ) -> io::Result<()> {
        match self {
            StockDisk::Null(_) => Ok(()),
            StockDisk::Memory(region) => copy(region, reads, offset, data, memory),
            StockDisk::File(file, ..) => vectored(file, reads, offset, data, memory),
        }
    }
}

fn copy(
    region: &MmapRegion,
    reads: bool,
    offset: u64,
    data: &[Piece],
    memory: &GuestMemoryMmap,
) -> io::Result<()> {
    let mut at = usize::try_from(offset).map_err(io::Error::other)?;
    for piece in data {
        let len = piece.len as usize;
        let disk = region.get_slice(at, len).map_err(io::Error::other)?;
        let guest = memory
            .get_slice(piece.addr, len)
            .map_err(io::Error::other)?;
        if reads {
            disk.copy_to_volatile_slice(guest);
        } else {
            guest.copy_to_volatile_slice(disk);
        }
        at += len;
    }
    Ok(())
}

fn vectored(
    file: &File,
    reads: bool,
    offset: u64,
    data: &[Piece],
    memory: &GuestMemoryMmap,
) -> io::Result<()> {
    if data.len() > IOVECS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let blank = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut vectors = [blank; IOVECS_MAX];
    let mut total = 0;
    for (vector, piece) in vectors.iter_mut().zip(data) {
        let len = piece.len as usize;
        let slice = memory
            .get_slice(piece.addr, len)
            .map_err(io::Error::other)?;
        vector.iov_base = slice.ptr_guard_mut().as_ptr().cast();
        vector.iov_len = len;
        total += len;
    }
    let count = libc::c_int::try_from(data.len()).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let (fd, vectors) = (file.as_raw_fd(), vectors.as_ptr());
    // SAFETY: `count` vectors were filled from slices that vm-memory placed inside guest memory,
    // which `memory` keeps mapped; no reference to that memory exists here.
    let done = unsafe {
        if reads {
            libc::preadv(fd, vectors, count, offset)
        } else {
            libc::pwritev(fd, vectors, count, offset)
        }
    };
    match usize::try_from(done) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(done) if done == total => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
