//! Guest memory as the engine sees it: runs of mapped bytes, validated by the queue that made
//! them.
//!
//! # The invariant
//!
//! A [`Segment`] points to memory that stays mapped until its request is completed. The queue that
//! translates a descriptor upholds it: it counts the requests outstanding on each generation of
//! the memory map and drops none before they are back. The worker upholds the other half: it never
//! drops a queue while one of its requests is in a slot. Guest memory is shared with the guest, so
//! every access here is a raw copy; no Rust reference to it is ever made.
#![allow(unsafe_code)]

use crate::limits::SEGMENTS_PER_REQUEST;

/// One run of mapped guest memory; laid out as the kernel's `iovec`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Segment(libc::iovec);

// SAFETY: a segment is an address and a length; the memory behind it is shared by design, and only
// accessed by raw copies.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// A run of `len` bytes from `start`.
    ///
    /// # Safety
    ///
    /// The run must be mapped, readable and writable, until the request it belongs to is completed
    /// (see the module's invariant).
    pub unsafe fn new(start: *mut u8, len: usize) -> Segment {
        Segment(libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        })
    }

    /// The first byte's address.
    #[inline]
    pub fn start(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// What comes after its first `skip` bytes; `None` when it has fewer.
    #[inline]
    pub fn after(&self, skip: usize) -> Option<Segment> {
        let len = self.len().checked_sub(skip)?;
        // SAFETY: a piece of this one, which is mapped as this is.
        Some(unsafe { Segment::new(self.start().add(skip), len) })
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:p}", self.len(), self.start())
    }
}

/// The data of one request, in order. The storage is allocated once and never moves.
pub struct Segments {
    storage: Box<[Segment]>,
    used: usize,
}

impl Default for Segments {
    fn default() -> Segments {
        Segments::new()
    }
}

impl Segments {
    /// No segments, with room for the most that a request may have.
    pub fn new() -> Segments {
        // SAFETY: a run of no bytes needs no mapping.
        let empty = unsafe { Segment::new(std::ptr::NonNull::dangling().as_ptr(), 0) };
        Segments {
            storage: vec![empty; SEGMENTS_PER_REQUEST].into_boxed_slice(),
            used: 0,
        }
    }

    /// Forgets all segments.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Adds a run; false when there is no room for it.
    #[must_use]
    pub fn push(&mut self, segment: Segment) -> bool {
        let Some(place) = self.storage.get_mut(self.used) else {
            return false;
        };
        *place = segment;
        self.used += 1;
        true
    }

    /// Adds the first `len` bytes of a buffer of the engine's own, which stays in place until the kernel
    /// has ended with it; false when there is no room for it.
    #[must_use]
    pub(crate) fn push_own(&mut self, buffer: &mut crate::buffer::AlignedBuf, len: usize) -> bool {
        assert!(len <= buffer.len(), "a run inside its buffer");
        // SAFETY: mapped while the buffer lives, which the caller keeps.
        self.push(unsafe { Segment::new(buffer.as_mut_ptr(), len) })
    }

    /// Adds what comes after the first `skip` bytes of others; false when there is no room for it.
    #[must_use]
    pub(crate) fn push_rest(&mut self, others: &Segments, skip: usize) -> bool {
        let mut fits = true;
        others.walk(skip, usize::MAX, |start, len| {
            // SAFETY: a piece of a segment, which is mapped as that is.
            fits = fits && self.push(unsafe { Segment::new(start, len) });
        });
        fits
    }

    /// The runs, in order.
    pub fn as_slice(&self) -> &[Segment] {
        &self.storage[..self.used]
    }

    /// Bytes in all runs.
    pub fn total_bytes(&self) -> u64 {
        self.as_slice().iter().map(|s| s.len() as u64).sum()
    }

    /// The runs as the kernel wants them, and their count.
    pub(crate) fn as_iovecs(&self) -> (*const libc::iovec, u32) {
        let count = u32::try_from(self.used).expect("bounded by SEGMENTS_PER_REQUEST");
        (self.storage.as_ptr().cast(), count)
    }

    /// Whether every run suits direct I/O: addresses by `memory_align`, lengths by `block`.
    pub fn aligned(&self, memory_align: u32, block: u32) -> bool {
        let (memory, block) = (memory_align as usize, block as usize);
        self.as_slice()
            .iter()
            .all(|s| s.start().addr().is_multiple_of(memory) && s.len().is_multiple_of(block))
    }

    /// Copies request bytes `from..from + buf.len()` out of guest memory; returns how many there
    /// were.
    pub fn copy_out(&self, from: usize, buf: &mut [u8]) -> usize {
        let mut done = 0;
        self.walk(from, buf.len(), |guest, len| {
            // SAFETY: `walk` stays inside one segment, mapped by the module's invariant, and the
            // destination range is inside `buf`, because `walk` gives out `buf.len()` bytes at most.
            unsafe {
                std::ptr::copy_nonoverlapping(guest, buf[done..done + len].as_mut_ptr(), len);
            };
            done += len;
        });
        done
    }

    /// Copies `buf` to request bytes `from..from + buf.len()` in guest memory; returns how many
    /// found room.
    pub fn copy_in(&self, from: usize, buf: &[u8]) -> usize {
        let mut done = 0;
        self.walk(from, buf.len(), |guest, len| {
            // SAFETY: as in `copy_out`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(buf[done..done + len].as_ptr(), guest, len) };
            done += len;
        });
        done
    }

    /// Copies so many bytes to the start of the first run; false, and nothing is copied, when it has fewer.
    /// A length that is known is a few moves.
    #[inline]
    #[must_use]
    pub fn put_start<const N: usize>(&self, bytes: &[u8; N]) -> bool {
        let first = self.as_slice().first().filter(|it| it.len() >= N);
        first.is_some_and(|first| {
            // SAFETY: inside the segment, which is mapped by the module's invariant.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), first.start(), N) };
            true
        })
    }

    /// Copies bytes `from..from + len` to bytes `at..` of `to`; returns how many found room. The two may
    /// overlap: they are guests' memory, and a guest may have two NICs.
    pub fn copy_across(&self, from: usize, to: &Segments, at: usize, len: usize) -> usize {
        let mut done = 0;
        self.walk(from, len, |source, piece| {
            let mut off = 0;
            to.walk(at + done, piece, |target, run| {
                // SAFETY: `walk` stays inside one segment on either side, mapped by the module's
                // invariant, and gives `to` no more than `piece` bytes in all.
                unsafe { std::ptr::copy(source.add(off), target, run) };
                off += run;
            });
            done += off;
        });
        done
    }

    /// Calls `visit` with each contiguous piece of request bytes `from..from + len`.
    pub(crate) fn walk(&self, from: usize, len: usize, mut visit: impl FnMut(*mut u8, usize)) {
        let (mut skip, mut left) = (from, len);
        for segment in self.as_slice() {
            if left == 0 {
                return;
            }
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let piece = (segment.len() - skip).min(left);
            // SAFETY: `skip` is below the segment's length, so the sum stays inside it.
            visit(unsafe { segment.start().add(skip) }, piece);
            left -= piece;
            skip = 0;
        }
    }
}
