//! The control side of bridges and their ports. Every call waits for the worker, which answers between
//! two turns, and for nothing else.

use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};

use super::announce::Address;
use super::bridge::{Bridge, Captured, Kind, Port, Teller};
use super::counters::PortCounters;
use super::features::Offloads;
use super::filter::Gate;
use super::frame::Mac;
use super::lifecycle::NicEvent;
use super::limit::{RateLimit, SharedTime};
use super::queue::{FrameQueue, RxQueue, TxQueue};
use super::table::Table;
use super::tap::Tap;
use crate::lifecycle::LifecycleError;
use crate::ring::Ring;
use crate::worker::WorkerHandle;
use crate::worker::command::Command;

/// A bridge on a worker. Gone with its last port.
#[derive(Debug)]
pub struct BridgeHandle {
    worker: WorkerHandle,
    id: u32,
}

/// A port of a bridge: a guest's NIC, or a tap. Removed when dropped.
#[derive(Debug)]
pub struct NicPort {
    bridge: Arc<BridgeHandle>,
    port: u16,
    counters: Arc<PortCounters>,
}

fn full() -> LifecycleError {
    LifecycleError::Refused("there are as many bridges or ports as there may be".into())
}

impl BridgeHandle {
    /// A bridge that joins two ports.
    pub fn wire(worker: &WorkerHandle) -> Result<Arc<BridgeHandle>, LifecycleError> {
        BridgeHandle::new(worker, Kind::Wire)
    }

    /// A learning switch. `seed` should be random: guests choose the addresses that it is to find.
    pub fn switch(worker: &WorkerHandle, seed: u64) -> Result<Arc<BridgeHandle>, LifecycleError> {
        BridgeHandle::new(worker, Kind::Switch(Table::new(seed)))
    }

    fn new(worker: &WorkerHandle, kind: Kind) -> Result<Arc<BridgeHandle>, LifecycleError> {
        let (reply, answer) = bounded(1);
        let bridge = Box::new(Bridge::new(kind));
        worker.send(Command::AddBridge { bridge, reply });
        let id = answer.recv().map_err(|_| LifecycleError::Gone)?;
        let id = id.ok_or_else(full)?;
        let worker = worker.clone();
        Ok(Arc::new(BridgeHandle { worker, id }))
    }

    /// Does something to the bridge on its worker, and waits for the answer that it sends.
    fn ask<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Bridge, u32, &mut Ring, Sender<T>) + Send + 'static,
    ) -> Result<T, LifecycleError> {
        let (reply, answer) = bounded(1);
        let id = self.id;
        self.worker.send(Command::WithBridge {
            bridge: id,
            task: Box::new(move |bridge, ring| task(bridge, id, ring, reply)),
        });
        answer.recv().map_err(|_| LifecycleError::Gone)
    }

    /// Does something to the bridge on its worker, and waits until it is done.
    fn tell(&self, task: impl FnOnce(&mut Bridge) + Send + 'static) -> Result<(), LifecycleError> {
        self.ask(move |bridge, _, _, reply| {
            task(bridge);
            let _ = reply.send(());
        })
    }

    fn add(
        self: &Arc<Self>,
        port: Port,
        counters: Arc<PortCounters>,
    ) -> Result<NicPort, LifecycleError> {
        let added = self.ask(move |bridge, _, _, reply| {
            let _ = reply.send(bridge.add_port(port));
        })?;
        Ok(NicPort {
            bridge: self.clone(),
            port: added.ok_or_else(full)?,
            counters,
        })
    }

    /// Adds a guest's NIC of so many pairs of queues and this MTU, which may send from `guard` alone if one is given.
    pub fn add_guest(
        self: &Arc<Self>,
        pairs: u16,
        mtu: u16,
        guard: Option<Mac>,
    ) -> Result<NicPort, LifecycleError> {
        let counters = Arc::new(PortCounters::default());
        self.add(Port::guest(pairs, mtu, guard, counters.clone()), counters)
    }

    /// Adds a queue of a tap.
    pub fn add_tap(self: &Arc<Self>, tap: Tap) -> Result<NicPort, LifecycleError> {
        let counters = Arc::new(PortCounters::default());
        self.add(Port::tap(tap, counters.clone()), counters)
    }
}

impl Drop for BridgeHandle {
    fn drop(&mut self) {
        self.worker.send(Command::RemoveBridge { bridge: self.id });
    }
}

impl NicPort {
    /// What went through it.
    pub fn counters(&self) -> &PortCounters {
        &self.counters
    }

