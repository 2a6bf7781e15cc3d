//! The in-flight region: what a successor needs to finish the requests of a back-end that died.
//!
//! A descriptor chain that was popped and not yet shown as used is known to nobody but the process
//! that popped it. So each queue writes it down in memory that outlives the process: a region that
//! the front-end keeps (INFLIGHT_SHMFD), or a file of Ferry's own ([`own`]).
//!
//! # The order of the writes
//!
//! By the vhost-user document, "Inflight I/O tracking", for split virtqueues. A process may die
//! between any two of these, and its stores are seen in the order in which it made them:
//!
//! ```text
//!   popping a chain       counter of the head = next number     inflight of the head = 1
//!   ending a batch        for each head:  next = last_batch_head,  last_batch_head = head
//!                         used index of the ring += batch        (the guest sees it now)
//!                         for each head:  inflight = 0
//!                         used_idx = used index of the ring
//! ```
//!
//! A successor compares the two used indexes. Where they differ it died between the third line and
//! the last: the newest batch, which `last_batch_head` leads through, is over. What is marked
//! `inflight` after that was never shown to the guest, and is served again in the order of the
//! counters. The next entry to pop is the used index plus what is in flight, as every popped entry
//! is one or the other.
//!
//! # The invariant
//!
//! A [`Tracker`] points into a region that it keeps mapped, and all its entries lie inside it. The
//! front-end may write the region at any time: it is read once, at the start, by atomics, and every
//! number from it is checked; afterwards it is only written.
#![allow(unsafe_code)]

mod own;
pub use own::{OwnRegions, RingIdentity};

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use crate::vring::RING_SIZE_MAX;
use ferry_dataplane::guard::Guarded;

/// Bytes before the entries of a queue, and of each entry.
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

/// Alignment of each queue's part. The document leaves it open; libvhost-user and SPDK use this.
const QUEUE_ALIGN: usize = 64;

/// The only version there is; 0 is a region that no back-end has used.
const VERSION: u16 = 1;

// Fields of a queue's header, and of an entry.
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED_IDX: usize = 14;
const AT_INFLIGHT: usize = 0;
const AT_NEXT: usize = 6;
const AT_COUNTER: usize = 8;

/// Why a region is of no use.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// It does not hold what it is said to hold.
    #[error("the in-flight region for {queues} queues of {entries} entries: {why}")]
    Shape {
        /// Queues it is said to be for.
        queues: u16,
        /// Entries of each.
        entries: u16,
        /// What is wrong.
        why: String,
    },
    /// The queue does not fit in.
    #[error("queue {queue} of {size} entries is not in the in-flight region: {why}")]
    Queue {
        /// Index of the queue.
        queue: usize,
        /// Entries of its ring.
        size: u16,
        /// What is wrong.
        why: String,
    },
    /// The system refused memory or a file.
    #[error("the in-flight region cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// Bytes of one queue's part.
fn queue_bytes(entries: u16) -> usize {
    (HEADER_BYTES + ENTRY_BYTES * usize::from(entries)).next_multiple_of(QUEUE_ALIGN)
}

/// A mapped region.
#[derive(Debug)]
pub struct Region {
    _guard: Guarded, // dropped before the mapping
    map: MmapRegion,
    /// Where the queues' parts begin.
    start: usize,
    queues: u16,
    entries: u16,
}

