//! A block device: what its front-end has said so far, and its rings.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use ferry_dataplane::disk::Disk;
use ferry_dataplane::lifecycle::{LifecycleError, RestartHook};
use ferry_dataplane::queue::RequestQueue;
use vmm_sys_util::eventfd::EventFd;

use super::config::{self, feature};
use super::parse::{ID_BYTES, Rules};
use super::queue::BlkQueue;
use crate::inflight::{OwnRegions, Region, RingIdentity, Tracker};
use crate::memory::{DirtyLog, MemoryMap};
use crate::vring::{LogSettings, RingAddress, RingSetup, Vring};

/// Ring size reported for a queue that no front-end has set up.
const RING_SIZE_DEFAULT: u16 = 128;

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

/// How requests in flight outlive the process, so that a successor can finish them.
#[derive(Debug, Clone, Default)]
pub struct Tracking {
    /// Front-ends may keep the region (INFLIGHT_SHMFD is offered).
    pub offered: bool,
    /// Where Ferry keeps one for those that do not; `None` to track nothing for them.
    pub own: Option<OwnRegions>,
}

/// A block device on a disk.
pub struct BlkDevice {
    pub(super) name: Arc<str>,
    pub(super) disk: Arc<Disk>,
    pub(super) num_queues: u16,
    pub(super) tracking: Tracking,
    state: Mutex<State>,
    /// Where an imported device's rings have to begin, until it is activated.
    pub(super) expected: Arc<Mutex<Option<ExpectedBases>>>,
}

/// Where the rings of the machine begin that is to go on with the disk.
pub(super) struct ExpectedBases {
    pub bases: Vec<u16>,
    /// Nobody drove the device any more when it was given up: the machine that did last may go on,
    /// or another may boot.
    pub or_boots: bool,
}

impl ExpectedBases {
    fn fits(&self, at: usize, base: u16) -> bool {
        let expected = self.bases.get(at);
        // Where the last machine stopped is 0 as well where nobody knows it any more.
        let loose = |expected| self.or_boots && (base == 0 || expected == 0);
        expected.is_none_or(|&expected| base == expected || loose(expected))
    }
}

/// One ring as the front-end describes it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub size: u16,
    pub address: Option<RingAddress>,
    /// Guest address of the used ring, when its writes are logged.
    log_used: Option<u64>,
    /// The next available entry to pop, while the ring does not run.
    pub base: u16,
    pub used_idx: u16,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    err: Option<EventFd>,
    /// A kick eventfd, or the wish to be polled, was received since the ring was last stopped.
    kicked: bool,
    pub enabled: bool,
    /// It is with a worker.
    pub running: bool,
    /// It was, since the front-end came.
    ran: bool,
}

/// What a front-end that is gone has left: its machine may be on its way to another host.
pub(super) struct Departed {
    features: u64,
    rings: Vec<Ring>,
}

/// What a front-end negotiated.
#[derive(Default)]
pub(super) struct State {
    pub features: u64,
    pub rings: Vec<Ring>,
    memory: Arc<MemoryMap>,
    log: Option<Arc<DirtyLog>>,
    /// The front-end's in-flight region.
    inflight: Option<Arc<Region>>,
    /// The guest's cache mode, where it may choose: true for writeback.
    pub writeback: bool,
    pub serial: [u8; ID_BYTES],
    /// Told when a ring is started while the disk is out of service.
    pub on_restart: Option<RestartHook>,
    /// Where the front-end listens to the back-end.
    pub channel: Option<OwnedFd>,
    /// Until a ring is started again.
    departed: Option<Departed>,
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
}

impl BlkDevice {
    /// A device on `disk`, without a front-end.
    pub fn new(disk: Arc<Disk>, options: &BlkOptions) -> Arc<BlkDevice> {
        let mut serial = [0; ID_BYTES];
        let bytes = options.serial.as_bytes();
        let len = bytes.len().min(ID_BYTES);
        serial[..len].copy_from_slice(&bytes[..len]);
        let rings = (0..options.num_queues).map(|_| Ring::default()).collect();
        let state = State {
            rings,
            writeback: options
                .tracking
                .own
                .as_ref()
                .is_none_or(OwnRegions::writeback),
            serial,
            ..State::default()
        };
        Arc::new(BlkDevice {
            name: options.name.as_str().into(),
            disk,
            num_queues: options.num_queues,
            tracking: options.tracking.clone(),
            state: Mutex::new(state),
            expected: Arc::default(),
        })
    }

