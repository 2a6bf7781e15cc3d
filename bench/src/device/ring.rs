//! The io_uring facade, and the two syscalls beside it that std does not have.
//!
//! The kernel reads and writes a buffer from the submission of its request to
//! its completion. So buffers live in here, a slot that is in flight cannot be
//! borrowed, and a facade that goes away with requests in flight waits for them.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

const PAGE: usize = 4096;

/// Memory for direct I/O: zeroed, page-aligned.
#[derive(Debug)]
pub(super) struct Buffer {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory alone, as a boxed slice would.
unsafe impl Send for Buffer {}

impl Buffer {
    pub fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(PAGE), PAGE).expect("a sane buffer size");
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else {
            handle_alloc_error(layout)
        };
        Self { ptr, layout }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: we own so many initialised bytes; `Ring` lends a buffer only
        // while the kernel does not have it.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.layout.size()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

/// What to do with a slot's buffer or with the file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    Read { offset: u64, bytes: u32 },
    Write { offset: u64, bytes: u32 },
    Sync,
    Allocate { mode: i32, offset: u64, bytes: u64 },
}

/// One ring on one file, with a buffer for every slot.
pub(super) struct Ring {
    ring: IoUring,
    file: File,
    buffers: Vec<Buffer>,
    busy: Vec<bool>,
    in_flight: usize,
}

impl Ring {
    pub fn new(file: File, sizes: &[usize]) -> io::Result<Self> {
        let entries = u32::try_from(sizes.len())
            .unwrap_or(u32::MAX)
            .next_power_of_two();
        Ok(Self {
            ring: IoUring::new(entries)?,
            file,
            buffers: sizes.iter().map(|s| Buffer::new(*s)).collect(),
            busy: vec![false; sizes.len()],
            in_flight: 0,
        })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Panics while the slot is in flight: the buffer is the kernel's then.
    pub fn buffer(&self, slot: usize) -> &[u8] {
        assert!(!self.busy[slot], "slot {slot} is in flight");
        self.buffers[slot].bytes()
    }

    /// As `buffer`.
    pub fn buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        assert!(!self.busy[slot], "slot {slot} is in flight");
        self.buffers[slot].bytes_mut()
    }

    /// Queues a request of a free slot. Sent by the next `enter`.
    pub fn push(&mut self, slot: usize, request: Request) -> io::Result<()> {
        let entry = self.entry(slot, request).user_data(slot as u64);
        // SAFETY: what the entry points to is the slot's buffer, which `busy`
        // keeps from everybody else until its completion, and the file, which
        // lives as long as the ring.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }
                .map_err(|_| io::Error::other("the submission queue stays full"))?;
        }
        self.busy[slot] = true;
        self.in_flight += 1;
        Ok(())
    }

    fn entry(&mut self, slot: usize, request: Request) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        assert!(!self.busy[slot], "slot {slot} is in flight");
        let buffer = &mut self.buffers[slot];
        let check = |bytes: u32| assert!(bytes as usize <= buffer.layout.size(), "{bytes} bytes");
        match request {
            Request::Read { offset, bytes } => {
                check(bytes);
                opcode::Read::new(fd, buffer.ptr.as_ptr(), bytes)
                    .offset(offset)
                    .build()
            }
            Request::Write { offset, bytes } => {
                check(bytes);
                opcode::Write::new(fd, buffer.ptr.as_ptr(), bytes)
                    .offset(offset)
                    .build()
            }
            Request::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Request::Allocate {
                mode,
                offset,
                bytes,
            } => opcode::Fallocate::new(fd, bytes)
                .offset(offset)
                .mode(mode)
                .build(),
        }
    }

    /// Sends what is queued and waits up to `wait` for a completion.
    pub fn enter(&mut self, wait: Duration) -> io::Result<()> {
        let want = usize::from(self.in_flight > 0 && !wait.is_zero());
        let time = types::Timespec::from(wait);
        let args = types::SubmitArgs::new().timespec(&time);
        let result = if want == 0 {
            self.ring.submit()
        } else {
            self.ring.submitter().submit_with_args(want, &args)
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// The next completion: slot, and what the kernel returned.
    pub fn pop(&mut self) -> Option<(usize, i32)> {
        let entry = self.ring.completion().next()?;
        // We put the slot there.
        let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
        self.busy[slot] = false;
        self.in_flight -= 1;
        Some((slot, entry.result()))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.enter(Duration::from_secs(1)).is_err() {
                // The kernel may still write the buffers: better lost than reused.
                std::mem::take(&mut self.buffers)
                    .into_iter()
                    .for_each(std::mem::forget);
                return;
            }
            while self.pop().is_some() {}
        }
    }
}

/// Puts the calling thread on one of the processors it may use. A load on
/// processors of its own choice is worth having too, so failing is no error.
pub(super) fn pin(thread: usize) {
    // SAFETY: a set of processors is plain bits; all zero is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: the pointer and the size describe `allowed`.
    if unsafe { libc::sched_getaffinity(0, size, &mut allowed) } != 0 {
        return;
    }
    let is_allowed = |cpu: &usize| {
        // SAFETY: below CPU_SETSIZE, which is what the set has room for.
        unsafe { libc::CPU_ISSET(*cpu, &allowed) }
    };
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).collect();
    let Some(cpu) = cpus.get(thread % cpus.len().max(1)) else {
        return;
    };
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` came from a set of the same size.
    unsafe { libc::CPU_SET(*cpu, &mut one) };
    // SAFETY: the pointer and the size describe `one`.
    unsafe { libc::sched_setaffinity(0, size, &one) };
}

/// Discards a range of a block device (BLKDISCARD). Waits for it.
pub(super) fn discard(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    // _IO(0x12, 119)
    const BLKDISCARD: u64 = 0x1277;
    let range = [offset, bytes];
    // SAFETY: the kernel reads two u64 from the pointer, which `range` has.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
