//! A disk over its workers: the control side.
//!
//! Each worker has a lane for the disk; the disk's queues are spread over the workers, and moved
//! when their load does (`rebalance.rs`), except when ranges must be watched for overlap across queues: while it is mirrored, and always when the
//! device's block is larger than a sector, because a guest may then ask for part of a block. In
//! both cases all queues go through one worker.

mod grow;
mod mirror;
mod place;
mod qos;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::backend::Backend;
use crate::buffer::AlignedBuf;
use crate::lifecycle::{ActivationHook, Geometry, LifecycleError};
use crate::limits::{QUEUES_PER_WORKER, SECTOR_BYTES};
use crate::metrics::{Counters, Flow, LastError, QueueLoad, Totals};
use crate::queue::RequestQueue;
use crate::worker::WorkerHandle;
use crate::worker::command::Command;
use crate::worker::flush::Flushes;
use crate::worker::lane::{Gate, Lane};
pub use place::Placed;

/// What a disk does with requests from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// It serves.
    Open,
    /// It holds them.
    Held,
}

/// Where a running queue is: worker, and the worker's name for it.
#[derive(Debug, Clone, Copy)]
struct Place {
    worker: usize,
    id: u32,
}

struct Control {
    queues: Vec<Option<Place>>,
    /// The worker of each queue, unless all go through one.
    chosen: Vec<usize>,
    /// All queues go through this worker.
    exclusive: Option<usize>,
    mirrored: bool,
}

/// What the lanes' gates should be.
struct Gates {
    /// How often that was changed: tells a late activation from the current one.
    changes: u64,
    open: bool,
    /// Nothing is served, whatever is opened meanwhile.
    suspended: bool,
}

/// One disk, served by some workers.
pub struct Disk {
    number: u64,
    workers: Vec<WorkerHandle>,
    /// The disk's lane on each worker.
    lanes: Vec<u32>,
    /// The worker that all queues go through when they must be together. Changed under the lock of
    /// `control`, and not while the disk is mirrored.
    home: AtomicUsize,
    /// Apart from `control`: the copier reads while a stop waits for its lock.
    backend: RwLock<Backend>,
    control: Mutex<Control>,
    acked: Arc<AtomicU64>,
    /// Held while the lanes' gates are changed, so that they change together.
    gates: Mutex<Gates>,
    counters: Vec<Arc<Counters>>,
    /// Of each queue.
    loads: Vec<Arc<QueueLoad>>,
}

