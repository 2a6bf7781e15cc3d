//! A file mapped whole: requests on it complete inside the call, by a copy.
//!
//! For disks in memory (a memfd), and for images on tmpfs, where io_uring would hand every request
//! to a kernel thread.
//!
//! # The invariants
//!
//! - The mapping is as long as the file was when it was made, and lives as long as its owner. Guest
//!   and workers touch the same bytes at once: no reference to them is ever made, only raw copies.
//! - A sector that two workers change at once ends as the one or the other: whoever changes bytes
//!   holds the lock of their [`STRIPE_BYTES`]. Workers on different stripes never meet.
//! - A page of a file on tmpfs is touched through the mapping only while the file has it. A first
//!   touch would take a page of the file system, and end the process with SIGBUS when there is
//!   none left. So [`Room`] remembers which pages are there; a write allocates the others before,
//!   where running out is an error of that request, and a read of the others goes through the
//!   kernel, which gives zeroes and takes no page. A reader holds the stripe's lock too, so that no
//!   page is given back under it.
//! - Somebody else may truncate the file all the same. The page is replaced then
//!   ([`crate::guard`]), and every request from that one on fails.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::guard::Guarded;
use crate::limits::{MAP_STRIPES, STRIPE_BYTES};
use crate::segments::Segments;
use crate::sys;

/// Bytes to one bit of [`Room`]: a page, or a part of one where pages are larger.
const ROOM_BYTES: u64 = 4096;

/// A mapped file.
#[derive(Debug)]
pub struct Mapping {
    file: File,
    /// Dropped before the mapping goes.
    guard: Option<Guarded>,
    start: *mut u8,
    len: usize,
    writable: bool,
    stripes: Box<[Stripe]>,
    room: Option<Room>,
}

