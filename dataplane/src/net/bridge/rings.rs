//! Queues that come and go, and when a port is looked at.

use crossbeam_channel::Sender;

use super::{Bridge, End, Guest, RX_KICK, RxPlace, TxPlace};
use crate::limits::ROOM_RETRY_NS;
use crate::net::limit::Bucket;
use crate::net::queue::{RxQueue, TxQueue};
use crate::ring::{NetOp, Ring, Token};

impl Guest {
    pub(super) fn tx_at(&mut self, queue: u16) -> Option<&mut TxPlace> {
        self.tx.get_mut(usize::from(queue))?.as_mut()
    }

    /// Whether it receives by any queue.
    pub(super) fn receives(&self) -> bool {
        self.rx.iter().flatten().any(|it| !it.broken)
    }

    pub(super) fn rx_at(&mut self, queue: u16) -> Option<&mut RxPlace> {
        self.rx.get_mut(usize::from(queue))?.as_mut()
    }
}

impl Guest {
    /// Asks for a kick when the guest makes room for what is kept for it.
    fn waits_for_room(&mut self, (id, port): (u32, u16), ring: &mut Ring) -> Room {
        let mut places = (0u16..).zip(&mut self.rx);
        let Some((queue, place)) =
            places.find_map(|(at, it)| it.as_mut().filter(|it| !it.broken).map(|it| (at, it)))
        else {
            return Room::Kick; // its queues stand still, and their start is news
        };
        let Some(fd) = place.queue.kick_fd() else {
            return Room::Unheard;
        };
        place.queue.drain_kick();
        if place.queue.arm() {
            place.queue.disarm();
            return Room::Some;
        }
        if !place.armed {
            let queue = queue | RX_KICK;
            let polled = ring.poll_frames(fd, (id, NetOp::Kick { port, queue }));
            place.armed = polled.is_ok();
        }
        if place.armed {
            Room::Kick
        } else {
            Room::Unheard
        }
    }
}

/// Where a guest has room for what is kept for it.
enum Room {
    /// Nowhere; a kick will tell.
    Kick,
    /// Somewhere, if maybe not enough.
    Some,
    /// Nobody will tell.
    Unheard,
}

impl Bridge {
    pub fn start_tx(&mut self, port: u16, queue: u16, tx: Box<dyn TxQueue>) {
        let Some(place) = self
            .guest(port)
            .and_then(|guest| guest.tx.get_mut(usize::from(queue)))
        else {
            return;
        };
        *place = Some(TxPlace {
            queue: tx,
            in_flight: 0,
            leaving: None,
            armed: false,
            broken: false,
            touched: false,
        });
        self.wake(port);
    }

    /// Gives the guest what was captured for it first.
    pub fn start_rx(&mut self, port: u16, queue: u16, rx: Box<dyn RxQueue>) {
        let now_ns = self.now_ns;
        let Some(guest) = self.guest(port) else {
            return;
        };
        let Some(place) = guest.rx.get_mut(usize::from(queue)) else {
            return;
        };
        let mut rx = RxPlace {
            queue: rx,
            armed: false,
            broken: false,
            touched: false,
        };
        // It needs no kicks: frames come when they come.
        rx.queue.disarm();
        *place = Some(rx);
        guest.capture.resumed(now_ns);
        self.give_captured(port);
        self.publish();
        self.wake(port);
    }

    /// Takes a queue back, once the kernel has what it was given of it.
    pub fn stop_tx(
        &mut self,
        (id, port, queue): (u32, u16, u16),
        ring: &mut Ring,
        to: Sender<Box<dyn TxQueue>>,
    ) {
        if let Some(place) = self.guest(port).and_then(|guest| guest.tx_at(queue)) {
            let kick = Token::Net(id, NetOp::Kick { port, queue });
            if place.armed
                && let Err(error) = ring.disarm(kick)
            {
                tracing::warn!(%error, "a kick could not be taken back; it wakes its port for nothing");
            }
            place.leaving = Some(to);
            self.leaving += 1;
        }
        self.let_go(port);
    }

    /// Hands back the queues of a port from which nothing is in flight.
    pub fn let_go(&mut self, port: u16) {
        let Some(guest) = self.guest(port) else {
            return;
        };
        let mut gone = 0;
        for slot in &mut guest.tx {
            if slot
                .as_ref()
                .is_some_and(|it| it.leaving.is_some() && it.in_flight == 0)
                && let Some(mut place) = slot.take()
            {
                place.queue.publish();
                if let Some(to) = place.leaving.take() {
                    let _ = to.send(place.queue);
                }
                gone += 1;
            }
        }
        self.leaving -= gone;
    }

