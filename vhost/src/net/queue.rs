//! The virtqueues of a NIC, as their worker drives them (virtio 1.2, section 5.1.6).

use std::os::fd::RawFd;
use std::sync::Arc;

use ferry_dataplane::net::features::Offloads;
use ferry_dataplane::net::header::{HEADER_BYTES, Header};
use ferry_dataplane::net::queue::{Bytes, Fetched, FrameQueue, Put, RxQueue, Taken, TxQueue};
use ferry_dataplane::segments::{Segment, Segments};

use crate::memory::Access;
use crate::vring::{Chain, Seen, Vring, copy_bytes, length, push_bytes};

/// Buffers of one frame: one that would take more is dropped. The longest takes 44 of the size that drivers
/// make.
const HEADS_MAX: usize = 128;

/// Entries of a ring whose buffers are on their way to the cache, at most; a power of two.
const BUFFERS_AHEAD: usize = 16;

/// So many are looked at in a row. A core waits to learn where a page is that it has not been to for long,
/// and does that for several pages at once if it is asked to at once.
const LOOKED_AT_ONCE: usize = 8;

/// Entries behind those whose descriptors are.
const DESCRIPTORS_AHEAD: usize = 16;

/// What was negotiated, as far as a queue needs it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What the guest leaves undone in frames that it sends.
    pub sends: Offloads,
    /// What it takes undone.
    pub takes: Offloads,
    /// A frame may fill several of its buffers (MRG_RXBUF).
    pub mergeable: bool,
    /// Bytes of the header before each frame: 12, or 10 for drivers from before virtio 1.0.
    pub header_bytes: usize,
}

impl Rules {
    /// Whether the headers of what the guest sends say anything. To a device that took on no offload they do
    /// not (virtio 1.2, section 5.1.6.2.2), and are not read: each would be a cache line of another core's.
    fn reads_header(&self) -> bool {
        self.sends != Offloads::NONE
    }

    /// Header bytes of a driver: `modern` with VERSION_1.
    pub fn header_bytes(modern: bool, mergeable: bool) -> usize {
        if modern || mergeable {
            HEADER_BYTES
        } else {
            HEADER_BYTES - 2
        }
    }
}

/// What both directions have.
#[derive(Debug)]
struct Common {
    name: Arc<str>,
    ring: Vring,
    rules: Rules,
    chain: Chain,
    broken: bool,
    /// Entries that wait, as far as the driver's index has been read.
    waiting: usize,
    /// It is to be read again.
    stale: bool,
    /// Of these, those whose descriptors the processor was told to fetch, and those whose buffers.
    described: usize,
    fetched: usize,
    /// The latter, by their indexes.
    seen: [Seen; BUFFERS_AHEAD],
    /// Heads given back while the guest's memory could not be written.
    late: Vec<u16>,
    /// The guest is yet to be shown something, for the same reason.
    unshown: bool,
}

impl Common {
    fn break_down(&mut self, why: &str) {
        tracing::warn!(queue = %self.name, why, "the driver broke the virtqueue; it is not served any more");
        self.broken = true;
        self.ring.report_broken();
    }
}

/// Frames that the guest sends.
#[derive(Debug)]
pub struct TxVring {
    common: Common,
    /// The memory map of each frame in hand, by the head of its chain.
    in_hand: Box<[Option<u32>]>,
}

/// Buffers for frames that it receives.
pub struct RxVring {
    common: Common,
    /// Where the first buffer is, which the header goes to.
    first: Segments,
    /// Where the one at hand is.
    next: Segments,
    /// Heads taken for one frame, and the bytes written to each.
    heads: Vec<(u16, u32)>,
    /// The frame that each head was last taken for, as counted by `frames`.
    taken_for: Box<[u64]>,
    frames: u64,
}

impl TxVring {
    /// A queue on `ring`; `name` is for messages.
    pub fn new(name: Arc<str>, ring: Vring, rules: Rules) -> TxVring {
        let in_hand = vec![None; usize::from(ring.size())].into_boxed_slice();
        TxVring {
            common: Common::new(name, ring, rules),
            in_hand,
        }
    }

