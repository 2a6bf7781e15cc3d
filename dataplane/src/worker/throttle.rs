//! Storage I/O Control on a worker: what is held back, and when it goes on (`qos.rs` has the design).
//!
//! A request passes with no look at others while its datastore's window is open and it has no limit.
//! Else it waits in its slot, in a list of its disk's; the scheduler knows the oldest of each disk and
//! says whose turn it is. Of a disk [`HELD_PER_LANE`] requests wait here at most, the others in the
//! guest's rings, which are not polled meanwhile.
//!
//! Nothing is held back on a queue that is being stopped, or on a disk that is being drained: whoever
//! waits for that is a VMM, and its guest. It is charged all the same.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::lane::{Lane, of, of_mut};
use super::{Core, Mode, free_place};
use crate::clock::now_ns;
use crate::limits::{DISPATCH_BUDGET, HELD_PER_LANE};
use crate::qos::cost::{COST_ONE, Cost, CostModel, UNIT_BYTES};
use crate::qos::domain::{DiskControl, Domain, Group, Meter};
use crate::qos::medium::Medium;
use crate::qos::pacer::Lease;
use crate::qos::scheduler::{Client, Head, Next, Scheduler};
use crate::request::Op;
use crate::slots::SlotList;

/// No time: nothing is due.
const NEVER: u64 = u64::MAX;

/// A datastore on this worker.
pub(super) struct Throttle {
    domain: Arc<Domain>,
    worker: usize,
    /// The last change that was taken over.
    generation: u64,
    model: CostModel,
    medium: Medium,
    scheduler: Scheduler,
    /// The lane of each client.
    lanes: Vec<u32>,
    clients: usize,
    /// The scheduler has to be asked: something came, ended or changed.
    due: bool,
    /// Or at this time.
    wake_ns: u64,
}

/// What a disk has to do with its datastore, on this worker.
pub(crate) struct LaneQos {
    throttle: u32,
    client: Client,
    control: Arc<DiskControl>,
    meter: Arc<Meter>,
    group: Option<Arc<Group>>,
    /// It, or its group, has a limit.
    limited: bool,
    /// Nothing is held back: it has no limit, and the window is open.
    free: bool,
    model: CostModel,
    limits_seen: u64,
    leases: [Lease; 4],
    waiting: SlotList,
    held: usize,
    waiting_cost: u64,
    in_flight_cost: u64,
    /// Its queues are not polled until less is held.
    parked: bool,
    /// Reads and writes that ended within the call, not yet counted: those that did nothing else, those at
    /// the device, and those that went to their guest.
    whole: u32,
    whole_cost: u64,
    instant: u32,
    instant_cost: u64,
    instant_guest: u32,
}

impl LaneQos {
    /// Takes the next place in all limits for a request; when that is.
    fn book(&mut self, now_ns: u64, cost: Cost, len_bytes: u64) -> u64 {
        if !self.limited {
            return now_ns;
        }
        let ios = f64::from(cost) / f64::from(COST_ONE);
        #[allow(clippy::cast_precision_loss)]
        let bytes = len_bytes as f64;
        let [own_ios, own_bytes, group_ios, group_bytes] = &mut self.leases;
        let own = own_ios.book(&self.control.iops, now_ns, ios);
        let mut at = own.max(own_bytes.book(&self.control.bytes, now_ns, bytes));
        if let Some(group) = &self.group {
            at = at.max(group_ios.book(&group.iops, now_ns, ios));
            at = at.max(group_bytes.book(&group.bytes, now_ns, bytes));
        }
        at
    }

    /// The disk took requests: its datastore is not idle any more.
    pub(super) fn used(&self) {
        self.control.domain().used();
    }

    fn tell_held(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.meter.waiting.store(self.waiting_cost, Relaxed);
        self.meter.held.store(self.held as u64, Relaxed);
    }

    /// A read or a write goes to the device.
    fn begins(&mut self, cost: Cost) {
        self.in_flight_cost += u64::from(cost);
        self.tell_in_flight();
    }

    fn tell_in_flight(&self) {
        let cost = self.in_flight_cost;
        let gauge = &self.meter.in_flight;
        gauge.store(cost, std::sync::atomic::Ordering::Relaxed);
    }
}

/// How many more requests of a disk may be taken from its rings.
pub(super) fn room(lane: &Lane) -> usize {
    let held = lane.qos.as_ref().map_or(0, |qos| qos.held);
    HELD_PER_LANE.saturating_sub(held)
}

