//! A disk is taken over: whoever may still serve it is fenced, or a person says that it is off.
//!
//! ```text
//!   owner silent ─► fence ─► lock ─► claim n+1 ─► owner back meanwhile? fence again ─► settled
//!                                      │                                                  │
//!                 died here: fence ────┴──────────────────────────────► settled ─► record ─► serve
//! ```
//!
//! From the claim on, who comes back finds that the disk is not its own; one that came back before may
//! serve until it looks. That nobody does is written down with the claim (*settled*), by whoever has made
//! sure of it. Who finds a claim without that makes sure of those before it as well.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::handover::{self, Step};
use ferry_migration::ids::{DaemonId, DiskId};
use ferry_migration::lease::beat;
use ferry_migration::lease::chain::{self, Link, Shelf};
use ferry_migration::lease::shared::SharedDisk;
use ferry_migration::phase::Phase;
use serde_json::Value;

use super::{Datastore, MS, lock, now_ns};
use crate::config::{Fence, LEASE_MS};
use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::daemon::fence;
use crate::daemon::shared::SharedImage;
use crate::error::{Done, Failure};
use crate::escalation::hooks::HookEvent;

/// What is taken over from whom.
pub(super) struct Takeover {
    /// The newest epoch that is claimed.
    newest: u64,
    /// The epoch to be claimed: the same where an earlier run of this daemon has claimed it.
    epoch: u64,
    /// The owner, whose lease is over.
    silent: Option<Silent>,
    /// Those before it that nobody has made sure of.
    unsettled: Vec<Link>,
    /// A person says that this one is off, now.
    word: Option<DaemonId>,
}

struct Silent {
    link: Link,
    /// Its last beat when its lease was found to be over, if there was one.
    counter: Option<u64>,
}

impl Takeover {
    /// The daemon that it is taken over from, as far as there is one.
    fn from(&self) -> Option<&Link> {
        self.all().next()
    }

    /// All that have to be off, newest first.
    fn all(&self) -> impl Iterator<Item = &Link> {
        let silent = self.silent.iter().map(|silent| &silent.link);
        silent.chain(&self.unsettled)
    }
}

/// Whether the disk is this host's, or about to be.
fn is_here(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Serving { .. } | Phase::Granted { .. } | Phase::Incoming { .. }
    )
}

impl Datastore {
    /// From an owner whose lease is over.
    pub(super) fn of_silent(
        &self,
        shared: &SharedImage,
        newest: u64,
        link: &Link,
    ) -> std::io::Result<Takeover> {
        let others = lock(&self.others);
        let counter = others.get(&link.owner).and_then(|it| it.watch.counter());
        drop(others);
        let unsettled = chain::unsettled(&shared.claims, newest, shared.me())?;
        let link = link.clone();
        Ok(Takeover {
            newest,
            epoch: newest.saturating_add(1),
            unsettled: unsettled
                .into_iter()
                .filter(|it| it.owner != link.owner)
                .collect(),
            silent: Some(Silent { link, counter }),
            word: None,
        })
    }

    /// With the claim of an earlier run of this daemon, which was not recorded.
    pub(super) fn unfinished(
        &self,
        served: &Served,
        shared: &SharedImage,
        newest: u64,
        claim: &Link,
    ) -> std::io::Result<Takeover> {
        let fits = claim.through.is_none() && served.ownership.phase().epoch() < newest;
        Ok(Takeover {
            newest,
            epoch: newest.saturating_add(u64::from(!fits)),
            silent: None,
            unsettled: chain::unsettled(&shared.claims, newest, shared.me())?,
            word: None,
        })
    }

    /// When a daemon that has just started may take a disk over at the soonest: at another time of the
    /// lease than others.
    pub fn first_takeover_ns(&self, me: DaemonId) -> u64 {
        let part = u64::from(me.0.as_bytes()[15]) * self.settings.lease_ms * MS / 512;
        now_ns() + part
    }