// SAFETY: the mapping lives as long as the object, and is accessed by raw copies alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of a file whose pages are the process's own memory: it is never short of
    /// them as a file system is, and nobody else can truncate it.
    pub fn of_memory(file: File, len_bytes: u64) -> io::Result<Mapping> {
        Mapping::new(file, len_bytes, true)
    }

    /// Maps `len_bytes` of a file on tmpfs. Walks over the file's data once, so not for a worker.
    pub fn of_tmpfs(file: File, len_bytes: u64, writable: bool) -> io::Result<Mapping> {
        let mut mapping = Mapping::new(file, len_bytes, writable)?;
        let guard = Guarded::new(mapping.start, mapping.len)
            .ok_or_else(|| io::Error::other("too many mappings are watched in this process"))?;
        mapping.guard = Some(guard);
        let room = Room::new(len_bytes);
        let mut at = 0;
        while let Some(data) = sys::next_data(&mapping.file, at, len_bytes)? {
            at = data.end;
            room.set(&data);
        }
        mapping.room = Some(room);
        Ok(mapping)
    }

    fn new(file: File, len_bytes: u64, writable: bool) -> io::Result<Mapping> {
        let len =
            usize::try_from(len_bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let write = if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh mapping, whose place the kernel chooses; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | write,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping {
            file,
            guard: None,
            start: start.cast(),
            len,
            writable,
            stripes: (0..MAP_STRIPES).map(|_| Stripe::default()).collect(),
            room: None,
        })
    }

    /// Size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len as u64
    }

    /// The file, for what is not a copy.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn at(&self, range: &Range<u64>) -> *mut u8 {
        let bounds = (usize::try_from(range.start), usize::try_from(range.end));
        let (Ok(start), Ok(end)) = bounds else {
            panic!("checked when parsed");
        };
        assert!(start <= end && end <= self.len, "checked when parsed");
        // SAFETY: inside the mapping, as just asserted.
        unsafe { self.start.add(start) }
    }

    /// Has the processor fetch the range's first [`PREFETCH_BYTES`](crate::limits::PREFETCH_BYTES) and its place in the page
    /// tables. From there on the copy itself is fast enough.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    pub fn prefetch(&self, range: &Range<u64>) {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::limits::PREFETCH_BYTES;
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let start = self.at(range);
            let len = small(range.end - range.start).min(PREFETCH_BYTES);
            for at in (0..len).step_by(64) {
                // SAFETY: inside the mapping, by `at`; and a prefetch faults on nothing, not even a
                // page that the file does not have.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(at).cast()) };
            }
        }
    }

    fn lock(&self, piece: &Range<u64>) -> Held<'_> {
        let stripe = piece.start / STRIPE_BYTES % MAP_STRIPES as u64;
        self.stripes[usize::try_from(stripe).expect("just reduced")].lock()
    }

    /// Fails once a page was lost.
    fn intact(&self) -> io::Result<()> {
        match &self.guard {
            Some(guard) if guard.was_hit() => Err(io::Error::other(
                "the file was truncated while it was served; the disk must be opened anew",
            )),
            _ => Ok(()),
        }
    }

    /// Copies disk bytes into `buf`.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let (start, len) = (buf.as_mut_ptr(), buf.len() as u64);
        self.read_pieces(offset_bytes, len, |from, done, len| {
            // SAFETY: the pieces are `buf.len()` bytes in all, so the sum stays inside `buf`.
            from.copy_to(unsafe { start.add(done) }, len)
        })
    }

    /// Copies disk bytes to guest memory.
    pub fn read_segments(&self, offset_bytes: u64, segments: &Segments) -> io::Result<()> {
        let len = segments.total_bytes();
        self.read_pieces(offset_bytes, len, |from, done, len| {
            let mut at = 0;
            let mut result = Ok(());
            segments.walk(done, len, |guest, len| {
                if result.is_ok() {
                    result = from.after(at).copy_to(guest, len);
                    at += len;
                }
            });
            result
        })
    }

    /// Calls `copy` with each piece's source, the bytes done before it, and its length.
    fn read_pieces(
        &self,
        offset_bytes: u64,
        len: u64,
        mut copy: impl FnMut(Source<'_>, usize, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        let Some(room) = &self.room else {
            let whole = offset_bytes..offset_bytes + len;
            let source = Source::Mapped(self.at(&whole));
            return copy(source, 0, small(len));
        };
        for piece in pieces(offset_bytes..offset_bytes + len) {
            let (start, len) = (self.at(&piece), small(piece.end - piece.start));
            let _held = self.lock(&piece);
            let source = if room.has(&piece) {
                Source::Mapped(start)
            } else {
                Source::File(&self.file, piece.start)
            };
            copy(source, done, len)?;
            done += len;
        }
        self.intact()
    }

    /// Copies `buf` to the disk.
    pub fn write(&self, offset_bytes: u64, buf: &[u8]) -> io::Result<()> {
        self.write_pieces(offset_bytes, buf.len() as u64, |to, done, len| {
            // SAFETY: `to` has room for `len` bytes of the mapping, which `buf` is no part of.
            unsafe { std::ptr::copy_nonoverlapping(buf[done..done + len].as_ptr(), to, len) };
        })
    }

    /// Copies guest memory to the disk.
    pub fn write_segments(&self, offset_bytes: u64, segments: &Segments) -> io::Result<()> {
        self.write_pieces(offset_bytes, segments.total_bytes(), |to, done, len| {
            let mut at = 0;
            segments.walk(done, len, |guest, len| {
                // SAFETY: `to` has room for the piece, of which `walk` gives out parts; the guest's
                // side is mapped by the invariant of `segments.rs`, and is another mapping.
                unsafe { std::ptr::copy_nonoverlapping(guest, to.add(at), len) };
                at += len;
            });
        })
    }

    /// Writes zeroes, so that the space stays with the file.
    pub fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.write_pieces(range.start, range.end - range.start, |to, _, len| {
            // SAFETY: `to` has room for `len` bytes of the mapping.
            unsafe { std::ptr::write_bytes(to, 0, len) };
        })
    }

    /// Calls `copy` with each piece's place, the bytes done before it, and its length; its pages
    /// are there, and nobody else changes it.
    fn write_pieces(
        &self,
        offset_bytes: u64,
        len: u64,
        mut copy: impl FnMut(*mut u8, usize, usize),
    ) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut done = 0;
        for piece in pieces(offset_bytes..offset_bytes + len) {
            let (start, len) = (self.at(&piece), small(piece.end - piece.start));
            let _held = self.lock(&piece);
            if let Some(room) = &self.room
                && !room.has(&piece)
            {
                let pages = self.pages(&piece);
                sys::fallocate(&self.file, sys::KEEP_SIZE, pages.clone())?;
                room.set(&pages);
            }
            copy(start, done, len);
            done += len;
        }
        self.intact()
    }

    /// A range rounded out to whole pages, in the mapping.
    fn pages(&self, piece: &Range<u64>) -> Range<u64> {
        let start = piece.start / ROOM_BYTES * ROOM_BYTES;
        start..piece.end.next_multiple_of(ROOM_BYTES).min(self.len_bytes())
    }

    /// Makes the range read as zeroes and gives its space back.
    pub fn zero(&self, range: Range<u64>) -> io::Result<()> {
        for piece in pieces(range) {
            let _held = self.lock(&piece);
            self.forget(&piece);
            sys::fallocate(&self.file, sys::PUNCH_HOLE, piece)?;
        }
        self.intact()
    }

    /// Takes note that the file may not have the pages inside this range: before and after the
    /// kernel is asked to give them back on another thread.
    pub fn forget(&self, range: &Range<u64>) {
        if let Some(room) = &self.room {
            room.clear(range);
        }
    }

    /// Whether everything written is still there. There is nothing to make durable in memory.
    pub fn flush(&self) -> io::Result<()> {
        self.intact()
    }

    /// The first run of data at or after `offset_bytes`.
    pub fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        sys::next_data(&self.file, offset_bytes, self.len_bytes())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: mapped in `new` with this length, unmapped only here.
        unsafe {
            libc::munmap(self.start.cast(), self.len);
        }
    }
}