    pub fn stop_rx(
        &mut self,
        (id, port, queue): (u32, u16, u16),
        ring: &mut Ring,
    ) -> Option<Box<dyn RxQueue>> {
        let guest = self.guest(port)?;
        let mut place = guest.rx.get_mut(usize::from(queue))?.take()?;
        if !guest.receives() {
            guest.capture.stopped();
        }
        // The kick that was waited for may have been this queue's.
        let waits = !guest.capture.is_empty() && guest.receives();
        let kick = NetOp::Kick {
            port,
            queue: queue | RX_KICK,
        };
        if place.armed
            && let Err(error) = ring.disarm(Token::Net(id, kick))
        {
            tracing::warn!(%error, "a kick could not be taken back; it wakes its port for nothing");
        }
        place.queue.publish();
        if waits {
            self.wake(port);
        }
        Some(place.queue)
    }

    /// A queue of either kind that runs, to be changed between turns.
    pub fn with_tx(&mut self, port: u16, queue: u16, task: impl FnOnce(&mut dyn TxQueue)) {
        if let Some(place) = self.guest(port).and_then(|guest| guest.tx_at(queue)) {
            task(&mut *place.queue);
            // What could not be shown before may be now.
            place.touched = true;
            self.touched.push(port);
        }
        self.wake(port);
    }

    pub fn with_rx(&mut self, port: u16, queue: u16, task: impl FnOnce(&mut dyn RxQueue)) {
        if let Some(place) = self.guest(port).and_then(|guest| guest.rx_at(queue)) {
            task(&mut *place.queue);
            place.touched = true;
            self.touched.push(port);
        }
        self.wake(port);
    }

    /// Ports that have been quiet for `spin_ns` are not looked at until something comes.
    pub fn park_quiet(&mut self, id: u32, ring: &mut Ring, spin_ns: u64) {
        let now_ns = self.now_ns;
        let mut at = 0;
        while let Some(&port) = self.active.get(at) {
            let quiet = match &self.ports[usize::from(port)] {
                Some(there) => now_ns.saturating_sub(there.last_active_ns) >= spin_ns,
                None => true,
            };
            if quiet && self.park(id, port, ring) {
                self.active.swap_remove(at);
                if let Some(there) = &mut self.ports[usize::from(port)] {
                    there.active = false;
                }
            } else {
                at += 1;
            }
        }
    }

    /// True when the port will be heard of.
    fn park(&mut self, id: u32, port: u16, ring: &mut Ring) -> bool {
        let now_ns = self.now_ns;
        let Some(there) = &mut self.ports[usize::from(port)] else {
            return true;
        };
        let due_ns = there.limit.as_ref().map_or(0, Bucket::next_ns);
        let guest = match &mut there.end {
            End::Tap(tap) => {
                return tap.dead
                    || tap.dry && tap.polled && tap.ready.is_empty() && tap.reading == 0;
            }
            End::Guest(guest) => guest,
        };
        // Whatever it may send: what waits for its buffers is to go to it.
        let mut look_ns = u64::MAX;
        if !guest.capture.is_empty() {
            match guest.waits_for_room((id, port), ring) {
                Room::Kick => {}
                Room::Some if guest.short => look_ns = now_ns.saturating_add(ROOM_RETRY_NS),
                Room::Some | Room::Unheard => return false,
            }
        }
        // Over its rate: at a time, and not at a kick. Never, at a rate of nothing.
        let over = due_ns > now_ns;
        if over {
            look_ns = look_ns.min(due_ns);
        }
        if look_ns < u64::MAX {
            self.look_at(port, look_ns);
        }
        if over {
            return true;
        }
        let Some(guest) = self.guest(port) else {
            return true;
        };
        for (queue, place) in (0u16..).zip(&mut guest.tx) {
            let Some(place) = place else { continue };
            if place.broken || !place.queue.may_complete() {
                continue;
            }
            let Some(fd) = place.queue.kick_fd() else {
                return false;
            };
            place.queue.drain_kick();
            if place.queue.has_work() || place.queue.arm() {
                place.queue.disarm();
                return false;
            }
            if place.armed {
                continue; // by a poll from before, which ends with the next kick
            }
            if ring
                .poll_frames(fd, (id, NetOp::Kick { port, queue }))
                .is_err()
            {
                place.queue.disarm();
                return false;
            }
            place.armed = true;
        }
        true
    }
}
