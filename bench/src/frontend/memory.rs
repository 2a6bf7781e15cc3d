//! Guest memory: memfds mapped shared, handed out by a bump allocator.
//!
//! A server maps the same pages and writes them whenever it likes, so nothing
//! here ever forms a Rust reference to the bytes. Data goes in and out by copy;
//! ring fields are reached as atomics. That is the whole reason for the unsafe
//! code of this front-end to live in this one file.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64};
use std::sync::{Arc, Mutex};

use vhost::VhostUserMemoryRegionInfo;

/// Where guest memory starts unless a test says otherwise. Not zero, so that a
/// server that takes 0 for "no address" is found out only by tests that mean to.
pub const DEFAULT_BASE: u64 = 1 << 20;

const PAGE: u64 = 4096;

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host would not give the memory.
    #[error("cannot map {bytes} bytes of guest memory: {source}; free some memory or ask for less")]
    Map {
        /// How much was asked for.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// No region holds this range.
    #[error("guest address {addr:#x} with {len} bytes is outside guest memory")]
    OutOfRange {
        /// First address of the range.
        addr: u64,
        /// Length of the range.
        len: u64,
    },
    /// The allocator has run dry.
    #[error("guest memory is used up: {wanted} bytes do not fit; make the memory larger")]
    Exhausted {
        /// How much was asked for.
        wanted: u64,
    },
    /// Regions overlap, are empty, or are not whole pages.
    #[error("guest regions must be whole pages, not empty, and must not overlap")]
    BadRegions,
}

/// A memfd mapped shared and writable.
#[derive(Debug)]
pub(crate) struct SharedMap {
    ptr: NonNull<u8>,
    len: usize,
    file: File,
}

// SAFETY: the mapping lives as long as the value, and every access goes through
// raw copies or atomics, so it may be used from any thread.
unsafe impl Send for SharedMap {}
// SAFETY: as above; no method hands out a plain reference into the mapping.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    pub(crate) fn new(bytes: u64) -> io::Result<Self> {
        // SAFETY: the name is a C string literal; the call has no other input.
        let fd = unsafe { libc::memfd_create(c"ferry-guest".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes)?;
        Self::map(file, bytes)
    }

    fn map(file: File, bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh shared mapping of a file that we own; no address is forced.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ptr = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { ptr, len, file })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The address of `len` bytes at `offset`; panics outside the mapping.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            inside,
            "{len} bytes at {offset} in a mapping of {}",
            self.len
        );
        // SAFETY: `at` has just checked that the range is inside the mapping.
        unsafe { self.ptr.as_ptr().add(offset) }
    }

    fn read(&self, offset: usize, out: &mut [u8]) {
        let from = self.at(offset, out.len());
        // SAFETY: `at` checked the source; `out` is ours and cannot overlap a
        // mapping that never appears as a reference. A racing server can only
        // change which bytes we copy, and any byte is a valid u8.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    fn write(&self, offset: usize, data: &[u8]) {
        let to = self.at(offset, data.len());
        // SAFETY: as in `read`, with the direction reversed.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) }
    }

    pub(crate) fn u64_at(&self, offset: usize) -> &AtomicU64 {
        let at = self.at(offset, 8).cast::<u64>();
        assert!(at.is_aligned(), "u64 at offset {offset}");
        // SAFETY: in range and aligned (checked above); lives as long as `self`;
        // an atomic may be shared with the server's own atomic accesses.
        unsafe { AtomicU64::from_ptr(at) }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and is unmapped once.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

#[derive(Debug)]
struct Region {
    base: u64,
    map: SharedMap,
    /// Offset of the first byte not yet handed out.
    next: Mutex<u64>,
}

/// The guest's memory. Clones share it.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    regions: Arc<Vec<Region>>,
}