    /// The disk under it.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Queues offered.
    pub fn num_queues(&self) -> u16 {
        self.num_queues
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn try_state(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn offered(&self) -> u64 {
        config::features(self.disk.read_only())
    }

    /// The configuration space as the guest sees it now.
    pub(super) fn config_space(&self, state: &State) -> [u8; config::CONFIG_BYTES] {
        config::space(self.disk.geometry(), self.num_queues, state.writeback)
    }
}

impl State {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Without a cache that the guest can flush, or when it turned the cache off, writes are
    /// durable at completion.
    fn through(&self) -> bool {
        !self.has(feature::BLK_FLUSH) || !self.writeback
    }

    fn log_settings(&self, ring: &Ring) -> LogSettings {
        LogSettings {
            all: self.has(feature::LOG_ALL),
            log: self.log.clone(),
            used_guest: ring.log_used,
        }
    }
}

/// Something a front-end asked that cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no queue {0}")]
    NoQueue(u32),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Worker(#[from] LifecycleError),
}

fn invalid(what: impl std::fmt::Display) -> Refusal {
    Refusal::Invalid(what.to_string())
}

impl BlkDevice {
    fn index(state: &State, index: u32) -> Result<usize, Refusal> {
        let at = usize::try_from(index)
            .ok()
            .filter(|&at| at < state.rings.len());
        at.ok_or(Refusal::NoQueue(index))
    }

    /// Changes every running queue, and returns when each worker has.
    pub(super) fn each_running(
        &self,
        state: &State,
        task: impl Fn(usize) -> Box<dyn FnOnce(&mut BlkQueue) + Send>,
    ) -> Result<(), Refusal> {
        for at in (0..state.rings.len()).filter(|&at| state.rings[at].running) {
            let task = task(at);
            self.disk.with_queue(at, move |queue| {
                let queue: &mut dyn std::any::Any = queue;
                if let Some(queue) = queue.downcast_mut::<BlkQueue>() {
                    task(queue);
                }
            })?;
        }
        Ok(())
    }

    fn log_changed(&self, state: &State) -> Result<(), Refusal> {
        self.each_running(state, |at| {
            let log = state.log_settings(&state.rings[at]);
            Box::new(move |queue| queue.set_log(log))
        })
    }

    pub(super) fn set_features(&self, features: u64) -> Result<(), Refusal> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(invalid(format_args!(
                "features {unknown:#x} were not offered"
            )));
        }
        let mut state = self.state();
        state.features = features;
        let through = state.through();
        self.each_running(&state, |_| {
            Box::new(move |queue| queue.set_through(through))
        })?;
        self.log_changed(&state)
    }

    pub(super) fn set_log(&self, log: DirtyLog) -> Result<(), Refusal> {
        let mut state = self.state();
        state.log = Some(Arc::new(log));
        self.log_changed(&state)
    }

    /// The region stands until the connection ends. Rings that run keep the one they began with.
    pub(super) fn set_inflight(&self, region: Region) {
        self.state().inflight = Some(Arc::new(region));
    }

    /// Nobody will ask for what was in flight: the disk is gone for good.
    pub fn forget_in_flight(&self) {
        if let Some(own) = &self.tracking.own {
            (0..usize::from(self.num_queues)).for_each(|queue| own.forget(queue));
            own.keep_writeback(true);
        }
    }

    /// Where the ring at `at` writes down what is in flight. `None` when nobody wants that.
    fn tracker(
        &self,
        state: &State,
        at: usize,
        identity: RingIdentity,
    ) -> Result<Option<Tracker>, Refusal> {
        let size = state.rings[at].size;
        let made = match (&state.inflight, &self.tracking.own) {
            (Some(region), _) => region.tracker(at, size),
            (None, Some(own)) => own.tracker(at, size, identity),
            (None, None) => return Ok(None),
        };
        made.map(Some).map_err(invalid)
    }

    /// Replaces the guest's memory, in the running rings too.
    pub(super) fn change_memory(
        &self,
        change: impl FnOnce(&MemoryMap) -> Result<MemoryMap, crate::memory::MemoryError>,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        let map = Arc::new(change(&state.memory).map_err(invalid)?);
        state.memory = map.clone();
        self.each_running(&state, |_| {
            let map = map.clone();
            Box::new(move |queue| queue.set_map(map))
        })?;
        self.start_what_can(&mut state)
    }

    pub(super) fn set_ring(
        &self,
        index: u32,
        change: impl FnOnce(&mut Ring) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        if state.rings[at].running {
            return Err(invalid(format_args!("queue {index} runs; stop it first")));
        }
        change(&mut state.rings[at])
    }

