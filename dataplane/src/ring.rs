//! The io_uring facade: the only place that hands memory to the kernel.
//!
//! # The invariant
//!
//! An SQE that carries pointers is only made from a [`Slot`], and sets its `in_kernel`. Until the
//! CQE has come back through [`Ring::reap`] and the worker has cleared the flag, `slots.rs` refuses
//! to free the slot, and nothing replaces its segments or its bounce buffer. The guest memory the
//! segments point to is kept mapped by the queue (see `segments.rs`). The worker waits for all its
//! CQEs before it drops the ring.
#![allow(unsafe_code)]

mod registered;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::buffer::AlignedBuf;
use crate::limits::{COMPLETION_ENTRIES, FIRST_BATCH, SUBMISSION_ENTRIES};
use crate::segments::Segments;
use crate::slots::Slot;
use registered::Registered;
pub(crate) use registered::Target;

/// What a CQE belongs to; 64 bits of user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The request in this slot.
    Slot(u32),
    /// A kick: queue index and the generation of its arming.
    Kick(u32, u32),
    /// The command eventfd.
    Wake,
    /// Something of a bridge.
    Net(u32, NetOp),
    /// Something whose result nobody needs.
    Ignore,
}

/// What a bridge asks of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetOp {
    /// A guest's kick.
    Kick { port: u16, queue: u16 },
    /// A tap has frames.
    Poll { port: u16 },
    /// A frame of a tap, into this buffer of the port's.
    Read { port: u16, index: u16 },
    /// A frame to a tap, from this place of the port's.
    Write { port: u16, index: u16 },
}

/// Bits of a token for a port, and for what is in it.
const PORT_BITS: u32 = 14;

impl NetOp {
    fn pack(self) -> u64 {
        let (kind, port, index) = match self {
            NetOp::Kick { port, queue } => (0, port, queue),
            NetOp::Poll { port } => (1, port, 0),
            NetOp::Read { port, index } => (2, port, index),
            NetOp::Write { port, index } => (3, port, index),
        };
        kind << 30 | u64::from(port) << 16 | u64::from(index)
    }

    fn unpack(data: u32) -> NetOp {
        let port = u16::try_from(data >> 16 & ((1 << PORT_BITS) - 1)).expect("masked");
        let index = u16::try_from(data & 0xffff).expect("masked");
        match data >> 30 {
            0 => NetOp::Kick { port, queue: index },
            1 => NetOp::Poll { port },
            2 => NetOp::Read { port, index },
            _ => NetOp::Write { port, index },
        }
    }
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Token::Slot(id) => u64::from(id),
            Token::Kick(queue, generation) => {
                1 << 62 | u64::from(generation & 0x3fff_ffff) << 32 | u64::from(queue)
            }
            Token::Net(bridge, op) => u64::from(bridge + 1) << 32 | op.pack(),
            Token::Wake => 2 << 62,
            Token::Ignore => 3 << 62,
        }
    }

    fn unpack(data: u64) -> Token {
        let low = u32::try_from(data & 0xffff_ffff).expect("masked");
        let high = u32::try_from(data >> 32 & 0x3fff_ffff).expect("masked");
        match data >> 62 {
            0 if high > 0 => Token::Net(high - 1, NetOp::unpack(low)),
            0 => Token::Slot(low),
            1 => Token::Kick(low, high),
            2 => Token::Wake,
            _ => Token::Ignore,
        }
    }
}

/// What to do with a slot's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    Read,
    Write,
}

/// One worker's io_uring.
pub(crate) struct Ring {
    ring: IoUring,
    unsubmitted: u32,
    /// Requests that were pushed and not reaped.
    under_way: u32,
    /// The kernel may hold completions back until it is entered (COOP_TASKRUN).
    cooperative: bool,
    registered: Registered,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    sigmask: u64,
    sigmask_bytes: u32,
    reserved: u32,
    timespec: u64,
}

const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