impl Region {
    /// Memory for a region that a front-end asks for, and its size in bytes. It reads as zeroes.
    pub fn create(queues: u16, entries: u16) -> Result<(File, u64), InflightError> {
        check(queues, entries)?;
        let bytes = (queue_bytes(entries) * usize::from(queues)) as u64;
        // SAFETY: a literal name and flags; the result is checked, and owned by `File` alone.
        let file = unsafe {
            let fd = libc::memfd_create(c"ferry-inflight".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error().into());
            }
            File::from_raw_fd(fd)
        };
        file.set_len(bytes)?;
        take_space(&file, bytes)?;
        Ok((file, bytes))
    }

    /// Maps `bytes` of a region at `offset` of `file`.
    pub fn map(
        file: File,
        (offset, bytes): (u64, u64),
        queues: u16,
        entries: u16,
    ) -> Result<Region, InflightError> {
        check(queues, entries)?;
        Region::map_after(file, (offset, bytes), 0, queues, entries)
    }

    fn map_after(
        file: File,
        (offset, bytes): (u64, u64),
        start: usize,
        queues: u16,
        entries: u16,
    ) -> Result<Region, InflightError> {
        let refuse = |why: &str| InflightError::Shape {
            queues,
            entries,
            why: why.to_owned(),
        };
        let needed = start + queue_bytes(entries) * usize::from(queues);
        let end = offset.checked_add(bytes);
        let reaches = end.is_some_and(|end| file.metadata().is_ok_and(|m| end <= m.len()));
        let len = usize::try_from(bytes).map_err(|_| refuse("too large"))?;
        if len < needed || !reaches {
            return Err(refuse("it, or its file, is smaller than that"));
        }
        let map = MmapRegion::from_file(FileOffset::new(file, offset), len)
            .map_err(|error| refuse(&error.to_string()))?;
        let guard = Guarded::new(map.as_ptr(), len)
            .ok_or_else(|| refuse("this process has too many regions mapped"))?;
        Ok(Region {
            map,
            _guard: guard,
            start,
            queues,
            entries,
        })
    }

    /// The part of `queue`, whose ring has `size` entries.
    pub fn tracker(self: &Arc<Self>, queue: usize, size: u16) -> Result<Tracker, InflightError> {
        let refuse = |why: String| InflightError::Queue { queue, size, why };
        if queue >= usize::from(self.queues) {
            return Err(refuse(format!("it is for {} queues", self.queues)));
        }
        if size > self.entries {
            return Err(refuse(format!("it is for rings of {}", self.entries)));
        }
        let at = self.start + queue * queue_bytes(self.entries);
        // SAFETY: the part lies inside the mapping, which was checked when it was made.
        let base = unsafe { self.map.as_ptr().add(at) };
        if !base.addr().is_multiple_of(QUEUE_ALIGN) {
            return Err(refuse("it is not aligned".into()));
        }
        let tracker = Tracker {
            _region: self.clone(),
            base,
            size,
            last_counter: 0,
            last_batch_head: 0,
            batch: Vec::with_capacity(size.into()),
            in_flight: 0,
            doubts: false,
        };
        let version = tracker.u16_at(AT_VERSION).load(Ordering::Acquire);
        if version > VERSION {
            return Err(refuse(format!("it has version {version}")));
        }
        Ok(tracker)
    }
}

/// Takes a file's space now: a store to a page that cannot be had would be lost.
fn take_space(file: &File, bytes: u64) -> io::Result<()> {
    match ferry_dataplane::sys::fallocate(file, 0, 0..bytes) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn check(queues: u16, entries: u16) -> Result<(), InflightError> {
    if queues == 0 || entries == 0 || entries > RING_SIZE_MAX {
        return Err(InflightError::Shape {
            queues,
            entries,
            why: format!("rings have 1 to {RING_SIZE_MAX} entries"),
        });
    }
    Ok(())
}

/// What a ring goes on with.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The next available entry to pop.
    pub next_avail: u16,
    /// Heads popped by a predecessor and not ended, in the order in which they were popped.
    pub heads: Vec<u16>,
}

/// One queue's part of a region; belongs to its ring.
#[derive(Debug)]
pub struct Tracker {
    _region: Arc<Region>,
    base: *mut u8,
    size: u16,
    /// The last number given out.
    last_counter: u64,
    /// The head that ended last.
    last_batch_head: u16,
    /// Heads ended since the used index was last shown.
    batch: Vec<u16>,
    /// Entries marked in flight.
    in_flight: usize,
    /// The region may be of another life of its ring.
    doubts: bool,
}

// SAFETY: the pointer is into the region, which moves along; accesses are atomic.
unsafe impl Send for Tracker {}

impl Tracker {
    fn u16_at(&self, at: usize) -> &AtomicU16 {
        // SAFETY: callers stay inside the part, by `entry`; its fields are aligned as it is.
        unsafe { AtomicU16::from_ptr(self.base.add(at).cast()) }
    }