    /// On a thread of its own: a fence may take long, and the lease must be renewed meanwhile.
    pub(super) fn take_over_soon(
        &self,
        daemon: &Arc<Daemon>,
        served: &Arc<Served>,
        shared: &Arc<SharedImage>,
        takeover: Takeover,
    ) {
        if now_ns() < shared.again_ns.load(Ordering::Acquire)
            || shared.taking.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let ours = (daemon.clone(), served.clone(), shared.clone());
        let spawned = std::thread::Builder::new()
            .name("ferry-takeover".into())
            .spawn(move || {
                let (daemon, served, shared) = ours;
                let datastore = &shared.datastore;
                if let Err(why) = datastore.take_over(&daemon, &served, &shared, &takeover) {
                    tracing::error!(disk = %served.config.id, why, "the disk is not taken over");
                    // Not again at once: the fence may do harm.
                    let again_ns = now_ns() + datastore.settings.lease_ms * MS;
                    shared.again_ns.store(again_ns, Ordering::Release);
                }
                shared.taking.store(false, Ordering::Release);
            });
        if let Err(error) = spawned {
            shared.taking.store(false, Ordering::Release);
            tracing::error!(%error, "no thread for a takeover");
        }
    }

    fn take_over(
        &self,
        daemon: &Daemon,
        served: &Arc<Served>,
        shared: &SharedImage,
        takeover: &Takeover,
    ) -> Result<(), String> {
        self.fence(served, shared, takeover)?;
        if self.settings.fence != Fence::LockCoherent {
            // Before anything else may fail: who was turned off for a claim is so once.
            self.settle(shared, takeover.newest)?;
        }
        self.steps(served, shared, takeover)?;
        let (id, epoch) = (&served.config.id, takeover.epoch);
        let from = takeover.from();
        let from = from.map_or_else(String::new, |link| link.address.clone());
        tracing::warn!(disk = %id, epoch, from, "the disk is taken over, and served here");
        let disk = id.clone();
        daemon
            .hooks()
            .run(HookEvent::Takeover { disk, epoch, from });
        Ok(())
    }

    /// Makes sure that those before write no more.
    fn fence(
        &self,
        served: &Served,
        shared: &SharedImage,
        takeover: &Takeover,
    ) -> Result<(), String> {
        let disk = &served.config.id;
        let silent = takeover.silent.as_ref().map(|silent| silent.link.owner);
        for link in takeover.all() {
            let known = takeover.word == Some(link.owner) || shared.is_off(takeover.newest, link);
            if self.settings.fence == Fence::LockCoherent || known {
                continue;
            }
            match &self.settings.fence {
                Fence::Command(path) => {
                    // Another may have been faster, and the disk be with one of these by now.
                    let newest = shared.newest().map_err(|error| error.to_string())?;
                    if newest.is_none_or(|(newest, _)| newest != takeover.newest) {
                        return Err("another host was faster".into());
                    }
                    fence::run(path, disk, link).map_err(|why| {
                        format!(
                            "{why}; if that host is surely off, say: ferry lease break {disk} \
                             --fenced {}",
                            link.owner
                        )
                    })?;
                }
                _ if silent == Some(link.owner) => return Err("no fence is configured".into()),
                // It was a person's word then.
                _ => self.wait_out(link)?,
            }
            // It finds the newest claim when it comes back, if that is not its own.
            if silent != Some(link.owner) {
                shared.remember_off(takeover.newest, link.owner);
            }
        }
        Ok(())
    }

