//! A split virtqueue on mapped memory, the device's side (virtio 1.2, section 2.7).
//!
//! Descriptors are copied once and only the copy is looked at, so a guest that rewrites them
//! meanwhile changes nothing that was checked. Ring addresses are translated once for each memory
//! map. Used entries are written as requests end, and shown to the guest by one store of the used
//! index for the batch, followed by one call if the guest wants it.
//!
//! # The invariant
//!
//! The three ring pointers lie, with their whole length and properly aligned, in the newest of
//! `maps`, which the ring holds. Each map stays until no request made with it is outstanding.
#![allow(unsafe_code)]

mod chain;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use ferry_dataplane::limits::SEGMENTS_PER_REQUEST;
use ferry_dataplane::segments::{Segment, Segments};
use vmm_sys_util::eventfd::EventFd;

use crate::inflight::Tracker;
use crate::memory::{Access, DirtyLog, MemoryMap, prefetch, prefetch_start};
pub use chain::{Buffer, Chain, copy_bytes, length, push_bytes};

/// Largest ring that virtio allows.
pub const RING_SIZE_MAX: u16 = 32768;

/// Descriptors of one chain: a request's segments, its header and its status.
pub const CHAIN_MAX: usize = SEGMENTS_PER_REQUEST + 2;

const DESC_BYTES: usize = 16;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Where a ring is, in the front-end's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingAddress {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// How a ring's writes are logged.
#[derive(Debug, Clone, Default)]
pub struct LogSettings {
    /// VHOST_F_LOG_ALL is on: every page written is marked.
    pub all: bool,
    /// The log, once it is mapped.
    pub log: Option<Arc<DirtyLog>>,
    /// Guest address of the used ring, when its writes are to be marked.
    pub used_guest: Option<u64>,
}

/// What a ring needs to start.
#[derive(Debug)]
pub struct RingSetup {
    /// Entries, a power of two.
    pub size: u16,
    /// Where it is.
    pub address: RingAddress,
    /// The next available entry to pop.
    pub next_avail: u16,
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// The guest's kick; `None` to be polled.
    pub kick: Option<EventFd>,
    /// The guest's interrupt.
    pub call: Option<EventFd>,
    /// Told when the ring breaks.
    pub err: Option<EventFd>,
    /// The guest's memory.
    pub map: Arc<MemoryMap>,
    /// Dirty logging.
    pub log: LogSettings,
    /// Where a successor finds what is in flight.
    pub tracker: Option<Tracker>,
}

/// Why a ring cannot start.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// 0, not a power of two, or too large.
    #[error("ring size {0} is not a power of two of at most {RING_SIZE_MAX}")]
    Size(u16),
    /// Part of the ring is not guest memory, or not aligned.
    #[error("the {0} is not in guest memory, or not aligned")]
    Address(&'static str),
}

/// An entry of a ring before its turn. Holds until the ring is given another map.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Its head; checked if there is a run.
    pub head: u16,
    /// Where its bytes are, when they are in one buffer of the kind that was looked for, and that in one
    /// piece of memory.
    pub run: Option<Segment>,
}

/// Mapped addresses of the three parts.
#[derive(Debug, Clone, Copy)]
struct Parts {
    desc: *const u8,
    avail: *mut u8,
    used: *mut u8,
}

/// A memory map and the requests outstanding on it.
#[derive(Debug)]
struct Generation {
    map: Arc<MemoryMap>,
    number: u32,
    outstanding: u32,
}

/// A running ring; belongs to one worker at a time.
#[derive(Debug)]
pub struct Vring {
    setup: RingSetup,
    parts: Option<Parts>,
    next_avail: u16,
    /// Heads that a back-end before this one popped and did not end; served before all others.
    recovered: VecDeque<u16>,
    /// Used entries written; the guest has been shown those before `shown`.
    next_used: u16,
    shown: u16,
    /// Newest last.
    maps: VecDeque<Generation>,
    /// What a back-end before this one wrote to the used ring may be missing from the log.
    unlogged: bool,
}

