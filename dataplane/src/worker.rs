//! A worker: one thread, one io_uring, the only owner of the queues it polls.
//!
//! One turn of the loop:
//!
//! ```text
//!   commands ─► fetch (each polled queue, a budget each) ─► start ─► one io_uring_enter
//!      ▲                                                                    │
//!      └── idle? ◄── publish (used ring, one call per batch) ◄── CQEs ◄─────┘
//! ```
//!
//! A queue that stays empty for [`SPIN_NS`] goes back to kicks by itself, while the worker goes on
//! polling the others. When none is polled the worker sleeps in the ring, on the kicks, the I/O in
//! flight and its command eventfd.

mod bounce;
pub(crate) mod command;
mod idle;
mod io;
pub(crate) mod lane;
mod mirror;

use std::io as stdio;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::clock::now_ns;
use crate::limits::{COMMAND_BUDGET, COMMAND_QUEUE, COMPLETION_ENTRIES, FETCH_BUDGET, SPIN_NS};
use crate::queue::{Fetched, RequestQueue};
use crate::ring::{Ring, Token};
use crate::slots::{Inbox, SlotTable};
use bounce::BouncePool;
use command::{Command, Wake};
use lane::{Gate, Lane};

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
    last_active_ns: u64,
    /// It has completions that the guest has not been shown.
    touched: bool,
    broken: bool,
    /// It is being stopped: nothing is fetched, and once drained it goes there.
    leaving: Option<Sender<Box<dyn RequestQueue>>>,
}

/// The state of one worker; lives on its thread.
pub(crate) struct Core {
    ring: Ring,
    slots: SlotTable,
    queues: Vec<Option<QueueEntry>>,
    lanes: Vec<Option<Lane>>,
    pool: BouncePool,
    /// Queues in [`Mode::Polled`].
    polled: Vec<u32>,
    /// Queues with completions to show.
    touched: Vec<u32>,
    /// Queues that are being stopped.
    leaving: Vec<u32>,
    /// Slots whose completion waits until guest memory may be written.
    held: Vec<u32>,
    /// Lanes that want something done in every turn.
    tended: Vec<u32>,
    /// Scratch, kept to save allocations.
    taken: Vec<u32>,
    cqes: Vec<(Token, i32)>,
    generation: u32,
    wake: Arc<Wake>,
    wake_armed: bool,
    now_ns: u64,
    stopping: bool,
}

/// The control side of a worker.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    wake: Arc<Wake>,
}

/// Owns the worker's thread: dropping it drains the worker and joins.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker. Fails when the kernel has no io_uring or the process has no descriptors
    /// left.
    pub fn start(name: &str) -> stdio::Result<Worker> {
        let (commands, receiver) = bounded(COMMAND_QUEUE);
        let wake = Arc::new(Wake::new()?);
        let handle = WorkerHandle {
            commands,
            wake: wake.clone(),
        };
        let (ready, started) = bounded(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // The ring is made here: its only user is the thread that makes it.
                match Ring::new() {
                    Ok(ring) => {
                        let _ = ready.send(Ok(()));
                        Core::new(ring, wake).run(&receiver);
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })?;
        started
            .recv()
            .map_err(|_| stdio::Error::other("the worker died at start"))??;
        Ok(Worker {
            handle,
            thread: Some(thread),
        })
    }

    /// The way to send it commands.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl WorkerHandle {
    /// Sends a command; false when the worker has ended.
    pub(crate) fn send(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.wake.wake();
        sent
    }

    pub(crate) fn wake(&self) {
        self.wake.wake();
    }
}

impl Core {
    fn new(ring: Ring, wake: Arc<Wake>) -> Core {
        Core {
            ring,
            slots: SlotTable::new(),
            queues: Vec::new(),
            lanes: Vec::new(),
            pool: BouncePool::new(),
            polled: Vec::new(),
            touched: Vec::new(),
            leaving: Vec::new(),
            held: Vec::new(),
            tended: Vec::new(),
            taken: Vec::with_capacity(FETCH_BUDGET),
            cqes: Vec::with_capacity(COMPLETION_ENTRIES as usize),
            generation: 0,
            wake,
            wake_armed: false,
            now_ns: now_ns(),
            stopping: false,
        }
    }

    fn run(mut self, commands: &Receiver<Command>) {
        while !self.stopping || self.slots.in_use() > 0 || !self.leaving.is_empty() {
            self.now_ns = now_ns();
            self.take_commands(commands);
            self.fetch();
            self.retry_waiting();
            if let Err(error) = self.ring.submit() {
                self.give_up(&error);
                return;
            }
            self.reap();
            self.tend_lanes();
            self.publish();
            self.let_go();
            if let Err(error) = self.rest(commands) {
                self.give_up(&error);
                return;
            }
        }
    }

    /// The ring itself failed: a broken invariant or a kernel fault. Nothing of this worker can be
    /// answered, and what the kernel may still write must not be freed.
    fn give_up(self, error: &stdio::Error) {
        tracing::error!(%error, "io_uring failed; the daemon ends so that its successor can recover");
        std::process::abort();
    }