impl Disk {
    /// Puts a disk of `queues` queues on `workers`, beginning with the one at `home`.
    pub fn new(
        backend: &Backend,
        workers: &[WorkerHandle],
        home: usize,
        queues: usize,
        service: Service,
    ) -> Result<Disk, LifecycleError> {
        let flushes = Arc::<Flushes>::default();
        let mut lanes = Vec::new();
        let mut counters = Vec::new();
        for worker in workers {
            let counted = Arc::new(Counters::default());
            let gate = if service == Service::Open {
                Gate::Open
            } else {
                Gate::Held
            };
            let lane = Lane::new(backend.clone(), gate, counted.clone(), flushes.clone());
            let lane = Box::new(lane);
            lanes.push(ask(worker, |reply| Command::AddLane { lane, reply })?);
            counters.push(counted);
        }
        let home = home % workers.len().max(1);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(Disk {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            workers: workers.to_vec(),
            lanes,
            home: AtomicUsize::new(home),
            backend: RwLock::new(backend.clone()),
            control: Mutex::new(Control {
                exclusive: needs_one_worker(backend).then_some(home),
                queues: vec![None; queues],
                chosen: (0..queues)
                    .map(|index| (home + index) % workers.len().max(1))
                    .collect(),
                mirrored: false,
            }),
            acked: Arc::new(AtomicU64::new(0)),
            gates: Mutex::new(Gates {
                changes: 0,
                open: service == Service::Open,
                suspended: false,
            }),
            counters,
            loads: (0..queues).map(|_| Arc::default()).collect(),
        })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other disk of this process has.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn home(&self) -> usize {
        self.home.load(Ordering::Acquire)
    }

    /// What the disk is on.
    pub fn backend(&self) -> Backend {
        self.backend
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The disk's shape.
    pub fn geometry(&self) -> Geometry {
        self.backend().geometry()
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.backend().read_only
    }

    /// What was done so far, over all workers.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.counters
            .iter()
            .for_each(|counters| counters.add_to(&mut totals));
        totals
    }

    /// How far it has come with its requests. Asks no worker: it answers whatever they do.
    pub fn flow(&self) -> Flow {
        let mut flow = Flow::default();
        self.counters
            .iter()
            .for_each(|counters| counters.add_flow_to(&mut flow));
        flow
    }

    /// The last request that the host could not carry out.
    pub fn last_error(&self) -> Option<LastError> {
        let errors = self.counters.iter().filter_map(|it| it.last_error());
        errors.max_by_key(|error| error.at_ns)
    }

    /// Gives a queue to its worker, which polls it from now on.
    pub fn start_queue(
        &self,
        index: usize,
        queue: Box<dyn RequestQueue>,
    ) -> Result<(), LifecycleError> {
        let mut control = self.control();
        let place = self.place(&control, index, queue, false)?;
        control.queues[index] = Some(place);
        Ok(())
    }

    fn place(
        &self,
        control: &Control,
        index: usize,
        queue: Box<dyn RequestQueue>,
        moved: bool,
    ) -> Result<Place, LifecycleError> {
        let worker = control.exclusive.unwrap_or(control.chosen[index]);
        let lane = self.lanes[worker];
        let load = self.loads[index].clone();
        let added = ask(&self.workers[worker], |reply| Command::AddQueue {
            lane,
            queue,
            moved,
            load,
            reply,
        })?;
        match added {
            Ok(id) => Ok(Place { worker, id }),
            Err(_) => Err(LifecycleError::Refused(format!(
                "a worker holds {QUEUES_PER_WORKER} queues already, which is the most; run more \
                 workers (workers = N, --workers N) or fewer queues"
            ))),
        }
    }

    /// Drains a queue and takes it back; `None` when it does not run. Waits for local I/O only.
    pub fn stop_queue(
        &self,
        index: usize,
    ) -> Result<Option<Box<dyn RequestQueue>>, LifecycleError> {
        let mut control = self.control();
        let Some(place) = control.queues[index].take() else {
            return Ok(None);
        };
        self.displace(place).map(Some)
    }

    fn displace(&self, place: Place) -> Result<Box<dyn RequestQueue>, LifecycleError> {
        let queue = place.id;
        ask(&self.workers[place.worker], |reply| Command::RemoveQueue {
            queue,
            reply,
        })
    }

    /// Does something to a running queue, on its worker, between polls; returns when it is done.
    /// False when the queue does not run.
    pub fn with_queue(
        &self,
        index: usize,
        task: impl FnOnce(&mut dyn RequestQueue) + Send + 'static,
    ) -> Result<bool, LifecycleError> {
        let control = self.control();
        let Some(place) = control.queues[index] else {
            return Ok(false);
        };
        let (queue, task) = (place.id, Box::new(task));
        ask(&self.workers[place.worker], |reply| Command::WithQueue {
            queue,
            task,
            reply,
        })?;
        Ok(true)
    }

    /// Stops popping, and returns when nothing is in flight.
    pub fn hold(&self) -> Result<(), LifecycleError> {
        self.close()?;
        self.drain()
    }

    /// Stops popping; what was popped may be in flight still.
    pub fn close(&self) -> Result<(), LifecycleError> {
        self.change_gates(&mut self.gates(), || Gate::Held)
    }

    /// Waits until nothing is in flight.
    pub fn drain(&self) -> Result<(), LifecycleError> {
        for (worker, &lane) in self.workers.iter().zip(&self.lanes) {
            ask(worker, |reply| Command::Drain { lane, reply })?;
        }
        Ok(())
    }

    /// Serves.
    pub fn open(&self) -> Result<(), LifecycleError> {
        self.change_gates(&mut self.gates(), || Gate::Open)
    }

    /// Stops popping while `suspended`, whoever opens the disk meanwhile; an open disk is served
    /// again after it. What was popped may be in flight still.
    pub fn suspend(&self, suspended: bool) -> Result<(), LifecycleError> {
        let mut gates = self.gates();
        gates.suspended = suspended;
        if !gates.open {
            return Ok(()); // held, or waiting for a first request
        }
        self.send_gates(|| if suspended { Gate::Held } else { Gate::Open })
    }

    /// Whether it is, or would be but for its suspension, open to requests.
    pub fn is_open(&self) -> bool {
        self.gates().open
    }

    /// Holds until a request waits; then `hook` decides, on a thread of its own.
    pub fn open_on_first(self: &Arc<Self>, hook: ActivationHook) -> Result<(), LifecycleError> {
        let (first, reported) = bounded(1);
        let armed = {
            let mut gates = self.gates();
            self.change_gates(&mut gates, || Gate::Armed(first.clone()))?;
            gates.changes
        };
        drop(first);
        let disk = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("ferry-activate".into())
            .spawn(move || {
                // An error means that the gate was changed since: nothing to activate.
                if reported.recv().is_err() {
                    return;
                }
                let Some(disk) = disk.upgrade() else { return };
                // Not in one expression with the hook: that would hold the lock as long.
                let changed = disk.gates().changes != armed;
                if changed || !hook() {
                    return;
                }
                let mut gates = disk.gates();
                if gates.changes == armed && disk.change_gates(&mut gates, || Gate::Open).is_err() {
                    tracing::error!("a disk was activated, but its worker is gone");
                }
            })?;
        Ok(())
    }

    fn gates(&self) -> MutexGuard<'_, Gates> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_gates(
        &self,
        gates: &mut Gates,
        gate: impl Fn() -> Gate,
    ) -> Result<(), LifecycleError> {
        gates.changes += 1;
        gates.open = matches!(gate(), Gate::Open);
        if gates.open && gates.suspended {
            return self.send_gates(|| Gate::Held);
        }
        self.send_gates(gate)
    }

