//! A disk's mirror, from the control side.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Disk, ask, needs_one_worker};
use crate::lifecycle::{LifecycleError, WriteTap};
use crate::worker::command::Command;

impl Disk {
    /// See [`crate::lifecycle::DiskLifecycle::attach_tap`].
    pub fn attach_tap(&self, tap: WriteTap) -> Result<(), LifecycleError> {
        let mut control = self.control();
        if control.mirrored {
            return Err(LifecycleError::Refused(
                "the disk is mirrored already".into(),
            ));
        }
        let worker = self.home();
        self.spread(&mut control, Some(worker))?;
        self.acked.store(0, Ordering::Release);
        let (lane, acked) = (self.lanes[worker], self.acked.clone());
        let attached = ask(&self.workers[worker], |reply| Command::AttachTap {
            lane,
            tap,
            acked,
            reply,
        })?;
        if !attached {
            return Err(LifecycleError::Refused(
                "the disk is mirrored already".into(),
            ));
        }
        control.mirrored = true;
        Ok(())
    }

    /// See [`crate::lifecycle::DiskLifecycle::detach_tap`].
    pub fn detach_tap(&self) -> Result<(), LifecycleError> {
        // Before `control` is taken: whoever holds it may wait for a request that the mirror's lock
        // holds back.
        let worker = self.home();
        let lane = self.lanes[worker];
        ask(&self.workers[worker], |reply| Command::DetachTap {
            lane,
            reply,
        })?;
        let mut control = self.control();
        if !control.mirrored {
            return Ok(());
        }
        control.mirrored = false;
        let exclusive = needs_one_worker(&self.backend()).then_some(self.home());
        self.spread(&mut control, exclusive)
    }

    /// See [`crate::lifecycle::DiskLifecycle::lock_range`].
    pub fn lock_range(&self, range: Range<u64>) -> Result<(), LifecycleError> {
        let worker = self.home();
        let lane = self.lanes[worker];
        ask(&self.workers[worker], |reply| Command::LockRange {
            lane,
            range,
            reply,
        })
        .map_err(|_| LifecycleError::Refused("the mirror is gone, or holds a lock".into()))
    }

    /// See [`crate::lifecycle::DiskLifecycle::unlock_range`].
    pub fn unlock_range(&self, mirrored_below: u64) -> Result<(), LifecycleError> {
        let worker = self.home();
        let lane = self.lanes[worker];
        let mirrored = ask(&self.workers[worker], |reply| Command::UnlockRange {
            lane,
            mirrored_below,
            reply,
        })?;
        if mirrored {
            Ok(())
        } else {
            Err(LifecycleError::Refused("the mirror is gone".into()))
        }
    }

    /// See [`crate::lifecycle::DiskLifecycle::acknowledge`].
    pub fn acknowledge(&self, seq: u64) {
        self.acked.fetch_max(seq, Ordering::AcqRel);
        self.workers[self.home()].wake();
    }
}