impl Core {
    /// Puts a disk under the control of its datastore, or takes it out.
    pub(super) fn set_qos(
        &mut self,
        lane_id: u32,
        control: Option<Arc<DiskControl>>,
        worker: usize,
    ) {
        self.drop_qos(lane_id);
        let Some(control) = control else { return };
        let at = self.throttle_of(control.domain(), worker);
        let throttle = self.throttles[at as usize].as_mut().expect("just found");
        let client = throttle.scheduler.add();
        throttle.clients += 1;
        if throttle.lanes.len() <= client as usize {
            throttle.lanes.resize(client as usize + 1, 0);
        }
        throttle.lanes[client as usize] = lane_id;
        throttle.generation = 0; // it is looked at in this turn
        self.lane(lane_id).qos = Some(LaneQos {
            throttle: at,
            client,
            meter: control.meters()[worker].clone(),
            control,
            group: None,
            limited: false,
            free: false,
            model: CostModel::Size,
            limits_seen: 0,
            leases: Default::default(),
            waiting: SlotList::default(),
            held: 0,
            waiting_cost: 0,
            in_flight_cost: 0,
            parked: false,
            whole: 0,
            whole_cost: 0,
            instant: 0,
            instant_cost: 0,
            instant_guest: 0,
        });
        self.follow(at);
    }

    fn throttle_of(&mut self, domain: &Arc<Domain>, worker: usize) -> u32 {
        let same = |it: &Option<Throttle>| {
            let it = it.as_ref();
            it.is_some_and(|it| Arc::ptr_eq(&it.domain, domain) && it.worker == worker)
        };
        if let Some(at) = self.throttles.iter().position(same) {
            return u32::try_from(at).expect("few datastores");
        }
        let at = free_place(&mut self.throttles, &mut self.free_throttles);
        self.throttles[at as usize] = Some(Throttle {
            domain: domain.clone(),
            worker,
            generation: 0,
            model: domain.model(),
            medium: domain.medium(),
            scheduler: Scheduler::new(),
            lanes: Vec::new(),
            clients: 0,
            due: false,
            wake_ns: NEVER,
        });
        at
    }

    /// Takes a disk out of its datastore's control. What it holds back goes on.
    pub(super) fn drop_qos(&mut self, lane_id: u32) {
        self.let_pass(lane_id);
        let Some(qos) = self.lane(lane_id).qos.take() else {
            return;
        };
        qos.meter
            .in_flight
            .store(0, std::sync::atomic::Ordering::Relaxed);
        let throttle = self.throttles[qos.throttle as usize]
            .as_mut()
            .expect("a lane's datastore stays");
        for slot in self.slots.iter_mut().filter(|slot| slot.lane == lane_id) {
            if std::mem::take(&mut slot.at_device) {
                throttle.scheduler.done(self.now_ns, slot.cost);
            }
            slot.cost = 0;
        }
        throttle.scheduler.remove(qos.client);
        throttle.due = true;
        throttle.clients -= 1;
        if throttle.clients == 0 {
            self.throttles[qos.throttle as usize] = None;
            self.free_throttles.push(qos.throttle);
        }
    }

    /// Takes a request that was just popped: it goes on, or waits for its turn.
    pub(super) fn admit(&mut self, id: u32) {
        let now_ns = self.now_ns;
        let slot = self.slots.get_mut(id);
        slot.cost = 0;
        let lane = of_mut(&mut self.lanes, slot.lane);
        let Some(qos) = lane.qos.as_mut() else {
            return self.enter(id);
        };
        let (op, len_bytes) = (slot.request.op, slot.request.len_bytes);
        let sized = matches!(op, Op::Read | Op::Write);
        let cost = qos.model.cost(op, len_bytes);
        if qos.held == 0 && (qos.free || !(sized || qos.limited)) {
            if sized && lane.instant && !lane.tracking {
                // It ends within the call: there is nothing to watch.
                qos.whole += 1;
                qos.whole_cost += u64::from(cost);
            } else if sized {
                slot.goes(now_ns, cost);
                qos.begins(cost);
                self.throttles[qos.throttle as usize]
                    .as_mut()
                    .expect("a lane's datastore stays")
                    .scheduler
                    .pass(now_ns, cost);
            }
            return self.enter(id);
        }
        let mut booked_ns = None;
        if qos.held == 0 && sized {
            let at_ns = qos.book(now_ns, cost, len_bytes);
            let scheduler = &mut self.throttles[qos.throttle as usize]
                .as_mut()
                .expect("a lane's datastore stays")
                .scheduler;
            if at_ns <= now_ns && scheduler.goes_at_once(now_ns, qos.client, cost) {
                slot.goes(now_ns, cost);
                qos.begins(cost);
                return self.enter(id);
            }
            booked_ns = Some(at_ns);
        }
        if sized {
            slot.cost = cost;
            slot.popped_ns = now_ns;
        }
        self.hold_back(id, cost, booked_ns);
    }

