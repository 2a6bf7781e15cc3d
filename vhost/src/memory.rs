//! Guest memory: the regions a front-end shares, and its dirty log.
//!
//! # The invariant
//!
//! A [`MemoryMap`] maps its regions until it is dropped. A queue keeps the map of every request it
//! has outstanding (see `vring.rs`), so a [`Segment`] made here stays mapped until its request is
//! completed. The guest writes the same memory at any time: nothing here makes a Rust reference to
//! it, only raw copies and atomics.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use ferry_dataplane::guard::Guarded;
use ferry_dataplane::queue::MemoryRegion;
use ferry_dataplane::segments::{Segment, Segments};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

/// Regions of one memory table; as many as QEMU's slots.
pub const REGIONS_MAX: usize = 509;

/// Bytes of a buffer that are fetched to the cache before it is its turn: a header and the start of a frame.
/// What follows them the processor foresees.
const PREFETCH_BYTES: usize = 128;

const CACHE_LINE_BYTES: usize = 64;

/// What memory is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To be read: other cores may keep theirs.
    Read,
    /// To be written: the line comes here alone, so that the write need not ask for that.
    Write,
}

/// Bytes of guest memory to one bit of the dirty log.
pub const LOG_PAGE_BYTES: u64 = 4096;

/// Has the processor fetch the cache line of an address, if there is one.
#[inline]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
pub fn prefetch(at: *const u8, access: Access) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch may name any address: it faults on nothing, and nothing that it does is seen. Where
    // a processor does not know the second kind, it does nothing.
    unsafe {
        use std::arch::asm;
        match access {
            Access::Read => {
                asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
            }
            Access::Write => {
                asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
            }
        }
    }
}

/// Has the processor fetch the first [`PREFETCH_BYTES`] of these bytes of what starts at `start`.
#[inline]
pub fn prefetch_start(start: *const u8, bytes: Range<usize>, access: Access) {
    let end = bytes.end.min(bytes.start + PREFETCH_BYTES);
    for at in (bytes.start..end).step_by(CACHE_LINE_BYTES) {
        prefetch(start.wrapping_add(at), access);
    }
}

/// Why memory was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The region makes no sense.
    #[error("guest memory region at {guest_start:#x}: {reason}")]
    Region {
        /// Guest physical address.
        guest_start: u64,
        /// What is wrong.
        reason: String,
    },
    /// More than [`REGIONS_MAX`].
    #[error("too many memory regions: {0}, at most {REGIONS_MAX}")]
    TooMany(usize),
    /// No such region to remove.
    #[error("no memory region at {0:#x}")]
    Missing(u64),
    /// The dirty log cannot be mapped.
    #[error("the dirty log cannot be mapped: {0}")]
    Log(String),
}

/// One region as the front-end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address.
    pub guest_start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the front-end has it mapped: the addresses of virtqueues are given in these terms.
    pub user_start: u64,
    /// Where it begins in its file.
    pub file_offset: u64,
}

/// A mapped region.
#[derive(Debug)]
struct Region {
    /// Never used again for another.
    id: u64,
    spec: RegionSpec,
    /// Keeps the process alive when the front-end truncates the file. Dropped before the mapping.
    _guard: Guarded,
    map: MmapRegion,
}

impl Region {
    fn new(spec: RegionSpec, file: File) -> Result<Region, MemoryError> {
        let refuse = |reason: String| MemoryError::Region {
            guest_start: spec.guest_start,
            reason,
        };
        let ends =
            [spec.guest_start, spec.user_start, spec.file_offset].map(|s| s.checked_add(spec.len));
        if spec.len == 0 || ends.contains(&None) {
            return Err(refuse("empty, or past the end of the address space".into()));
        }
        let len = usize::try_from(spec.len).map_err(|_| refuse("too large".into()))?;
        if !reaches(&file, spec.file_offset, spec.len) {
            return Err(refuse("its file ends before it".into()));
        }
        let map = MmapRegion::from_file(FileOffset::new(file, spec.file_offset), len)
            .map_err(|error| refuse(error.to_string()))?;
        let guard = Guarded::new(map.as_ptr(), len)
            .ok_or_else(|| refuse("this process has too many regions mapped".into()))?;
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Ok(Region {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            spec,
            map,
            _guard: guard,
        })
    }

    /// The mapped address of byte `at` of the region, and how many bytes follow it.
    fn host(&self, at: u64) -> Option<(*mut u8, u64)> {
        let left = self.spec.len.checked_sub(at).filter(|&left| left > 0)?;
        let at = usize::try_from(at).ok()?;
        // SAFETY: `at` is inside the mapping.
        Some((unsafe { self.map.as_ptr().add(at) }, left))
    }
}

