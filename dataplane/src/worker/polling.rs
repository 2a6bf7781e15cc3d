//! Which queues are polled, and how what they hold is shared out.
//!
//! A turn goes through the active disks, beginning with another one each time. A disk's queues share
//! one budget of requests and one of bytes, so that a disk of eight queues gets no more of a turn
//! than a disk of one; the queue after the one that used the budget up is asked first next time.
//!
//! Requests in hand are bounded for each disk by what is left of the slots: a disk may hold
//! [`SLOT_SHARE`] times as many as are free. A disk alone may so hold four fifths of them. One that
//! comes later finds the rest free at once, and as it takes them the limit of the first sinks, until
//! all that want many hold equally many. It takes no count of the disks, and no look at the others.
//!
//! A queue that stays empty is polled for a while, in the hope that its next request comes soon. One
//! whose last few requests all came too late for that is not polled in vain any more: it goes back to
//! kicks as soon as nothing of it is in flight. A single request that does come soon after another,
//! as its kick tells, is enough to poll it again.
//!
//! The same goes for the wait for its requests in the kernel. Where the last few waits were longer
//! than the polling, a queue that has answered its last completion with new requests is polled for
//! a sixteenth of the time only. And while writes through the page cache are in flight none of their
//! disk's queues is polled, unless it has a request that finds no room.

use super::lane::{Gate, Lane, of};
use super::{Core, Mode, QueueEntry, throttle};
use crate::limits::{
    COPY_BUDGET, FETCH_BUDGET, FETCH_BYTES, LOOK_AHEAD, SLOT_SHARE, SPIN_MISSES, SPIN_SHORT,
};
use crate::queue::Fetched;
use crate::ring::Token;
use crate::slots::{Inbox, Room};

impl Core {
    /// Pops requests of every active disk and starts them.
    pub(super) fn fetch(&mut self) {
        // Those that become active meanwhile wait for the next turn; none leaves the list here.
        let count = self.active.len();
        self.first = if self.first + 1 < count {
            self.first + 1
        } else {
            0
        };
        for at in (self.first..count).chain(0..self.first) {
            self.fetch_lane(self.active[at]);
        }
    }

    /// Pops requests of one disk's queues, as many as its share of the turn allows.
    fn fetch_lane(&mut self, lane_id: u32) {
        let lane = self.lane(lane_id);
        if !matches!(lane.gate, Gate::Open) {
            return; // polled for its first request only
        }
        let count = lane.polled.len();
        let start = if lane.next < count { lane.next } else { 0 };
        let mut room = room(lane);
        if room.is_used_up() {
            return;
        }
        for at in (start..count).chain(0..start) {
            let id = self.lane(lane_id).polled[at];
            let now_ns = self.now_ns;
            if !self.queue(id).floor.allows(now_ns) {
                continue;
            }
            self.fetch_queue(id, &mut room);
            if room.is_used_up() {
                self.lane(lane_id).next = at + 1;
                return;
            }
        }
    }

    /// Serves what a queue that is being stopped owes from before this process: no index handed back
    /// could say that it is owed. True when there was some.
    pub(super) fn fetch_owed(&mut self, id: u32) -> bool {
        if !self.owes(id) {
            return false;
        }
        let lane = self.queue(id).lane;
        let mut room = room(self.lane(lane));
        self.fetch_queue(id, &mut room) > 0
    }

    /// Whether a queue has requests from before this process that can be served now.
    pub(super) fn owes(&self, id: u32) -> bool {
        self.queues[id as usize].as_ref().is_some_and(|entry| {
            entry.queue.recovering()
                && entry.queue.may_complete()
                && !entry.broken
                && matches!(of(&self.lanes, entry.lane).gate, Gate::Open)
        })
    }