    /// Puts a request at the end of its disk's list. `booked_ns`: what its limit said, if it was asked.
    fn hold_back(&mut self, id: u32, cost: Cost, booked_ns: Option<u64>) {
        let slot = self.slots.get(id);
        let (lane_id, queue) = (slot.lane, slot.queue as usize);
        let queue = self.queues[queue].as_ref();
        let leaving = queue.is_some_and(|entry| entry.leaving.is_some());
        let lane = of_mut(&mut self.lanes, lane_id);
        let passes = leaving || !lane.drains.is_empty();
        let Some(qos) = lane.qos.as_mut() else { return };
        let first = qos.held == 0;
        self.slots.append(&mut qos.waiting, id);
        qos.held += 1;
        qos.waiting_cost += u64::from(cost);
        qos.tell_held();
        if first {
            self.offer_first(lane_id, booked_ns);
        }
        if passes {
            self.let_pass(lane_id);
        }
    }

    /// Tells the scheduler of a disk's oldest request, which has just come to be that; `booked_ns` if its
    /// limit was asked already.
    fn offer_first(&mut self, lane_id: u32, booked_ns: Option<u64>) {
        let now_ns = self.now_ns;
        let qos = of_mut(&mut self.lanes, lane_id).qos.as_mut();
        let Some(qos) = qos else { return };
        let Some(id) = qos.waiting.first() else {
            return;
        };
        let throttle = self.throttles[qos.throttle as usize]
            .as_mut()
            .expect("a lane's datastore stays");
        let request = &self.slots.get(id).request;
        let cost = throttle.model.cost(request.op, request.len_bytes);
        let eligible_ns = booked_ns.unwrap_or_else(|| qos.book(now_ns, cost, request.len_bytes));
        let head = Head { cost, eligible_ns };
        throttle.scheduler.offer(now_ns, qos.client, head);
        throttle.due = true;
    }

    /// Whether control has changed something that was not taken over yet.
    pub(super) fn throttles_changed(&self) -> bool {
        let changed = |it: &Throttle| it.domain.port(it.worker).generation() != it.generation;
        self.throttles.iter().flatten().any(changed)
    }

    /// Lets go on what may, of all datastores.
    pub(super) fn dispatch(&mut self) {
        for at in 0..self.throttles.len() {
            let Some(throttle) = &self.throttles[at] else {
                continue;
            };
            let changed = throttle.domain.port(throttle.worker).generation() != throttle.generation;
            let at = u32::try_from(at).expect("few datastores");
            if changed {
                self.follow(at);
            }
            let throttle = self.throttles[at as usize].as_ref();
            if throttle.is_some_and(|it| it.due || it.wake_ns <= self.now_ns) {
                self.dispatch_one(at);
            }
        }
    }

    fn dispatch_one(&mut self, at: u32) {
        for _ in 0..DISPATCH_BUDGET {
            let Some(throttle) = self.throttles[at as usize].as_mut() else {
                return;
            };
            match throttle.scheduler.next(self.now_ns) {
                Next::Go(client) => {
                    let lane = throttle.lanes[client as usize];
                    self.send_first(lane);
                }
                Next::At(wake_ns) => return throttle.rest(wake_ns),
                Next::Idle => return throttle.rest(NEVER),
            }
        }
        // The others have their turn.
        if let Some(throttle) = self.throttles[at as usize].as_mut() {
            throttle.due = true;
        }
    }

    /// The scheduler has let a disk's oldest request go.
    fn send_first(&mut self, lane_id: u32) {
        self.worked = true;
        let Some(id) = self.take_first(lane_id) else {
            return;
        };
        if self.slots.get(id).cost == 0
            && let Some(qos) = of(&self.lanes, lane_id).qos.as_ref()
            && let Some(throttle) = self.throttles[qos.throttle as usize].as_mut()
        {
            // Its limit was its own matter; how long the device takes says nothing of others.
            let request = &self.slots.get(id).request;
            let cost = throttle.model.cost(request.op, request.len_bytes);
            throttle.scheduler.done(self.now_ns, cost);
        }
        self.offer_first(lane_id, None);
        self.enter(id);
        self.count_instants(lane_id);
        self.unpark(lane_id);
    }

