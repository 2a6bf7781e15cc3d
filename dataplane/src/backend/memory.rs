//! A disk in memory: a memfd, mapped once. Requests complete inside the call, by a copy.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use super::mapped::Mapping;

/// A disk whose bytes are this process's memory.
#[derive(Debug)]
pub struct MemoryDisk(Mapping);

impl MemoryDisk {
    /// A zeroed disk of `capacity_bytes`; memory is taken as it is written.
    pub fn new(capacity_bytes: u64) -> io::Result<MemoryDisk> {
        if capacity_bytes == 0 {
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
        Mapping::of_memory(file, capacity_bytes).map(MemoryDisk)
    }

    /// The disk's bytes.
    pub fn mapping(&self) -> &Mapping {
        &self.0
    }

    /// Size in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.len_bytes()
    }
}
