//! The in-flight table: a fixed set of slots, each of which owns everything the kernel may touch
//! on behalf of one request until its CQE has been seen.

use std::sync::Arc;

use crate::buffer::AlignedBuf;
use crate::limits::SLOTS_PER_WORKER;
use crate::qos::cost::Cost;
use crate::request::{Op, Request, Status};
use crate::segments::Segments;

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In no request.
    Free,
    /// Popped, not started: waits for a conflicting range, or a bounce buffer.
    Waiting,
    /// The kernel reads or writes guest memory itself.
    Direct,
    /// Going through bounce buffers, one chunk at a time.
    Bounce(Chunk),
    /// A flush is in the kernel.
    Flushing,
    /// A deallocation or zeroing is in the kernel.
    Zeroing,
    /// What was given back is in the kernel to be taken again.
    Keeping,
    /// Done locally; waits for the mirror's other side.
    Unacknowledged,
    /// Done; waits out the service time of a delay backend.
    Delayed,
    /// Done; waits until guest memory may be written.
    Held,
}

/// What a bounced request is doing with its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Reading the chunk's first block, of which the request changes a part.
    ReadHead,
    /// Reading the chunk's last block, of which the request changes a part.
    ReadTail,
    /// Reading or writing the chunk itself.
    Transfer,
}

/// One request in hand.
pub(crate) struct Slot {
    pub stage: Stage,
    pub request: Request,
    pub segments: Segments,
    /// The queue it came from and the lane of its disk, both of this worker.
    pub queue: u32,
    pub lane: u32,
    /// Worst thing that happened so far.
    pub status: Status,
    /// Bytes finished; in a bounced request also where the current chunk starts.
    pub done_bytes: u64,
    /// The current chunk's bytes of the request.
    pub chunk_bytes: u64,
    /// The current chunk rounded out to the device's block: where it starts, and how long it is.
    pub io_offset: u64,
    pub io_bytes: usize,
    /// Bytes of the current part of the chunk that were transferred.
    pub part_bytes: usize,
    /// The buffer of the current chunk, shared with the tap when the disk is mirrored.
    pub bounce: Option<Arc<AlignedBuf>>,
    /// The range changed by the request is entered among the started ones.
    pub started: bool,
    /// Last sequence number handed to the tap, 0 for none; `tapped_ns` is when.
    pub tap_seq: u64,
    pub tapped_ns: u64,
    /// What it counts for at its datastore; 0 for what is not counted there. Whether it is at the
    /// device now, and when it was popped and went there.
    pub cost: Cost,
    pub at_device: bool,
    pub popped_ns: u64,
    pub began_ns: u64,
    /// When a delayed completion is due; before it is done, when its bottleneck is done with it.
    pub due_ns: u64,
    /// Made durable by a flush of its own before it ends.
    pub flush_after: bool,
    /// It is counted among its lane's buffered writes.
    pub buffered: bool,
    /// The next slot of the [`SlotList`] that this one is in.
    next: Option<u32>,
    /// The kernel holds pointers into `segments` or `bounce`. Set by the ring facade at submission,
    /// cleared at the CQE; while it is set the slot may not be freed or its memory replaced.
    pub in_kernel: bool,
}

impl Slot {
    fn new() -> Slot {
        Slot {
            stage: Stage::Free,
            request: Request {
                op: Op::Flush,
                offset_bytes: 0,
                len_bytes: 0,
                through: false,
                tag: 0,
            },
            segments: Segments::new(),
            queue: 0,
            lane: 0,
            status: Status::Ok,
            done_bytes: 0,
            chunk_bytes: 0,
            io_offset: 0,
            io_bytes: 0,
            part_bytes: 0,
            bounce: None,
            started: false,
            tap_seq: 0,
            tapped_ns: 0,
            cost: 0,
            at_device: false,
            popped_ns: 0,
            began_ns: 0,
            due_ns: 0,
            flush_after: false,
            buffered: false,
            next: None,
            in_kernel: false,
        }
    }

    /// The request's range on the disk.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.request.offset_bytes..self.request.offset_bytes + self.request.len_bytes
    }

    /// It goes to the device as soon as it was popped.
    pub fn goes(&mut self, now_ns: u64, cost: Cost) {
        self.cost = cost;
        self.at_device = true;
        (self.popped_ns, self.began_ns) = (now_ns, now_ns);
    }

    /// The range the request changes, rounded out to blocks.
    pub fn changed_range(&self, block_bytes: u32) -> std::ops::Range<u64> {
        let block = u64::from(block_bytes);
        let std::ops::Range { start, end } = self.range();
        start / block * block..end.next_multiple_of(block)
    }
}

