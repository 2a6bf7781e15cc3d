//! A disk that grows while its guest runs.
//!
//! The order: the backend grows, then the running queues take the larger size, then the front-end is
//! told that the configuration has changed, reads it, and tells its guest. A guest that asks for the
//! new range before it was told is served.

use ferry_dataplane::backend::grow::GrowError;

use super::device::BlkDevice;
use crate::device::Refusal;

/// Why a disk keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The disk does not grow.
    #[error(transparent)]
    Grow(#[from] GrowError),
    /// It grew, and its queues serve the old size until they start again.
    #[error("the disk has grown, and its running queues were not told: {0}; restart the guest")]
    Queues(String),
}

impl From<Refusal> for ResizeError {
    fn from(refusal: Refusal) -> ResizeError {
        ResizeError::Queues(refusal.to_string())
    }
}

impl BlkDevice {
    /// Makes the disk larger. True when the front-end was told; otherwise the guest sees the new
    /// size when it starts next. May block.
    pub fn resize(&self, capacity_bytes: u64) -> Result<bool, ResizeError> {
        // Held, so that no ring starts with the old size.
        let state = self.state();
        self.kind.disk.grow(capacity_bytes)?;
        self.kind.capacity_changed(&state, capacity_bytes)?;
        Ok(state.tell_config_changed(&self.kind.name))
    }
}
