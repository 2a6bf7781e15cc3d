//! Kicks and sleep.

use std::io;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::command::Command;
use super::flush::TURN_CHECK_NS;
use super::lane::{Gate, of};
use super::{Core, Mode};
use crate::clock::now_ns;
use crate::limits::THIN_RETRY_NS;
use crate::ring::Token;

impl Core {
    /// Asks the guest for kicks and arms the ring on them; false when a request waits already, or
    /// the front-end wants to be polled. A ring that the guest's memory does not hold now can ask
    /// for nothing: it is left alone until a message of the front-end changes that.
    pub(super) fn arm_kick(&mut self, id: u32) -> bool {
        if !self.queue(id).queue.may_complete() {
            self.set_unpolled(id, Mode::Quiet);
            return true;
        }
        let Some(fd) = self.queue(id).queue.kick_fd() else {
            return false;
        };
        if self.queue(id).queue.has_work() {
            return false; // without a call to the kernel: it may have to wait for room for long
        }
        // Here, where there is time, and not when a kick has come. Before the guest is asked for
        // kicks: one that comes between this and the poll ends the poll at once.
        self.queue(id).queue.drain_kick();
        if self.queue(id).queue.arm() {
            self.queue(id).queue.disarm();
            return false;
        }
        self.generation = self.generation.wrapping_add(1) & 0x3fff_ffff;
        let generation = self.generation;
        if let Err(error) = self.ring.arm(fd, Token::Kick(id, generation)) {
            tracing::error!(%error, "a kick could not be armed; its queue is polled instead");
            self.queue(id).queue.disarm();
            return false;
        }
        self.set_unpolled(id, Mode::Armed(generation));
        true
    }

    /// The queue's eventfds or rings may have changed while it was not polled.
    pub(super) fn rearm(&mut self, id: u32) {
        if self.queue(id).mode != Mode::Polled {
            self.unwatch(id);
            self.watch(id);
        }
    }

    pub(super) fn kicked(&mut self, id: u32, generation: u32) {
        let Some(entry) = self.queues.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        if entry.mode != Mode::Armed(generation) {
            return; // taken back since
        }
        entry.mode = Mode::Quiet;
        self.judge_gap(id);
        self.watch(id);
    }

    /// Behind an armed gate: reports the first request, and waits for a kick while there is none.
    /// A ring that cannot be kicked now is polled, and `fetch` takes nothing from it.
    pub(super) fn watch_first(&mut self, id: u32) {
        if !self.report_first(id) && !self.arm_kick(id) {
            self.poll_queue(id);
        }
    }

    /// Whether a request waits behind an armed gate; it has been reported then.
    pub(super) fn report_first(&mut self, id: u32) -> bool {
        let entry = self.queue(id);
        let (lane, waits) = (entry.lane, entry.queue.has_work());
        let Gate::Armed(first) = &self.lane(lane).gate else {
            return false;
        };
        if waits {
            let _ = first.try_send(()); // full: it has been reported
        }
        waits
    }

    /// Sleeps if nothing is to be done.
    pub(super) fn rest(&mut self, commands: &Receiver<Command>) -> io::Result<()> {
        self.park_quiet();
        if !self.active.is_empty() || !self.touched.is_empty() || !commands.is_empty() {
            return Ok(());
        }
        if self.throttles_are_due()
            || self.pool.can_go_on()
            || self.thin.has_work()
            || !self.bridges.are_quiet()
        {
            return Ok(());
        }
        if self.stopping && self.slots.in_use() == 0 {
            return Ok(());
        }
        if !self.wake_armed {
            self.ring.arm(self.wake.fd(), Token::Wake)?;
            self.wake_armed = true;
        }
        self.wake.going_to_sleep();
        let told = !commands.is_empty() || self.throttles_changed();
        if !told && !self.acknowledged() && !self.thin.has_work() {
            self.account();
            self.ring.wait(self.next_event())?;
            let now_ns = now_ns();
            self.load.slept(now_ns - self.now_ns);
            self.now_ns = now_ns;
        }
        self.wake.awake();
        Ok(())
    }

    /// How long the worker may sleep. Only a tended lane needs it at a time.
    fn next_event(&self) -> Option<Duration> {
        let lanes = self.tended.iter().map(|&id| of(&self.lanes, id));
        let turn = (!self.flush_later.is_empty()).then_some(self.now_ns + TURN_CHECK_NS);
        let retry = self.thin.waits().then_some(self.now_ns + THIN_RETRY_NS);
        let due = lanes
            .filter_map(|lane| lane.next_event_ns(self.now_ns))
            .chain(turn)
            .chain(retry)
            .chain(self.bridges.next_event_ns())
            .chain(self.throttle_wake_ns())
            .min()?;
        Some(Duration::from_nanos(due.saturating_sub(self.now_ns).max(1)))
    }
}