    fn entry(&self, head: u16) -> usize {
        assert!(head < self.size, "checked when it was popped");
        HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    fn inflight(&self, head: u16) -> &AtomicU8 {
        let at = self.entry(head) + AT_INFLIGHT;
        // SAFETY: as in `u16_at`.
        unsafe { AtomicU8::from_ptr(self.base.add(at)) }
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        let at = self.entry(head) + AT_COUNTER;
        // SAFETY: as in `u16_at`.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }

    /// Takes up the queue where it was left: `used_idx` and `avail_idx` are the ring's, `base` is
    /// what the front-end says, and `used_head` reads the head in the used entry of an index. A
    /// region that nobody has used, or that speaks of another life of the ring, begins anew from the
    /// ring.
    pub fn take_up(
        &mut self,
        (used_idx, avail_idx): (u16, u16),
        base: u16,
        used_head: impl Fn(u16) -> u32,
    ) -> Recovered {
        let fresh = self.u16_at(AT_VERSION).load(Ordering::Acquire) == 0;
        let left = if fresh {
            None
        } else {
            self.read(used_idx, avail_idx, used_head)
        };
        if let Some(heads) = left {
            // Theirs stay as they are: what is popped from now on comes after them.
            self.last_counter = heads.last().map_or(0, |&(counter, _)| counter);
            self.u16_at(AT_USED_IDX).store(used_idx, Ordering::Release);
            self.in_flight = heads.len();
            let in_flight = u16::try_from(heads.len()).expect("at most the ring's size");
            return Recovered {
                next_avail: used_idx.wrapping_add(in_flight),
                heads: heads.into_iter().map(|(_, head)| head).collect(),
            };
        }
        if !fresh {
            tracing::warn!(
                used_idx,
                "the in-flight region speaks of another life of this ring, and is not used"
            );
        }
        self.begin_anew(used_idx);
        Recovered {
            next_avail: base,
            heads: Vec::new(),
        }
    }

    /// The heads in flight with their counters, in order; `None` when they cannot be this ring's.
    fn read(
        &self,
        used_idx: u16,
        avail_idx: u16,
        used_head: impl Fn(u16) -> u32,
    ) -> Option<Vec<(u64, u16)>> {
        let ended = used_idx.wrapping_sub(self.u16_at(AT_USED_IDX).load(Ordering::Acquire));
        if ended > self.size {
            return None;
        }
        let mut head = self.u16_at(AT_LAST_BATCH_HEAD).load(Ordering::Relaxed);
        let mut batch = Vec::new();
        for back in 1..=ended {
            // Entries are written before the index that shows them, in the order of the batch.
            let shown = u32::from(head) == used_head(used_idx.wrapping_sub(back));
            if head >= self.size || self.doubts && (!shown || batch.contains(&head)) {
                return None;
            }
            batch.push(head);
            head = self
                .u16_at(self.entry(head) + AT_NEXT)
                .load(Ordering::Relaxed);
        }
        for head in batch {
            self.inflight(head).store(0, Ordering::Relaxed);
        }
        let mut heads: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.inflight(head).load(Ordering::Relaxed) != 0)
            .map(|head| (self.counter(head).load(Ordering::Relaxed), head))
            .collect();
        // What was popped was available.
        if heads.len() > usize::from(avail_idx.wrapping_sub(used_idx)) {
            return None;
        }
        heads.sort_unstable();
        Some(heads)
    }

    fn begin_anew(&mut self, used_idx: u16) {
        self.u16_at(AT_VERSION).store(0, Ordering::Release);
        for head in 0..self.size {
            self.inflight(head).store(0, Ordering::Relaxed);
        }
        self.last_counter = 0;
        self.u16_at(AT_ENTRIES).store(self.size, Ordering::Relaxed);
        self.u16_at(AT_LAST_BATCH_HEAD).store(0, Ordering::Relaxed);
        self.u16_at(AT_USED_IDX).store(used_idx, Ordering::Relaxed);
        self.u16_at(AT_VERSION).store(VERSION, Ordering::Release);
    }

    /// A chain was popped, and nothing was done for it yet.
    pub fn popped(&mut self, head: u16) {
        self.last_counter = self.last_counter.wrapping_add(1);
        self.counter(head)
            .store(self.last_counter, Ordering::Relaxed);
        self.inflight(head).store(1, Ordering::Release);
        self.in_flight += 1;
    }

    /// Its used entry was written, and not yet shown.
    pub fn ended(&mut self, head: u16) {
        let next = self.entry(head) + AT_NEXT;
        self.u16_at(next)
            .store(self.last_batch_head, Ordering::Relaxed);
        self.last_batch_head = head;
        self.u16_at(AT_LAST_BATCH_HEAD)
            .store(head, Ordering::Release);
        self.batch.push(head);
    }

    /// The ring's used index, now `used_idx`, shows the guest what ended.
    pub fn shown(&mut self, used_idx: u16) {
        for at in 0..self.batch.len() {
            self.inflight(self.batch[at]).store(0, Ordering::Release);
        }
        self.in_flight -= self.batch.len();
        self.batch.clear();
        self.u16_at(AT_USED_IDX).store(used_idx, Ordering::Release);
    }

    /// Whether nothing is in flight: whoever comes next has nothing to take over.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }
}

#[cfg(test)]
mod tests;