    /// Addresses may be set again while the ring runs, to change its logging.
    pub(super) fn set_address(
        &self,
        index: u32,
        address: RingAddress,
        log_used: Option<u64>,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        let moved = state.rings[at].address != Some(address);
        if state.rings[at].running && moved {
            self.stop(&mut state, at)?;
        }
        let ring = &mut state.rings[at];
        ring.address = Some(address);
        ring.log_used = log_used;
        if ring.running {
            return self.log_changed(&state);
        }
        self.start_what_can(&mut state)
    }

    pub(super) fn set_kick(&self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        if state.rings[at].running {
            self.stop(&mut state, at)?;
        }
        // Without the protocol features a ring is enabled from the start.
        let enabled = state.rings[at].enabled || !state.has(feature::PROTOCOL);
        let ring = &mut state.rings[at];
        ring.kick = file.map(eventfd);
        ring.kicked = true;
        ring.enabled = enabled;
        self.start_what_can(&mut state)
    }

    pub(super) fn set_call(&self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        let call = file.map(eventfd);
        if !state.rings[at].running {
            state.rings[at].call = call;
            return Ok(());
        }
        self.disk.with_queue(at, move |queue| {
            let queue: &mut dyn std::any::Any = queue;
            if let Some(queue) = queue.downcast_mut::<BlkQueue>() {
                queue.ring_mut().set_call(call);
            }
        })?;
        Ok(())
    }

    pub(super) fn set_err(&self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        let err = file.map(eventfd);
        if !state.rings[at].running {
            state.rings[at].err = err;
            return Ok(());
        }
        self.disk.with_queue(at, move |queue| {
            let queue: &mut dyn std::any::Any = queue;
            if let Some(queue) = queue.downcast_mut::<BlkQueue>() {
                queue.ring_mut().set_err(err);
            }
        })?;
        Ok(())
    }

