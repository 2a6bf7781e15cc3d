//! This host's lease: it is renewed, it is watched, and without it nothing is served.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_migration::lease::beat::Heart;

use super::{Datastore, MS, lock, now_ns};
use crate::config::Fence;
use crate::daemon::disks::Served;
use crate::daemon::shared::SharedImage;

impl Datastore {
    /// Beats, until it is over.
    pub(super) fn renew(&self, mut heart: Heart) {
        loop {
            let began = now_ns();
            let renewed = heart.renew();
            match &renewed {
                Ok(()) => lock(&self.holder).renewed(began),
                Err(error) => tracing::warn!(datastore = %self.root().display(), %error,
                    "the lease cannot be renewed"),
            }
            *lock(&self.trouble) = renewed.err().map(|error| error.to_string());
            self.look_now();
            if self.daemon.strong_count() == 0 || !self.pause(self.lease() / 5) {
                return;
            }
        }
    }

    /// Reads the claims of all disks after each beat. Nothing here waits for anything else.
    pub(super) fn look_all(&self) {
        while self.pause(self.lease() / 5) {
            let Some(daemon) = self.daemon.upgrade() else {
                return;
            };
            for (served, shared) in self.disks(&daemon) {
                let looked_ns = now_ns();
                match shared.newest() {
                    Ok(Some((_, link))) if shared.is_mine(&link) => {
                        shared.looked_ns.store(looked_ns, Ordering::Release);
                    }
                    Ok(_) => {}
                    Err(error) => super::tend::unread(&served, &error),
                }
            }
        }
    }

    /// Looks whether the lease holds, and suspends the disks when it does not.
    pub(super) fn guard(&self) {
        while self.pause(self.lease() / 20) {
            let Some(daemon) = self.daemon.upgrade() else {
                return;
            };
            let holds = lock(&self.holder).holds(now_ns());
            let mut disks = self.disks(&daemon);
            disks.retain(|(_, shared)| !(holds && self.has_looked(shared)));
            for (served, _) in &disks {
                if let Err(error) = served.device.disk().suspend(true) {
                    tracing::error!(disk = %served.config.id, %error, "a disk is not suspended");
                }
            }
            for (served, shared) in disks {
                if !shared.lapsed.swap(true, Ordering::AcqRel) && served.ownership.may_serve() {
                    let what = if holds {
                        "the disk's claims are not read"
                    } else {
                        "the lease on the datastore is not renewed"
                    };
                    tracing::error!(disk = %served.config.id, datastore = %self.root().display(),
                        "{what}: the disk is not served until that is done");
                }
            }
        }
    }

    /// Whether the disk's claims were read within the lease. Where its lock holds between hosts, nobody
    /// else serves it in any case.
    fn has_looked(&self, shared: &SharedImage) -> bool {
        let looked_ns = shared.looked_ns.load(Ordering::Acquire);
        self.settings.fence == Fence::LockCoherent
            || now_ns() < looked_ns + self.settings.lease_ms * MS
    }

    /// What lapsed, or has just begun, is served while the lease holds.
    pub(super) fn serve_again(&self, served: &Arc<Served>, shared: &SharedImage, epoch: u64) {
        if !shared.lapsed.load(Ordering::Acquire) {
            return;
        }
        if !lock(&self.holder).holds(now_ns()) {
            // Whoever takes it over waits for the lock.
            if served.image().is_some() && served.device.disk().is_open() {
                let _arrival = served.arrival();
                if let Err(error) = served.release_lapsed() {
                    tracing::error!(disk = %served.config.id, %error, "the image stays open");
                }
            }
            return;
        }
        if let Err(why) = served.retake() {
            tracing::warn!(disk = %served.config.id, why, "the disk is not served again yet");
            return;
        }
        // Under the lock, where that counts between hosts: nobody was faster.
        let looked_ns = now_ns();
        if !matches!(shared.newest(), Ok(Some((newest, _))) if newest == epoch) {
            return;
        }
        shared.looked_ns.store(looked_ns, Ordering::Release);
        // It may have waited long for the lock.
        if !lock(&self.holder).holds(now_ns()) || !self.has_looked(shared) {
            return;
        }
        shared.lapsed.store(false, Ordering::Release);
        if let Err(error) = served.device.disk().suspend(false) {
            tracing::error!(disk = %served.config.id, %error, "the disk is not served again");
        }
    }
}
