//! A worker: one thread, one io_uring, the only owner of the queues it polls.
//!
//! One turn of the loop:
//!
//! ```text
//!   commands ─► fetch (each active disk, a budget each) ─► held? ─► start ─► io_uring_enter
//!      ▲                                                                         │
//!      └── idle? ◄── publish (used ring, one call per batch) ◄── CQEs ◄──────────┘
//! ```
//!
//! A queue that stays empty for [`WorkerOptions::spin_ns`] goes back to kicks by itself, while the
//! worker goes on polling the others. When none is polled the worker sleeps in the ring, on the
//! kicks, the I/O in flight and its command eventfd.
//!
//! A turn looks at what is busy and at nothing else: disks with a polled queue are listed in
//! `active`, those that want something beside requests in `tended`, and no step, of a turn or of
//! falling asleep, goes through all disks or all queues. Their number costs memory alone.

mod bounce;
pub(crate) mod bridges;
pub(crate) mod command;
mod floor;
pub(crate) mod flush;
mod idle;
mod io;
pub(crate) mod lane;
mod mirror;
mod pinned;
mod polling;
mod thin;
mod thread;
mod throttle;

use std::io as stdio;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use crate::clock::now_ns;
use crate::limits::{
    COMMAND_BUDGET, COMPLETION_ENTRIES, FETCH_BUDGET, QUEUES_PER_WORKER, SLOTS_PER_WORKER,
};
use crate::metrics::{QueueLoad, WorkerLoad};
use crate::queue::RequestQueue;
use crate::ring::{Ring, Token};
use crate::slots::SlotTable;
use bounce::BouncePool;
use bridges::Bridges;
use command::{Command, Wake};
use floor::PollFloor;
use lane::Lane;
use pinned::Pieces;
use thin::ThinPort;
pub use thread::{Worker, WorkerHandle, WorkerOptions};
use throttle::Throttle;

/// How a queue is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Looked at in every turn.
    Polled,
    /// The guest kicks; the poll of the kick eventfd has this generation.
    Armed(u32),
    /// Not watched: its gate is closed, or it broke.
    Quiet,
}

/// A queue on this worker.
struct QueueEntry {
    queue: Box<dyn RequestQueue>,
    lane: u32,
    /// Requests of it in slots.
    in_flight: u32,
    mode: Mode,
    /// Where it is in its lane's list of polled queues, while it is polled.
    polled_at: usize,
    /// When it last had a request or a completion.
    last_active_ns: u64,
    /// Gaps between its requests, in a row, for which polling was too short.
    misses: u8,
    /// Waits for its own requests, in a row, for which polling was too short.
    long_waits: u8,
    /// It gave a request after its last completion.
    answered: bool,
    /// A kick woke it, and the request behind that is yet to be fetched.
    woken: bool,
    load: Arc<QueueLoad>,
    floor: PollFloor,
    /// It has completions that the guest has not been shown.
    touched: bool,
    broken: bool,
    /// It is being stopped: nothing is fetched, and once drained it goes there.
    leaving: Option<Sender<Box<dyn RequestQueue>>>,
    /// Regions of guest memory that are registered for it.
    pinned: Vec<u64>,
}

/// The state of one worker; lives on its thread.
pub(crate) struct Core {
    ring: Ring,
    slots: SlotTable,
    queues: Vec<Option<QueueEntry>>,
    lanes: Vec<Option<Lane>>,
    /// Empty places in `queues` and in `lanes`.
    free_queues: Vec<u32>,
    free_lanes: Vec<u32>,
    pool: BouncePool,
    /// Guest memory that is registered.
    pieces: Pieces,
    thin: ThinPort,
    bridges: Bridges,
    /// Datastores that are under control here.
    throttles: Vec<Option<Throttle>>,
    free_throttles: Vec<u32>,
    /// Lanes with a queue in [`Mode::Polled`].
    active: Vec<u32>,
    /// Which of them is asked first in this turn.
    first: usize,
    /// Queues with completions to show.
    touched: Vec<u32>,
    /// Queues that are being stopped.
    leaving: Vec<u32>,
    /// Slots whose completion waits until guest memory may be written.
    held: Vec<u32>,
    /// Lanes that want something done in every turn: those with [`Lane::tended`] set.
    tended: Vec<u32>,
    /// Lanes whose flush waits for another worker's of the same disk.
    flush_later: Vec<u32>,
    /// Scratch, kept to save allocations.
    taken: Vec<u32>,
    cqes: Vec<(Token, i32)>,
    generation: u32,
    wake: Arc<Wake>,
    wake_armed: bool,
    now_ns: u64,
    spin_ns: u64,
    load: Arc<WorkerLoad>,
    /// This turn found something to do.
    worked: bool,
    stopping: bool,
}

