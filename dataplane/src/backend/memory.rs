//! A disk in memory: a memfd, mapped once. Requests complete inside the call, by a copy.
//!
//! Several workers and the guest may touch the same bytes at once; no reference to them is ever
//! made, only raw copies.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::segments::Segments;
use crate::sys;

/// A disk whose bytes are this process's memory.
#[derive(Debug)]
pub struct MemoryDisk {
    file: File,
    start: *mut u8,
    len: usize,
    /// Held by whoever changes bytes: a sector written by two workers at once must end as the one
    /// or the other, as on any disk, and copies would leave it half and half.
    changing: Mutex<()>,
}

// SAFETY: the mapping lives as long as the disk, and is accessed by raw copies alone.
unsafe impl Send for MemoryDisk {}
// SAFETY: as above.
unsafe impl Sync for MemoryDisk {}

impl MemoryDisk {
    /// A zeroed disk of `capacity_bytes`; memory is taken as it is written.
    pub fn new(capacity_bytes: u64) -> io::Result<MemoryDisk> {
        let len = usize::try_from(capacity_bytes)
            .map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        if len == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: a literal name and flags; the result is checked, and owned by `File` alone.
        let file = unsafe {
            let fd = libc::memfd_create(c"ferry-disk".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        file.set_len(capacity_bytes)?;
        // SAFETY: a fresh mapping of a file of this length; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(MemoryDisk {
            file,
            start: start.cast(),
            len,
            changing: Mutex::new(()),
        })
    }

    /// Size in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.len as u64
    }

    fn at(&self, offset_bytes: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(offset_bytes).expect("inside the mapping");
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "checked when parsed"
        );
        // SAFETY: inside the mapping, as just asserted.
        unsafe { self.start.add(offset) }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies disk bytes into `buf`.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) {
        let from = self.at(offset_bytes, buf.len());
        // SAFETY: `at` checked the range; `buf` is ordinary memory of this process, outside it.
        unsafe { std::ptr::copy_nonoverlapping(from, buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies `buf` to the disk.
    pub fn write(&self, offset_bytes: u64, buf: &[u8]) {
        let to = self.at(offset_bytes, buf.len());
        let _one = self.changing();
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), to, buf.len()) }
    }

    /// Disk to guest memory.
    pub fn read_segments(&self, offset_bytes: u64, segments: &Segments) {
        let mut at = offset_bytes;
        for segment in segments.as_slice() {
            let from = self.at(at, segment.len());
            // SAFETY: `at` checked the disk's side; the segment's is mapped by the invariant of
            // `segments.rs`. They are different mappings, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(from, segment.start(), segment.len()) }
            at += segment.len() as u64;
        }
    }

    /// Guest memory to disk.
    pub fn write_segments(&self, offset_bytes: u64, segments: &Segments) {
        let _one = self.changing();
        let mut at = offset_bytes;
        for segment in segments.as_slice() {
            let to = self.at(at, segment.len());
            // SAFETY: as in `read_segments`.
            unsafe { std::ptr::copy_nonoverlapping(segment.start(), to, segment.len()) }
            at += segment.len() as u64;
        }
    }

    /// Makes the range read as zeroes and gives its memory back.
    pub fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let _one = self.changing();
        sys::fallocate(&self.file, sys::PUNCH_HOLE, range)
    }

    /// The first run of data at or after `offset_bytes`.
    pub fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        sys::next_data(&self.file, offset_bytes, self.capacity_bytes())
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, unmapped only here.
        unsafe {
            libc::munmap(self.start.cast(), self.len);
        }
    }
}
