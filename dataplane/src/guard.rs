//! Survives a file that loses pages under its mapping: a front-end that truncates its own memory,
//! or an image on tmpfs that somebody truncates.
//!
//! Touching a page that is no longer in the file raises SIGBUS. The handler here looks the address
//! up among the watched regions; if it is in one, it notes that, puts zeroed memory in place of the
//! page and returns, so that only the disk or the device behind that region sees nonsense. Any
//! other SIGBUS ends the process as it would have without this.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Regions watched at a time, over all devices.
const PLACES: usize = 8192;

struct Place {
    start: AtomicUsize,
    /// 0 while the place is free.
    len: AtomicUsize,
    /// A page of it was replaced.
    hit: AtomicBool,
}

static REGIONS: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        hit: AtomicBool::new(false),
    }
}; PLACES];

/// A claim that is being filled in: no address is inside a region of this start.
const CLAIMED: usize = usize::MAX;

/// A mapped region that the handler knows.
#[derive(Debug)]
pub struct Guarded(usize);

impl Guarded {
    /// Registers a mapping, which must outlive the guard; `None` when the table is full.
    pub fn new(start: *mut u8, len: usize) -> Option<Guarded> {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let free = |place: &Place| {
            place
                .start
                .compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let at = REGIONS.iter().position(free)?;
        REGIONS[at].hit.store(false, Ordering::Relaxed);
        REGIONS[at].len.store(len, Ordering::Release);
        REGIONS[at].start.store(start.addr(), Ordering::Release);
        Some(Guarded(at))
    }

    /// Whether a page of the region was lost and replaced, so that its bytes are nonsense. Asked
    /// after an access by the thread that made it: the handler runs on that very thread.
    pub fn was_hit(&self) -> bool {
        REGIONS[self.0].hit.load(Ordering::Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        REGIONS[self.0].len.store(0, Ordering::Release);
        REGIONS[self.0].start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: the action is plain data, valid as zeroes, and filled in before use; the handler only
    // does what a signal handler may (see there).
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) != 0 {
            tracing::warn!(
                "no SIGBUS handler: whoever truncates a guest's memory, or an image on tmpfs, ends the daemon"
            );
        }
    }
}

/// Runs in a signal: touches only atomics, and calls only mmap and signal, which are allowed there.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t` to an SA_SIGINFO handler.
    let address = unsafe { (*info).si_addr() }.addr();
    let rescued = REGIONS.iter().any(|place| {
        let len = place.len.load(Ordering::Acquire);
        let start = place.start.load(Ordering::Acquire);
        if address.checked_sub(start).is_none_or(|at| at >= len) {
            return false;
        }
        place.hit.store(true, Ordering::Release);
        PAGE_BYTES
            .iter()
            .any(|&page| replace(address, page, start..start + len))
    });
    if rescued {
        return;
    }
    // SAFETY: restores the default; the access is repeated on return and ends the process.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// Page sizes of x86-64 and of most others; part of a larger page cannot be mapped over.
const PAGE_BYTES: [usize; 3] = [4 << 10, 2 << 20, 1 << 30];

/// Puts zeroed memory in place of the page around `address`, which is in `region`; false when its
/// pages are larger.
fn replace(address: usize, page_bytes: usize, region: Range<usize>) -> bool {
    let page = address / page_bytes * page_bytes;
    if page < region.start || page + page_bytes > region.end.next_multiple_of(PAGE_BYTES[0]) {
        return false;
    }
    // SAFETY: the page is inside a mapping that this module's users own, and had lost its file.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(page),
            page_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
