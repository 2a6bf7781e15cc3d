//! Rings that are handed to the workers and taken back from them.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Device, Kind, Refusal, State, feature};
use crate::inflight::{RingIdentity, Tracker};
use crate::vring::{RingSetup, Vring};

impl<K: Kind> Device<K> {
    /// The ring's name, for messages.
    pub(super) fn ring_name(&self, at: usize) -> Arc<str> {
        format!("{}:{at}", self.kind.name()).into()
    }

    /// Where the ring at `at` writes down what is in flight. `None` when nobody wants that.
    fn tracker(
        &self,
        state: &State<K>,
        at: usize,
        identity: RingIdentity,
    ) -> Result<Option<Tracker>, Refusal> {
        let size = state.rings[at].size;
        let made = match (&state.inflight, &self.kind.tracking().own) {
            (Some(region), _) => region.tracker(at, size),
            (None, Some(own)) => own.tracker(at, size, identity),
            (None, None) => return Ok(None),
        };
        made.map(Some).map_err(Refusal::invalid)
    }

    pub(super) fn stop(&self, state: &mut State<K>, at: usize) -> Result<(), Refusal> {
        if !state.rings[at].running {
            return Ok(());
        }
        let vring = self.kind.stop(at)?;
        state.rings[at].running = false;
        self.take_back(state, at, vring);
        self.kind.stopped(state);
        Ok(())
    }

    fn take_back(&self, state: &mut State<K>, at: usize, vring: Option<Vring>) {
        let Some(vring) = vring else { return };
        if vring.recovering() > 0 {
            tracing::error!(
                device = self.kind.name(),
                queue = at,
                requests = vring.recovering(),
                "the ring was stopped while its device is out of service, with requests of an earlier \
                 process unserved: they are safe only if this front-end starts it here again"
            );
        } else if let (None, Some(own)) = (&state.inflight, &self.kind.tracking().own)
            && vring.is_idle()
        {
            own.forget(at);
        }
        let ring = &mut state.rings[at];
        ring.base = vring.next_avail();
        ring.used_idx = vring.used_index();
        (ring.kick, ring.call, ring.err) = vring.into_eventfds();
    }

    /// Starts the rings for which everything is known. What is not yet there is not an error: the
    /// order of a front-end's messages is its own.
    pub(crate) fn start_what_can(&self, state: &mut State<K>) -> Result<(), Refusal> {
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

    fn start(&self, state: &mut State<K>, at: usize) -> Result<(), Refusal> {
        let base = state.rings[at].base;
        if !self.kind.may_start(at, base) {
            return Ok(());
        }
        let log = state.log_settings(&state.rings[at]);
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
            tracing::debug!(
                device = self.kind.name(),
                queue = at,
                "a ring is not in guest memory yet"
            );
            return Ok(());
        };
        let tracker = self.tracker(state, at, identity)?;
        // A ring without its kick or call would run, and its guest would wait for ever.
        let clone = |fd: &Option<EventFd>| {
            let copy = fd.as_ref().map(EventFd::try_clone).transpose();
            copy.map_err(|error| {
                Refusal::invalid(format_args!(
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
                tracing::debug!(device = self.kind.name(), queue = at, %error, "a ring cannot start yet");
                return Ok(());
            }
        };
        if vring.recovering() > 0 {
            tracing::info!(
                device = self.kind.name(),
                queue = at,
                requests = vring.recovering(),
                "requests that an earlier process had in flight are served again"
            );
        }
        self.kind.start(state, at, self.ring_name(at), vring)?;
        (state.rings[at].running, state.rings[at].ran) = (true, true);
        state.has_run = true;
        state.departed = None;
        tracing::debug!(device = self.kind.name(), queue = at, base, "ring started");
        Ok(())
    }
}