    pub(super) fn set_enabled(&self, index: u32, enabled: bool) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        state.rings[at].enabled = enabled;
        if enabled {
            return self.start_what_can(&mut state);
        }
        self.stop(&mut state, at)
    }

    /// Stops a ring, drained, and answers its next available index (GET_VRING_BASE). Waits for
    /// local I/O only.
    pub(super) fn take_base(&self, index: u32) -> Result<u16, Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        self.stop(&mut state, at)?;
        let ring = &mut state.rings[at];
        ring.kicked = false;
        ring.kick = None;
        Ok(ring.base)
    }

    pub(super) fn set_writeback(&self, writeback: bool) -> Result<(), Refusal> {
        let mut state = self.state();
        self.keep_writeback(&mut state, writeback);
        let through = state.through();
        self.each_running(&state, |_| {
            Box::new(move |queue| queue.set_through(through))
        })
    }

    /// A successor must know it, as front-ends do not say it again.
    fn keep_writeback(&self, state: &mut State, writeback: bool) {
        if state.writeback != writeback
            && let Some(own) = &self.tracking.own
        {
            own.keep_writeback(writeback);
        }
        state.writeback = writeback;
    }

    /// Stops every ring and forgets the driver, as at a reset of the device.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        self.forget_driver(&mut state);
        state.departed = None;
        self.keep_writeback(&mut state, true);
    }

    fn forget_driver(&self, state: &mut State) {
        for at in 0..state.rings.len() {
            if let Err(error) = self.stop(state, at) {
                tracing::error!(device = %self.name, %error, "a ring could not be stopped");
            }
        }
        let rest = |ring: &Ring| Ring {
            size: ring.size,
            base: ring.base,
            used_idx: ring.used_idx,
            enabled: ring.enabled,
            ..Ring::default()
        };
        if state.rings.iter().any(|ring| ring.ran) {
            state.departed = Some(Departed {
                features: state.features,
                rings: state.rings.iter().map(rest).collect(),
            });
        }
        state.rings.fill_with(Ring::default);
        state.features = 0;
    }

    /// The front-end is gone. One that comes back may be the same guest's, whose cache mode stands.
    pub(super) fn disconnect(&self) {
        let mut state = self.state();
        self.forget_driver(&mut state);
        state.memory = Arc::default();
        state.log = None;
        state.inflight = None;
        state.channel = None;
    }

    fn stop(&self, state: &mut State, at: usize) -> Result<(), Refusal> {
        if !state.rings[at].running {
            return Ok(());
        }
        let queue = self.disk.stop_queue(at)?;
        state.rings[at].running = false;
        let Some(queue) = queue else { return Ok(()) };
        let queue: Box<dyn std::any::Any> = queue;
        let Ok(queue) = queue.downcast::<BlkQueue>() else {
            return Ok(());
        };
        let vring = queue.into_ring();
        if vring.recovering() > 0 {
            tracing::error!(
                device = %self.name, queue = at, requests = vring.recovering(),
                "the ring was stopped while its disk is out of service, with requests of an earlier \
                 process unserved: they are safe only if this front-end starts it here again"
            );
        } else if let (None, Some(own)) = (&state.inflight, &self.tracking.own)
            && vring.is_idle()
        {
            own.forget(at);
        }
        let ring = &mut state.rings[at];
        ring.base = vring.next_avail();
        ring.used_idx = vring.used_index();
        (ring.kick, ring.call, ring.err) = vring.into_eventfds();
        Ok(())
    }

    /// Starts the rings for which everything is known. What is not yet there is not an error: the
    /// order of a front-end's messages is its own.
    fn start_what_can(&self, state: &mut State) -> Result<(), Refusal> {
        for at in 0..state.rings.len() {
            let ring = &state.rings[at];
            if !ring.running
                && ring.kicked
                && ring.enabled
                && ring.size > 0
                && ring.address.is_some()
            {
                self.start(state, at)?;
            }
        }
        Ok(())
    }

    fn start(&self, state: &mut State, at: usize) -> Result<(), Refusal> {
        let base = state.rings[at].base;
        if !self.is_expected(at, base) {
            tracing::error!(
                device = %self.name, queue = at, base,
                "the ring does not begin where the disk's state says it stopped: this is not the \
                 machine that the disk came with, and it is not served"
            );
            return Ok(());
        }
        let log = state.log_settings(&state.rings[at]);
        let rules = Rules {
            capacity_bytes: self.disk.geometry().capacity_bytes,
            read_only: self.disk.read_only(),
            through: state.through(),
        };
        let (event_idx, indirect) = (
            state.has(feature::EVENT_IDX),
            state.has(feature::INDIRECT_DESC),
        );
        let map = state.memory.clone();
        let ring = &state.rings[at];
        let Some(address) = ring.address else {
            return Ok(());
        };
        let Some(identity) = RingIdentity::of(&map, address, ring.size) else {
            // The memory table may be yet to come.
            tracing::debug!(device = %self.name, queue = at, "a ring is not in guest memory yet");
            return Ok(());
        };
        let tracker = self.tracker(state, at, identity)?;
        // A ring without its kick or call would run, and its guest would wait for ever.
        let clone = |fd: &Option<EventFd>| {
            let copy = fd.as_ref().map(EventFd::try_clone).transpose();
            copy.map_err(|error| {
                invalid(format_args!(
                    "queue {at} cannot start, its eventfds cannot be copied: {error}; raise the \
                     limit of open files (LimitNOFILE, ulimit -n)"
                ))
            })
        };
        let setup = RingSetup {
            size: ring.size,
            address,
            next_avail: ring.base,
            event_idx,
            indirect,
            kick: clone(&ring.kick)?,
            call: clone(&ring.call)?,
            err: clone(&ring.err)?,
            map,
            log,
            tracker,
        };
        let vring = match Vring::new(setup) {
            Ok(vring) => vring,
            Err(error) => {
                // The memory table may be yet to come.
                tracing::debug!(device = %self.name, queue = at, %error, "a ring cannot start yet");
                return Ok(());
            }
        };
        if vring.recovering() > 0 {
            tracing::info!(
                device = %self.name, queue = at, requests = vring.recovering(),
                "requests that an earlier process had in flight are served again"
            );
        }
        let name = format!("{}:{at}", self.name).into();
        let queue: Box<dyn RequestQueue> =
            Box::new(BlkQueue::new(name, vring, rules, state.serial));
        self.disk.start_queue(at, queue)?;
        (state.rings[at].running, state.rings[at].ran) = (true, true);
        state.departed = None;
        tracing::debug!(device = %self.name, queue = at, base = state.rings[at].base, "ring started");
        if let Some(on_restart) = &state.on_restart {
            on_restart();
        }
        Ok(())
    }

    fn is_expected(&self, at: usize, base: u16) -> bool {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.as_ref().is_none_or(|it| it.fits(at, base))
    }

    pub(super) fn expect(&self, expected: Option<ExpectedBases>) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = expected;
    }

    /// A ring's size for the device's state.
    pub(super) fn ring_size(ring: &Ring) -> u16 {
        if ring.size == 0 {
            RING_SIZE_DEFAULT
        } else {
            ring.size
        }
    }
}

fn eventfd(file: File) -> EventFd {
    // SAFETY: `file` owned the descriptor and gives it up here.
    #[allow(unsafe_code)]
    unsafe {
        EventFd::from_raw_fd(file.into_raw_fd())
    }
}