    /// Reads a frame in one buffer; `None` when it is shorter than a header.
    #[inline]
    fn parse_run(&mut self, run: Segment, taken: &mut Taken, bytes: &mut Segments) -> Option<()> {
        let rules = &self.common.rules;
        let frame = run.after(rules.header_bytes)?;
        taken.len = frame.len();
        taken.header = None;
        if rules.reads_header() {
            let mut header = [0; HEADER_BYTES];
            let _ = bytes.push(run);
            bytes.copy_out(0, &mut header[..rules.header_bytes]);
            bytes.clear();
            taken.header = Header::parse_said(&header);
        }
        bytes.push(frame).then_some(())
    }

    /// Reads the chain at `head`; `None` for one that is no frame.
    fn parse_chain(&mut self, head: u16, taken: &mut Taken, bytes: &mut Segments) -> Option<()> {
        let Common {
            ring, chain, rules, ..
        } = &mut self.common;
        ring.copy_chain(head, chain).ok()?;
        let mut header = [0; HEADER_BYTES];
        let header_bytes = rules.header_bytes;
        let map = ring.map();
        let len = length(chain.readable()).checked_sub(header_bytes as u64)?;
        let read_header = rules.reads_header();
        let read =
            !read_header || copy_bytes(chain.readable(), 0, &mut header[..header_bytes], map);
        let whole = read && push_bytes(chain.readable(), header_bytes as u64, len, map, bytes);
        taken.header = Header::parse_said(&header);
        taken.len = usize::try_from(len).ok()?;
        whole.then_some(())
    }
}

impl Common {
    fn new(name: Arc<str>, ring: Vring, rules: Rules) -> Common {
        let late = Vec::with_capacity(usize::from(ring.size()));
        Common {
            name,
            ring,
            rules,
            chain: Chain::new(),
            broken: false,
            waiting: 0,
            stale: true,
            described: 0,
            fetched: 0,
            seen: [Seen::default(); BUFFERS_AHEAD],
            late,
            unshown: false,
        }
    }

    /// Entries that wait, or some of them. The driver writes its index on another core, and each look at it
    /// may cost a cache line's way from there: so it is looked at once for a batch, and when those seen before
    /// are used up.
    fn waiting(&mut self) -> Result<usize, &'static str> {
        if self.stale || self.waiting == 0 {
            self.stale = false;
            self.waiting = self.ring.waiting()?;
        }
        Ok(self.waiting)
    }

    /// What was seen of the ring may not hold for what it is changed to.
    fn forget_seen(&mut self) {
        (self.waiting, self.described, self.fetched) = (0, 0, 0);
    }

    /// Takes the next entry, of those that `waiting` counted. What is behind it is on its way to the cache
    /// meanwhile.
    #[inline]
    fn next_entry(&mut self, access: Access) -> Result<Seen, &'static str> {
        self.look_ahead(access);
        let mut seen = self.seen[usize::from(self.ring.next_avail()) % BUFFERS_AHEAD];
        if seen.run.is_none() {
            seen.head = self.ring.head()?;
        }
        self.waiting -= 1;
        self.described -= 1;
        self.fetched -= 1;
        Ok(seen)
    }

    /// Has the processor fetch descriptors first and buffers after them: where a buffer is, its descriptor
    /// says, and a core that waits for that does nothing else.
    #[inline]
    fn look_ahead(&mut self, access: Access) {
        if self.fetched > BUFFERS_AHEAD - LOOKED_AT_ONCE || self.fetched == self.waiting {
            return;
        }
        let skip = match access {
            Access::Read if !self.rules.reads_header() => self.rules.header_bytes,
            _ => 0,
        };
        let described = self.waiting.min(BUFFERS_AHEAD + DESCRIPTORS_AHEAD);
        for at in self.described..described {
            self.ring.prefetch_descriptor(at);
        }
        self.described = described.max(self.described);
        let fetched = self.waiting.min(BUFFERS_AHEAD);
        for at in self.fetched..fetched {
            let place = usize::from(self.ring.next_avail()).wrapping_add(at) % BUFFERS_AHEAD;
            self.seen[place] = self.ring.look_at(at, skip, access);
        }
        self.fetched = fetched.max(self.fetched);
    }

    /// The last `count` entries taken wait again.
    fn put_back(&mut self, count: u16) {
        self.ring.put_back(count);
        let count = usize::from(count);
        self.waiting += count;
        self.described += count;
        // Others may be in their places by now.
        self.fetched = 0;
    }

    /// Shows the guest what was given back, as soon as its memory may be written.
    fn publish(&mut self) {
        self.stale = true;
        self.unshown = !self.ring.may_write();
        if self.unshown {
            return;
        }
        for head in self.late.drain(..) {
            self.ring.push_used(head, 0);
        }
        self.ring.publish();
    }
}

