//! The data side: one virtqueue driven by its one owner.
//!
//! A request takes a slot (header, status byte, ranges, indirect table, all
//! laid out in guest memory at the start) and one to a few descriptors.
//! `submit` only puts it into the ring; `commit` publishes what was put there
//! and kicks once, if the device wants a kick. Nothing is allocated after the
//! queue is made.
//!
//! The server is not trusted: what it writes into the used ring is checked
//! before it is used as an index.

mod types;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::blk::{Op, Range, Status, feature};
use super::memory::{GuestMemory, View};
use super::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, SplitRing};

pub use types::{Completion, QueueError, QueueOptions, Segment, Token};

/// Most ranges that one discard or write-zeroes carries.
pub const RANGES_MAX: usize = 16;

const RANGES_AT: usize = 16;
const STATUS_AT: usize = 320;
const TABLE_AT: usize = 384;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    serial: u32,
    /// Ring descriptors held: the head, then in chain order.
    held: u16,
    busy: bool,
}

/// Driver of one split virtqueue of a block device.
#[derive(Debug)]
pub struct BlkQueue {
    ring: SplitRing,
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
    epoll: Epoll,
    slots: Vec<Slot>,
    free_slots: Vec<u16>,
    free_descs: Vec<u16>,
    /// Descriptors of each slot, `chain_max` apiece.
    held: Vec<u16>,
    chain_max: usize,
    /// Slot by head descriptor.
    slot_of: Vec<Option<u16>>,
    area: View,
    area_addr: u64,
    stride: usize,
    /// Next available index to fill; beyond `published` only we know of it.
    next_avail: u16,
    published: u16,
    last_used: u16,
    event_idx: bool,
    indirect: bool,
}

impl BlkQueue {
    /// A driver for a ring that nothing was put into yet. `features` are those
    /// negotiated with the server, or with every server the ring will visit.
    pub fn new(
        memory: &GuestMemory,
        ring: SplitRing,
        kick: Arc<EventFd>,
        call: Arc<EventFd>,
        features: u64,
        options: QueueOptions,
    ) -> Result<Self, QueueError> {
        let (size, depth) = (ring.layout().size, options.depth);
        let chain_max = usize::from(options.segments_max) + 2;
        if depth == 0 || depth > size || chain_max > usize::from(size) {
            return Err(QueueError::Depth { depth, size });
        }
        let stride = (TABLE_AT + chain_max * 16).next_multiple_of(64);
        let bytes = (stride * usize::from(depth)) as u64;
        let area_addr = memory.alloc(bytes, 4096)?;
        let epoll = Epoll::new()?;
        epoll.ctl(
            ControlOperation::Add,
            std::os::fd::AsRawFd::as_raw_fd(call.as_ref()),
            EpollEvent::new(EventSet::IN, 0),
        )?;
        let queue = Self {
            kick,
            call,
            epoll,
            slots: vec![Slot::default(); usize::from(depth)],
            free_slots: (0..depth).rev().collect(),
            free_descs: (0..size).rev().collect(),
            held: vec![0; usize::from(depth) * chain_max],
            chain_max,
            slot_of: vec![None; usize::from(size)],
            area: memory.view(area_addr, bytes)?,
            area_addr,
            stride,
            next_avail: ring.avail_index(),
            published: ring.avail_index(),
            last_used: ring.used_index(),
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: options.indirect && features & feature::INDIRECT != 0,
            ring,
        };
        queue.want_no_calls();
        Ok(queue)
    }

    /// Puts a request into the ring. The device learns of it at [`commit`](Self::commit).
    ///
    /// `Discard` and `WriteZeroes` take their range from `sector` and the
    /// segments' summed length, whose memory is not used; for several ranges
    /// there is [`submit_ranges`](Self::submit_ranges). `Flush` takes no segments.
    /// On an error nothing was put into the ring.
    pub fn submit(&mut self, op: Op, sector: u64, data: &[Segment]) -> Result<Token, QueueError> {
        if let Op::Discard | Op::WriteZeroes { .. } = op {
            let bytes: u64 = data.iter().map(|s| u64::from(s.len)).sum();
            let sectors = u32::try_from(bytes / 512).unwrap_or(u32::MAX);
            let flags = u32::from(matches!(op, Op::WriteZeroes { unmap: true }));
            return self.submit_ranges(
                op,
                &[Range {
                    sector,
                    sectors,
                    flags,
                }],
            );
        }
        let max = self.chain_max - 2;
        let needs_some = op != Op::Flush;
        if data.len() > max || (needs_some && data.is_empty()) {
            return Err(QueueError::Segments {
                got: data.len(),
                max,
            });
        }
        let slot = self.take_slot(data.len())?;
        Ok(self.put(slot, op, sector, data))
    }