    /// Gives the worker the queue that the guest of pair `queue` sends by.
    pub fn start_tx(&self, queue: u16, tx: Box<dyn TxQueue>) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.start_tx(port, queue, tx))
    }

    /// Gives it the one that the guest receives by.
    pub fn start_rx(&self, queue: u16, rx: Box<dyn RxQueue>) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.start_rx(port, queue, rx))
    }

    /// Takes it back, drained.
    pub fn stop_tx(&self, queue: u16) -> Result<Box<dyn TxQueue>, LifecycleError> {
        let port = self.port;
        self.bridge
            .ask(move |bridge, id, ring, reply| bridge.stop_tx((id, port, queue), ring, reply))
    }

    /// Takes it back.
    pub fn stop_rx(&self, queue: u16) -> Result<Option<Box<dyn RxQueue>>, LifecycleError> {
        let port = self.port;
        self.bridge.ask(move |bridge, id, ring, reply| {
            let _ = reply.send(bridge.stop_rx((id, port, queue), ring));
        })
    }

    /// Changes a queue that runs.
    pub fn with_tx(
        &self,
        queue: u16,
        task: impl FnOnce(&mut dyn FrameQueue) + Send + 'static,
    ) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.with_tx(port, queue, |tx| task(tx)))
    }

    /// Changes a queue that runs.
    pub fn with_rx(
        &self,
        queue: u16,
        task: impl FnOnce(&mut dyn FrameQueue) + Send + 'static,
    ) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.with_rx(port, queue, |rx| task(rx)))
    }

    /// Keeps frames for the guest while its queues stand still, or gives out what was kept and does so
    /// no more.
    pub fn capture(&self, on: bool) -> Result<Vec<Captured>, LifecycleError> {
        let port = self.port;
        self.bridge.ask(move |bridge, _, _, reply| {
            let _ = reply.send(bridge.capture(port, on));
        })
    }

    /// What is kept is for nobody. What comes is kept as before.
    pub fn drop_kept(&self) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.tell(move |bridge| bridge.drop_kept(port))
    }

    /// What is kept for the guest, and stays so.
    pub fn in_hand(&self) -> Result<Vec<Captured>, LifecycleError> {
        let port = self.port;
        self.bridge.ask(move |bridge, _, _, reply| {
            let _ = reply.send(bridge.in_hand(port));
        })
    }

    /// The NIC is to leave this host: what is kept for its guest while its queues stand still is told
    /// as well, as by port `called`. The channel is bounded; what it has no room for is lost, and counted.
    pub fn leave(&self, to: Sender<NicEvent>, called: u16) -> Result<(), LifecycleError> {
        let port = self.port;
        let teller = Teller { to, port: called };
        self.bridge.tell(move |bridge| bridge.leave(port, teller))
    }

    /// The guest runs at another host: frames are told and not kept. Those to groups are not told:
    /// they reach it by that host's network.
    pub fn gone(&self) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.tell(move |bridge| bridge.gone(port))
    }

    /// The NIC does not leave; or it has left, and nothing is told any more.
    pub fn stay(&self) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.tell(move |bridge| bridge.stay(port))
    }

    /// A NIC is to arrive. What was kept here is dropped; what comes here is left to the source until the
    /// guest's queues run, and waits from then on behind what is delivered, until
    /// [`NicPort::settle`].
    pub fn arrive(&self) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.tell(move |bridge| bridge.arrive(port))
    }

    /// Frames that reached the source, in their order.
    pub fn deliver(&self, frames: Vec<Captured>) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.tell(move |bridge| bridge.pass_on(port, frames))
    }

    /// What came here is given as soon as what was delivered is.
    pub fn settle(&self) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.tell(move |bridge| bridge.settle_arrival(port))
    }

    /// The addresses that the guest has spoken of.
    pub fn spoken(&self) -> Result<Vec<Address>, LifecycleError> {
        let port = self.port;
        self.bridge.ask(move |bridge, _, _, reply| {
            let _ = reply.send(bridge.spoken(port));
        })
    }

    /// Those that it spoke of at another host.
    pub fn set_spoken(&self, addresses: Vec<Address>) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.set_spoken(port, &addresses))
    }

    /// Sends frames as if the guest had, whatever its guard and its rate; none while its link is down.
    pub fn say(&self, frames: Vec<Vec<u8>>) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.ask(move |bridge, id, ring, reply| {
            bridge.say(id, port, &frames, ring);
            let _ = reply.send(());
        })
    }

    /// Changes the one address that its guest may send from.
    pub fn set_guard(&self, guard: Option<Mac>) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.set_guard(port, guard))
    }

    /// Changes what passes.
    pub fn set_gate(&self, gate: Gate) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge.tell(move |bridge| bridge.set_gate(port, gate))
    }

    /// Changes how much its guest may send. `shared`: together with other ports, which are given the same.
    pub fn set_limit(
        &self,
        limit: Option<RateLimit>,
        shared: Option<SharedTime>,
    ) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.set_limit(port, limit, shared))
    }

    /// Changes what a tap leaves unfinished.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), LifecycleError> {
        let port = self.port;
        self.bridge
            .tell(move |bridge| bridge.set_tap_offloads(port, offloads))
    }
}

impl Drop for NicPort {
    fn drop(&mut self) {
        let port = self.port;
        let _ = self
            .bridge
            .ask(move |bridge, id, ring, reply| bridge.remove_port(id, port, ring, reply));
    }
}
