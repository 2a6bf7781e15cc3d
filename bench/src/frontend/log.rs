//! The dirty log: one bit for each page of guest memory that the server wrote.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vhost::VhostUserDirtyLogRegion;

use super::memory::SharedMap;

/// Bytes of guest memory that one bit stands for.
pub const LOG_PAGE: u64 = 4096;

/// A dirty log in a memfd, shared with the server.
#[derive(Debug)]
pub struct DirtyLog {
    map: SharedMap,
}

impl DirtyLog {
    /// A clean log for guest addresses below `end`.
    pub(crate) fn new(end: u64) -> io::Result<Self> {
        let words = end.div_ceil(LOG_PAGE).div_ceil(64);
        Ok(Self {
            map: SharedMap::new((words * 8).next_multiple_of(4096))?,
        })
    }

    pub(crate) fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.map.len() as u64,
            mmap_offset: 0,
            mmap_handle: self.map.file().as_raw_fd(),
        }
    }

    /// The dirty pages' numbers (guest address / 4096), rising; clears them.
    pub fn take(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for word in 0..self.map.len() / 8 {
            let mut bits = self.map.u64_at(word * 8).swap(0, Ordering::AcqRel);
            while bits != 0 {
                pages.push(word as u64 * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
        pages
    }

    /// Whether the page of this guest address is marked.
    pub fn is_dirty(&self, addr: u64) -> bool {
        let page = addr / LOG_PAGE;
        let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
        word < self.map.len() / 8
            && self.map.u64_at(word * 8).load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_once() {
        let log = DirtyLog::new(100 * LOG_PAGE).unwrap();
        log.map.u64_at(8).fetch_or(0b101, Ordering::Relaxed);
        assert!(log.is_dirty(66 * LOG_PAGE + 5));
        assert!(!log.is_dirty(65 * LOG_PAGE));
        assert!(!log.is_dirty(u64::MAX));
        assert_eq!(log.take(), [64, 66]);
        assert!(log.take().is_empty());
    }
}