// SAFETY: the pointers are into `maps`, which moves along, and one thread uses the ring at a time.
unsafe impl Send for Vring {}

impl Vring {
    /// Takes up a ring where `setup` says, or where its tracker knows better. The used index is read
    /// from the ring itself.
    pub fn new(setup: RingSetup) -> Result<Vring, RingError> {
        if !setup.size.is_power_of_two() || setup.size > RING_SIZE_MAX {
            return Err(RingError::Size(setup.size));
        }
        let parts = locate(&setup.map, &setup)?;
        let mut ring = Vring {
            next_avail: setup.next_avail,
            recovered: VecDeque::new(),
            next_used: 0,
            shown: 0,
            parts: Some(parts),
            maps: VecDeque::with_capacity(4),
            unlogged: false,
            setup,
        };
        let map = ring.setup.map.clone();
        ring.maps.push_back(Generation {
            map,
            number: 0,
            outstanding: 0,
        });
        ring.next_used = ring.used_u16(2).load(Ordering::Acquire);
        ring.shown = ring.next_used;
        if let Some(mut tracker) = ring.setup.tracker.take() {
            let indexes = (ring.shown, ring.avail_index());
            let left = tracker.take_up(indexes, ring.next_avail, |index| ring.used_head(index));
            ring.next_avail = left.next_avail;
            ring.recovered = left.heads.into();
            ring.setup.tracker = Some(tracker);
            // A back-end that died may have shown a batch, and neither told the guest nor logged it.
            ring.unlogged = true;
            ring.mark_unlogged();
            ring.signal();
        }
        Ok(ring)
    }

    /// The head in the used entry of an index.
    fn used_head(&self, index: u16) -> u32 {
        let parts = self.parts.expect("callers check that the ring is mapped");
        let at = 4 + 8 * usize::from(index & (self.setup.size - 1));
        // SAFETY: inside the used ring, which is mapped and aligned to 4 by the invariant.
        unsafe { AtomicU32::from_ptr(parts.used.add(at).cast()) }.load(Ordering::Relaxed)
    }

    /// Marks the used ring as a back-end before this one may have left it, once there is a log.
    fn mark_unlogged(&mut self) {
        if self.unlogged && self.setup.log.log.is_some() && self.setup.log.used_guest.is_some() {
            self.unlogged = false;
            self.mark_used(0, 4 + 8 * u64::from(self.setup.size));
        }
    }

    /// Requests of a back-end before this one that were not taken up yet.
    pub fn recovering(&self) -> usize {
        self.recovered.len()
    }

    /// Whether all that was popped was shown to the guest as used; a ring that has just been taken
    /// up may hold more.
    pub fn is_idle(&self) -> bool {
        self.recovered.is_empty() && self.setup.tracker.as_ref().is_none_or(Tracker::is_idle)
    }

    /// The next available entry to pop.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Used entries shown to the guest, as an index.
    pub fn used_index(&self) -> u16 {
        self.shown
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.setup.size
    }

    /// The newest memory map.
    pub fn map(&self) -> &MemoryMap {
        &self.newest().map
    }

    fn newest(&self) -> &Generation {
        self.maps.back().expect("there is always one map")
    }

    /// Follows the front-end to another memory map. Requests outstanding keep the one they were
    /// made with. Returns false when the ring is not in the new map; it gives nothing until it is.
    pub fn set_map(&mut self, map: Arc<MemoryMap>) -> bool {
        self.parts = locate(&map, &self.setup).ok();
        self.setup.map = map.clone();
        let number = self.newest().number.wrapping_add(1);
        self.maps.push_back(Generation {
            map,
            number,
            outstanding: 0,
        });
        self.forget_maps();
        self.parts.is_some()
    }

    fn forget_maps(&mut self) {
        while self.maps.len() > 1 && self.maps[0].outstanding == 0 {
            self.maps.pop_front();
        }
    }

    /// Changes how writes are logged.
    pub fn set_log(&mut self, log: LogSettings) {
        self.setup.log = log;
        self.mark_unlogged();
    }

