//! Rings that are handed to the workers and taken back from them.

use std::sync::PoisonError;

use ferry_dataplane::queue::RequestQueue;
use vmm_sys_util::eventfd::EventFd;

use super::state::{Ring, State};
use super::{BlkDevice, Refusal, invalid};
use crate::blk::config::feature;
use crate::blk::parse::Rules;
use crate::blk::queue::BlkQueue;
use crate::inflight::{RingIdentity, Tracker};
use crate::vring::{RingSetup, Vring};

/// Ring size reported for a queue that no front-end has set up.
const RING_SIZE_DEFAULT: u16 = 128;

/// Where the rings of the machine begin that is to go on with the disk.
pub(in crate::blk) struct ExpectedBases {
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

impl BlkDevice {
    /// Changes every running queue, and returns when each worker has.
    pub(in crate::blk) fn each_running(
        &self,
        state: &State,
        task: impl Fn(usize) -> Box<dyn FnOnce(&mut BlkQueue) + Send>,
    ) -> Result<(), Refusal> {
        for at in (0..state.rings.len()).filter(|&at| state.rings[at].running) {
            self.on_running(at, task(at))?;
        }
        Ok(())
    }

    /// Changes a running queue, and returns when its worker has.
    pub(super) fn on_running(
        &self,
        at: usize,
        task: impl FnOnce(&mut BlkQueue) + Send + 'static,
    ) -> Result<(), Refusal> {
        self.disk.with_queue(at, move |queue| {
            let queue: &mut dyn std::any::Any = queue;
            if let Some(queue) = queue.downcast_mut::<BlkQueue>() {
                task(queue);
            }
        })?;
        Ok(())
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

    pub(super) fn stop(&self, state: &mut State, at: usize) -> Result<(), Refusal> {
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
    pub(super) fn start_what_can(&self, state: &mut State) -> Result<(), Refusal> {
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

    pub(in crate::blk) fn expect(&self, expected: Option<ExpectedBases>) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = expected;
    }

    /// A ring's size for the device's state.
    pub(in crate::blk) fn ring_size(ring: &Ring) -> u16 {
        if ring.size == 0 {
            RING_SIZE_DEFAULT
        } else {
            ring.size
        }
    }
}
