//! One virtqueue of a block device, as its worker drives it.

use std::os::fd::RawFd;
use std::sync::Arc;

use ferry_dataplane::queue::{Fetched, MemoryRegion, RequestQueue};
use ferry_dataplane::request::{Completion, Op, Status};
use ferry_dataplane::segments::Segments;
use ferry_dataplane::slots::Inbox;

use super::parse::{Asked, ID_BYTES, Rules, STATUS_IO_ERROR, STATUS_OK, STATUS_UNSUPPORTED, parse};
use crate::vring::{Chain, Vring};

/// A request in hand, by the head of its chain.
#[derive(Debug, Clone, Copy)]
struct InHand {
    status_at: u64,
    generation: u32,
}

/// A block device's queue. Made by its device when the front-end starts the ring.
#[derive(Debug)]
pub struct BlkQueue {
    name: Arc<str>,
    ring: Vring,
    rules: Rules,
    id: [u8; ID_BYTES],
    chain: Chain,
    in_hand: Box<[Option<InHand>]>,
    broken: bool,
}

impl BlkQueue {
    /// A queue on `ring`. `name` is for messages, `id` for GET_ID.
    pub fn new(name: Arc<str>, ring: Vring, rules: Rules, id: [u8; ID_BYTES]) -> BlkQueue {
        let in_hand = vec![None; usize::from(ring.size())].into_boxed_slice();
        BlkQueue {
            name,
            ring,
            rules,
            id,
            chain: Chain::new(),
            in_hand,
            broken: false,
        }
    }

    /// The ring, to be changed between polls.
    pub fn ring_mut(&mut self) -> &mut Vring {
        &mut self.ring
    }

    /// Ends the queue.
    pub fn into_ring(self) -> Vring {
        self.ring
    }

    /// Follows the disk's size.
    pub fn set_capacity(&mut self, capacity_bytes: u64) {
        self.rules.capacity_bytes = capacity_bytes;
    }

    /// Sets whether writes must be durable at completion.
    pub fn set_through(&mut self, through: bool) {
        self.rules.through = through;
    }

    fn break_down(&mut self, why: &str) -> Fetched {
        tracing::warn!(queue = %self.name, why, "the driver broke the virtqueue; it is not served any more");
        self.broken = true;
        self.ring.report_broken();
        Fetched::Broken
    }

    /// Answers a request without the backend.
    fn answer(&mut self, head: u16, status_at: u64, status: u8, data_bytes: u32) {
        self.ring.map().write_byte(status_at, status);
        self.ring.mark(status_at..status_at.saturating_add(1));
        self.ring.push_used(head, data_bytes + 1);
    }

    fn answer_id(&mut self, head: u16, status_at: u64, segments: &Segments) {
        let copied = segments.copy_in(0, &self.id);
        let generation = self.ring.hold();
        self.ring.mark_segments(generation, segments);
        self.ring.unhold(generation);
        self.answer(
            head,
            status_at,
            STATUS_OK,
            u32::try_from(copied).unwrap_or(0),
        );
    }
}

impl RequestQueue for BlkQueue {
    fn fetch(&mut self, inbox: &mut Inbox<'_>, budget: usize) -> Fetched {
        if self.broken || !self.ring.may_write() {
            return Fetched::Some(0);
        }
        let waiting = match self.ring.waiting() {
            Ok(waiting) => waiting.min(budget),
            Err(why) => return self.break_down(why),
        };
        for taken in 0..waiting {
            let head = match self.ring.head() {
                Ok(head) => head,
                Err(why) => return self.break_down(why),
            };
            if self.in_hand[usize::from(head)].is_some() {
                return self.break_down("a chain was made available twice");
            }
            let Some(segments) = inbox.begin() else {
                return Fetched::Some(taken);
            };
            self.ring.take(head);
            let parsed = self.ring.copy_chain(head, &mut self.chain).and_then(|()| {
                parse(
                    &self.chain,
                    self.ring.map(),
                    &self.rules,
                    u32::from(head),
                    segments,
                )
            });
            match parsed {
                Ok(parsed) => match parsed.asked {
                    Asked::Request(request) => {
                        let generation = self.ring.hold();
                        let status_at = parsed.status_at;
                        self.in_hand[usize::from(head)] = Some(InHand {
                            status_at,
                            generation,
                        });
                        inbox.commit(request);
                    }
                    Asked::Id => self.answer_id(head, parsed.status_at, segments),
                    Asked::Refused(status) => self.answer(head, parsed.status_at, status, 0),
                },
                Err(why) => {
                    tracing::debug!(queue = %self.name, why, "a malformed request was refused");
                    self.ring.push_used(head, 0);
                }
            }
        }
        Fetched::Some(waiting)
    }

    fn complete(&mut self, done: &Completion<'_>) {
        let Ok(head) = u16::try_from(done.tag) else {
            return;
        };
        let Some(held) = self
            .in_hand
            .get_mut(usize::from(head))
            .and_then(Option::take)
        else {
            debug_assert!(false, "a request is completed once");
            return;
        };
        let status = match done.status {
            Status::Ok => STATUS_OK,
            Status::IoError => STATUS_IO_ERROR,
            Status::Unsupported => STATUS_UNSUPPORTED,
        };
        let mut written = 1;
        if done.op == Op::Read {
            // Marked whatever the outcome: some of it may have been written.
            self.ring.mark_segments(held.generation, done.segments);
            let bytes = u32::try_from(done.segments.total_bytes()).unwrap_or(u32::MAX - 1);
            written += if done.status == Status::Ok { bytes } else { 0 };
        }
        if let Some(map) = self.ring.held(held.generation) {
            map.write_byte(held.status_at, status);
        }
        self.ring
            .mark(held.status_at..held.status_at.saturating_add(1));
        self.ring.unhold(held.generation);
        self.ring.push_used(head, written);
    }

    fn may_complete(&self) -> bool {
        self.ring.may_write()
    }

    fn publish(&mut self) {
        self.ring.publish();
    }

    fn memory(&self) -> Vec<MemoryRegion> {
        self.ring.map().mapped()
    }

    fn has_work(&self) -> bool {
        !self.broken && self.ring.has_work()
    }

    fn backlog(&self) -> u64 {
        self.ring.waiting().unwrap_or(0) as u64
    }

    fn recovering(&self) -> bool {
        !self.broken && self.ring.recovering() > 0
    }

    fn arm(&mut self) -> bool {
        self.ring.arm() && !self.broken
    }

    fn disarm(&mut self) {
        self.ring.disarm();
    }

    fn kick_fd(&self) -> Option<RawFd> {
        self.ring.kick_fd()
    }

    fn drain_kick(&self) {
        self.ring.drain_kick();
    }
}
