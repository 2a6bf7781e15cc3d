//! Page-aligned memory for direct I/O.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer, in bytes: enough for direct I/O on any device in use.
pub const BUFFER_ALIGN: usize = 4096;

/// A fixed, zeroed, [`BUFFER_ALIGN`]-aligned run of bytes.
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
    /// Its place in the table of a ring that knows it.
    pub(crate) registered: Option<u16>,
}

impl AlignedBuf {
    /// Allocates `len_bytes`, rounded up to a multiple of [`BUFFER_ALIGN`] and at least one.
    pub fn new(len_bytes: usize) -> AlignedBuf {
        let len = len_bytes.max(1).next_multiple_of(BUFFER_ALIGN);
        let layout = Layout::from_size_align(len, BUFFER_ALIGN).expect("a buffer fits in memory");
        // SAFETY: `layout` has a non-zero size, by the `max(1)` above.
        #[allow(unsafe_code)]
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        AlignedBuf {
            start,
            layout,
            registered: None,
        }
    }

    /// The first byte, for the ring facade.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `layout.size()` initialised bytes while `self` lives. Whoever
        // lets the kernel write into it holds the buffer in the in-flight table meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size())
        }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size())
        }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        #[allow(unsafe_code)]
        unsafe {
            dealloc(self.start.as_ptr(), self.layout);
        }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.layout.size())
    }
}

// SAFETY: the buffer owns its memory, as a `Box<[u8]>` would.
#[allow(unsafe_code)]
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references only read.
#[allow(unsafe_code)]
unsafe impl Sync for AlignedBuf {}
