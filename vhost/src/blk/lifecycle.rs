//! A block device as a migration sees it.

use std::io;
use std::ops::Range;
use std::sync::PoisonError;

use ferry_dataplane::backend::Store;
use ferry_dataplane::buffer::AlignedBuf;
use ferry_dataplane::lifecycle::{
    ActivationHook, DiskLifecycle, Geometry, LifecycleError, RestartHook, RingView, WriteTap,
};
use ferry_migration::schema::BlkState;
use ferry_migration::schema::blk_v1::BlkV1;
use ferry_migration::schema::queue_v1::QueueV1;

use super::device::{Blk, BlkDevice};
use super::expected::ExpectedBases;
use crate::device::{Kind, Ring, State, feature};

impl BlkDevice {
    /// The device without its queues, as it is announced to a destination.
    pub fn shape(&self) -> BlkV1 {
        self.blk_state(&self.state())
    }

    fn blk_state(&self, state: &State<Blk>) -> BlkV1 {
        let geometry = self.kind.disk.geometry();
        BlkV1 {
            capacity_bytes: geometry.capacity_bytes,
            block_bytes: geometry.block_bytes,
            num_queues: self.num_queues(),
            read_only: self.kind.disk.read_only(),
            acked_features: state.machine().0,
            writeback: state.own.writeback,
            serial: state.own.serial,
        }
    }

    fn queue_states(&self, state: &State<Blk>) -> Vec<QueueV1> {
        let (features, rings) = state.machine();
        let rings = (0u16..).zip(rings);
        rings
            .map(|(index, ring)| QueueV1 {
                index,
                size: ring.reported_size(),
                next_avail: ring.base,
                used_idx: ring.used_idx,
                enabled: ring.enabled,
                event_idx: features & feature::EVENT_IDX != 0,
            })
            .collect()
    }

    /// What an imported state must agree with.
    fn check_import(&self, incoming: &BlkState, state: &State<Blk>) -> Result<(), LifecycleError> {
        let refuse = |why: String| Err(LifecycleError::BadState(why));
        let mine = self.blk_state(state);
        let blk = &incoming.blk;
        if blk.num_queues != mine.num_queues || blk.capacity_bytes != mine.capacity_bytes {
            return refuse(format!(
                "a device of {} queues and {} bytes does not fit one of {} and {}",
                blk.num_queues, blk.capacity_bytes, mine.num_queues, mine.capacity_bytes
            ));
        }
        if blk.block_bytes < mine.block_bytes {
            return refuse(format!(
                "the guest uses blocks of {} bytes, and this disk has larger ones of {}",
                blk.block_bytes, mine.block_bytes
            ));
        }
        let unknown = blk.acked_features & !self.kind.features();
        if unknown != 0 {
            return refuse(format!(
                "the guest uses features {unknown:#x}, which are not offered here"
            ));
        }
        for (ring, queue) in state.rings.iter().zip(&incoming.queues) {
            let loose = blk.acked_features == 0 && (ring.base == 0 || queue.next_avail == 0);
            if ring.running && ring.base != queue.next_avail && !loose {
                return refuse(format!(
                    "queue {} runs here from {}, and the disk's guest stopped at {}: another machine \
                     is attached",
                    queue.index, ring.base, queue.next_avail
                ));
            }
        }
        Ok(())
    }
}

impl DiskLifecycle for BlkDevice {
    fn geometry(&self) -> Geometry {
        self.kind.disk.geometry()
    }

    fn flush(&self) -> io::Result<()> {
        match self.kind.disk.backend().store {
            Store::Image(image) => image.flush(),
            Store::Pending { .. } => Err(io::Error::other("the disk is not here")),
            // A thin disk's, which is not moved; the others keep nothing.
            _ => Ok(()),
        }
    }

    fn attach_tap(&self, tap: WriteTap) -> Result<(), LifecycleError> {
        self.kind.disk.attach_tap(tap)
    }

