//! What a front-end asks for, message by message, and what follows from its going.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::state::{Departed, Ring, State};
use super::{Device, Kind, Refusal, feature};
use crate::inflight::Region;
use crate::memory::{DirtyLog, MemoryMap};
use crate::vring::RingAddress;

impl<K: Kind> Device<K> {
    fn index(state: &State<K>, index: u32) -> Result<usize, Refusal> {
        let at = usize::try_from(index)
            .ok()
            .filter(|&at| at < state.rings.len());
        at.ok_or(Refusal::NoQueue(index))
    }

    fn log_changed(&self, state: &State<K>) -> Result<(), Refusal> {
        for at in state.running() {
            let log = state.log_settings(&state.rings[at]);
            self.kind.with_ring(at, move |ring| ring.set_log(log))?;
        }
        Ok(())
    }

    pub(super) fn set_features(&self, features: u64) -> Result<(), Refusal> {
        let unknown = features & !self.kind.features();
        if unknown != 0 {
            return Err(Refusal::invalid(format_args!(
                "features {unknown:#x} were not offered"
            )));
        }
        let mut state = self.state();
        state.features = features;
        self.kind.features_changed(&state)?;
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

    /// Replaces the guest's memory, in the running rings too.
    pub(super) fn change_memory(
        &self,
        change: impl FnOnce(&MemoryMap) -> Result<MemoryMap, crate::memory::MemoryError>,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        let map = Arc::new(change(&state.memory).map_err(Refusal::invalid)?);
        state.memory = map.clone();
        for at in state.running() {
            let (map, name) = (map.clone(), self.ring_name(at));
            self.kind.with_ring(at, move |ring| {
                if !ring.set_map(map) {
                    tracing::warn!(queue = %name, "the ring is not in the new memory table; it waits");
                }
            })?;
        }
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
            return Err(Refusal::invalid(format_args!(
                "queue {index} runs; stop it first"
            )));
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
        self.kind.with_ring(at, move |ring| ring.set_call(call))
    }

    pub(super) fn set_err(&self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        let err = file.map(eventfd);
        if !state.rings[at].running {
            state.rings[at].err = err;
            return Ok(());
        }
        self.kind.with_ring(at, move |ring| ring.set_err(err))
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

    /// Stops every ring and forgets the driver, as at a reset of the device.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        self.forget_driver(&mut state);
        state.departed = None;
        self.kind.reset(&mut state);
    }

    fn forget_driver(&self, state: &mut State<K>) {
        for at in 0..state.rings.len() {
            if let Err(error) = self.stop(state, at) {
                tracing::error!(device = self.kind.name(), %error, "a ring could not be stopped");
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

    /// The front-end is gone.
    pub(super) fn disconnect(&self) {
        let mut state = self.state();
        self.forget_driver(&mut state);
        (state.connected, state.has_run) = (false, false);
        state.memory = Arc::default();
        state.log = None;
        state.inflight = None;
        state.channel = None;
        self.kind.disconnected(&mut state);
    }
}

fn eventfd(file: File) -> EventFd {
    // SAFETY: `file` owned the descriptor and gives it up here.
    #[allow(unsafe_code)]
    unsafe {
        EventFd::from_raw_fd(file.into_raw_fd())
    }
}