impl Ring {
    /// Makes a ring for the calling thread, which must be its only user.
    pub fn new() -> io::Result<Ring> {
        let cooperative = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETION_ENTRIES)
            .build(SUBMISSION_ENTRIES);
        let (ring, cooperative) = match cooperative {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let plain = IoUring::builder()
                    .setup_cqsize(COMPLETION_ENTRIES)
                    .build(SUBMISSION_ENTRIES)?;
                (plain, false)
            }
            made => (made?, true),
        };
        let registered = Registered::new(&ring);
        Ok(Ring {
            ring,
            unsubmitted: 0,
            under_way: 0,
            cooperative,
            registered,
        })
    }

    /// Registers an open file, which stays open until [`Ring::remove_file`].
    pub fn add_file(&mut self, fd: RawFd) -> Target {
        self.registered.add_file(&self.ring, fd)
    }

    /// Takes a file back. No request on it may be in flight.
    pub fn remove_file(&mut self, target: Target) {
        self.registered.remove_file(&self.ring, target);
    }

    /// Registers buffers of the worker's own, all of them or none.
    pub fn add_buffers<'b>(&mut self, buffers: impl Iterator<Item = &'b mut AlignedBuf>) {
        self.registered.add_buffers(&self.ring, buffers);
    }

    /// Registers guest memory that is mapped now; its pages are pinned.
    pub fn add_memory(&mut self, start: *mut u8, len: usize) -> io::Result<u16> {
        // SAFETY: the kernel checks that the range is mapped, and keeps its pages whatever becomes
        // of the mapping; an SQE names the place only for a segment inside the range, which its
        // queue keeps mapped (see `worker/pinned.rs`).
        unsafe { self.registered.add_memory(&self.ring, start, len) }
    }

    /// Takes registered memory back. Requests in flight on it keep it until they end.
    pub fn remove_memory(&mut self, index: u16) {
        self.registered.remove_memory(&self.ring, index);
    }

    /// # Safety
    ///
    /// Whatever the entry points to must stay valid until its CQE.
    unsafe fn push(&mut self, entry: squeue::Entry, token: Token) -> io::Result<()> {
        let entry = entry.user_data(token.pack());
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.unsubmitted += 1;
                return Ok(());
            }
            self.submit()?;
        }
    }

    /// # Safety
    ///
    /// As for `push`; what the entry points to belongs to the slot.
    unsafe fn push_slot(
        &mut self,
        (id, slot): (u32, &mut Slot),
        target: Target,
        entry: squeue::Entry,
    ) -> io::Result<()> {
        let entry = if target.registered {
            entry.flags(squeue::Flags::FIXED_FILE)
        } else {
            entry
        };
        // SAFETY: the caller's promise.
        unsafe { self.push(entry, Token::Slot(id)) }?;
        slot.in_kernel = true;
        self.under_way += 1;
        self.submit_early();
        Ok(())
    }

    /// Submits when more waits than the kernel has. It gives a batch to the device as a whole, after
    /// the last request is prepared, and a device with nothing to do would wait for that. One that
    /// is busy gets its batch in one call, at the end of the turn. All devices of the worker count as
    /// one here.
    fn submit_early(&mut self) {
        let begun = self.under_way.saturating_sub(self.unsubmitted);
        if self.unsubmitted >= FIRST_BATCH && self.unsubmitted > begun {
            // What was pushed stays pushed. The turn's own submission meets the error again.
            let _ = self.submit();
        }
    }

    /// Guest memory to or from the file at `offset_bytes`, all of the slot's segments. `memory` is
    /// the registered memory that the one segment lies in.
    pub fn transfer_segments(
        &mut self,
        (id, slot): (u32, &mut Slot),
        target: Target,
        kind: Transfer,
        offset_bytes: u64,
        memory: Option<u16>,
    ) -> io::Result<()> {
        let entry = match slot.segments.as_slice() {
            // One segment: `read` was measured 5 to 15 % cheaper than `readv`.
            [one] => {
                let run = (one.start(), length(one.len()));
                transfer(target, kind, offset_bytes, run, write_flags(slot), memory)
            }
            _ => {
                let (fd, (iovecs, count)) = (types::Fd(target.number), slot.segments.as_iovecs());
                match kind {
                    Transfer::Read => opcode::Readv::new(fd, iovecs, count)
                        .offset(offset_bytes)
                        .build(),
                    Transfer::Write => opcode::Writev::new(fd, iovecs, count)
                        .offset(offset_bytes)
                        .rw_flags(write_flags(slot))
                        .build(),
                }
            }
        };
        // SAFETY: the segments and their guest memory live until the CQE, by the module's invariant.
        unsafe { self.push_slot((id, slot), target, entry) }
    }

    /// `len` bytes of the slot's bounce buffer from `at`, to or from the file at `offset_bytes`.
    pub fn transfer_bounce(
        &mut self,
        (id, slot): (u32, &mut Slot),
        target: Target,
        kind: Transfer,
        offset_bytes: u64,
        (at, len): (usize, usize),
    ) -> io::Result<()> {
        let buffer = slot
            .bounce
            .as_ref()
            .expect("a bounced request holds its buffer");
        assert!(at + len <= buffer.len(), "a chunk fits its buffer");
        // SAFETY: the sum stays inside the buffer, as just asserted.
        let start = unsafe { buffer.as_mut_ptr().add(at) };
        let (run, memory) = ((start, length(len)), buffer.registered);
        let entry = transfer(target, kind, offset_bytes, run, write_flags(slot), memory);
        // SAFETY: the slot holds the buffer until the CQE, by the module's invariant.
        unsafe { self.push_slot((id, slot), target, entry) }
    }

    /// A frame of a tap into `buffer`, if one is there: it does not wait.
    pub fn read_frame(
        &mut self,
        fd: RawFd,
        buffer: &mut AlignedBuf,
        (bridge, op): (u32, NetOp),
    ) -> io::Result<()> {
        let entry = opcode::Read::new(types::Fd(fd), buffer.as_mut_ptr(), length(buffer.len()))
            .offset(u64::MAX)
            .rw_flags(libc::RWF_NOWAIT)
            .build();
        // SAFETY: the buffer stays in its tap, which is kept until `reading` is back to none, and is
        // not looked at before its CQE (see `net/bridge.rs`).
        unsafe { self.push(entry, Token::Net(bridge, op)) }
    }

    /// A frame to a tap, from `segments`.
    pub fn write_frame(
        &mut self,
        fd: RawFd,
        segments: &Segments,
        (bridge, op): (u32, NetOp),
    ) -> io::Result<()> {
        let (iovecs, count) = segments.as_iovecs();
        let entry = opcode::Writev::new(types::Fd(fd), iovecs, count)
            .offset(u64::MAX)
            .build();
        // SAFETY: the segments stay in their place of the tap, which is not used again before the CQE;
        // the memory is the tap's own, or a guest's whose queue waits for the frame (`in_flight`).
        unsafe { self.push(entry, Token::Net(bridge, op)) }
    }

    /// One CQE when `fd` becomes readable.
    pub fn poll_frames(&mut self, fd: RawFd, (bridge, op): (u32, NetOp)) -> io::Result<()> {
        self.arm(fd, Token::Net(bridge, op))
    }

    /// fdatasync.
    pub fn flush(&mut self, slot: (u32, &mut Slot), target: Target) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(target.number))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        // SAFETY: the entry carries no pointer.
        unsafe { self.push_slot(slot, target, entry) }
    }

    /// fallocate with `mode` over the slot's whole range.
    pub fn allocate(
        &mut self,
        (id, slot): (u32, &mut Slot),
        target: Target,
        mode: i32,
    ) -> io::Result<()> {
        let entry = opcode::Fallocate::new(types::Fd(target.number), slot.request.len_bytes)
            .offset(slot.request.offset_bytes)
            .mode(mode)
            .build();
        // SAFETY: the entry carries no pointer.
        unsafe { self.push_slot((id, slot), target, entry) }
    }

    /// One CQE when `fd` becomes readable.
    pub fn arm(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let events = u32::try_from(libc::POLLIN).expect("a small constant");
        let entry = opcode::PollAdd::new(types::Fd(fd), events).build();
        // SAFETY: the entry carries no pointer; the kernel holds its own reference to the file.
        unsafe { self.push(entry, token) }
    }

    /// Takes an armed poll back. Its CQE comes all the same.
    pub fn disarm(&mut self, token: Token) -> io::Result<()> {
        let entry = opcode::PollRemove::new(token.pack()).build();
        // SAFETY: the entry carries no pointer.
        unsafe { self.push(entry, Token::Ignore) }
    }

    /// Gives the kernel what was pushed, and lets it post what it holds back. No call if neither
    /// is needed.
    pub fn submit(&mut self) -> io::Result<()> {
        let queue = self.ring.submission();
        let held_back = self.cooperative && queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if self.unsubmitted == 0 && !held_back {
            return Ok(());
        }
        // With this flag the kernel runs the work that posts them.
        let flags = if held_back { ENTER_GETEVENTS } else { 0 };
        let result = self.enter(0, flags, None);
        self.submitted(result)
    }

    /// Submits, then sleeps until a CQE comes or the time is up.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let result = self.enter(1, ENTER_GETEVENTS, timeout);
        match self.submitted(result) {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => {
                self.unsubmitted = 0;
                Ok(())
            }
            other => other,
        }
    }

    /// `io_uring_enter`, by the registered descriptor where there is one: the crate's own takes it
    /// for one call only.
    fn enter(
        &self,
        completions_min: u32,
        mut flags: u32,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        let timespec = timeout.map(types::Timespec::from);
        let argument = timespec.as_ref().map(|timespec| WaitArgument {
            sigmask: 0,
            sigmask_bytes: 0,
            reserved: 0,
            timespec: std::ptr::from_ref(timespec).addr() as u64,
        });
        let (at, bytes) = match &argument {
            Some(argument) => (std::ptr::from_ref(argument), size_of::<WaitArgument>()),
            None => (std::ptr::null(), 0),
        };
        if argument.is_some() {
            flags |= ENTER_EXT_ARG;
        }
        let fd = match self.registered.ring {
            Some(index) => {
                flags |= ENTER_REGISTERED_RING;
                index
            }
            None => self.ring.as_raw_fd(),
        };
        // SAFETY: `argument` and the time it points to live through the call, which only reads
        // them; what was pushed was promised to be valid.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                self.unsubmitted,
                completions_min,
                flags,
                at,
                bytes,
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    fn submitted(&mut self, result: io::Result<usize>) -> io::Result<()> {
        match result {
            Ok(count) => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                self.unsubmitted = self.unsubmitted.saturating_sub(count);
                Ok(())
            }
            // The kernel wants its completions reaped first, or a signal came: try again later.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Moves the CQEs that are there into `into`, as many as it has capacity for.
    pub fn reap(&mut self, into: &mut Vec<(Token, i32)>) {
        let known = into.len();
        let room = into.capacity() - known;
        let entries = self.ring.completion().take(room);
        into.extend(entries.map(|e: cqueue::Entry| (Token::unpack(e.user_data()), e.result())));
        let requests = into[known..]
            .iter()
            .filter(|(token, _)| matches!(token, Token::Slot(_)));
        let ended = u32::try_from(requests.count()).unwrap_or(u32::MAX);
        self.under_way = self.under_way.saturating_sub(ended);
    }
}

/// One run of memory to or from a file.
fn transfer(
    target: Target,
    kind: Transfer,
    offset_bytes: u64,
    (start, len): (*mut u8, u32),
    write_flags: i32,
    memory: Option<u16>,
) -> squeue::Entry {
    let fd = types::Fd(target.number);
    match (kind, memory) {
        (Transfer::Read, None) => opcode::Read::new(fd, start, len)
            .offset(offset_bytes)
            .build(),
        (Transfer::Read, Some(memory)) => opcode::ReadFixed::new(fd, start, len, memory)
            .offset(offset_bytes)
            .build(),
        (Transfer::Write, None) => opcode::Write::new(fd, start, len)
            .offset(offset_bytes)
            .rw_flags(write_flags)
            .build(),
        (Transfer::Write, Some(memory)) => opcode::WriteFixed::new(fd, start, len, memory)
            .offset(offset_bytes)
            .rw_flags(write_flags)
            .build(),
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a request's length was bounded when it was parsed")
}

fn write_flags(slot: &Slot) -> i32 {
    if slot.request.through {
        libc::RWF_DSYNC
    } else {
        0
    }
}
