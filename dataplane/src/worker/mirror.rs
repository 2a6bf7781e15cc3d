//! The mirrored disk: what goes to the tap, when its requests complete, and the range locks. The
//! order that all of this keeps is drawn in `lifecycle.rs`.

use std::sync::atomic::Ordering;

use crossbeam_channel::{Sender, TrySendError};

use super::Core;
use super::lane::{Mirror, RangeLock, of, of_mut};
use crate::lifecycle::TapEvent;
use crate::slots::Stage;

impl Core {
    pub(super) fn attach_mirror(&mut self, lane_id: u32, mirror: Mirror) -> bool {
        let lane = of_mut(&mut self.lanes, lane_id);
        if lane.mirror.is_some() {
            return false;
        }
        lane.start_tracking(lane_id, &self.slots);
        lane.mirror = Some(mirror);
        self.tend(lane_id);
        true
    }

    /// Ends the mirror: what waited for the other side completes by its local result.
    pub(super) fn detach_mirror(&mut self, lane_id: u32) {
        let Some(mirror) = self.lane(lane_id).mirror.take() else {
            return;
        };
        self.lane(lane_id).lock = None;
        self.lane(lane_id).retry = true;
        self.pool.forsake_lent(&mut self.ring);
        for id in mirror.unacknowledged {
            self.complete(id);
        }
        // Numbers of this tap mean nothing to a later one.
        for slot in self.slots.iter_mut().filter(|slot| slot.lane == lane_id) {
            slot.tap_seq = 0;
        }
    }

    /// The disk gives the mirror up, and the guest goes on.
    pub(super) fn fail_mirror(&mut self, lane_id: u32, why: &str) {
        if let Some(mirror) = &self.lane(lane_id).mirror {
            tracing::warn!(why, "the mirror is given up; the disk goes on here");
            mirror.tap.failed.store(true, Ordering::Release);
            // A full channel loses this.
            let _ = mirror.tap.events.try_send(TapEvent::Failed(why.to_owned()));
        }
        self.detach_mirror(lane_id);
    }

    /// Tells the mirror of a chunk about to be written; true when there is nothing to tell. False
    /// when it could not be told.
    pub(super) fn tap_write(&mut self, id: u32) -> bool {
        let now_ns = self.now_ns;
        let slot = self.slots.get_mut(id);
        let lane = of_mut(&mut self.lanes, slot.lane);
        if !lane.mirrors(slot) {
            return true;
        }
        let Some(mirror) = lane.mirror.as_mut() else {
            return true;
        };
        let data = slot
            .bounce
            .clone()
            .expect("a bounced request holds its buffer");
        let event = TapEvent::Write {
            seq: mirror.seq + 1,
            offset_bytes: slot.io_offset,
            data,
            len: slot.io_bytes,
        };
        sent(
            mirror,
            event,
            &mut slot.tap_seq,
            &mut slot.tapped_ns,
            now_ns,
        )
    }

    /// Tells the mirror of a range about to be zeroed.
    pub(super) fn tap_zero(&mut self, id: u32) -> bool {
        let now_ns = self.now_ns;
        let slot = self.slots.get_mut(id);
        let lane = of_mut(&mut self.lanes, slot.lane);
        let Some(mirror) = lane.mirror.as_mut() else {
            return true;
        };
        let event = TapEvent::Zero {
            seq: mirror.seq + 1,
            offset_bytes: slot.request.offset_bytes,
            len_bytes: slot.request.len_bytes,
        };
        sent(
            mirror,
            event,
            &mut slot.tap_seq,
            &mut slot.tapped_ns,
            now_ns,
        )
    }

    /// A change failed here: both sides may differ where it was to land.
    pub(super) fn tap_dirty(&mut self, lane_id: u32, id: u32) {
        let lane = of_mut(&mut self.lanes, lane_id);
        let range = self.slots.get(id).changed_range(lane.block_bytes);
        let Some(mirror) = &lane.mirror else { return };
        let event = TapEvent::Dirty {
            offset_bytes: range.start,
            len_bytes: range.end - range.start,
        };
        if mirror.tap.events.try_send(event).is_err() {
            self.fail_mirror(
                lane_id,
                "a failed write could not be reported to the mirror",
            );
        }
    }