impl GuestMemory {
    /// One region of `bytes`, rounded up to whole pages, at [`DEFAULT_BASE`].
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        Self::with_regions(&[(DEFAULT_BASE, bytes.next_multiple_of(PAGE))])
    }

    /// Several regions as (guest address, bytes); each gets a memfd of its own.
    pub fn with_regions(shape: &[(u64, u64)]) -> Result<Self, MemoryError> {
        check_shape(shape)?;
        let mut regions = Vec::with_capacity(shape.len());
        for &(base, bytes) in shape {
            let map = SharedMap::new(bytes).map_err(|source| MemoryError::Map { bytes, source })?;
            regions.push(Region {
                base,
                map,
                next: Mutex::new(0),
            });
        }
        Ok(Self {
            regions: Arc::new(regions),
        })
    }

    /// Takes `len` bytes, aligned to `align` (a power of two), from the first
    /// region with room. Never given back: a front-end lays itself out once.
    pub fn alloc(&self, len: u64, align: u64) -> Result<u64, MemoryError> {
        (0..self.regions.len())
            .find_map(|i| self.alloc_in(i, len, align).ok())
            .ok_or(MemoryError::Exhausted { wanted: len })
    }

    /// As [`alloc`](Self::alloc), from the region with this index.
    pub fn alloc_in(&self, region: usize, len: u64, align: u64) -> Result<u64, MemoryError> {
        let exhausted = MemoryError::Exhausted { wanted: len };
        let Some(region) = self.regions.get(region) else {
            return Err(exhausted);
        };
        let mut next = region.next.lock().unwrap_or_else(|e| e.into_inner());
        let start = (region.base + *next).next_multiple_of(align) - region.base;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= region.map.len() as u64);
        let Some(end) = end else {
            return Err(exhausted);
        };
        *next = end;
        Ok(region.base + start)
    }

    /// Copies guest memory out.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let (region, offset) = self.find(addr, out.len() as u64)?;
        self.regions[region].map.read(offset, out);
        Ok(())
    }

    /// Copies bytes into guest memory.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        let (region, offset) = self.find(addr, data.len() as u64)?;
        self.regions[region].map.write(offset, data);
        Ok(())
    }

    /// A window on a range, checked once; see [`View`].
    pub fn view(&self, addr: u64, len: u64) -> Result<View, MemoryError> {
        let (region, offset) = self.find(addr, len)?;
        let len = usize::try_from(len).map_err(|_| MemoryError::OutOfRange { addr, len })?;
        let start = self.regions[region].map.at(offset, len);
        Ok(View {
            // A mapping never starts at address 0.
            start: NonNull::new(start).ok_or(MemoryError::BadRegions)?,
            len,
            _memory: self.clone(),
        })
    }

    /// The first address past the highest region; a dirty log must reach it.
    pub fn end(&self) -> u64 {
        self.regions
            .iter()
            .map(|r| r.base + r.map.len() as u64)
            .max()
            .unwrap_or(0)
    }

    /// The regions as the protocol describes them, in the order they were given.
    /// A region's "user address" is its place in this process.
    pub fn region_infos(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.regions.iter().map(region_info).collect()
    }

    /// The memfd under a region, for tests that cut it short.
    pub fn file(&self, region: usize) -> Option<&File> {
        self.regions.get(region).map(|r| r.map.file())
    }

    /// Where a server must be told that this guest address is: the address in
    /// this process, which ring addresses are given in.
    pub fn user_addr(&self, addr: u64) -> Result<u64, MemoryError> {
        let (region, offset) = self.find(addr, 1)?;
        Ok(self.regions[region].map.ptr.as_ptr() as u64 + offset as u64)
    }

    /// Whether two handles share the same memory.
    pub fn same(&self, other: &GuestMemory) -> bool {
        Arc::ptr_eq(&self.regions, &other.regions)
    }

    fn find(&self, addr: u64, len: u64) -> Result<(usize, usize), MemoryError> {
        for (i, region) in self.regions.iter().enumerate() {
            let Some(offset) = addr.checked_sub(region.base) else {
                continue;
            };
            let size = region.map.len() as u64;
            if offset < size && len <= size - offset {
                // In range of a usize, because the mapping is.
                return Ok((i, usize::try_from(offset).unwrap_or(usize::MAX)));
            }
        }
        Err(MemoryError::OutOfRange { addr, len })
    }
}

fn region_info(region: &Region) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.base,
        memory_size: region.map.len() as u64,
        userspace_addr: region.map.ptr.as_ptr() as u64,
        mmap_offset: 0,
        mmap_handle: region.map.file().as_raw_fd(),
    }
}

