//! A disk is taken over: its owner is fenced, or a person says that it is off.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::handover::{self, Step};
use ferry_migration::ids::{DaemonId, DiskId};
use ferry_migration::lease::beat;
use ferry_migration::lease::chain::{Link, Shelf};
use ferry_migration::lease::shared::SharedDisk;
use ferry_migration::phase::Phase;
use serde_json::Value;

use super::{Datastore, lock};
use crate::config::{Fence, LEASE_MS};
use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::daemon::fence;
use crate::daemon::shared::SharedImage;
use crate::error::{Done, Failure};
use crate::escalation::hooks::HookEvent;

/// Whom a disk is taken over from.
pub(super) struct Old {
    link: Link,
    /// Its last beat when its lease was found to be over, as far as one was seen.
    counter: Option<u64>,
    /// An earlier run of this daemon has claimed the disk from it.
    claimed: bool,
}

/// Whether the disk is this host's, or about to be.
fn is_here(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Serving { .. } | Phase::Granted { .. } | Phase::Incoming { .. }
    )
}

impl Datastore {
    /// An owner whose lease is over.
    pub(super) fn silent(&self, link: Link) -> Old {
        let others = lock(&self.others);
        let counter = others.get(&link.owner).and_then(|it| it.watch.counter());
        Old {
            link,
            counter,
            claimed: false,
        }
    }

    /// Whom an earlier run of this daemon took the disk from, if that is how the epoch was claimed: it
    /// may have come back before the claim was made, and serve until it looks.
    pub(super) fn unfinished(
        &self,
        shared: &SharedImage,
        epoch: u64,
        claim: &Link,
    ) -> std::io::Result<Option<Old>> {
        let before = epoch.saturating_sub(1);
        if claim.through.is_some() || before == 0 {
            return Ok(None);
        }
        let old = shared.claims.read(before)?;
        Ok(old.filter(|link| !shared.is_mine(link)).map(|link| Old {
            link,
            counter: None,
            claimed: true,
        }))
    }

    /// On a thread of its own: a fence may take long, and the lease must be renewed meanwhile.
    pub(super) fn take_over_soon(
        &self,
        daemon: &Arc<Daemon>,
        served: &Arc<Served>,
        shared: &Arc<SharedImage>,
        epoch: u64,
        old: Option<Old>,
    ) {
        if shared.taking.swap(true, Ordering::AcqRel) {
            return;
        }
        let ours = (daemon.clone(), served.clone(), shared.clone());
        let spawned = std::thread::Builder::new()
            .name("ferry-takeover".into())
            .spawn(move || {
                let (daemon, served, shared) = ours;
                let datastore = &shared.datastore;
                let done = datastore.fence(&served, old.as_ref()).and_then(|()| {
                    datastore.take_over(&daemon, &served, &shared, epoch, old.as_ref())
                });
                if let Err(why) = done {
                    tracing::error!(disk = %served.config.id, why, "the disk is not taken over");
                    // Not again at once: the fence may do harm.
                    datastore.pause(datastore.lease());
                }
                shared.taking.store(false, Ordering::Release);
            });
        if let Err(error) = spawned {
            shared.taking.store(false, Ordering::Release);
            tracing::error!(%error, "no thread for a takeover");
        }
    }

    /// What makes sure that the old owner writes no more.
    fn fence(&self, served: &Served, old: Option<&Old>) -> Result<(), String> {
        match (&self.settings.fence, old) {
            // The lock, which is taken in either case.
            (_, None) | (Fence::LockCoherent, _) => Ok(()),
            (Fence::Command(path), Some(old)) => fence::run(path, &served.config.id, &old.link),
            (Fence::None, Some(old)) if old.claimed => {
                self.wait_out(&old.link);
                Ok(())
            }
            (Fence::None, Some(_)) => Err("no fence is configured".into()),
        }
    }