/// Whether the file holds `len` bytes from `offset`. A device has no size to check.
fn reaches(file: &File, offset: u64, len: u64) -> bool {
    file.metadata().is_ok_and(|about| {
        !about.is_file()
            || offset
                .checked_add(len)
                .is_some_and(|end| end <= about.len())
    })
}

/// The guest's memory as of one memory table; immutable. A change makes another map, which shares
/// the regions that stay.
#[derive(Debug, Clone, Default)]
pub struct MemoryMap {
    /// By guest address, without overlap.
    regions: Vec<Arc<Region>>,
    /// The same, as the path wants it: no pointer to follow.
    spans: Vec<Span>,
}

/// Where guest addresses are mapped.
#[derive(Debug, Clone, Copy)]
struct Span {
    guest_start: u64,
    len: u64,
    /// The first byte; mapped as long as the region beside it is held.
    host: *mut u8,
}

// SAFETY: the address is into a region that the same map holds, and the memory behind it is only
// touched by raw copies and atomics.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    /// The mapped address of guest address `guest`, and how many bytes follow it.
    fn host(&self, guest: u64) -> Option<(*mut u8, u64)> {
        let at = guest.checked_sub(self.guest_start)?;
        let follow = self.len.checked_sub(at).filter(|&left| left > 0)?;
        let at = usize::try_from(at).ok()?;
        // SAFETY: `at` is inside the mapping.
        Some((unsafe { self.host.add(at) }, follow))
    }
}

impl MemoryMap {
    /// Maps a whole table.
    pub fn new(table: Vec<(RegionSpec, File)>) -> Result<MemoryMap, MemoryError> {
        let mut map = MemoryMap::default();
        for (spec, file) in table {
            map = map.with(spec, file)?;
        }
        Ok(map)
    }