    fn detach_tap(&self) {
        if let Err(error) = self.kind.disk.detach_tap() {
            tracing::error!(device = %self.kind.name, %error, "the tap could not be detached");
        }
    }

    fn lock_range(&self, range: Range<u64>) -> Result<(), LifecycleError> {
        self.kind.disk.lock_range(range)
    }

    fn unlock_range(&self, mirrored_below: u64) -> Result<(), LifecycleError> {
        self.kind.disk.unlock_range(mirrored_below)
    }

    fn acknowledge(&self, seq: u64) {
        self.kind.disk.acknowledge(seq);
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut AlignedBuf, len: usize) -> io::Result<()> {
        self.kind.disk.read_at(offset_bytes, buf, len)
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        self.kind.disk.next_data(offset_bytes)
    }

    fn rings_running(&self) -> bool {
        self.state().rings.iter().any(|ring| ring.running)
    }

    fn rings(&self) -> Vec<RingView> {
        let view = |ring: &Ring| RingView {
            next_avail: ring.base,
            running: ring.running,
        };
        self.state().machine().1.iter().map(view).collect()
    }

    fn forget_departed(&self) {
        self.state().forget_departed();
    }

    fn quiesce(&self, on_restart: RestartHook) -> Result<(), LifecycleError> {
        {
            // Under the device's lock: a ring that starts meanwhile is held and reported, or was
            // started before and is drained.
            let mut state = self.state();
            state.own.on_restart = Some(on_restart);
            // What an earlier attempt imported is void.
            self.kind.expect(None);
            self.kind.disk.close()?;
        }
        // Not under it: what is in flight may wait for a message of the front-end.
        self.kind.disk.drain()
    }

    fn resume(&self) {
        let mut state = self.state();
        state.own.on_restart = None;
        self.kind.expect(None);
        if let Err(error) = self.kind.disk.open() {
            tracing::error!(device = %self.kind.name, %error, "the disk could not be taken into service");
        }
    }

    fn await_activation(&self, hook: ActivationHook) -> Result<(), LifecycleError> {
        self.state().own.on_restart = None; // an earlier move's, whose end this is
        let expected = self.kind.expected.clone();
        self.kind.disk.open_on_first(Box::new(move || {
            let served = hook();
            if served {
                // The machine has arrived: it may stop and start its rings as it likes.
                *expected.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            served
        }))
    }

    fn export(&self) -> Result<Vec<u8>, LifecycleError> {
        let keeper = self.kind.qos_keeper();
        let qos = keeper.and_then(|keeper| keeper.qos());
        let state = self.state();
        if state.rings.iter().any(|ring| ring.running) {
            return Err(LifecycleError::Refused(
                "its rings run; the VM must be stopped first".into(),
            ));
        }
        let (_, rings) = state.machine();
        if let Some(at) = rings.iter().position(|r| r.base != r.used_idx) {
            return Err(LifecycleError::Refused(format!(
                "queue {at} stopped with requests unserved; they are served when its VM goes on here"
            )));
        }
        BlkState::new(self.blk_state(&state), self.queue_states(&state))
            .and_then(|state| state.with_qos(qos))
            .and_then(|state| state.encode())
            .map_err(|error| LifecycleError::BadState(error.to_string()))
    }

    fn import(&self, envelope: &[u8]) -> Result<(), LifecycleError> {
        let incoming = BlkState::decode(envelope)
            .map_err(|error| LifecycleError::BadState(error.to_string()))?;
        let mut state = self.state();
        self.check_import(&incoming, &state)?;
        state.own.serial = incoming.blk.serial;
        state.own.writeback = incoming.blk.writeback;
        let bases = incoming.queues.iter().map(|queue| queue.next_avail);
        self.kind.expect(Some(ExpectedBases {
            bases: bases.collect(),
            or_boots: incoming.blk.acked_features == 0,
        }));
        drop(state);
        if let (Some(qos), Some(keeper)) = (incoming.qos, self.kind.qos_keeper()) {
            keeper.take_qos(qos);
        }
        Ok(())
    }
}
