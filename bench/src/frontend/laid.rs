//! A ring whose chains are laid out once and used over and over.
//!
//! Per use only the entry of the available ring is written, and that only if another chain stands there;
//! while a device completes in order, none ever does. Nobody waits for calls.
//!
//! The server is not trusted: what it writes into the used ring is checked before it is used as an index.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::blk::feature;
use super::device::GuestDevice;
use super::queue::QueueError;
use super::ring::SplitRing;

/// Asked for calls this long ago, in completions, is far from being passed.
const RENEW_EVERY: u16 = 1 << 14;

/// The ring, and which of its chains, numbered as slots, are with the device.
#[derive(Debug)]
pub(super) struct LaidRing {
    pub ring: SplitRing,
    kick: Arc<EventFd>,
    /// Slot by head descriptor.
    slot_of: Vec<Option<u16>>,
    /// By slot.
    heads: Vec<u16>,
    busy: Vec<bool>,
    next_avail: u16,
    published: u16,
    last_used: u16,
    renewed: u16,
    event_idx: bool,
}

impl LaidRing {
    /// A ring that nothing was put into yet, with so many slots of so many descriptors each.
    pub fn new(
        device: &GuestDevice,
        queue: usize,
        features: u64,
        (slots, descs): (u16, u16),
    ) -> Result<Self, QueueError> {
        let ring = device.ring(queue)?;
        let mut slot_of = vec![None; usize::from(ring.layout().size)];
        for slot in 0..slots {
            slot_of[usize::from(slot * descs)] = Some(slot);
        }
        let laid = Self {
            kick: device.queues()[queue].kick.clone(),
            slot_of,
            heads: (0..slots).map(|slot| slot * descs).collect(),
            busy: vec![false; usize::from(slots)],
            next_avail: ring.avail_index(),
            published: ring.avail_index(),
            last_used: ring.used_index(),
            renewed: ring.used_index(),
            event_idx: features & feature::EVENT_IDX != 0,
            ring,
        };
        laid.ring.want_calls(false);
        laid.want_no_calls();
        Ok(laid)
    }

    /// Slots.
    pub fn count(&self) -> u16 {
        u16::try_from(self.heads.len()).unwrap_or(u16::MAX)
    }

    /// A slot's first descriptor.
    pub fn head(&self, slot: u16) -> u16 {
        self.heads[usize::from(slot)]
    }

    /// Put and not yet taken.
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.last_used)
    }

    /// Puts a free slot into the ring. The device learns of it at `commit`.
    #[inline]
    pub fn put(&mut self, slot: u16) {
        let index = usize::from(slot);
        debug_assert!(!self.busy[index], "slot {slot} put twice");
        self.busy[index] = true;
        self.ring.renew_avail(self.next_avail, self.heads[index]);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes what was put and kicks if the device wants it.
    #[inline]
    pub fn commit(&mut self) -> Result<(), QueueError> {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return Ok(());
        }
        let wanted = self.ring.offer(old, new, self.event_idx);
        self.published = new;
        if wanted {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// How many completions can be taken now.
    #[inline]
    pub fn ready(&mut self) -> Result<u16, QueueError> {
        let moved = self.ring.used_index().wrapping_sub(self.last_used);
        let in_flight = self.published.wrapping_sub(self.last_used);
        if moved > in_flight {
            return Err(QueueError::UsedJump { moved, in_flight });
        }
        if self.last_used.wrapping_sub(self.renewed) >= RENEW_EVERY {
            self.renewed = self.last_used;
            self.want_no_calls();
        }
        Ok(moved)
    }

    /// The slot of the completion `ahead` of the next one, left where it is, and
    /// the bytes that the device says it wrote. Of those that `ready` counted.
    #[inline]
    pub fn peek(&self, ahead: u16) -> Result<(u16, u32), QueueError> {
        let (id, written) = self.ring.used(self.last_used.wrapping_add(ahead));
        let slot = usize::try_from(id)
            .ok()
            .and_then(|i| *self.slot_of.get(i)?)
            .filter(|slot| self.busy[usize::from(*slot)]);
        let slot = slot.ok_or(QueueError::NotInFlight { id })?;
        Ok((slot, written))
    }

    /// The next completion, of those that `ready` counted.
    #[inline]
    pub fn take(&mut self) -> Result<(u16, u32), QueueError> {
        let taken = self.peek(0)?;
        self.last_used = self.last_used.wrapping_add(1);
        self.busy[usize::from(taken.0)] = false;
        Ok(taken)
    }

    fn want_no_calls(&self) {
        if self.event_idx {
            // Just passed, so not passed again for 65,536 completions.
            self.ring.set_used_event(self.last_used.wrapping_sub(1));
        }
    }
}