    /// Puts a discard or write-zeroes of several ranges into the ring.
    pub fn submit_ranges(&mut self, op: Op, ranges: &[Range]) -> Result<Token, QueueError> {
        if ranges.is_empty() || ranges.len() > RANGES_MAX {
            return Err(QueueError::Segments {
                got: ranges.len(),
                max: RANGES_MAX,
            });
        }
        let slot = self.take_slot(1)?;
        let at = usize::from(slot) * self.stride + RANGES_AT;
        for (i, range) in ranges.iter().enumerate() {
            self.area.write(at + i * 16, &range.to_bytes());
        }
        let len = u32::try_from(ranges.len() * 16).unwrap_or(u32::MAX);
        let data = [Segment {
            addr: self.area_addr + at as u64,
            len,
        }];
        Ok(self.put(slot, op, 0, &data))
    }

    /// Publishes what was submitted and kicks if the device wants it.
    /// Says whether it kicked.
    pub fn commit(&mut self) -> Result<bool, QueueError> {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return Ok(false);
        }
        let wanted = self.ring.offer(old, new, self.event_idx);
        self.published = new;
        if wanted {
            self.kick()?;
        }
        Ok(wanted)
    }

    /// Kicks, wanted or not.
    pub fn kick(&self) -> Result<(), QueueError> {
        Ok(self.kick.write(1)?)
    }

    /// The next completion, if there is one. Never waits.
    pub fn pop(&mut self) -> Result<Option<Completion>, QueueError> {
        let moved = self.ring.used_index().wrapping_sub(self.last_used);
        if moved == 0 {
            return Ok(None);
        }
        let in_flight = self.next_avail_unpopped();
        if moved > in_flight {
            return Err(QueueError::UsedJump { moved, in_flight });
        }
        let (id, written) = self.ring.used(self.last_used);
        let slot = usize::try_from(id)
            .ok()
            .and_then(|i| self.slot_of.get_mut(i)?.take());
        let Some(slot) = slot else {
            return Err(QueueError::NotInFlight { id });
        };
        self.last_used = self.last_used.wrapping_add(1);
        Ok(Some(self.release(slot, written)))
    }

    /// Waits until a completion can be popped or the time is over, asleep on
    /// the call eventfd. Says whether there is one.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, QueueError> {
        if self.has_completion() {
            return Ok(true);
        }
        self.want_a_call();
        // Asked first, looked after: the device writes the index, then looks
        // whether it was asked.
        fence(Ordering::SeqCst);
        if !self.has_completion() {
            self.sleep(timeout)?;
        }
        self.want_no_calls();
        Ok(self.has_completion())
    }

    /// Whether `pop` would return something.
    pub fn has_completion(&self) -> bool {
        self.ring.used_index() != self.last_used
    }

    /// Requests submitted and not yet popped.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// Most requests in flight.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Most data segments of a request.
    pub fn segments_max(&self) -> usize {
        self.chain_max - 2
    }

    /// Most data segments with which every request of the depth still finds its
    /// descriptors; below that, `submit` may say [`QueueError::Full`] early.
    pub fn segments_at_depth(&self) -> usize {
        if self.indirect {
            return self.segments_max();
        }
        let share = self.slot_of.len() / self.slots.len();
        share.saturating_sub(2).clamp(1, self.segments_max())
    }

    /// Whether a request of so many segments can be submitted now.
    pub fn has_room(&self, segments: usize) -> bool {
        !self.free_slots.is_empty() && self.free_descs.len() >= self.descs_for(segments)
    }

    /// Guest address of a request's status byte, for tests of dirty logs.
    pub fn status_addr(&self, token: Token) -> u64 {
        self.area_addr + (token.slot() * self.stride + STATUS_AT) as u64
    }

    /// The ring under this queue.
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    fn next_avail_unpopped(&self) -> u16 {
        self.published.wrapping_sub(self.last_used)
    }

    fn descs_for(&self, segments: usize) -> usize {
        if self.indirect { 1 } else { segments + 2 }
    }

    fn take_slot(&mut self, segments: usize) -> Result<u16, QueueError> {
        if !self.has_room(segments) {
            return Err(QueueError::Full);
        }
        let slot = self.free_slots.pop().ok_or(QueueError::Full)?;
        let count = self.descs_for(segments);
        let from = self.free_descs.len() - count;
        let first = usize::from(slot) * self.chain_max;
        self.held[first..first + count].copy_from_slice(&self.free_descs[from..]);
        self.free_descs.truncate(from);
        let entry = &mut self.slots[usize::from(slot)];
        // At most `chain_max`, which fits a ring and so a u16.
        entry.held = u16::try_from(count).unwrap_or(u16::MAX);
        entry.busy = true;
        Ok(slot)
    }

    fn put(&mut self, slot: u16, op: Op, sector: u64, data: &[Segment]) -> Token {
        let at = usize::from(slot) * self.stride;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&op.code().to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.area.write(at, &header);
        self.area.write(at + STATUS_AT, &[Status::UNWRITTEN]);
        self.write_chain(slot, op, data);
        let head = self.held[usize::from(slot) * self.chain_max];
        self.slot_of[usize::from(head)] = Some(slot);
        self.ring.set_avail(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Token {
            slot,
            serial: self.slots[usize::from(slot)].serial,
        }
    }

    fn write_chain(&self, slot: u16, op: Op, data: &[Segment]) {
        let base = usize::from(slot) * self.stride;
        let place = |at: usize| self.area_addr + (base + at) as u64;
        let first = usize::from(slot) * self.chain_max;
        let last = data.len() + 1;
        for i in 0..=last {
            let (addr, len, write) = match i {
                0 => (place(0), 16, false),
                _ if i == last => (place(STATUS_AT), 1, true),
                _ => (data[i - 1].addr, data[i - 1].len, op.device_writes()),
            };
            let more = i < last;
            let flags = if write { DESC_WRITE } else { 0 } | if more { DESC_NEXT } else { 0 };
            let next = match (more, self.indirect) {
                (false, _) => 0,
                (true, true) => u16::try_from(i + 1).unwrap_or(u16::MAX),
                (true, false) => self.held[first + i + 1],
            };
            let desc = Desc {
                addr,
                len,
                flags,
                next,
            };
            if self.indirect {
                self.area.write(base + TABLE_AT + i * 16, &desc.to_bytes());
            } else {
                self.ring.write_desc(self.held[first + i], desc);
            }
        }
        if self.indirect {
            let len = u32::try_from((last + 1) * 16).unwrap_or(u32::MAX);
            let table = Desc {
                addr: place(TABLE_AT),
                len,
                flags: DESC_INDIRECT,
                next: 0,
            };
            self.ring.write_desc(self.held[first], table);
        }
    }

    fn release(&mut self, slot: u16, written: u32) -> Completion {
        let index = usize::from(slot);
        let mut status = [0];
        self.area.read(index * self.stride + STATUS_AT, &mut status);
        let entry = &mut self.slots[index];
        let token = Token {
            slot,
            serial: entry.serial,
        };
        debug_assert!(entry.busy, "slot {slot} completed twice");
        entry.busy = false;
        entry.serial = entry.serial.wrapping_add(1);
        let first = index * self.chain_max;
        let held = usize::from(entry.held);
        self.free_descs
            .extend_from_slice(&self.held[first..first + held]);
        self.free_slots.push(slot);
        Completion {
            token,
            status: Status::parse(status[0]),
            written,
        }
    }

    fn want_a_call(&self) {
        if self.event_idx {
            self.ring.set_used_event(self.last_used);
        } else {
            self.ring.want_calls(true);
        }
    }

    fn want_no_calls(&self) {
        if self.event_idx {
            // Just passed, so not passed again for 65,536 completions.
            self.ring.set_used_event(self.last_used.wrapping_sub(1));
        } else {
            self.ring.want_calls(false);
        }
    }

    fn sleep(&self, timeout: Duration) -> Result<(), QueueError> {
        let ms = i32::try_from(timeout.as_millis())
            .unwrap_or(i32::MAX)
            .max(1);
        let mut events = [EpollEvent::default()];
        match self.epoll.wait(ms, &mut events) {
            Ok(0) => {}
            Ok(_) => drain(&self.call)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

/// Empties a nonblocking eventfd.
fn drain(event: &EventFd) -> io::Result<()> {
    match event.read() {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