    /// The owner is fenced: the steps of a takeover.
    fn take_over(
        &self,
        daemon: &Daemon,
        served: &Arc<Served>,
        shared: &SharedImage,
        epoch: u64,
        old: Option<&Old>,
    ) -> Result<(), String> {
        let _alone = shared.alone();
        // Who was fenced for a claim that is made already finds it.
        let silent = old.filter(|old| !old.claimed);
        let lost = |why: String| {
            // Nobody serves it here: that was looked at with the same lock held.
            let _ = shared.let_go();
            Err(why)
        };
        let phase = served.ownership.phase();
        let newest = shared.newest().map_err(|error| error.to_string())?;
        if is_here(phase) || newest.is_none_or(|(newest, _)| newest != epoch) {
            return Err(format!("it is {} here by now", phase.name()));
        }
        for step in handover::take_over(epoch.saturating_add(1)) {
            match step {
                Step::Take => {
                    shared.take()?;
                    // It may have waited long, and an offer comes at any time.
                    let phase = served.ownership.phase();
                    if is_here(phase) {
                        // Nothing was there to be let go of, but for this.
                        return match phase {
                            Phase::Incoming { .. } => lost("it is on its way here by now".into()),
                            _ => Err(format!("it is {} here by now", phase.name())),
                        };
                    }
                    if silent.is_some_and(|old| !self.is_over(old.link.owner)) {
                        return lost("the owner has renewed its lease".into());
                    }
                }
                Step::Claim { epoch, through, .. } => {
                    if let Err(error) = shared.claim(epoch, through, None) {
                        return lost(error.to_string());
                    }
                    if let Some(old) = silent
                        && self.settings.fence != Fence::LockCoherent
                    {
                        self.outlast(&served.config.id, old);
                    }
                }
                Step::Record(event) => {
                    if let Err(error) = served.ownership.apply(event) {
                        return lost(error.to_string());
                    }
                }
                // Whoever waited for the old owner's word looks at the record, and waits no more.
                Step::Serve => {
                    // Of an offer that came before the record did.
                    *served.arrival() = None;
                    served.device.resume();
                }
                _ => {}
            }
        }
        let id = &served.config.id;
        let epoch = epoch + 1;
        let from = old.map_or_else(String::new, |old| old.link.address.clone());
        tracing::warn!(disk = %id, epoch, from, "the disk is taken over, and served here");
        let disk = id.clone();
        daemon
            .hooks()
            .run(HookEvent::Takeover { disk, epoch, from });
        Ok(())
    }

    /// The owner's last beat, as far as it can be read.
    fn counter(&self, link: &Link) -> Option<u64> {
        let beat = beat::read(self.root(), link.owner).ok()?;
        beat.map(|beat| beat.counter)
    }

    /// Where locks do not hold between hosts: an owner that was turned off and came back before the
    /// claim was made serves until it looks at the claims, and may be stopped before it does. It is
    /// turned off again; from the claim on it does not serve when it comes back. After a person's word
    /// there is only its lease to wait for.
    fn outlast(&self, disk: &DiskId, old: &Old) {
        let link = &old.link;
        if self.counter(link) == old.counter {
            return;
        }
        tracing::warn!(owner = %link.owner, address = link.address,
            "the owner was turned off and is back");
        if let Fence::Command(path) = &self.settings.fence {
            while let Err(why) = fence::run(path, disk, link) {
                tracing::error!(%disk, why, "the owner is back and cannot be turned off again; the \
                    disk waits");
                if !self.pause(self.lease()) {
                    return;
                }
            }
            return;
        }
        self.wait_out(link);
    }

    /// Waits for as long as a daemon serves that has just renewed its lease.
    fn wait_out(&self, link: &Link) {
        let beat = beat::read(self.root(), link.owner).ok().flatten();
        let lease_ms = beat.map_or(self.settings.lease_ms, |beat| beat.lease_ms);
        let lease_ms = lease_ms.clamp(LEASE_MS.0, LEASE_MS.1);
        let wait = Duration::from_millis(lease_ms + self.settings.io_ms);
        self.pause(wait + wait / 16);
    }

    /// A person's word that the owner is off.
    fn break_lease(&self, daemon: &Arc<Daemon>, served: &Arc<Served>, fenced: DaemonId) -> Done {
        let refused =
            |why: String| Err(Failure::Failed(format!("disk {}: {why}", served.config.id)));
        let Some(shared) = served.shared.clone() else {
            return refused("it is not shared".into());
        };
        let Some((epoch, link)) = shared.newest()? else {
            return refused("nobody has claimed it; add it without --incoming".into());
        };
        if shared.is_mine(&link) {
            return refused("it is this host's".into());
        }
        if link.owner != fenced {
            return refused(format!(
                "its owner is daemon {} at {}, and not {fenced}; make sure that that host is off, \
                 and name it: --fenced {}",
                link.owner, link.address, link.owner
            ));
        }
        if !self.is_over(link.owner) {
            return refused(format!(
                "daemon {} at {} has renewed its lease within the last {} s, so it is not off; \
                 ferry lease show says how long it is silent",
                link.owner,
                link.address,
                (self.settings.lease_ms + self.settings.io_ms).div_ceil(1000)
            ));
        }
        if matches!(served.ownership.phase(), Phase::Incoming { .. }) {
            return refused("it is on its way here; see ferry disk list".into());
        }
        if shared.taking.swap(true, Ordering::AcqRel) {
            return refused("a takeover is under way".into());
        }
        let done = self.take_over(daemon, served, &shared, epoch, Some(&self.silent(link)));
        shared.taking.store(false, Ordering::Release);
        done.map_err(Failure::Failed)
    }
}

impl Daemon {
    /// `ferry lease break`.
    pub fn break_lease(self: &Arc<Self>, id: &DiskId, fenced: DaemonId) -> Done<Value> {
        let served = self.disk(id)?;
        let Some(shared) = &served.shared else {
            return Err(Failure::Failed(format!(
                "disk {id} is not shared between hosts, so there is no lease on it"
            )));
        };
        shared.datastore.break_lease(self, &served, fenced)?;
        Ok(served.line())
    }
}