    /// Takes what a queue has and `room` allows; how many it gave.
    fn fetch_queue(&mut self, id: u32, room: &mut Room) -> usize {
        let Some(entry) = self.queues[id as usize].as_mut() else {
            return 0;
        };
        let lane_id = entry.lane;
        let mut taken = std::mem::take(&mut self.taken);
        let budget = room.requests;
        let mut inbox = Inbox {
            slots: &mut self.slots,
            taken: &mut taken,
            queue: id,
            lane: lane_id,
            room,
        };
        let fetched = entry.queue.fetch(&mut inbox, budget);
        match fetched {
            Fetched::Some(0) => {}
            Fetched::Some(count) => {
                room.requests = budget.saturating_sub(count);
                entry.last_active_ns = self.now_ns;
                entry.answered = true;
                entry.floor.found(self.now_ns, count);
                if !std::mem::take(&mut entry.woken) {
                    entry.misses = 0; // polling has paid
                }
                self.worked = true;
                if !entry.touched {
                    entry.touched = true; // some may have been answered on the spot
                    self.touched.push(id);
                }
            }
            Fetched::Broken => entry.broken = true,
        }
        let count = u32::try_from(taken.len()).expect("bounded by the slots");
        entry.in_flight += count;
        let lane = self.lane(lane_id);
        lane.in_flight += count;
        if count > 0 {
            // Before they are started: one that hangs the worker itself is seen as well.
            lane.counters.took(count.into());
            if let Some(qos) = &lane.qos {
                qos.used();
            }
        }
        for (at, &slot) in taken.iter().enumerate() {
            if let Some(&later) = taken.get(at + LOOK_AHEAD) {
                self.look_ahead(later);
            }
            self.admit(slot);
        }
        taken.clear();
        self.taken = taken;
        self.count_instants(lane_id);
        match fetched {
            Fetched::Some(count) => count,
            Fetched::Broken => 0,
        }
    }

    /// Starts watching a queue as its lane's gate wants it.
    pub(super) fn watch(&mut self, id: u32) {
        let entry = self.queue(id);
        if entry.broken || entry.leaving.is_some() {
            return;
        }
        let lane = entry.lane;
        match self.lane(lane).gate {
            Gate::Open => self.poll_queue(id),
            Gate::Armed(_) => self.watch_first(id),
            Gate::Held => {}
        }
    }

    pub(super) fn poll_queue(&mut self, id: u32) {
        let now_ns = self.now_ns;
        let entry = self.queue(id);
        if entry.mode == Mode::Polled {
            return;
        }
        let was = std::mem::replace(&mut entry.mode, Mode::Polled);
        entry.last_active_ns = now_ns;
        entry.queue.disarm();
        let lane_id = entry.lane;
        let active_at = self.active.len();
        let lane = self.lane(lane_id);
        let polled_at = lane.polled.len();
        lane.polled.push(id);
        if polled_at == 0 {
            lane.active_at = active_at;
            self.active.push(lane_id);
        }
        self.queue(id).polled_at = polled_at;
        self.forget_kick(id, was);
    }

    /// Watches a queue no more.
    pub(super) fn unwatch(&mut self, id: u32) {
        let was = self.queue(id).mode;
        self.set_unpolled(id, Mode::Quiet);
        self.forget_kick(id, was);
    }

    /// Changes a queue's mode to one that is not polled.
    pub(super) fn set_unpolled(&mut self, id: u32, mode: Mode) {
        let entry = self.queue(id);
        let was = std::mem::replace(&mut entry.mode, mode);
        if was != Mode::Polled {
            return;
        }
        let (at, lane_id) = (entry.polled_at, entry.lane);
        let lane = self.lane(lane_id);
        lane.polled.swap_remove(at);
        if let Some(&moved) = lane.polled.get(at) {
            self.queue(moved).polled_at = at;
        } else if lane.polled.is_empty() {
            let at = lane.active_at;
            self.active.swap_remove(at);
            if let Some(&moved) = self.active.get(at) {
                self.lane(moved).active_at = at;
            }
        }
    }