    /// Makes a finished request wait for the other side; false when it need not.
    pub(super) fn await_acknowledgement(&mut self, lane_id: u32, id: u32) -> bool {
        let slot = self.slots.get_mut(id);
        let lane = of_mut(&mut self.lanes, lane_id);
        let Some(mirror) = lane.mirror.as_mut() else {
            return false;
        };
        if mirror.acked() >= slot.tap_seq {
            return false;
        }
        slot.stage = Stage::Unacknowledged;
        mirror.unacknowledged.push(id);
        true
    }

    /// Whether a sleeping worker would miss an acknowledgement.
    pub(super) fn acknowledged(&self) -> bool {
        self.tended
            .iter()
            .any(|&id| of(&self.lanes, id).has_acknowledged(&self.slots))
    }

    pub(super) fn take_acknowledged(&mut self, lane_id: u32) {
        let mut at = 0;
        loop {
            let lane = of_mut(&mut self.lanes, lane_id);
            let Some(mirror) = lane.mirror.as_mut() else {
                return;
            };
            let Some(&id) = mirror.unacknowledged.get(at) else {
                return;
            };
            if self.slots.get(id).tap_seq <= mirror.acked() {
                mirror.unacknowledged.swap_remove(at);
                self.complete(id);
            } else {
                at += 1;
            }
        }
    }

    /// A queue is being stopped, and its VMM waits: what has landed here is completed now. The
    /// other side gets it still, as it is in the channel, and a release waits for that.
    pub(super) fn complete_unacknowledged(&mut self, queue: u32) {
        let lane_id = self.queue(queue).lane;
        let Some(mirror) = self.lane(lane_id).mirror.as_mut() else {
            return;
        };
        let waiting = std::mem::take(&mut mirror.unacknowledged);
        for id in waiting {
            if self.slots.get(id).queue == queue {
                self.complete(id);
            } else if let Some(mirror) = self.lane(lane_id).mirror.as_mut() {
                mirror.unacknowledged.push(id);
            }
        }
    }

    /// Gives the mirror up when it keeps a guest's request too long.
    pub(super) fn check_patience(&mut self, lane_id: u32) {
        let now_ns = self.now_ns;
        let Some(mirror) = &self.lane(lane_id).mirror else {
            return;
        };
        let patience_ns = mirror.tap.patience_ns;
        let late = |id: &u32| {
            let slot = self.slots.get(*id);
            slot.lane == lane_id && now_ns.saturating_sub(slot.tapped_ns) > patience_ns
        };
        // Those that wait for a buffer the tap has not given back count as well.
        let mirror = self.lanes[lane_id as usize]
            .as_ref()
            .and_then(|lane| lane.mirror.as_ref());
        let mut waiting = mirror.iter().flat_map(|m| m.unacknowledged.iter());
        let starved = self.pool.lends() && self.pool.waiting().any(late);
        if starved || waiting.any(late) {
            self.fail_mirror(
                lane_id,
                "a mirrored write waited too long for the other side",
            );
        }
    }

    pub(super) fn lock_range(
        &mut self,
        lane_id: u32,
        range: std::ops::Range<u64>,
        reply: Sender<()>,
    ) {
        let lane = of_mut(&mut self.lanes, lane_id);
        if lane.mirror.is_none() || lane.lock.is_some() {
            return; // the dropped reply says so
        }
        lane.lock = Some(RangeLock {
            range,
            waiting: Some(reply),
        });
        lane.settle_lock(&self.slots);
    }

    pub(super) fn unlock_range(&mut self, lane_id: u32, mirrored_below: u64) -> bool {
        let lane = self.lane(lane_id);
        lane.lock = None;
        lane.retry = true;
        match &mut lane.mirror {
            Some(mirror) => {
                mirror.mirrored_below = mirrored_below;
                true
            }
            None => false,
        }
    }
}

/// Hands an event to the tap, and notes what the request has to wait for.
fn sent(
    mirror: &mut Mirror,
    event: TapEvent,
    tap_seq: &mut u64,
    tapped_ns: &mut u64,
    now_ns: u64,
) -> bool {
    match mirror.tap.events.try_send(event) {
        Ok(()) => {
            mirror.seq += 1;
            *tap_seq = mirror.seq;
            *tapped_ns = now_ns;
            true
        }
        Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
    }
}