    /// Changes the guest's interrupt.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.setup.call = call;
        // A batch may have been shown while there was nobody to tell.
        self.signal();
    }

    /// Changes who is told when the ring breaks.
    pub fn set_err(&mut self, err: Option<EventFd>) {
        self.setup.err = err;
    }

    /// Whether guest memory may be written: not while logging is on and the log is not there yet,
    /// and not while the ring is outside the guest's memory.
    pub fn may_write(&self) -> bool {
        self.parts.is_some() && !(self.setup.log.all && self.setup.log.log.is_none())
    }

    /// A request was made with the newest map; returns its generation for `unhold`.
    #[inline]
    pub fn hold(&mut self) -> u32 {
        let newest = self.maps.back_mut().expect("there is always one map");
        newest.outstanding += 1;
        newest.number
    }

    /// The map of a request outstanding.
    pub fn held(&self, generation: u32) -> Option<&MemoryMap> {
        self.maps
            .iter()
            .find(|g| g.number == generation)
            .map(|g| &*g.map)
    }

    /// That request is over.
    #[inline]
    pub fn unhold(&mut self, generation: u32) {
        if let Some(held) = self.maps.iter_mut().find(|g| g.number == generation) {
            held.outstanding -= 1;
        }
        if self.maps.len() > 1 {
            self.forget_maps();
        }
    }

    fn avail_u16(&self, offset: usize) -> &AtomicU16 {
        let parts = self.parts.expect("callers check that the ring is mapped");
        // SAFETY: every offset used here is even and inside the ring, which is mapped and aligned by
        // the invariant; atomics, because the guest uses it at the same time.
        unsafe { AtomicU16::from_ptr(parts.avail.add(offset).cast()) }
    }

    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        let parts = self.parts.expect("callers check that the ring is mapped");
        // SAFETY: as in `avail_u16`.
        unsafe { AtomicU16::from_ptr(parts.used.add(offset).cast()) }
    }

    fn avail_index(&self) -> u16 {
        self.avail_u16(2).load(Ordering::Acquire)
    }

    /// Whether an entry waits.
    pub fn has_work(&self) -> bool {
        self.parts.is_some()
            && (!self.recovered.is_empty() || self.avail_index() != self.next_avail)
    }

    /// Entries that wait. The index is read once here, for as many `head` and `take` as it allows.
    /// More than the ring holds is the driver's mistake.
    pub fn waiting(&self) -> Result<usize, &'static str> {
        if self.parts.is_none() {
            return Ok(0);
        }
        let new = self.avail_index().wrapping_sub(self.next_avail);
        if new > self.setup.size {
            return Err("the available index jumped");
        }
        Ok(self.recovered.len() + usize::from(new))
    }

    /// The head of the next chain, of those that `waiting` counted.
    pub fn head(&self) -> Result<u16, &'static str> {
        if let Some(&head) = self.recovered.front() {
            return Ok(head);
        }
        let at = usize::from(self.next_avail & (self.setup.size - 1));
        let head = self.avail_u16(4 + 2 * at).load(Ordering::Relaxed);
        if head >= self.setup.size {
            return Err("an available entry names no descriptor");
        }
        Ok(head)
    }

    /// The head of the entry that is so many behind the next, of those that `waiting` counted; not checked.
    fn head_behind(&self, behind: usize) -> u16 {
        debug_assert!(self.recovered.is_empty(), "for rings without a tracker");
        let at = usize::from(self.next_avail).wrapping_add(behind);
        let at = at & usize::from(self.setup.size - 1);
        self.avail_u16(4 + 2 * at).load(Ordering::Relaxed)
    }

    /// Has the processor fetch the first descriptor of an entry, so many behind the next of those that
    /// `waiting` counted. For rings without a tracker, as `prefetch_buffer`. What is wrong with the entry
    /// is said when it is taken.
    pub fn prefetch_descriptor(&self, behind: usize) {
        let head = self.head_behind(behind);
        if let Some(parts) = self.parts
            && head < self.setup.size
        {
            let at = usize::from(head) * DESC_BYTES;
            prefetch(parts.desc.wrapping_add(at), Access::Read);
        }
    }

    /// Looks at such an entry, and has the processor fetch the start of its first buffer, but for `skip`
    /// bytes.
    #[inline]
    pub fn look_at(&self, behind: usize, skip: usize, access: Access) -> Seen {
        let head = self.head_behind(behind);
        let run = self.descriptor(head).ok().and_then(|(buffer, flags, _)| {
            let (start, follow) = self.map().host_of_guest(buffer.guest)?;
            let len = usize::try_from(follow.min(buffer.len.into())).ok()?;
            prefetch_start(start, skip..len, access);
            let is_all = Vring::is_one_buffer(flags, access) && follow >= buffer.len.into();
            // SAFETY: so many bytes are mapped there, as long as the map is held; see `Seen`.
            is_all.then(|| unsafe { Segment::new(start, len) })
        });
        Seen { head, run }
    }

    /// Takes the entry whose `head` was read.
    pub fn take(&mut self, head: u16) {
        if self.recovered.pop_front().is_some() {
            return; // still marked as in flight
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(tracker) = &mut self.setup.tracker {
            tracker.popped(head);
        }
    }

    /// The last `count` entries taken are to be taken again. For rings without a tracker, of which
    /// nothing was given back since.
    pub fn put_back(&mut self, count: u16) {
        debug_assert!(self.setup.tracker.is_none() && self.recovered.is_empty());
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// Marks the memory behind segments of the newest map.
    pub fn mark_new(&mut self, segments: &Segments) {
        if self.setup.log.all {
            let generation = self.hold();
            self.mark_segments(generation, segments);
            self.unhold(generation);
        }
    }

    /// Marks a guest range in the dirty log.
    pub fn mark(&self, range: Range<u64>) {
        if self.setup.log.all
            && let Some(log) = &self.setup.log.log
        {
            log.mark(range);
        }
    }

    /// Marks the memory behind segments of a request of `generation`.
    pub fn mark_segments(&self, generation: u32, segments: &Segments) {
        if !self.setup.log.all {
            return;
        }
        let Some(map) = self.held(generation) else {
            return;
        };
        segments
            .as_slice()
            .iter()
            .filter_map(|s| map.guest_of(s))
            .for_each(|range| self.mark(range));
    }

    fn mark_used(&self, offset: u64, len: u64) {
        if let (Some(used), Some(log)) = (self.setup.log.used_guest, &self.setup.log.log) {
            let start = used.saturating_add(offset);
            log.mark(start..start.saturating_add(len));
        }
    }

    /// Writes a used entry; the guest is shown it by `publish`.
    #[inline]
    pub fn push_used(&mut self, head: u16, len: u32) {
        let Some(parts) = self.parts else { return };
        let at = usize::from(self.next_used & (self.setup.size - 1));
        let offset = 4 + 8 * at;
        // SAFETY: inside the used ring, which is mapped and aligned to 4 by the invariant.
        unsafe {
            AtomicU32::from_ptr(parts.used.add(offset).cast())
                .store(u32::from(head), Ordering::Relaxed);
            AtomicU32::from_ptr(parts.used.add(offset + 4).cast()).store(len, Ordering::Relaxed);
        }
        self.mark_used(offset as u64, 8);
        if let Some(tracker) = &mut self.setup.tracker {
            tracker.ended(head);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the guest the used entries, and calls it if it wants that.
    pub fn publish(&mut self) {
        if self.next_used == self.shown || self.parts.is_none() {
            return;
        }
        let before = std::mem::replace(&mut self.shown, self.next_used);
        self.used_u16(2).store(self.next_used, Ordering::Release);
        if let Some(tracker) = &mut self.setup.tracker {
            tracker.shown(self.next_used);
        }
        self.mark_used(2, 2);
        // The index must be visible before the guest's wish is read, or both may miss the other.
        fence(Ordering::SeqCst);
        let wanted = if self.setup.event_idx {
            let event = self
                .avail_u16(4 + 2 * usize::from(self.setup.size))
                .load(Ordering::Relaxed);
            passed(event, before, self.next_used)
        } else {
            self.avail_u16(0).load(Ordering::Relaxed) & AVAIL_NO_INTERRUPT == 0
        };
        if wanted {
            self.signal();
        }
    }

    fn signal(&self) {
        if let Some(call) = &self.setup.call
            && takes_a_write(call.as_raw_fd())
        {
            let _ = call.write(1);
        }
    }

    /// Asks for kicks, then looks again: true when an entry waits, or when the wish could not be
    /// written.
    pub fn arm(&mut self) -> bool {
        if !self.may_write() {
            return true;
        }
        if self.setup.event_idx {
            let offset = 4 + 8 * usize::from(self.setup.size);
            self.used_u16(offset)
                .store(self.next_avail, Ordering::Relaxed);
            self.mark_used(offset as u64, 2);
        } else {
            self.used_u16(0).store(0, Ordering::Relaxed);
            self.mark_used(0, 2);
        }
        // As in `publish`.
        fence(Ordering::SeqCst);
        self.has_work()
    }

    /// Tells the guest that it need not kick. With event indexes that is so by itself, as long as
    /// the index asked for lies behind.
    pub fn disarm(&mut self) {
        if !self.setup.event_idx && self.may_write() {
            self.used_u16(0).store(USED_NO_NOTIFY, Ordering::Relaxed);
            self.mark_used(0, 2);
        }
    }

    /// The kick, to be watched.
    pub fn kick_fd(&self) -> Option<RawFd> {
        self.setup.kick.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The kick once more, for a thread that waits for it by itself.
    pub fn kick_copy(&self) -> std::io::Result<Option<OwnedFd>> {
        let copy = |kick: &EventFd| {
            // SAFETY: the descriptor is the ring's, and open as long as that is borrowed.
            unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) }.try_clone_to_owned()
        };
        self.setup.kick.as_ref().map(copy).transpose()
    }

    /// Clears the kick.
    pub fn drain_kick(&self) {
        if let Some(kick) = &self.setup.kick {
            read_without_waiting(kick.as_raw_fd());
        }
    }

    /// Tells the front-end that the ring broke.
    pub fn report_broken(&self) {
        if let Some(err) = &self.setup.err
            && takes_a_write(err.as_raw_fd())
        {
            let _ = err.write(1);
        }
    }

    /// Gives back what the front-end passed in.
    pub fn into_eventfds(self) -> (Option<EventFd>, Option<EventFd>, Option<EventFd>) {
        (self.setup.kick, self.setup.call, self.setup.err)
    }
}

/// Whether a write to a call would return at once. The descriptor is the front-end's, which may have
/// filled it and made it one that waits; a worker has other guests to serve. Full means that the
/// guest has been told and has not looked.
fn takes_a_write(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, which lives through the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

/// Empties a kick. It was readable a moment ago, but the front-end may have read it itself, and its
/// descriptor may be one that waits.
fn read_without_waiting(fd: RawFd) {
    let mut count = [0u8; 8];
    let room = libc::iovec {
        iov_base: count.as_mut_ptr().cast(),
        iov_len: count.len(),
    };
    // SAFETY: one run of eight bytes, which live through the call.
    unsafe { libc::preadv2(fd, &raw const room, 1, -1, libc::RWF_NOWAIT) };
}

/// Whether `event` lies in `(before, now]`, in ring arithmetic (virtio 1.2, section 2.7.7.2).
fn passed(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

fn locate(map: &MemoryMap, setup: &RingSetup) -> Result<Parts, RingError> {
    let size = u64::from(setup.size);
    let find = |user: u64, len: u64, align: usize, name: &'static str| {
        map.host_of_user(user, len)
            .filter(|at| at.addr().is_multiple_of(align))
            .ok_or(RingError::Address(name))
    };
    Ok(Parts {
        desc: find(
            setup.address.desc,
            DESC_BYTES as u64 * size,
            16,
            "descriptor table",
        )?,
        avail: find(setup.address.avail, 6 + 2 * size, 2, "available ring")?,
        used: find(setup.address.used, 6 + 8 * size, 4, "used ring")?,
    })
}

#[cfg(test)]
pub(crate) mod tests;