impl Core {
    fn new(
        mut ring: Ring,
        wake: Arc<Wake>,
        load: Arc<WorkerLoad>,
        options: &WorkerOptions,
    ) -> Core {
        Core {
            slots: SlotTable::new(),
            queues: Vec::new(),
            lanes: Vec::new(),
            free_queues: Vec::new(),
            free_lanes: Vec::new(),
            pool: BouncePool::new(&mut ring),
            pieces: Pieces::default(),
            thin: ThinPort::new(wake.clone()),
            bridges: Bridges::default(),
            throttles: Vec::new(),
            free_throttles: Vec::new(),
            active: Vec::new(),
            first: 0,
            touched: Vec::new(),
            leaving: Vec::new(),
            held: Vec::with_capacity(SLOTS_PER_WORKER),
            tended: Vec::new(),
            flush_later: Vec::new(),
            taken: Vec::with_capacity(FETCH_BUDGET),
            cqes: Vec::with_capacity(COMPLETION_ENTRIES as usize),
            generation: 0,
            wake,
            wake_armed: false,
            now_ns: now_ns(),
            spin_ns: options.spin_ns,
            load,
            worked: false,
            stopping: false,
            ring,
        }
    }

    fn run(mut self, commands: &Receiver<Command>) {
        while !self.stopping
            || self.slots.in_use() > 0
            || !self.leaving.is_empty()
            || !self.bridges.are_idle()
        {
            if let Err(error) = self.turn(commands) {
                self.give_up(&error);
                return;
            }
        }
    }

    fn turn(&mut self, commands: &Receiver<Command>) -> stdio::Result<()> {
        self.account();
        self.take_commands(commands);
        self.fetch();
        self.dispatch();
        self.turn_bridges();
        self.retry_waiting();
        self.retry_flushes();
        self.ring.submit()?;
        self.reap();
        self.reap_thin();
        self.tend_lanes();
        self.publish();
        self.let_go();
        self.rest_bridges();
        self.rest(commands)
    }

    /// Reads the clock, and enters the time since the last reading as spent well or not.
    fn account(&mut self) {
        let now_ns = now_ns();
        self.load.awake(now_ns - self.now_ns, self.worked);
        self.now_ns = now_ns;
        self.worked = false;
    }

    /// The ring itself failed: a broken invariant or a kernel fault. Nothing of this worker can be
    /// answered, and what the kernel may still write must not be freed.
    fn give_up(self, error: &stdio::Error) {
        tracing::error!(%error, "io_uring failed; the daemon ends so that its successor can recover");
        std::process::abort();
    }

    fn take_commands(&mut self, commands: &Receiver<Command>) {
        for command in commands.try_iter().take(COMMAND_BUDGET) {
            self.worked = true;
            self.carry_out(command);
        }
    }

    /// Handles every CQE there is.
    fn reap(&mut self) {
        let mut cqes = std::mem::take(&mut self.cqes);
        self.ring.reap(&mut cqes);
        if !cqes.is_empty() {
            // Read anew: a batch may have been on its way into the kernel for long.
            self.worked = true;
            self.account();
            self.worked = true;
        }
        for &(token, result) in &cqes {
            match token {
                Token::Slot(id) => self.advance(id, result),
                Token::Kick(queue, generation) => self.kicked(queue, generation),
                Token::Wake => {
                    self.wake.drain();
                    self.wake_armed = false;
                }
                Token::Net(bridge, op) => self.bridge_ended(bridge, op, result),
                Token::Ignore => {}
            }
        }
        cqes.clear();
        self.cqes = cqes;
    }

    /// Shows the guests what was completed, a batch for each queue.
    fn publish(&mut self) {
        while let Some(id) = self.touched.pop() {
            if let Some(entry) = self.queues[id as usize].as_mut() {
                entry.touched = false;
                entry.queue.publish();
            }
        }
    }

