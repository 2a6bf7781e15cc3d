//! What a ring keeps with the kernel, so that no request pays for looking it up: its own
//! descriptor, the images, and memory.
//!
//! A registered file keeps the open file description alive, and with it the image's lock: whoever
//! registers it takes it back before the image is let go. Registered memory is pinned until it is
//! taken back, whatever becomes of its mapping; the kernel writes to the pages that were mapped when
//! it was registered.
//!
//! Each of the three is a matter of speed alone. Where the kernel refuses, requests go without.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::IoUring;

use crate::buffer::AlignedBuf;
use crate::limits::{BUFFERS_PER_WORKER, FILES_PER_WORKER};

/// A file as a request names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// A descriptor, or the index of a registered file.
    pub number: i32,
    pub registered: bool,
}

impl Target {
    /// A file by its descriptor.
    pub fn plain(fd: RawFd) -> Target {
        Target {
            number: fd,
            registered: false,
        }
    }
}

/// The tables of one ring.
#[derive(Default)]
pub(super) struct Registered {
    /// The ring's own descriptor.
    pub ring: Option<i32>,
    /// Free places, each table's own.
    files: Vec<u32>,
    buffers: Vec<u32>,
}

/// `struct io_uring_rsrc_update`, of which the crate keeps the answer to itself.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

const REGISTER_RING_FDS: libc::c_uint = 20;

impl Registered {
    /// Registers the ring's descriptor, for the calling thread alone, and makes empty tables.
    pub fn new(ring: &IoUring) -> Registered {
        let submitter = ring.submitter();
        // A process may have fewer descriptors than that; it has fewer images then, too.
        let files = submitter.register_files_sparse(FILES_PER_WORKER);
        let buffers = submitter.register_buffers_sparse(BUFFERS_PER_WORKER);
        let free = |made: io::Result<()>, places: u32, what: &str| match made {
            Ok(()) => (0..places).rev().collect(),
            Err(error) => {
                tracing::info!(%error, what, "the kernel keeps no table; requests go without");
                Vec::new()
            }
        };
        Registered {
            ring: register_ring(ring),
            files: free(files, FILES_PER_WORKER, "files"),
            buffers: free(buffers, BUFFERS_PER_WORKER, "buffers"),
        }
    }

    pub fn add_file(&mut self, ring: &IoUring, fd: RawFd) -> Target {
        let Some(index) = self.files.pop() else {
            return Target::plain(fd);
        };
        match ring.submitter().register_files_update(index, &[fd]) {
            Ok(_) => Target {
                number: i32::try_from(index).expect("a small table"),
                registered: true,
            },
            Err(error) => {
                self.files.push(index);
                tracing::debug!(%error, "a file could not be registered");
                Target::plain(fd)
            }
        }
    }

    pub fn remove_file(&mut self, ring: &IoUring, target: Target) {
        let (true, Ok(index)) = (target.registered, u32::try_from(target.number)) else {
            return;
        };
        match ring.submitter().register_files_update(index, &[-1]) {
            Ok(_) => self.files.push(index),
            // The place is lost, and the image's lock stays until this worker ends.
            Err(error) => tracing::error!(%error, "a file could not be taken back from the ring"),
        }
    }

    /// # Safety
    ///
    /// The memory must be mapped now. It may go before it is taken back, as its pages are pinned;
    /// no request may name the place then.
    pub unsafe fn add_memory(
        &mut self,
        ring: &IoUring,
        start: *mut u8,
        len: usize,
    ) -> io::Result<u16> {
        let Some(index) = self.buffers.pop() else {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        };
        let place = libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        };
        // SAFETY: the caller's promise.
        let made = unsafe {
            ring.submitter()
                .register_buffers_update(index, &[place], None)
        };
        match made {
            Ok(()) => Ok(u16::try_from(index).expect("a small table")),
            Err(error) => {
                self.buffers.push(index);
                Err(error)
            }
        }
    }

    pub fn remove_memory(&mut self, ring: &IoUring, index: u16) {
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: no memory is named.
        let removed = unsafe {
            ring.submitter()
                .register_buffers_update(index.into(), &[none], None)
        };
        match removed {
            Ok(()) => self.buffers.push(index.into()),
            Err(error) => tracing::error!(%error, "memory could not be taken back from the ring"),
        }
    }

    /// Registers buffers of the worker's own; all or none. Logs why none.
    pub fn add_buffers<'b>(
        &mut self,
        ring: &IoUring,
        buffers: impl Iterator<Item = &'b mut AlignedBuf>,
    ) {
        let mut done: Vec<&mut AlignedBuf> = Vec::new();
        for buffer in buffers {
            // SAFETY: the buffer is mapped; a request names its place only while it holds it.
            let added = unsafe { self.add_memory(ring, buffer.as_mut_ptr(), buffer.len()) };
            match added {
                Ok(index) => {
                    buffer.registered = Some(index);
                    done.push(buffer);
                }
                Err(error) => {
                    tracing::info!(%error,
                        "bounce buffers are not registered, which costs some time for each \
                         unaligned request; a higher limit of locked memory mends it (ulimit -l, \
                         LimitMEMLOCK= of a service)");
                    for buffer in done {
                        if let Some(index) = buffer.registered.take() {
                            self.remove_memory(ring, index);
                        }
                    }
                    return;
                }
            }
        }
    }
}

fn register_ring(ring: &IoUring) -> Option<i32> {
    let mut update = RingUpdate {
        offset: u32::MAX, // any place
        reserved: 0,
        data: u64::try_from(ring.as_raw_fd()).ok()?,
    };
    // SAFETY: `update` lives through the call, which reads and writes it alone.
    let made = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_RING_FDS,
            &mut update,
            1,
        )
    };
    (made == 1).then(|| i32::try_from(update.offset).ok())?
}