/// Where a piece is read from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Mapped(*const u8),
    /// A hole, in part at least: the file, from this offset.
    File(&'a File, u64),
}

impl Source<'_> {
    /// The same without its first `len` bytes.
    fn after(self, len: usize) -> Self {
        match self {
            // SAFETY: no further than the piece reaches, by `read_segments`.
            Source::Mapped(from) => Source::Mapped(unsafe { from.add(len) }),
            Source::File(file, offset) => Source::File(file, offset + len as u64),
        }
    }

    /// Copies its first `len` bytes.
    fn copy_to(self, to: *mut u8, len: usize) -> io::Result<()> {
        match self {
            Source::Mapped(from) => {
                // SAFETY: the piece is mapped for `len` bytes, and so is its target, by the callers;
                // they are different mappings.
                unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
                Ok(())
            }
            // SAFETY: the target is mapped and writable for `len` bytes, by the callers.
            Source::File(file, offset) => unsafe { sys::read_raw_at(file, offset, to, len) },
        }
    }
}

/// The parts of a range that lie in one stripe each.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = ((at / STRIPE_BYTES + 1) * STRIPE_BYTES).min(range.end);
        let piece = at..end;
        at = end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Bytes of one request, whose length was bounded when it was parsed.
fn small(bytes: u64) -> usize {
    usize::try_from(bytes).expect("inside the mapping")
}

/// A lock held for one copy of [`STRIPE_BYTES`] at most, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(AtomicBool);

struct Held<'a>(&'a AtomicBool);

impl Stripe {
    fn lock(&self) -> Held<'_> {
        let mut tries = 0u32;
        while self.0.swap(true, Ordering::Acquire) {
            tries += 1;
            if tries.is_multiple_of(64) {
                std::thread::yield_now(); // its holder may not be running
            } else {
                std::hint::spin_loop();
            }
        }
        Held(&self.0)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The pages that the file is known to have, a bit each.
#[derive(Debug)]
struct Room(Box<[AtomicU64]>);

impl Room {
    fn new(len_bytes: u64) -> Room {
        let words = len_bytes.div_ceil(ROOM_BYTES * 64);
        Room((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// The words over units `units`, each with the mask of those units.
    fn words(&self, units: Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let mut at = units.start;
        std::iter::from_fn(move || {
            if at >= units.end {
                return None;
            }
            let (word, bit) = (at / 64, at % 64);
            let count = (64 - bit).min(units.end - at);
            at += count;
            let mask = (u64::MAX >> (64 - count)) << bit;
            Some((&self.0[small(word)], mask))
        })
    }

    fn has(&self, range: &Range<u64>) -> bool {
        let units = range.start / ROOM_BYTES..range.end.div_ceil(ROOM_BYTES);
        self.words(units)
            .all(|(word, mask)| word.load(Ordering::Acquire) & mask == mask)
    }

    /// Everything that the range touches is there.
    fn set(&self, range: &Range<u64>) {
        let units = range.start / ROOM_BYTES..range.end.div_ceil(ROOM_BYTES);
        for (word, mask) in self.words(units) {
            word.fetch_or(mask, Ordering::AcqRel);
        }
    }

    /// What lies in the range may not be there any more.
    fn clear(&self, range: &Range<u64>) {
        let units = range.start / ROOM_BYTES..range.end.div_ceil(ROOM_BYTES);
        for (word, mask) in self.words(units) {
            word.fetch_and(!mask, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests;