    /// Takes a disk's oldest request off the list; it is at the device from now on.
    fn take_first(&mut self, lane_id: u32) -> Option<u32> {
        let now_ns = self.now_ns;
        let qos = of_mut(&mut self.lanes, lane_id).qos.as_mut()?;
        let id = self.slots.pop(&mut qos.waiting)?;
        let slot = self.slots.get_mut(id);
        let throttle = self.throttles[qos.throttle as usize].as_ref()?;
        let cost = throttle.model.cost(slot.request.op, slot.request.len_bytes);
        qos.held -= 1;
        qos.waiting_cost = qos.waiting_cost.saturating_sub(cost.into());
        if qos.held == 0 {
            qos.waiting_cost = 0; // also where the model has changed meanwhile
        }
        qos.tell_held();
        if slot.cost > 0 {
            // What the scheduler was told of it.
            let popped_ns = slot.popped_ns;
            slot.goes(now_ns, cost);
            slot.popped_ns = popped_ns;
            qos.begins(cost);
        }
        Some(id)
    }

    /// Lets all that a disk holds back go on, now. It is charged for it.
    pub(super) fn let_pass(&mut self, lane_id: u32) {
        let now_ns = self.now_ns;
        let Some(qos) = self.lane(lane_id).qos.as_mut() else {
            return;
        };
        if qos.held == 0 {
            return;
        }
        let (at, client) = (qos.throttle as usize, qos.client);
        if let Some(throttle) = self.throttles[at].as_mut() {
            throttle.scheduler.withdraw(client);
        }
        let mut booked = true; // the first one
        while let Some(id) = self.take_first(lane_id) {
            let slot = self.slots.get(id);
            let (cost, len_bytes) = (slot.cost, slot.request.len_bytes);
            if let Some(qos) = of_mut(&mut self.lanes, lane_id).qos.as_mut()
                && !std::mem::take(&mut booked)
            {
                qos.book(now_ns, cost.max(COST_ONE), len_bytes);
            }
            if cost > 0
                && let Some(throttle) = self.throttles[at].as_mut()
            {
                throttle.scheduler.pass(now_ns, cost);
            }
            self.enter(id);
        }
        self.count_instants(lane_id);
        self.unpark(lane_id);
    }

    /// The device has ended a read or a write.
    pub(super) fn device_ended(&mut self, id: u32) {
        let now_ns = self.now_ns;
        let slot = self.slots.get_mut(id);
        if !std::mem::take(&mut slot.at_device) {
            return;
        }
        let Some(qos) = of_mut(&mut self.lanes, slot.lane).qos.as_mut() else {
            return;
        };
        let throttle = self.throttles[qos.throttle as usize]
            .as_mut()
            .expect("a lane's datastore stays");
        throttle.scheduler.done(now_ns, slot.cost);
        throttle.due |= !throttle.scheduler.is_empty();
        qos.in_flight_cost -= u64::from(slot.cost);
        qos.tell_in_flight();
        let held_ns = slot.began_ns - slot.popped_ns;
        if held_ns > 0 {
            qos.meter.throttle.count(held_ns, 1);
        }
        let device_ns = now_ns - slot.began_ns;
        if device_ns == 0 {
            qos.instant += 1;
            qos.instant_cost += u64::from(slot.cost);
            return;
        }
        let len_bytes = slot.request.len_bytes;
        let transfer_ns = if len_bytes > UNIT_BYTES {
            throttle.medium.transfer_ns(len_bytes)
        } else {
            0
        };
        qos.meter.ended(1, slot.cost.into(), device_ns, transfer_ns);
    }

    /// A read or a write goes back to its guest.
    pub(super) fn guest_ended(lane: &mut Lane, now_ns: u64, popped_ns: u64) {
        if let Some(qos) = lane.qos.as_mut() {
            match now_ns - popped_ns {
                0 => qos.instant_guest += 1,
                ns => qos.meter.guest.count(ns, 1),
            }
        }
    }

