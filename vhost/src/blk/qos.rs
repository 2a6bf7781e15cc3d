//! What a disk is to get of its datastore goes with it when it moves.
//!
//! The device knows nothing of shares and limits: whoever configures the disk keeps them, is asked
//! for them when the device's state is written, and gets them where it is read.

use std::sync::{Arc, PoisonError};

pub use ferry_migration::schema::qos::Qos;

use super::device::{Blk, BlkDevice};

/// Whoever keeps a disk's shares, limits and credit. Called on control threads, without a lock of the
/// device; it may call the device, and must not wait for a move of the disk.
pub trait QosKeeper: Send + Sync {
    /// As they are now, to go with the disk; `None` where there is nothing to say. The disk is out of
    /// service, so the credit is spent no more.
    fn qos(&self) -> Option<Qos> {
        None
    }

    /// The disk has come with these, which passed their checks. It is not served yet, and may be
    /// discarded still, or come again. Nothing is said of a disk that came without.
    fn take_qos(&self, qos: Qos) {
        let _ = qos;
    }
}

impl BlkDevice {
    /// From now on `keeper` is asked. An earlier one is forgotten.
    pub fn keep_qos(&self, keeper: Arc<dyn QosKeeper>) {
        let mut kept = self.kind.qos.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(keeper);
    }
}

impl Blk {
    pub(super) fn qos_keeper(&self) -> Option<Arc<dyn QosKeeper>> {
        self.qos
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