    /// A queue that waits for kicks had a completion: its next request is likely soon.
    pub(super) fn poll_again(&mut self, id: u32) {
        let entry = self.queue(id);
        let (armed, misses, lane) = (
            matches!(entry.mode, Mode::Armed(_)),
            entry.misses,
            entry.lane,
        );
        let lane = self.lane(lane);
        let open = matches!(lane.gate, Gate::Open) && lane.buffered_writes == 0;
        if armed && open && self.spin_ns > 0 && misses < SPIN_MISSES {
            self.poll_queue(id);
        }
    }

    /// A kick came: notes whether polling would have seen the request, had it gone on a little.
    pub(super) fn judge_gap(&mut self, id: u32) {
        let (now_ns, spin_ns) = (self.now_ns, self.spin_ns);
        let entry = self.queue(id);
        let gap_ns = now_ns.saturating_sub(entry.last_active_ns);
        // Twice: the time that waking up took is in the gap.
        entry.misses = if gap_ns <= spin_ns.saturating_mul(2) {
            0
        } else {
            entry.misses.saturating_add(1)
        };
        entry.woken = true;
    }

    /// A request of the queue ended: notes whether polling did, or would have done, for the wait.
    /// What comes in the time that is polled in any case says nothing.
    pub(super) fn judge_wait(entry: &mut QueueEntry, now_ns: u64, spin_ns: u64) {
        let wait_ns = now_ns.saturating_sub(entry.last_active_ns);
        if wait_ns > spin_ns.saturating_mul(2) {
            entry.long_waits = entry.long_waits.saturating_add(1);
        } else if wait_ns > spin_ns / SPIN_SHORT {
            entry.long_waits = 0;
        }
        entry.answered = false;
    }

    fn forget_kick(&mut self, id: u32, was: Mode) {
        if let Mode::Armed(generation) = was
            && let Err(error) = self.ring.disarm(Token::Kick(id, generation))
        {
            tracing::warn!(%error, "a kick could not be taken back; its event is ignored");
        }
    }

    /// Queues that stayed empty go back to kicks.
    pub(super) fn park_quiet(&mut self) {
        let mut lane_at = 0;
        while let Some(&lane) = self.active.get(lane_at) {
            let mut at = 0;
            while let Some(&id) = self.lane(lane).polled.get(at) {
                // Parked, it leaves the list, and another takes its place.
                at += usize::from(!self.park(id));
            }
            lane_at += usize::from(!self.lane(lane).polled.is_empty());
        }
    }

    /// Stops polling a queue if there is reason to.
    fn park(&mut self, id: u32) -> bool {
        let (now_ns, spin_ns) = (self.now_ns, self.spin_ns);
        if spin_ns == u64::MAX && !self.queue(id).broken {
            return false;
        }
        let entry = self.queue(id);
        let idle_ns = now_ns.saturating_sub(entry.last_active_ns);
        if entry.broken {
            self.unwatch(id);
            return true;
        }
        if self.park_full(id) {
            return true;
        }
        let lane = self.queue(id).lane;
        let threads = of(&self.lanes, lane).buffered_writes > 0;
        let entry = self.queue(id);
        let quiet = if threads {
            // Most often a kernel thread does these now, and it may have no other core.
            true
        } else if entry.in_flight == 0 {
            entry.misses >= SPIN_MISSES || idle_ns >= spin_ns
        } else if entry.answered && entry.long_waits >= SPIN_MISSES {
            idle_ns >= spin_ns / SPIN_SHORT
        } else {
            idle_ns >= spin_ns
        };
        if self.lane(lane).is_armed() && self.report_first(id) {
            self.unwatch(id);
            return true;
        }
        quiet && self.arm_kick(id)
    }
}

/// A disk's share of a turn. What is copied inside the call ends the turn sooner: the guest is shown
/// it, and asks for more, while the worker copies on.
fn room(lane: &Lane) -> Room {
    let copies = lane.backend.mapping().is_some();
    let budget = if copies { COPY_BUDGET } else { FETCH_BUDGET };
    Room {
        requests: budget.min(throttle::room(lane)),
        bytes: FETCH_BYTES,
        share: SLOT_SHARE,
        held: lane.in_flight as usize,
    }
}
