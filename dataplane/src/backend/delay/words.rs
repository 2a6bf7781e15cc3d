//! A file of atomic numbers, mapped, in which several processes count together.
//!
//! The file is [`WORDS`] numbers of 64 bits, all of them 0 at first: whoever finds it empty makes it
//! long enough, and it does not matter if two do, or if one is in use already. A file of any other
//! length, or one that does not begin with [`MAGIC`], is somebody else's and is left alone.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::guard::Guarded;
use crate::sys;

/// Numbers in the file; the first is [`MAGIC`].
pub const WORDS: usize = 512;
const FILE_BYTES: usize = WORDS * size_of::<AtomicU64>();
const MAGIC: u64 = u64::from_le_bytes(*b"FRYDLAY1");

/// The mapped file.
#[derive(Debug)]
pub struct Words {
    start: *const AtomicU64,
    /// Somebody may truncate the file: zeroes replace the page then, which nobody shares. Dropped
    /// before the mapping goes.
    guard: Option<Guarded>,
}

// SAFETY: the mapping lives as long as the object, and all of it is atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> io::Result<Words> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o660)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(not_ours());
        }
        if file.metadata()?.size() == 0 {
            // With its page, so that a full file system is an error here, and no signal later.
            let whole = 0..FILE_BYTES as u64;
            match sys::fallocate(&file, 0, whole) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    file.set_len(FILE_BYTES as u64)?;
                }
                done => done?,
            }
        }
        if file.metadata()?.size() != FILE_BYTES as u64 {
            return Err(not_ours());
        }
        let words = Words::map(&file)?;
        let first = &words.all()[0];
        match first.compare_exchange(0, MAGIC, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(MAGIC) => Ok(words),
            Err(_) => Err(not_ours()),
        }
    }

    fn map(file: &File) -> io::Result<Words> {
        // SAFETY: a fresh mapping, whose place the kernel chooses; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                FILE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut words = Words {
            start: start.cast_const().cast(),
            guard: None,
        };
        words.guard = Guarded::new(start.cast(), FILE_BYTES);
        if words.guard.is_none() {
            return Err(io::Error::other(
                "too many mappings are watched in this process",
            ));
        }
        Ok(words)
    }

    /// The numbers.
    pub fn all(&self) -> &[AtomicU64] {
        // SAFETY: `map` mapped so many of them, aligned to a page, until `self` is dropped; any bits
        // are a number; and whoever else has the file mapped changes it by atomics too, as
        // `MAGIC` says.
        unsafe { std::slice::from_raw_parts(self.start, WORDS) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: mapped in `map` with this length, unmapped only here.
        unsafe {
            libc::munmap(self.start.cast_mut().cast(), FILE_BYTES);
        }
    }
}

fn not_ours() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it is not what Ferry keeps there; remove it",
    )
}