impl TxQueue for TxVring {
    fn take(&mut self, taken: &mut Taken, bytes: &mut Segments) -> Fetched {
        if self.common.broken || !self.common.ring.may_write() {
            return Fetched::Empty;
        }
        if self.common.unshown {
            self.common.publish();
        }
        let next = self.common.waiting().and_then(|waiting| {
            let entry = (waiting > 0).then(|| self.common.next_entry(Access::Read));
            entry.transpose()
        });
        let Seen { head, run } = match next {
            Ok(Some(entry)) => entry,
            Ok(None) => return Fetched::Empty,
            Err(why) => {
                self.common.break_down(why);
                return Fetched::Broken;
            }
        };
        if self.in_hand[usize::from(head)].is_some() {
            self.common.break_down("a chain was made available twice");
            return Fetched::Broken;
        }
        self.common.ring.take(head);
        let parsed = match run {
            Some(run) => self.parse_run(run, taken, bytes),
            None => self.parse_chain(head, taken, bytes),
        };
        if parsed.is_none() {
            self.common.ring.push_used(head, 0);
            return Fetched::Malformed;
        }
        taken.tag = u32::from(head);
        self.in_hand[usize::from(head)] = Some(self.common.ring.hold());
        Fetched::Frame
    }

    fn put_back(&mut self, tag: u32) {
        if let Some(generation) = self.forget(tag) {
            self.common.ring.unhold(generation);
            self.common.put_back(1);
        }
    }

    fn done(&mut self, tag: u32) {
        if let Some(generation) = self.forget(tag)
            && let Ok(head) = u16::try_from(tag)
        {
            self.common.ring.unhold(generation);
            if self.common.ring.may_write() {
                self.common.ring.push_used(head, 0);
            } else {
                self.common.late.push(head);
                self.common.unshown = true;
            }
        }
    }
}

impl TxVring {
    fn forget(&mut self, tag: u32) -> Option<u32> {
        let place = self.in_hand.get_mut(usize::try_from(tag).ok()?)?;
        let held = place.take();
        debug_assert!(held.is_some(), "a frame is given back once");
        held
    }
}

impl RxVring {
    /// A queue on `ring`; `name` is for messages.
    pub fn new(name: Arc<str>, ring: Vring, rules: Rules) -> RxVring {
        let size = usize::from(ring.size());
        RxVring {
            common: Common::new(name, ring, rules),
            first: Segments::new(),
            next: Segments::new(),
            heads: Vec::with_capacity(size),
            taken_for: vec![0; size].into_boxed_slice(),
            frames: 0,
        }
    }

