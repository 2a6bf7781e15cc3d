//! What a front-end has said, and what one that is gone has left.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferry_dataplane::lifecycle::RestartHook;
use vmm_sys_util::eventfd::EventFd;

use crate::blk::config::feature;
use crate::blk::parse::ID_BYTES;
use crate::inflight::Region;
use crate::memory::{DirtyLog, MemoryMap};
use crate::vring::{LogSettings, RingAddress};

/// One ring as the front-end describes it.
#[derive(Debug, Default)]
pub(in crate::blk) struct Ring {
    pub size: u16,
    pub address: Option<RingAddress>,
    /// Guest address of the used ring, when its writes are logged.
    pub(super) log_used: Option<u64>,
    /// The next available entry to pop, while the ring does not run.
    pub base: u16,
    pub used_idx: u16,
    pub(super) kick: Option<EventFd>,
    pub(super) call: Option<EventFd>,
    pub(super) err: Option<EventFd>,
    /// A kick eventfd, or the wish to be polled, was received since the ring was last stopped.
    pub(super) kicked: bool,
    pub enabled: bool,
    /// It is with a worker.
    pub running: bool,
    /// It was, since the front-end came.
    pub(super) ran: bool,
}

/// What a front-end that is gone has left: its machine may be on its way to another host.
pub(super) struct Departed {
    pub(super) features: u64,
    pub(super) rings: Vec<Ring>,
}

/// What a front-end negotiated.
#[derive(Default)]
pub(in crate::blk) struct State {
    pub features: u64,
    pub rings: Vec<Ring>,
    pub(super) memory: Arc<MemoryMap>,
    pub(super) log: Option<Arc<DirtyLog>>,
    /// The front-end's in-flight region.
    pub(super) inflight: Option<Arc<Region>>,
    /// The guest's cache mode, where it may choose: true for writeback.
    pub writeback: bool,
    pub serial: [u8; ID_BYTES],
    /// Told when a ring is started while the disk is out of service.
    pub on_restart: Option<RestartHook>,
    /// Where the front-end listens to the back-end.
    pub channel: Option<OwnedFd>,
    /// Until a ring is started again.
    pub(super) departed: Option<Departed>,
}

impl State {
    /// The last machine need not come back: another may boot as well.
    pub fn forget_departed(&mut self) {
        if let Some(departed) = &mut self.departed {
            departed.features = 0;
        }
    }

    /// Features and rings of the machine that drives the device, or of the one that did last.
    pub fn machine(&self) -> (u64, &[Ring]) {
        match &self.departed {
            Some(departed) => (departed.features, &departed.rings),
            None => (self.features, &self.rings),
        }
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Without a cache that the guest can flush, or when it turned the cache off, writes are
    /// durable at completion.
    pub(super) fn through(&self) -> bool {
        !self.has(feature::BLK_FLUSH) || !self.writeback
    }

    pub(super) fn log_settings(&self, ring: &Ring) -> LogSettings {
        LogSettings {
            all: self.has(feature::LOG_ALL),
            log: self.log.clone(),
            used_guest: ring.log_used,
        }
    }
}
