//! A device's own state, which the server writes into a pipe and reads from one.

use std::io::{Read, Write, pipe};
use std::os::fd::OwnedFd;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};

use super::error::VmmError;
use super::vmm::{Vmm, host};

/// What a pipe holds at least before its writer waits for the reader.
const PIPE_BYTES: usize = 64 * 1024;

impl Vmm {
    /// The state of a device whose rings are stopped.
    pub fn save_state(&mut self) -> Result<Vec<u8>, VmmError> {
        let (mut from, to) = pipe().map_err(host("a pipe"))?;
        self.carry(VhostTransferStateDirection::SAVE, to.into())?;
        let mut state = Vec::new();
        from.read_to_end(&mut state)
            .map_err(host("the device's state"))?;
        self.check_state()?;
        Ok(state)
    }

    /// Gives the server the state of a device that was saved elsewhere.
    pub fn load_state(&mut self, state: &[u8]) -> Result<(), VmmError> {
        if state.len() > PIPE_BYTES {
            return Err(VmmError::Misuse("a state over 64 KiB"));
        }
        let (from, mut to) = pipe().map_err(host("a pipe"))?;
        self.carry(VhostTransferStateDirection::LOAD, from.into())?;
        to.write_all(state).map_err(host("the device's state"))?;
        drop(to);
        self.check_state()
    }

    fn carry(
        &mut self,
        direction: VhostTransferStateDirection,
        file: OwnedFd,
    ) -> Result<(), VmmError> {
        let stopped = VhostTransferStatePhase::STOPPED;
        self.call("SET_DEVICE_STATE_FD", |f| {
            f.set_device_state_fd(direction, stopped, file)
        })?;
        Ok(())
    }

    fn check_state(&mut self) -> Result<(), VmmError> {
        self.call("CHECK_DEVICE_STATE", |f| f.check_device_state())
    }
}
