//! What a front-end asks for, message by message, and what follows from its going.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::state::{Departed, Ring, State};
use super::{BlkDevice, Refusal, invalid};
use crate::blk::config::feature;
use crate::inflight::Region;
use crate::memory::{DirtyLog, MemoryMap};
use crate::vring::RingAddress;

impl BlkDevice {
    fn index(state: &State, index: u32) -> Result<usize, Refusal> {
        let at = usize::try_from(index)
            .ok()
            .filter(|&at| at < state.rings.len());
        at.ok_or(Refusal::NoQueue(index))
    }

    fn log_changed(&self, state: &State) -> Result<(), Refusal> {
        self.each_running(state, |at| {
            let log = state.log_settings(&state.rings[at]);
            Box::new(move |queue| queue.set_log(log))
        })
    }

    pub(in crate::blk) fn set_features(&self, features: u64) -> Result<(), Refusal> {
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

    pub(in crate::blk) fn set_log(&self, log: DirtyLog) -> Result<(), Refusal> {
        let mut state = self.state();
        state.log = Some(Arc::new(log));
        self.log_changed(&state)
    }

    /// The region stands until the connection ends. Rings that run keep the one they began with.
    pub(in crate::blk) fn set_inflight(&self, region: Region) {
        self.state().inflight = Some(Arc::new(region));
    }

    /// Replaces the guest's memory, in the running rings too.
    pub(in crate::blk) fn change_memory(
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

    pub(in crate::blk) fn set_ring(
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
    pub(in crate::blk) fn set_address(
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

    pub(in crate::blk) fn set_kick(&self, index: u32, file: Option<File>) -> Result<(), Refusal> {
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

    pub(in crate::blk) fn set_call(&self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        let call = file.map(eventfd);
        if !state.rings[at].running {
            state.rings[at].call = call;
            return Ok(());
        }
        self.on_running(at, move |queue| queue.ring_mut().set_call(call))
    }

    pub(in crate::blk) fn set_err(&self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        let err = file.map(eventfd);
        if !state.rings[at].running {
            state.rings[at].err = err;
            return Ok(());
        }
        self.on_running(at, move |queue| queue.ring_mut().set_err(err))
    }

    pub(in crate::blk) fn set_enabled(&self, index: u32, enabled: bool) -> Result<(), Refusal> {
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
    pub(in crate::blk) fn take_base(&self, index: u32) -> Result<u16, Refusal> {
        let mut state = self.state();
        let at = Self::index(&state, index)?;
        self.stop(&mut state, at)?;
        let ring = &mut state.rings[at];
        ring.kicked = false;
        ring.kick = None;
        Ok(ring.base)
    }

    pub(in crate::blk) fn set_writeback(&self, writeback: bool) -> Result<(), Refusal> {
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
    pub(in crate::blk) fn reset(&self) {
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
    pub(in crate::blk) fn disconnect(&self) {
        let mut state = self.state();
        self.forget_driver(&mut state);
        state.memory = Arc::default();
        state.log = None;
        state.inflight = None;
        state.channel = None;
    }
}

fn eventfd(file: File) -> EventFd {
    // SAFETY: `file` owned the descriptor and gives it up here.
    #[allow(unsafe_code)]
    unsafe {
        EventFd::from_raw_fd(file.into_raw_fd())
    }
}