    /// Counts what ended within the calls of a batch. Where bytes were copied the clock is read, once
    /// for the batch: its guest is shown all of it together.
    pub(super) fn count_instants(&mut self, lane_id: u32) {
        let turn_ns = self.now_ns;
        let lane = self.lane(lane_id);
        let copied = lane.backend.mapping().is_some();
        let Some(qos) = lane.qos.as_mut() else { return };
        if qos.whole == 0 && qos.instant == 0 && qos.instant_guest == 0 {
            return;
        }
        let took_ns = if copied {
            now_ns().saturating_sub(turn_ns)
        } else {
            0
        };
        let whole = std::mem::take(&mut qos.whole);
        let count = whole + std::mem::take(&mut qos.instant);
        if count > 0 {
            let cost = std::mem::take(&mut qos.instant_cost) + std::mem::take(&mut qos.whole_cost);
            qos.meter.ended(count, cost, took_ns, 0);
        }
        let count = whole + std::mem::take(&mut qos.instant_guest);
        if count > 0 {
            qos.meter.guest.count(took_ns, count);
        }
    }

    /// Takes over what control has changed of a datastore.
    fn follow(&mut self, at: u32) {
        let now_ns = self.now_ns;
        let Some(throttle) = self.throttles[at as usize].as_mut() else {
            return;
        };
        let port = throttle.domain.port(throttle.worker);
        throttle.generation = port.generation();
        throttle.scheduler.set_window(now_ns, port.window());
        let was = std::mem::replace(&mut throttle.model, throttle.domain.model());
        let recounted = was != throttle.model;
        throttle.medium = throttle.domain.medium();
        throttle.due = true;
        for client in 0..throttle.lanes.len() {
            let Some(throttle) = self.throttles[at as usize].as_mut() else {
                return;
            };
            let lane_id = throttle.lanes[client];
            let Some(lane) = self.lanes[lane_id as usize].as_mut() else {
                continue;
            };
            let Some(qos) = lane.qos.as_mut() else {
                continue;
            };
            if qos.throttle != at || qos.client as usize != client {
                continue; // an empty place
            }
            let (weight, reservation) = qos.meter.share();
            throttle
                .scheduler
                .set_share(qos.client, weight, reservation);
            qos.model = throttle.model;
            let limits = qos.control.limits_changed();
            qos.free = !qos.limited && throttle.scheduler.window().is_open();
            if limits != qos.limits_seen || recounted {
                qos.limits_seen = limits;
                qos.group = qos.control.group();
                qos.limited = qos.control.is_limited();
                qos.leases = Default::default();
                qos.free = !qos.limited && throttle.scheduler.window().is_open();
                self.offer_first(lane_id, None);
            }
        }
    }

    /// Whether a datastore is to be asked in the next turn.
    pub(super) fn throttles_are_due(&self) -> bool {
        self.throttles.iter().flatten().any(|it| it.due)
    }

    /// When a datastore has to be asked, if at a time.
    pub(super) fn throttle_wake_ns(&self) -> Option<u64> {
        let wakes = self.throttles.iter().flatten().map(|it| it.wake_ns);
        wakes.min().filter(|&at| at != NEVER)
    }

    /// A queue whose disk holds back all that it may is not polled.
    pub(super) fn park_full(&mut self, id: u32) -> bool {
        let lane_id = self.queue(id).lane;
        let lane = self.lane(lane_id);
        if room(lane) > 0 {
            return false;
        }
        if let Some(qos) = lane.qos.as_mut() {
            qos.parked = true;
        }
        self.unwatch(id);
        true
    }

    fn unpark(&mut self, lane_id: u32) {
        let lane = self.lane(lane_id);
        let room = room(lane);
        let Some(qos) = lane.qos.as_mut() else { return };
        if !qos.parked || room < HELD_PER_LANE / 2 {
            return;
        }
        qos.parked = false;
        for at in 0..self.lane(lane_id).queues.len() {
            let id = self.lane(lane_id).queues[at];
            if self.queue(id).mode == Mode::Quiet {
                self.watch(id);
            }
        }
    }

    /// Answers a command, once nothing is held back.
    pub(super) fn drain_lane(&mut self, lane_id: u32, reply: Sender<()>) {
        self.lane(lane_id).drains.push(reply);
        self.let_pass(lane_id);
        self.tend(lane_id);
    }
}

impl Throttle {
    fn rest(&mut self, wake_ns: u64) {
        self.due = false;
        self.wake_ns = wake_ns;
        if self.scheduler.is_short() {
            self.domain.port(self.worker).was_short();
        }
    }
}
