//! A disk's size, from the control side.

use super::Disk;
use crate::backend::grow::GrowError;

impl Disk {
    /// Makes the disk larger while it serves. Queues that run go on with the size that they were
    /// given: whoever made them tells them the new one. May block.
    pub fn grow(&self, capacity_bytes: u64) -> Result<(), GrowError> {
        // Held, so that no tap is attached meanwhile.
        let control = self.control();
        if control.mirrored {
            return Err(GrowError::Mirrored);
        }
        self.backend().grow(capacity_bytes)
    }
}