/// Slots in a row, threaded through the table: a list of any length that takes no memory. A slot is
/// in one list at a time.
#[derive(Debug, Default)]
pub(crate) struct SlotList {
    first: Option<u32>,
    last: u32,
}

impl SlotList {
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub fn first(&self) -> Option<u32> {
        self.first
    }
}

/// All slots of a worker.
pub(crate) struct SlotTable {
    slots: Box<[Slot]>,
    free: Vec<u32>,
}

impl SlotTable {
    pub fn new() -> SlotTable {
        let count = u32::try_from(SLOTS_PER_WORKER).expect("a small constant");
        SlotTable {
            slots: (0..count).map(|_| Slot::new()).collect(),
            free: (0..count).rev().collect(),
        }
    }

    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn get(&self, id: u32) -> &Slot {
        &self.slots[id as usize]
    }

    pub fn get_mut(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }

    /// Every slot in use, with its id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Slot)> {
        (0u32..)
            .zip(self.slots.iter())
            .filter(|(_, slot)| slot.stage != Stage::Free)
    }

    /// Every slot in use.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots
            .iter_mut()
            .filter(|slot| slot.stage != Stage::Free)
    }

    /// Adds a slot at the end of a list.
    pub fn append(&mut self, list: &mut SlotList, id: u32) {
        self.get_mut(id).next = None;
        match list.first {
            None => list.first = Some(id),
            Some(_) => self.get_mut(list.last).next = Some(id),
        }
        list.last = id;
    }

    /// Takes the first slot of a list.
    pub fn pop(&mut self, list: &mut SlotList) -> Option<u32> {
        let id = list.first?;
        list.first = self.get_mut(id).next.take();
        Some(id)
    }

    fn take(&mut self, request: Request, queue: u32, lane: u32) -> Option<u32> {
        let id = self.free.pop()?;
        let slot = &mut self.slots[id as usize];
        slot.stage = Stage::Waiting;
        slot.request = request;
        slot.queue = queue;
        slot.lane = lane;
        slot.status = Status::Ok;
        slot.done_bytes = 0;
        slot.started = false;
        slot.tap_seq = 0;
        slot.tapped_ns = 0;
        slot.due_ns = 0;
        slot.flush_after = false;
        slot.buffered = false;
        Some(id)
    }

    /// Gives a slot back.
    pub fn release(&mut self, id: u32) {
        let slot = &mut self.slots[id as usize];
        assert!(!slot.in_kernel, "the kernel still owns this slot's memory");
        assert!(slot.stage != Stage::Free, "a slot is released once");
        debug_assert!(slot.bounce.is_none());
        slot.stage = Stage::Free;
        slot.segments.clear();
        self.free.push(id);
    }
}

/// What one disk may still take in this turn.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    /// Requests, answered on the spot or put into slots.
    pub requests: usize,
    /// Bytes of the requests; the one that goes beyond is taken still.
    pub bytes: u64,
    /// It may hold so many times what is free.
    pub share: usize,
    /// Slots that it holds.
    pub held: usize,
}

impl Room {
    /// Of a disk that nothing bounds but the slots.
    #[cfg(test)]
    pub fn unlimited() -> Room {
        Room {
            requests: usize::MAX,
            bytes: u64::MAX,
            share: usize::MAX,
            held: 0,
        }
    }

    /// Whether the disk's turn is over.
    pub fn is_used_up(&self) -> bool {
        self.requests == 0 || self.bytes == 0
    }

    fn allows_one_more(&self, free: usize) -> bool {
        self.bytes > 0 && self.held < free.saturating_mul(self.share)
    }
}

/// Where a queue puts the requests it pops.
pub struct Inbox<'a> {
    pub(crate) slots: &'a mut SlotTable,
    pub(crate) taken: &'a mut Vec<u32>,
    pub(crate) queue: u32,
    pub(crate) lane: u32,
    pub(crate) room: &'a mut Room,
}

impl Inbox<'_> {
    /// The guest memory of the next request, empty; `None` while the disk may take no more.
    pub fn begin(&mut self) -> Option<&mut Segments> {
        let id = *self.slots.free.last()?;
        if !self.room.allows_one_more(self.slots.free.len()) {
            return None;
        }
        let segments = &mut self.slots.slots[id as usize].segments;
        segments.clear();
        Some(segments)
    }

    /// Makes the request whose segments `begin` last gave out. Without a `begin` that succeeded,
    /// nothing happens.
    pub fn commit(&mut self, request: Request) {
        if !self.room.allows_one_more(self.slots.free.len()) {
            return;
        }
        self.room.bytes = self.room.bytes.saturating_sub(request.len_bytes);
        if let Some(id) = self.slots.take(request, self.queue, self.lane) {
            self.room.held += 1;
            self.taken.push(id);
        }
    }
}

#[cfg(test)]
mod tests;