    /// Takes the next buffer of the guest's, and finds where it is; its bytes.
    fn next_buffer(&mut self, is_first: bool) -> Result<usize, &'static str> {
        let Seen { head, run } = self.common.next_entry(Access::Write)?;
        let Common { ring, chain, .. } = &mut self.common;
        // Not by a walk through `heads`: a frame may take a whole ring of tiny buffers.
        let taken_for = &mut self.taken_for[usize::from(head)];
        if std::mem::replace(taken_for, self.frames) == self.frames {
            return Err("a chain was made available twice");
        }
        ring.take(head);
        self.heads.push((head, 0));
        let into = if is_first {
            &mut self.first
        } else {
            &mut self.next
        };
        into.clear();
        if let Some(run) = run.filter(|it| !it.is_empty()) {
            let _ = into.push(run);
            return Ok(run.len());
        }
        ring.copy_chain(head, chain)?;
        let room = length(chain.writable());
        if room == 0 || !push_bytes(chain.writable(), 0, room, ring.map(), into) {
            return Err("a buffer to receive into that is none");
        }
        usize::try_from(room).map_err(|_| "a buffer that is too long")
    }

    /// Copies the frame buffer by buffer.
    fn fill(&mut self, bytes: &Bytes<'_>, len: usize) -> Result<Put, &'static str> {
        let header = self.common.rules.header_bytes;
        let mut copied = 0;
        for at in 0.. {
            if self.common.waiting()? == 0 {
                break;
            }
            // A driver of small buffers may have offered nothing wrong; it does not get this one.
            if at == HEADS_MAX {
                return Ok(Put::TooLarge);
            }
            let is_first = at == 0;
            let room = self.next_buffer(is_first)?;
            let skip = if is_first { header } else { 0 };
            if room < skip {
                return Err("a buffer too small for a header");
            }
            let piece = (room - skip).min(len - copied);
            let into = if is_first { &self.first } else { &self.next };
            bytes.copy_to(copied, into, skip, piece);
            self.common.ring.mark_new(into);
            copied += piece;
            if let Some(last) = self.heads.last_mut() {
                last.1 = u32::try_from(skip + piece).map_err(|_| "a frame that is too long")?;
            }
            if copied == len {
                return Ok(Put::Done);
            }
            if !self.common.rules.mergeable {
                return Ok(Put::TooLarge);
            }
        }
        Ok(Put::NoRoom)
    }
}

impl RxQueue for RxVring {
    fn put(&mut self, header: Option<&Header>, bytes: &Bytes<'_>, len: usize) -> Put {
        if self.common.broken {
            return Put::Broken;
        }
        if !self.common.ring.may_write() {
            return Put::NoRoom;
        }
        self.heads.clear();
        self.frames += 1;
        let put = match self.fill(bytes, len) {
            Ok(put) => put,
            Err(why) => {
                self.common.break_down(why);
                return Put::Broken;
            }
        };
        if put != Put::Done {
            let taken = u16::try_from(self.heads.len()).expect("no more than the ring holds");
            self.common.put_back(taken);
            return put;
        }
        let num_buffers = u16::try_from(self.heads.len()).expect("no more than the ring holds");
        let header_bytes = self.common.rules.header_bytes;
        let bytes = match header {
            None => Header::plain_bytes(num_buffers),
            Some(header) => Header {
                num_buffers,
                ..*header
            }
            .to_bytes(),
        };
        if header_bytes != bytes.len() || !self.first.put_start(&bytes) {
            self.first.copy_in(0, &bytes[..header_bytes]);
        }
        self.common.ring.mark_new(&self.first);
        for &(head, written) in &self.heads {
            self.common.ring.push_used(head, written);
        }
        Put::Done
    }
}

/// What a device does with a ring that runs, of either direction.
pub trait NetRing: FrameQueue {
    /// The ring, to be changed between turns.
    fn ring_mut(&mut self) -> &mut Vring;
    /// Changes what was negotiated.
    fn set_rules(&mut self, rules: Rules);
    /// Ends the queue.
    fn into_ring(self) -> Vring;
}

macro_rules! frame_queue {
    ($queue:ty, $offloads:ident) => {
        impl FrameQueue for $queue {
            fn may_complete(&self) -> bool {
                self.common.ring.may_write()
            }

            fn publish(&mut self) {
                self.common.publish();
            }

            fn has_work(&self) -> bool {
                !self.common.broken && self.common.ring.has_work()
            }

            fn arm(&mut self) -> bool {
                self.common.ring.arm() && !self.common.broken
            }

            fn disarm(&mut self) {
                self.common.ring.disarm();
            }

            fn kick_fd(&self) -> Option<RawFd> {
                self.common.ring.kick_fd()
            }

            fn drain_kick(&self) {
                self.common.ring.drain_kick();
            }

            fn offloads(&self) -> Offloads {
                self.common.rules.$offloads
            }
        }

        impl NetRing for $queue {
            fn ring_mut(&mut self) -> &mut Vring {
                self.common.forget_seen();
                &mut self.common.ring
            }

            fn set_rules(&mut self, rules: Rules) {
                self.common.rules = rules;
            }

            fn into_ring(self) -> Vring {
                self.common.ring
            }
        }
    };
}

frame_queue!(TxVring, sends);
frame_queue!(RxVring, takes);

#[cfg(test)]
mod tests;
