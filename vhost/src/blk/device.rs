//! A block device: a disk, its cache mode, and who serves its rings.

use std::any::Any;
use std::sync::{Arc, Mutex};

use ferry_dataplane::disk::Disk;
use ferry_dataplane::lifecycle::RestartHook;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::config::{self, WRITEBACK_OFFSET, feature};
use super::expected::ExpectedBases;
use super::parse::{ID_BYTES, Rules};
use super::qos::QosKeeper;
use super::queue::BlkQueue;
use crate::device::{Device, Kind, PROTOCOL_FEATURES, Refusal, State, Tracking};
use crate::inflight::OwnRegions;
use crate::vring::Vring;

/// What a device is made of.
#[derive(Debug, Clone)]
pub struct BlkOptions {
    /// Name, for messages and as the guest's GET_ID unless `serial` says otherwise.
    pub name: String,
    /// Virtqueues offered.
    pub num_queues: u16,
    /// What GET_ID answers; cut at 20 bytes.
    pub serial: String,
    /// How requests in flight outlive the process.
    pub tracking: Tracking,
}

/// A block device on a disk.
pub type BlkDevice = Device<Blk>;

/// The kind of device that a disk is.
pub struct Blk {
    pub(super) name: Arc<str>,
    pub(super) disk: Arc<Disk>,
    num_queues: u16,
    tracking: Tracking,
    /// Where an imported device's rings have to begin, until it is activated.
    pub(super) expected: Arc<Mutex<Option<ExpectedBases>>>,
    /// Who keeps what the disk is to get of its datastore, if anybody does.
    pub(super) qos: Mutex<Option<Arc<dyn QosKeeper>>>,
}

/// What a block device keeps under its lock.
pub struct Own {
    /// The guest's cache mode, where it may choose: true for writeback.
    pub(super) writeback: bool,
    pub(super) serial: [u8; ID_BYTES],
    /// Told when a ring is started while the disk is out of service.
    pub(super) on_restart: Option<RestartHook>,
}

impl BlkDevice {
    /// A device on `disk`, without a front-end.
    pub fn new(disk: Arc<Disk>, options: &BlkOptions) -> Arc<BlkDevice> {
        let mut serial = [0; ID_BYTES];
        let bytes = options.serial.as_bytes();
        let len = bytes.len().min(ID_BYTES);
        serial[..len].copy_from_slice(&bytes[..len]);
        let kept = options.tracking.own.as_ref();
        let own = Own {
            writeback: kept.is_none_or(OwnRegions::writeback),
            serial,
            on_restart: None,
        };
        let kind = Blk {
            name: options.name.as_str().into(),
            disk,
            num_queues: options.num_queues,
            tracking: options.tracking.clone(),
            expected: Arc::default(),
            qos: Mutex::default(),
        };
        Device::without_front_end(kind, own)
    }

    /// The disk under it.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.kind.disk
    }

    /// Nobody will ask for what was in flight: the disk is gone for good.
    pub fn forget_in_flight(&self) {
        if let Some(own) = &self.kind.tracking.own {
            (0..usize::from(self.kind.num_queues)).for_each(|queue| own.forget(queue));
            own.keep_writeback(true);
        }
    }
}

impl State<Blk> {
    /// Without a cache that the guest can flush, or when it turned the cache off, writes are
    /// durable at completion.
    fn through(&self) -> bool {
        !self.has(feature::BLK_FLUSH) || !self.own.writeback
    }
}

impl Blk {
    /// Changes a running queue, and returns when its worker has.
    fn on_running(
        &self,
        at: usize,
        task: impl FnOnce(&mut BlkQueue) + Send + 'static,
    ) -> Result<(), Refusal> {
        self.disk.with_queue(at, move |queue| {
            let queue: &mut dyn Any = queue;
            if let Some(queue) = queue.downcast_mut::<BlkQueue>() {
                task(queue);
            }
        })?;
        Ok(())
    }

    /// The running queues follow the disk's size.
    pub(super) fn capacity_changed(
        &self,
        state: &State<Blk>,
        capacity_bytes: u64,
    ) -> Result<(), Refusal> {
        state
            .running()
            .try_for_each(|at| self.on_running(at, move |queue| queue.set_capacity(capacity_bytes)))
    }

    /// The running queues follow the cache mode.
    fn through_changed(&self, state: &State<Blk>) -> Result<(), Refusal> {
        let through = state.through();
        state
            .running()
            .try_for_each(|at| self.on_running(at, move |queue| queue.set_through(through)))
    }

    /// A successor must know it, as front-ends do not say it again.
    fn keep_writeback(&self, own: &mut Own, writeback: bool) {
        if own.writeback != writeback
            && let Some(files) = &self.tracking.own
        {
            files.keep_writeback(writeback);
        }
        own.writeback = writeback;
    }
}

impl Kind for Blk {
    type Own = Own;

    fn name(&self) -> &str {
        &self.name
    }

    fn num_queues(&self) -> u16 {
        self.num_queues
    }

    fn features(&self) -> u64 {
        config::features(self.disk.read_only())
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES | VhostUserProtocolFeatures::CONFIG
    }

    fn tracking(&self) -> &Tracking {
        &self.tracking
    }

    fn config(&self, state: &State<Blk>) -> Vec<u8> {
        let writeback = state.own.writeback;
        config::space(self.disk.geometry(), self.num_queues, writeback).to_vec()
    }

    fn set_config(
        &self,
        state: &mut State<Blk>,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        let (WRITEBACK_OFFSET, &[mode]) = (offset, bytes) else {
            return Err(Refusal::invalid("only the cache mode may be written"));
        };
        self.keep_writeback(&mut state.own, mode != 0);
        self.through_changed(state)
    }

    fn may_start(&self, at: usize, base: u16) -> bool {
        let expected = self.is_expected(at, base);
        if !expected {
            tracing::error!(
                device = %self.name, queue = at, base,
                "the ring does not begin where the disk's state says it stopped: this is not the \
                 machine that the disk came with, and it is not served"
            );
        }
        expected
    }

    fn start(
        &self,
        state: &State<Blk>,
        at: usize,
        name: Arc<str>,
        ring: Vring,
    ) -> Result<(), Refusal> {
        let rules = Rules {
            capacity_bytes: self.disk.geometry().capacity_bytes,
            read_only: self.disk.read_only(),
            through: state.through(),
        };
        let queue = Box::new(BlkQueue::new(name, ring, rules, state.own.serial));
        self.disk.start_queue(at, queue)?;
        if let Some(on_restart) = &state.own.on_restart {
            on_restart();
        }
        Ok(())
    }

    fn stop(&self, at: usize) -> Result<Option<Vring>, Refusal> {
        let Some(queue) = self.disk.stop_queue(at)? else {
            return Ok(None);
        };
        let queue: Box<dyn Any> = queue;
        Ok(queue
            .downcast()
            .ok()
            .map(|queue| BlkQueue::into_ring(*queue)))
    }

    fn with_ring(
        &self,
        at: usize,
        task: impl FnOnce(&mut Vring) + Send + 'static,
    ) -> Result<(), Refusal> {
        self.on_running(at, move |queue| task(queue.ring_mut()))
    }

    fn features_changed(&self, state: &State<Blk>) -> Result<(), Refusal> {
        self.through_changed(state)
    }

    /// At a disconnection the cache mode stands: one that comes back may be the same guest's.
    fn reset(&self, state: &mut State<Blk>) {
        self.keep_writeback(&mut state.own, true);
    }
}