    fn send_gates(&self, gate: impl Fn() -> Gate) -> Result<(), LifecycleError> {
        for (worker, &lane) in self.workers.iter().zip(&self.lanes) {
            let gate = gate();
            ask(worker, |reply| Command::SetGate { lane, gate, reply })?;
        }
        Ok(())
    }

    /// Puts other bytes under a disk that is held.
    pub fn set_backend(&self, backend: &Backend) -> Result<(), LifecycleError> {
        let mut control = self.control();
        for (worker, &lane) in self.workers.iter().zip(&self.lanes) {
            let backend = backend.clone();
            ask(worker, |reply| Command::SetBackend {
                lane,
                backend,
                reply,
            })
            .map_err(|_| {
                LifecycleError::Refused("the disk has requests in flight; hold it first".into())
            })?;
        }
        *self.backend.write().unwrap_or_else(PoisonError::into_inner) = backend.clone();
        if !control.mirrored {
            self.spread(
                &mut control,
                needs_one_worker(backend).then_some(self.home()),
            )?;
        }
        Ok(())
    }

    /// Moves the running queues to where `exclusive` wants them.
    fn spread(
        &self,
        control: &mut Control,
        exclusive: Option<usize>,
    ) -> Result<(), LifecycleError> {
        control.exclusive = exclusive;
        for index in 0..control.queues.len() {
            let wanted = exclusive.unwrap_or(control.chosen[index]);
            if control.queues[index].is_some_and(|place| place.worker != wanted) {
                let place = control.queues[index].take().expect("just seen");
                let queue = self.displace(place)?;
                control.queues[index] = Some(self.place(control, index, queue, true)?);
            }
        }
        Ok(())
    }

    /// See [`crate::lifecycle::DiskLifecycle::read_at`].
    pub fn read_at(&self, offset_bytes: u64, buf: &mut AlignedBuf, len: usize) -> io::Result<()> {
        self.backend().read_at(offset_bytes, buf, len)
    }

    /// See [`crate::lifecycle::DiskLifecycle::next_data`].
    pub fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        self.backend().next_data(offset_bytes)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let places: Vec<Place> = self
            .control()
            .queues
            .iter_mut()
            .filter_map(Option::take)
            .collect();
        for place in places {
            drop(self.displace(place));
        }
        for (worker, &lane) in self.workers.iter().zip(&self.lanes) {
            let _ = ask(worker, |reply| Command::RemoveLane { lane, reply });
        }
    }
}

/// A guest may ask for part of a larger block, and two queues for two parts of one.
fn needs_one_worker(backend: &Backend) -> bool {
    u64::from(backend.geometry().block_bytes) > SECTOR_BYTES
}

/// Sends a command and waits for its answer.
fn ask<T>(
    worker: &WorkerHandle,
    command: impl FnOnce(Sender<T>) -> Command,
) -> Result<T, LifecycleError> {
    let (reply, answer): (Sender<T>, Receiver<T>) = bounded(1);
    if !worker.send(command(reply)) {
        return Err(LifecycleError::Gone);
    }
    answer.recv().map_err(|_| LifecycleError::Gone)
}