    /// Hands back the queues that are drained, and says which lanes are. After `publish`: whoever
    /// hears of it may rely on the guest having been shown everything.
    fn let_go(&mut self) {
        for at in 0..self.tended.len() {
            let lane = self.tended[at];
            let lane = self.lane(lane);
            if lane.in_flight == 0 {
                for drained in lane.drains.drain(..) {
                    let _ = drained.send(());
                }
            }
        }
        let mut at = 0;
        while at < self.leaving.len() {
            let id = self.leaving[at];
            while self.fetch_owed(id) {}
            let drained = self.queues[id as usize]
                .as_ref()
                .is_none_or(|q| q.in_flight == 0);
            // What could not be taken waits for room, which others make.
            if !drained || self.owes(id) {
                at += 1;
                continue;
            }
            self.leaving.swap_remove(at);
            if let Some(mut entry) = self.queues[id as usize].take() {
                self.free_queues.push(id);
                self.count_queues();
                self.forget_memory(&entry.pinned);
                self.lane(entry.lane).queues.retain(|&other| other != id);
                entry.queue.publish();
                if let Some(to) = entry.leaving.take() {
                    let _ = to.send(entry.queue);
                }
            }
        }
    }

    fn queue(&mut self, id: u32) -> &mut QueueEntry {
        self.queues[id as usize]
            .as_mut()
            .expect("a slot's queue stays until the slot is free")
    }

    fn lane(&mut self, id: u32) -> &mut Lane {
        self.lanes[id as usize]
            .as_mut()
            .expect("a queue's lane stays until the queue has left")
    }

    fn has_room(&self) -> bool {
        self.queues.len() - self.free_queues.len() < QUEUES_PER_WORKER
    }

    fn add_queue(&mut self, lane: u32, queue: Box<dyn RequestQueue>, load: Arc<QueueLoad>) -> u32 {
        let id = free_place(&mut self.queues, &mut self.free_queues);
        self.queues[id as usize] = Some(QueueEntry {
            queue,
            lane,
            in_flight: 0,
            mode: Mode::Quiet,
            polled_at: 0,
            last_active_ns: self.now_ns,
            misses: 0,
            long_waits: 0,
            answered: false,
            woken: false,
            load,
            floor: PollFloor::default(),
            touched: false,
            broken: false,
            leaving: None,
            pinned: Vec::new(),
        });
        self.follow_memory(id);
        self.count_queues();
        // Here and now: nothing is allocated when a list on the path grows.
        reserve(&mut self.touched, self.queues.len());
        reserve(&mut self.leaving, self.queues.len());
        let lane = self.lane(lane);
        lane.queues.push(id);
        reserve(&mut lane.polled, lane.queues.len());
        self.watch(id);
        id
    }

    fn count_queues(&self) {
        let count = self.queues.len() - self.free_queues.len();
        self.load.queues(count as u64);
    }

    fn add_lane(&mut self, lane: Lane) -> u32 {
        let id = free_place(&mut self.lanes, &mut self.free_lanes);
        self.lanes[id as usize] = Some(lane);
        reserve(&mut self.active, self.lanes.len());
        reserve(&mut self.tended, self.lanes.len());
        reserve(&mut self.flush_later, self.lanes.len());
        self.open_target(id);
        id
    }

    fn remove_lane(&mut self, id: u32) {
        if self.lanes[id as usize].is_some() {
            self.drop_qos(id);
            self.close_target(id);
            self.lanes[id as usize] = None;
            self.tended.retain(|&other| other != id);
            self.flush_later.retain(|&other| other != id);
            self.free_lanes.push(id);
        }
    }

    fn remove_queue(&mut self, id: u32, to: Sender<Box<dyn RequestQueue>>) {
        if self.queues.get(id as usize).is_none_or(Option::is_none) {
            return;
        }
        self.unwatch(id);
        self.queue(id).leaving = Some(to);
        self.leaving.push(id);
        let lane = self.queue(id).lane;
        self.let_pass(lane);
        // Its VMM waits: do not make it wait for buffers that the network keeps.
        self.pool.forsake_lent(&mut self.ring);
        self.complete_unacknowledged(id);
        self.deliver_held(Some(id));
    }
}

/// The index of an empty place, made if there is none.
fn free_place<T>(places: &mut Vec<Option<T>>, free: &mut Vec<u32>) -> u32 {
    free.pop().unwrap_or_else(|| {
        places.push(None);
        u32::try_from(places.len() - 1).expect("few queues and lanes")
    })
}

/// Room for `count` entries in all.
fn reserve(list: &mut Vec<u32>, count: usize) {
    list.reserve(count.saturating_sub(list.len()));
}

#[cfg(test)]
mod tests;
