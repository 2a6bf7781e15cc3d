//! How control reaches a worker: bounded messages, taken between two polls.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::Sender;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Core;
use super::bridges::BridgeTask;
use super::lane::{Gate, Lane, Mirror};
use crate::backend::Backend;
use crate::lifecycle::WriteTap;
use crate::metrics::QueueLoad;
use crate::net::bridge::Bridge;
use crate::qos::domain::DiskControl;
use crate::queue::RequestQueue;

/// Something to do with a queue on its worker.
pub(crate) type QueueTask = Box<dyn FnOnce(&mut dyn RequestQueue) + Send>;

/// What control may ask. Replies go through the channels in the command; a reply channel that is
/// dropped means that the worker could not, or has ended.
pub(crate) enum Command {
    AddLane {
        lane: Box<Lane>,
        reply: Sender<u32>,
    },
    /// Only when no queue of the lane is left.
    RemoveLane {
        lane: u32,
        reply: Sender<()>,
    },
    AddQueue {
        lane: u32,
        queue: Box<dyn RequestQueue>,
        /// It runs already, on another worker, and is taken whatever the number of queues here: it
        /// could not stay where it was, and whoever moves it has looked before.
        moved: bool,
        load: Arc<QueueLoad>,
        /// The queue comes back when the worker is full.
        reply: Sender<Result<u32, Box<dyn RequestQueue>>>,
    },
    /// Stops fetching, drains, and hands the queue back.
    RemoveQueue {
        queue: u32,
        reply: Sender<Box<dyn RequestQueue>>,
    },
    WithQueue {
        queue: u32,
        task: QueueTask,
        reply: Sender<()>,
    },
    SetGate {
        lane: u32,
        gate: Gate,
        reply: Sender<()>,
    },
    /// Only while nothing of the lane is in flight, as behind a closed gate after a drain.
    SetBackend {
        lane: u32,
        backend: Backend,
        reply: Sender<()>,
    },
    AttachTap {
        lane: u32,
        tap: WriteTap,
        acked: Arc<AtomicU64>,
        reply: Sender<bool>,
    },
    DetachTap {
        lane: u32,
        reply: Sender<()>,
    },
    LockRange {
        lane: u32,
        range: std::ops::Range<u64>,
        reply: Sender<()>,
    },
    UnlockRange {
        lane: u32,
        mirrored_below: u64,
        reply: Sender<bool>,
    },
    /// Replies when nothing of the lane is in flight any more, and its guest has been shown that.
    Drain {
        lane: u32,
        reply: Sender<()>,
    },
    /// Puts the lane under the control of its datastore, or takes it out; `worker` is this one's number
    /// there.
    SetQos {
        lane: u32,
        control: Option<Arc<DiskControl>>,
        worker: usize,
        reply: Sender<()>,
    },
    /// No more when the worker has as many as it may have.
    AddBridge {
        bridge: Box<Bridge>,
        reply: Sender<Option<u32>>,
    },
    WithBridge {
        bridge: u32,
        task: BridgeTask,
    },
    /// Only when its ports have left.
    RemoveBridge {
        bridge: u32,
    },
    /// Ends the worker once everything in flight has landed.
    Stop,
}

/// Wakes a sleeping worker, and costs a flag test when it is awake.
#[derive(Debug)]
pub(crate) struct Wake {
    event: EventFd,
    sleeping: AtomicBool,
}

impl Wake {
    pub fn new() -> io::Result<Wake> {
        Ok(Wake {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            sleeping: AtomicBool::new(false),
        })
    }

    /// To be called after whatever the worker should see has been made visible.
    pub fn wake(&self) {
        // Pairs with `going_to_sleep`: either this sees the flag, or the worker sees the message.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Err(error) = self.event.write(1)
        {
            tracing::error!(%error, "a worker could not be woken");
        }
    }

    /// The worker looks for messages once more after this, and only then sleeps.
    pub fn going_to_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    pub fn drain(&self) {
        let _ = self.event.read(); // empty is fine
    }

    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Core {
    pub(super) fn carry_out(&mut self, command: Command) {
        match command {
            Command::AddLane { lane, reply } => {
                let id = self.add_lane(*lane);
                let _ = reply.send(id);
            }
            Command::RemoveLane { lane, reply } => {
                self.remove_lane(lane);
                let _ = reply.send(());
            }
            Command::AddQueue {
                lane,
                queue,
                moved,
                load,
                reply,
            } => {
                let _ = reply.send(if moved || self.has_room() {
                    Ok(self.add_queue(lane, queue, load))
                } else {
                    Err(queue)
                });
            }
            Command::RemoveQueue { queue, reply } => self.remove_queue(queue, reply),
            Command::WithQueue { queue, task, reply } => {
                if let Some(entry) = self.queues.get_mut(queue as usize).and_then(Option::as_mut) {
                    task(&mut *entry.queue);
                    self.follow_memory(queue);
                    let _ = reply.send(());
                    self.rearm(queue);
                }
            }
            Command::SetGate { lane, gate, reply } => {
                self.set_gate(lane, gate);
                let _ = reply.send(());
            }
            Command::SetBackend {
                lane,
                backend,
                reply,
            } => {
                if self.lane(lane).in_flight == 0 {
                    self.close_target(lane);
                    self.lane(lane).set_backend(backend);
                    self.open_target(lane);
                    for at in 0..self.lane(lane).queues.len() {
                        let queue = self.lane(lane).queues[at];
                        self.follow_memory(queue);
                    }
                    let _ = reply.send(());
                }
            }
            Command::AttachTap {
                lane,
                tap,
                acked,
                reply,
            } => {
                let _ = reply.send(self.attach_mirror(lane, Mirror::new(tap, acked)));
            }
            Command::DetachTap { lane, reply } => {
                self.detach_mirror(lane);
                let _ = reply.send(());
            }
            Command::LockRange { lane, range, reply } => self.lock_range(lane, range, reply),
            Command::UnlockRange {
                lane,
                mirrored_below,
                reply,
            } => {
                let _ = reply.send(self.unlock_range(lane, mirrored_below));
            }
            Command::Drain { lane, reply } => self.drain_lane(lane, reply),
            Command::SetQos {
                lane,
                control,
                worker,
                reply,
            } => {
                self.set_qos(lane, control, worker);
                let _ = reply.send(());
            }
            Command::AddBridge { bridge, reply } => {
                let _ = reply.send(self.add_bridge(*bridge));
            }
            Command::WithBridge { bridge, task } => self.with_bridge(bridge, task),
            Command::RemoveBridge { bridge } => self.remove_bridge(bridge),
            Command::Stop => self.stop(),
        }
    }

    fn set_gate(&mut self, lane: u32, gate: Gate) {
        self.lane(lane).gate = gate;
        for at in 0..self.lane(lane).queues.len() {
            let id = self.lane(lane).queues[at];
            self.unwatch(id);
            self.watch(id);
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        for id in 0..self.queues.len() {
            let id = u32::try_from(id).expect("few queues");
            if self.queues[id as usize]
                .as_ref()
                .is_some_and(|q| q.leaving.is_none())
            {
                let (to, _) = crossbeam_channel::bounded(1);
                self.remove_queue(id, to);
            }
        }
    }
}