    /// This map and one region more.
    pub fn with(&self, spec: RegionSpec, file: File) -> Result<MemoryMap, MemoryError> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(MemoryError::TooMany(self.regions.len() + 1));
        }
        let region = Region::new(spec, file)?;
        let at = self
            .regions
            .partition_point(|r| r.spec.guest_start < spec.guest_start);
        let before = at.checked_sub(1).map(|i| &self.regions[i].spec);
        let overlaps = before.is_some_and(|b| b.guest_start + b.len > spec.guest_start)
            || self
                .regions
                .get(at)
                .is_some_and(|r| spec.guest_start + spec.len > r.spec.guest_start);
        if overlaps {
            let reason = "overlaps another region".into();
            return Err(MemoryError::Region {
                guest_start: spec.guest_start,
                reason,
            });
        }
        let mut regions = self.regions.clone();
        regions.insert(at, Arc::new(region));
        Ok(MemoryMap::of(regions))
    }

    /// This map without the region that has this guest address, user address and length.
    pub fn without(&self, spec: RegionSpec) -> Result<MemoryMap, MemoryError> {
        let same = |r: &Arc<Region>| {
            (r.spec.guest_start, r.spec.user_start, r.spec.len)
                == (spec.guest_start, spec.user_start, spec.len)
        };
        let at = self
            .regions
            .iter()
            .position(same)
            .ok_or(MemoryError::Missing(spec.guest_start))?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(MemoryMap::of(regions))
    }

    fn of(regions: Vec<Arc<Region>>) -> MemoryMap {
        let span = |region: &Arc<Region>| Span {
            guest_start: region.spec.guest_start,
            len: region.spec.len,
            host: region.map.as_ptr(),
        };
        let spans = regions.iter().map(span).collect();
        MemoryMap { regions, spans }
    }

    /// The mapped address of guest address `guest`, and how many bytes follow it there.
    #[inline]
    pub fn host_of_guest(&self, guest: u64) -> Option<(*mut u8, u64)> {
        if let [one] = self.spans.as_slice() {
            return one.host(guest);
        }
        let at = self.spans.partition_point(|s| s.guest_start <= guest);
        self.spans[at.checked_sub(1)?].host(guest)
    }

    /// Whether a byte is guest memory.
    pub fn contains(&self, guest: u64) -> bool {
        self.host_of_guest(guest).is_some()
    }

    /// The regions, as they are mapped here.
    pub fn mapped(&self) -> Vec<MemoryRegion> {
        let region = |region: &Arc<Region>| MemoryRegion {
            id: region.id,
            start: region.map.as_ptr(),
            len: region.map.size(),
        };
        self.regions.iter().map(region).collect()
    }

    /// Appends the mapped runs of `len` bytes at guest address `guest`; false when part of it is
    /// not guest memory, or the segments are full.
    #[inline]
    #[must_use]
    pub fn push_segments(&self, guest: u64, len: u64, into: &mut Segments) -> bool {
        let (mut guest, mut left) = (guest, len);
        while left > 0 {
            let Some((start, follow)) = self.host_of_guest(guest) else {
                return false;
            };
            let piece = follow.min(left);
            let Ok(piece_len) = usize::try_from(piece) else {
                return false;
            };
            // SAFETY: `host` says that `follow` bytes are mapped there; the queue keeps this map
            // until the request is completed.
            if !into.push(unsafe { Segment::new(start, piece_len) }) {
                return false;
            }
            let Some(next) = guest.checked_add(piece) else {
                return left == piece;
            };
            guest = next;
            left -= piece;
        }
        true
    }

    /// Copies guest bytes into `buf`; false when part of the range is not guest memory.
    #[inline]
    #[must_use]
    pub fn read(&self, guest: u64, buf: &mut [u8]) -> bool {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = guest.checked_add(done as u64) else {
                return false;
            };
            let Some((start, follow)) = self.host_of_guest(at) else {
                return false;
            };
            let piece = usize::try_from(follow)
                .unwrap_or(usize::MAX)
                .min(buf.len() - done);
            // SAFETY: `follow` bytes are mapped at `start`, and `piece` is no more than that.
            unsafe { std::ptr::copy_nonoverlapping(start, buf[done..].as_mut_ptr(), piece) };
            done += piece;
        }
        true
    }

    /// Writes one byte; false when the address is not guest memory.
    pub fn write_byte(&self, guest: u64, value: u8) -> bool {
        let Some((start, _)) = self.host_of_guest(guest) else {
            return false;
        };
        // SAFETY: mapped, and a byte is always aligned; the store is atomic because the guest may
        // look at any time.
        unsafe { AtomicU8::from_ptr(start) }.store(value, Ordering::Relaxed);
        true
    }

    /// The mapped address of `len` bytes at the front-end's address `user`, all in one region.
    pub fn host_of_user(&self, user: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let at = user.checked_sub(region.spec.user_start)?;
            let (start, follow) = region.host(at)?;
            (len <= follow).then_some(start)
        })
    }

    /// What tells the byte at the front-end's address `user` from any other, however the memory is
    /// cut into regions: its file (device and inode), its place there, and where it is seen. `None`
    /// when it is not guest memory.
    pub fn identity_of(&self, user: u64) -> Option<[u64; 5]> {
        let holds = |region: &&Arc<Region>| {
            user.checked_sub(region.spec.user_start)
                .is_some_and(|at| at < region.spec.len)
        };
        let region = self.regions.iter().find(holds)?;
        let about = region.map.file_offset()?.file().metadata().ok()?;
        let spec = &region.spec;
        let at = user - spec.user_start;
        Some([
            about.dev(),
            about.ino(),
            spec.file_offset + at,
            spec.guest_start + at,
            user,
        ])
    }

    /// The guest ranges of a segment that this map made.
    pub fn guest_of(&self, segment: &Segment) -> Option<Range<u64>> {
        let address = segment.start().addr();
        self.regions.iter().find_map(|region| {
            let at = address.checked_sub(region.map.as_ptr().addr())? as u64;
            (at < region.spec.len).then(|| {
                let start = region.spec.guest_start + at;
                start..start + segment.len() as u64
            })
        })
    }
}

/// The dirty log that a front-end shares while it migrates: a bit for each page of guest memory.
#[derive(Debug)]
pub struct DirtyLog {
    _guard: Guarded, // dropped before the mapping
    map: MmapRegion,
}

impl DirtyLog {
    /// Maps `len` bytes of bits at `file_offset`.
    pub fn new(file: File, file_offset: u64, len: u64) -> Result<DirtyLog, MemoryError> {
        let refuse = |reason: &str| MemoryError::Log(reason.to_owned());
        if !reaches(&file, file_offset, len) {
            return Err(refuse("its file ends before it"));
        }
        let len = usize::try_from(len).map_err(|_| refuse("too large"))?;
        let map = MmapRegion::from_file(FileOffset::new(file, file_offset), len)
            .map_err(|error| MemoryError::Log(error.to_string()))?;
        let guard = Guarded::new(map.as_ptr(), len)
            .ok_or_else(|| refuse("this process has too many regions mapped"))?;
        Ok(DirtyLog { map, _guard: guard })
    }

    /// Marks the pages of a guest range. What lies past the end of the log is not marked.
    pub fn mark(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let last = (range.end - 1) / LOG_PAGE_BYTES;
        for page in range.start / LOG_PAGE_BYTES..=last {
            let Some(at) = usize::try_from(page / 8)
                .ok()
                .filter(|&at| at < self.map.size())
            else {
                return;
            };
            // SAFETY: `at` is inside the mapping; QEMU clears bits with atomics of its own.
            unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(at)) }
                .fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
