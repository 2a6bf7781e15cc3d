//! What a front-end has said, and what one that is gone has left.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Kind, feature};
use crate::back_channel::say_config_changed;
use crate::inflight::Region;
use crate::memory::{DirtyLog, MemoryMap};
use crate::vring::{LogSettings, RingAddress};

/// Ring size reported for a queue that no front-end has set up.
const RING_SIZE_DEFAULT: u16 = 128;

/// One ring as the front-end describes it.
#[derive(Debug, Default)]
pub struct Ring {
    pub(super) size: u16,
    pub(super) address: Option<RingAddress>,
    /// Guest address of the used ring, when its writes are logged.
    pub(super) log_used: Option<u64>,
    /// The next available entry to pop, while the ring does not run.
    pub(crate) base: u16,
    pub(crate) used_idx: u16,
    pub(super) kick: Option<EventFd>,
    pub(super) call: Option<EventFd>,
    pub(super) err: Option<EventFd>,
    /// A kick eventfd, or the wish to be polled, was received since the ring was last stopped.
    pub(super) kicked: bool,
    pub(crate) enabled: bool,
    /// It is with a worker.
    pub(crate) running: bool,
    /// It was, since the front-end came.
    pub(super) ran: bool,
}

impl Ring {
    /// Its size, for the device's saved state.
    pub(crate) fn reported_size(&self) -> u16 {
        if self.size == 0 {
            RING_SIZE_DEFAULT
        } else {
            self.size
        }
    }
}

/// What a front-end that is gone has left: its machine may be on its way to another host.
pub(super) struct Departed {
    pub(super) features: u64,
    pub(super) rings: Vec<Ring>,
}

/// What a front-end negotiated, and what the kind keeps with it.
pub struct State<K: Kind> {
    /// There is a front-end.
    pub(crate) connected: bool,
    /// A ring has run since it came.
    pub(crate) has_run: bool,
    pub(crate) features: u64,
    pub(crate) rings: Vec<Ring>,
    pub(super) memory: Arc<MemoryMap>,
    pub(super) log: Option<Arc<DirtyLog>>,
    /// The front-end's in-flight region.
    pub(super) inflight: Option<Arc<Region>>,
    /// Where the front-end listens to the back-end.
    pub(super) channel: Option<OwnedFd>,
    /// Until a ring is started again.
    pub(super) departed: Option<Departed>,
    /// The kind's.
    pub(crate) own: K::Own,
}

impl<K: Kind> State<K> {
    pub(super) fn new(num_queues: u16, own: K::Own) -> State<K> {
        State {
            connected: false,
            has_run: false,
            features: 0,
            rings: (0..num_queues).map(|_| Ring::default()).collect(),
            memory: Arc::default(),
            log: None,
            inflight: None,
            channel: None,
            departed: None,
            own,
        }
    }

    /// The last machine need not come back: another may boot as well.
    pub(crate) fn forget_departed(&mut self) {
        if let Some(departed) = &mut self.departed {
            departed.features = 0;
        }
    }

    /// Whether no ring has run since the last front-end left.
    pub(crate) fn has_departed(&self) -> bool {
        self.departed.is_some()
    }

    /// Features and rings of the machine that drives the device, or of the one that did last.
    pub(crate) fn machine(&self) -> (u64, &[Ring]) {
        match &self.departed {
            Some(departed) => (departed.features, &departed.rings),
            None => (self.features, &self.rings),
        }
    }

    /// Where a ring of the machine stood whose front-end is gone.
    pub(crate) fn left_at(&self, at: usize) -> Option<u16> {
        let departed = self.departed.as_ref()?;
        departed.rings.get(at).map(|ring| ring.base)
    }

    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// The rings that workers have.
    pub(crate) fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.rings.len()).filter(|&at| self.rings[at].running)
    }

    /// Has the front-end read the configuration space again. True when it was told. `device` is for
    /// messages.
    pub(crate) fn tell_config_changed(&self, device: &str) -> bool {
        let Some(channel) = &self.channel else {
            return false;
        };
        say_config_changed(channel).unwrap_or_else(|error| {
            tracing::warn!(device, %error,
                "the front-end was not told that the device's configuration has changed");
            false
        })
    }

    pub(super) fn log_settings(&self, ring: &Ring) -> LogSettings {
        LogSettings {
            all: self.has(feature::LOG_ALL),
            log: self.log.clone(),
            used_guest: ring.log_used,
        }
    }
}