fn check_shape(shape: &[(u64, u64)]) -> Result<(), MemoryError> {
    let mut sorted = shape.to_vec();
    sorted.sort_unstable();
    let whole = |v: u64| v.is_multiple_of(PAGE);
    let sound = sorted.iter().all(|&(base, len)| {
        len > 0 && whole(base) && whole(len) && base.checked_add(len).is_some()
    });
    let apart = sorted
        .windows(2)
        .all(|w| w[0].0.saturating_add(w[0].1) <= w[1].0);
    if sorted.is_empty() || !sound || !apart {
        return Err(MemoryError::BadRegions);
    }
    Ok(())
}

/// A window on guest memory whose place was checked once.
///
/// Offsets are the caller's own, never a server's: an access outside the window
/// is a mistake in the front-end and panics, as slice indexing does.
#[derive(Debug, Clone)]
pub struct View {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the mapping under `start` alive.
    _memory: GuestMemory,
}

// SAFETY: `_memory` keeps the mapping, and every access goes through raw copies
// or atomics, so a view may be used from any thread, as the mapping may.
unsafe impl Send for View {}
// SAFETY: as above; no method hands out a plain reference to the bytes.
unsafe impl Sync for View {}

impl View {
    /// Copies out.
    #[inline]
    pub fn read(&self, at: usize, out: &mut [u8]) {
        let from = self.at(at, out.len());
        // SAFETY: `at` checked the source; as in `SharedMap::read`.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    /// Copies in.
    #[inline]
    pub fn write(&self, at: usize, data: &[u8]) {
        let to = self.at(at, data.len());
        // SAFETY: as in `read`, with the direction reversed.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) }
    }

    /// Copies `len` bytes to another window, which may lie in the same memory
    /// but must not overlap this range.
    #[inline]
    pub fn copy_to(&self, at: usize, to: &View, to_at: usize, len: usize) {
        let (from, to) = (self.at(at, len), to.at(to_at, len));
        let apart = (from as usize).abs_diff(to as usize) >= len;
        assert!(apart, "{len} bytes copied onto themselves");
        // SAFETY: `at` checked both ranges, which do not overlap; as in `SharedMap::read`.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
    }

    /// A 16-bit field, such as a ring index.
    #[inline]
    pub fn u16_at(&self, at: usize) -> &AtomicU16 {
        let at = self.at(at, 2).cast::<u16>();
        assert!(at.is_aligned(), "u16 at an odd address");
        // SAFETY: in range and aligned; as in `SharedMap::u64_at`.
        unsafe { AtomicU16::from_ptr(at) }
    }

    #[inline]
    fn at(&self, at: usize, len: usize) -> *mut u8 {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {at} in a view of {}", self.len);
        // SAFETY: inside the window, which `GuestMemory::view` placed inside the mapping.
        unsafe { self.start.as_ptr().add(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let mem = GuestMemory::new(8192).unwrap();
        let at = mem.alloc(16, 16).unwrap();
        mem.write(at, b"hello").unwrap();
        let mut out = [0; 5];
        mem.read(at, &mut out).unwrap();
        assert_eq!(&out, b"hello");
    }

    #[test]
    fn ranges_are_checked_at_every_edge() {
        let mem = GuestMemory::with_regions(&[(0x1000, 0x1000), (0x2000, 0x1000)]).unwrap();
        assert!(mem.write(0xfff, &[0]).is_err());
        assert!(
            mem.write(0x1fff, &[0, 0]).is_err(),
            "regions do not join up"
        );
        assert!(mem.write(0x2fff, &[0]).is_ok());
        assert!(mem.write(0x3000, &[0]).is_err());
        assert!(mem.view(u64::MAX, 2).is_err());
        assert_eq!(mem.end(), 0x3000);
    }

    #[test]
    fn bad_shapes_are_refused() {
        for shape in [&[][..], &[(0, 0)], &[(1, 4096)], &[(0, 8192), (4096, 4096)]] {
            assert!(GuestMemory::with_regions(shape).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn the_allocator_aligns_and_runs_dry() {
        let mem = GuestMemory::with_regions(&[(0x1000, 0x1000), (0x8000, 0x1000)]).unwrap();
        mem.alloc(1, 1).unwrap();
        assert_eq!(mem.alloc(0x800, 0x800).unwrap(), 0x1800);
        assert_eq!(mem.alloc(0x1000, 0x1000).unwrap(), 0x8000, "second region");
        assert!(matches!(
            mem.alloc(1, 1),
            Err(MemoryError::Exhausted { .. })
        ));
    }
}