    fn take_commands(&mut self, commands: &Receiver<Command>) {
        let mut any = false;
        for command in commands.try_iter().take(COMMAND_BUDGET) {
            self.carry_out(command);
            any = true;
        }
        if any {
            self.list_tended();
        }
    }

    /// Pops requests of every polled queue and starts them.
    fn fetch(&mut self) {
        for at in 0..self.polled.len() {
            let id = self.polled[at];
            let Some(entry) = self.queues[id as usize].as_mut() else {
                continue;
            };
            let lane = self.lanes[entry.lane as usize].as_ref();
            if !lane.is_some_and(|lane| matches!(lane.gate, Gate::Open)) {
                continue; // polled for its first request only
            }
            let mut taken = std::mem::take(&mut self.taken);
            let mut inbox = Inbox {
                slots: &mut self.slots,
                taken: &mut taken,
                queue: id,
                lane: entry.lane,
            };
            match entry.queue.fetch(&mut inbox, FETCH_BUDGET) {
                Fetched::Some(0) => {}
                Fetched::Some(_) => {
                    entry.last_active_ns = self.now_ns;
                    if !entry.touched {
                        entry.touched = true; // some may have been answered on the spot
                        self.touched.push(id);
                    }
                }
                Fetched::Broken => entry.broken = true,
            }
            entry.in_flight += u32::try_from(taken.len()).expect("bounded by the slots");
            for &slot in &taken {
                self.admit(slot);
            }
            taken.clear();
            self.taken = taken;
        }
    }

    /// Handles every CQE there is.
    fn reap(&mut self) {
        let mut cqes = std::mem::take(&mut self.cqes);
        self.ring.reap(&mut cqes);
        for &(token, result) in &cqes {
            match token {
                Token::Slot(id) => self.advance(id, result),
                Token::Kick(queue, generation) => self.kicked(queue, generation),
                Token::Wake => {
                    self.wake.drain();
                    self.wake_armed = false;
                }
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
            if !self.lane(lane).drains.is_empty() && !self.lane_in_flight(lane) {
                for drained in std::mem::take(&mut self.lane(lane).drains) {
                    let _ = drained.send(());
                }
            }
        }
        let mut at = 0;
        while at < self.leaving.len() {
            let id = self.leaving[at];
            let drained = self.queues[id as usize]
                .as_ref()
                .is_none_or(|q| q.in_flight == 0);
            if !drained {
                at += 1;
                continue;
            }
            self.leaving.swap_remove(at);
            if let Some(mut entry) = self.queues[id as usize].take() {
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

    fn add_queue(&mut self, lane: u32, queue: Box<dyn RequestQueue>) -> u32 {
        let id = free_place(&mut self.queues);
        self.queues[id as usize] = Some(QueueEntry {
            queue,
            lane,
            in_flight: 0,
            mode: Mode::Quiet,
            last_active_ns: self.now_ns,
            touched: false,
            broken: false,
            leaving: None,
        });
        self.watch(id);
        id
    }

    fn remove_queue(&mut self, id: u32, to: Sender<Box<dyn RequestQueue>>) {
        if self.queues.get(id as usize).is_none_or(Option::is_none) {
            return;
        }
        self.unwatch(id);
        self.queue(id).leaving = Some(to);
        self.leaving.push(id);
        // Its VMM waits: do not make it wait for buffers that the network keeps.
        self.pool.forsake_lent();
        self.complete_unacknowledged(id);
        self.deliver_held(Some(id));
    }

    /// Starts watching a queue as its lane's gate wants it.
    fn watch(&mut self, id: u32) {
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

    fn poll_queue(&mut self, id: u32) {
        let now_ns = self.now_ns;
        let entry = self.queue(id);
        if entry.mode == Mode::Polled {
            return;
        }
        let was = std::mem::replace(&mut entry.mode, Mode::Polled);
        entry.last_active_ns = now_ns;
        entry.queue.disarm();
        self.polled.push(id);
        self.forget_kick(id, was);
    }

    fn unwatch(&mut self, id: u32) {
        let was = std::mem::replace(&mut self.queue(id).mode, Mode::Quiet);
        self.polled.retain(|&other| other != id);
        self.forget_kick(id, was);
    }

    fn forget_kick(&mut self, id: u32, was: Mode) {
        if let Mode::Armed(generation) = was
            && let Err(error) = self.ring.disarm(Token::Kick(id, generation))
        {
            tracing::warn!(%error, "a kick could not be taken back; its event is ignored");
        }
    }

    /// Queues that stayed empty go back to kicks.
    fn park_quiet(&mut self) {
        let mut at = 0;
        while at < self.polled.len() {
            let id = self.polled[at];
            let now_ns = self.now_ns;
            let entry = self.queue(id);
            let quiet = now_ns.saturating_sub(entry.last_active_ns) >= SPIN_NS;
            if entry.broken || self.report_first(id) {
                self.unwatch(id);
            } else if !quiet || !self.arm_kick(id) {
                at += 1;
            }
        }
    }
}

/// The index of an empty place, made if there is none.
fn free_place<T>(places: &mut Vec<Option<T>>) -> u32 {
    let at = places.iter().position(Option::is_none).unwrap_or_else(|| {
        places.push(None);
        places.len() - 1
    });
    u32::try_from(at).expect("few queues and lanes")
}