    /// They are fenced.
    fn steps(
        &self,
        served: &Arc<Served>,
        shared: &SharedImage,
        takeover: &Takeover,
    ) -> Result<(), String> {
        let _alone = shared.alone();
        let lost = |why: String| {
            // Nobody serves it here: that was looked at with the same lock held.
            let _ = shared.let_go();
            Err(why)
        };
        let phase = served.ownership.phase();
        let newest = shared.newest().map_err(|error| error.to_string())?;
        if is_here(phase) || newest.is_none_or(|(newest, _)| newest != takeover.newest) {
            return Err(format!("it is {} here by now", phase.name()));
        }
        for step in handover::take_over(takeover.epoch) {
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
                    let silent = takeover.silent.as_ref();
                    if silent.is_some_and(|silent| !self.is_over(silent.link.owner)) {
                        return lost("the owner has renewed its lease".into());
                    }
                }
                Step::Claim { epoch, through, .. } => {
                    if let Err(error) = shared.claim(epoch, through, None) {
                        return lost(error.to_string());
                    }
                    let settled = self
                        .outlast(&served.config.id, takeover)
                        .and_then(|()| self.settle(shared, epoch));
                    if let Err(why) = settled {
                        return lost(why);
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
        Ok(())
    }

    fn settle(&self, shared: &SharedImage, epoch: u64) -> Result<(), String> {
        let settled = shared.claims.settle(epoch);
        settled.map_err(|error| format!("cannot settle the claim of epoch {epoch}: {error}"))
    }

    /// Where locks do not hold between hosts: an owner that was turned off and came back before the
    /// claim was made serves until it looks at the claims, and may be stopped before it does. It is
    /// turned off again; from the claim on it does not serve when it comes back. After a person's word
    /// there is only its lease to wait for.
    fn outlast(&self, disk: &DiskId, takeover: &Takeover) -> Result<(), String> {
        let Some(Silent { link, counter }) = &takeover.silent else {
            return Ok(());
        };
        if self.settings.fence == Fence::LockCoherent {
            return Ok(());
        }
        // What cannot be read may have moved.
        let beat = beat::read(self.root(), link.owner);
        if beat.is_ok_and(|beat| beat.map(|beat| beat.counter) == *counter) {
            return Ok(());
        }
        tracing::warn!(owner = %link.owner, address = link.address,
            "the owner was turned off and is back");
        match &self.settings.fence {
            Fence::Command(path) if takeover.word.is_none() => fence::run(path, disk, link),
            _ => self.wait_out(link),
        }
    }

    /// Waits for as long as a daemon serves that has just renewed its lease.
    fn wait_out(&self, link: &Link) -> Result<(), String> {
        let beat = beat::read(self.root(), link.owner).ok().flatten();
        let lease_ms = beat.map_or(self.settings.lease_ms, |beat| beat.lease_ms);
        let lease_ms = lease_ms.clamp(LEASE_MS.0, LEASE_MS.1);
        let wait = Duration::from_millis(lease_ms + self.settings.io_ms);
        if self.pause(wait + wait / 16) {
            Ok(())
        } else {
            Err("the daemon ends".into())
        }
    }

    /// A person's word that a daemon is off.
    fn break_lease(&self, daemon: &Arc<Daemon>, served: &Arc<Served>, fenced: DaemonId) -> Done {
        let refused =
            |why: String| Err(Failure::Failed(format!("disk {}: {why}", served.config.id)));
        let Some(shared) = served.shared.clone() else {
            return refused("it is not shared".into());
        };
        let Some((epoch, link)) = self.owner(served, &shared) else {
            return refused("nobody has claimed it, or its claims cannot be read".into());
        };
        let phase = served.ownership.phase();
        if matches!(phase, Phase::Incoming { .. }) {
            return refused("it is on its way here; see ferry disk list".into());
        }
        let takeover = if shared.is_mine(&link) {
            if is_here(phase) {
                return refused("it is this host's".into());
            }
            self.unfinished(served, &shared, epoch, &link)?
        } else {
            self.of_silent(&shared, epoch, &link)?
        };
        let Some(owner) = takeover.from() else {
            return refused("it is this host's".into());
        };
        if !takeover.all().any(|link| link.owner == fenced) {
            return refused(format!(
                "its owner is daemon {} at {}, and not {fenced}; make sure that that host is off, \
                 and name it: --fenced {}",
                owner.owner, owner.address, owner.owner
            ));
        }
        if takeover.silent.is_some() && !self.is_over(link.owner) {
            return refused(format!(
                "daemon {} at {} has renewed its lease within the last {} s, so it is not off; \
                 ferry lease show says how long it is silent",
                link.owner,
                link.address,
                (self.settings.lease_ms + self.settings.io_ms).div_ceil(1000)
            ));
        }
        if shared.taking.swap(true, Ordering::AcqRel) {
            return refused("a takeover is under way; say it again in a minute".into());
        }
        let silent = takeover.silent.as_ref().map(|silent| silent.link.owner);
        if silent != Some(fenced) {
            shared.remember_off(epoch, fenced);
        }
        let takeover = Takeover {
            word: Some(fenced),
            ..takeover
        };
        let done = self.take_over(daemon, served, &shared, &takeover);
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
