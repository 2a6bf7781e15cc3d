//! Datastores that several hosts serve disks from: this daemon's lease there, and the others'.
//!
//! ```text
//!   ferry-lease   renews by a heartbeat, every fifth of the lease, and does nothing else
//!   ferry-guard   looks every twentieth of it whether the lease still holds; if not, nothing is
//!                 served from the datastore until it does
//!   ferry-tend    after each beat: whose disks were taken over? whose owner is silent for too long?
//!                 may what lapsed be served again?
//! ```
//!
//! A heartbeat that hangs in the storage is what the guard is for, and a lock that is waited for is no
//! reason to be late with a heartbeat. Claims and heartbeats are in the directory of the images,
//! whatever a host's configuration calls the datastore: all hosts must find the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::handover::{self, Step};
use ferry_migration::ids::{DaemonId, DiskId};
use ferry_migration::lease::beat::{self, Heart, Holder, Observer};
use ferry_migration::lease::chain::{Link, Shelf};
use ferry_migration::lease::shared::SharedDisk;
use ferry_migration::phase::Phase;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::Daemon;
use super::disks::Served;
use super::fence;
use super::shared::SharedImage;
use crate::config::{DatastoreConfig, Fence, LEASE_MS};
use crate::error::{Done, Failure};
use crate::escalation::hooks::HookEvent;

const MS: u64 = 1_000_000;

/// CLOCK_BOOTTIME in nanoseconds: it goes on while the machine is suspended.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All datastores from which shared disks are served.
#[derive(Default)]
pub struct Datastores {
    known: Mutex<BTreeMap<PathBuf, Arc<Datastore>>>,
}

/// One of them.
pub struct Datastore {
    settings: DatastoreConfig,
    daemon: Weak<Daemon>,
    holder: Mutex<Holder>,
    others: Mutex<BTreeMap<DaemonId, Observed>>,
    /// Why the last renewal failed.
    trouble: Mutex<Option<String>>,
    calls: Mutex<Calls>,
    wake: Condvar,
}

#[derive(Default)]
struct Calls {
    over: bool,
    /// The disks are to be looked at.
    look: bool,
}

/// Whom a disk is taken over from.
struct Old {
    link: Link,
    /// Its last beat when its lease was found to be over, as far as one was seen.
    counter: Option<u64>,
    /// An earlier run of this daemon has claimed the disk from it.
    claimed: bool,
}

#[derive(Default)]
struct Observed {
    watch: Observer,
    lease_ms: u64,
    /// That its lease is over was said.
    told: bool,
}

impl Datastores {
    /// The datastore that an image is on; its lease is taken when the first asks.
    pub fn of(&self, daemon: &Daemon, image: &Path) -> Done<Arc<Datastore>> {
        let dir = image.parent().unwrap_or(Path::new("/"));
        let named = daemon.config.datastores.iter().find(|it| {
            let root = std::fs::canonicalize(&it.path).unwrap_or_else(|_| it.path.clone());
            dir.starts_with(root)
        });
        let settings = match named {
            Some(settings) => DatastoreConfig {
                path: dir.to_owned(),
                ..settings.clone()
            },
            None => DatastoreConfig::plain(dir),
        };
        let mut known = lock(&self.known);
        if let Some(datastore) = known.get(&settings.path) {
            return Ok(datastore.clone());
        }
        let lease_ns = settings.lease_ms * MS;
        let address = &daemon.config.migration.listen;
        let heart = Heart::open(&settings.path, daemon.id, address, settings.lease_ms);
        let heart = heart.map_err(|error| {
            Failure::Failed(format!(
                "cannot keep a heartbeat on {}: {error}",
                settings.path.display()
            ))
        })?;
        let datastore = Arc::new(Datastore {
            settings,
            daemon: daemon.own.clone(),
            holder: Mutex::new(Holder::new(lease_ns)),
            others: Mutex::default(),
            trouble: Mutex::default(),
            calls: Mutex::default(),
            wake: Condvar::new(),
        });
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let own = || datastore.clone();
        let (renewing, guarding, tending) = (own(), own(), own());
        thread("ferry-lease").spawn(move || renewing.renew(heart))?;
        thread("ferry-guard").spawn(move || guarding.guard())?;
        thread("ferry-tend").spawn(move || tending.tend_all())?;
        known.insert(datastore.settings.path.clone(), datastore.clone());
        Ok(datastore)
    }

    /// Lets go of all leases. Their disks are not served any more.
    pub fn stop(&self) {
        for datastore in std::mem::take(&mut *lock(&self.known)).values() {
            lock(&datastore.calls).over = true;
            datastore.wake.notify_all();
        }
    }
}

/// Whether the disk is this host's, or about to be.
fn is_here(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Serving { .. } | Phase::Granted { .. } | Phase::Incoming { .. }
    )
}

/// Whether the newest claim is that of a grant which was handed back.
fn is_returned(phase: Phase, epoch: u64) -> bool {
    matches!(phase, Phase::Returned { epoch: at, .. } if at == epoch)
}

impl Datastore {
    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.settings.path
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.settings.lease_ms)
    }

    /// Sleeps; false when it is over.
    fn pause(&self, time: Duration) -> bool {
        let calls = lock(&self.calls);
        let waited = self.wake.wait_timeout_while(calls, time, |it| !it.over);
        !waited.unwrap_or_else(PoisonError::into_inner).0.over
    }

    /// Sleeps until there are disks to be looked at; false when it is over.
    fn pause_tending(&self) -> bool {
        let idle = |it: &mut Calls| !it.over && !it.look;
        let waited = self.wake.wait_while(lock(&self.calls), idle);
        let mut calls = waited.unwrap_or_else(PoisonError::into_inner);
        calls.look = false;
        !calls.over
    }

    /// There was a beat, or a disk was added.
    pub fn look_now(&self) {
        lock(&self.calls).look = true;
        self.wake.notify_all();
    }

    /// This daemon's disks on it.
    fn disks(&self, daemon: &Daemon) -> Vec<(Arc<Served>, Arc<SharedImage>)> {
        let mine = |served: &Arc<Served>| {
            let shared = served.shared.clone()?;
            std::ptr::eq(&*shared.datastore, self).then(|| (served.clone(), shared))
        };
        daemon.disks().values().filter_map(mine).collect()
    }

    fn guard(&self) {
        while self.pause(self.lease() / 20) {
            let Some(daemon) = self.daemon.upgrade() else {
                return;
            };
            if lock(&self.holder).holds(now_ns()) {
                continue;
            }
            let disks = self.disks(&daemon);
            for (served, _) in &disks {
                if let Err(error) = served.device.disk().suspend(true) {
                    tracing::error!(disk = %served.config.id, %error, "a disk is not suspended");
                }
            }
            for (served, shared) in disks {
                if !shared.lapsed.swap(true, Ordering::AcqRel) && served.ownership.may_serve() {
                    tracing::error!(disk = %served.config.id, datastore = %self.root().display(),
                        "the lease on the datastore is not renewed: the disk is not served until \
                         it is");
                }
            }
        }
    }

    fn renew(&self, mut heart: Heart) {
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

    fn tend_all(&self) {
        while self.pause_tending() {
            let Some(daemon) = self.daemon.upgrade() else {
                return;
            };
            self.tend(&daemon);
        }
    }

    fn tend(&self, daemon: &Arc<Daemon>) {
        let mut watched = Vec::new();
        for (served, shared) in self.disks(daemon) {
            // Watched also while it is taken over, which asks what was seen.
            if let Some((_, link)) = self.owner(&served, &shared)
                && !shared.is_mine(&link)
                && !watched.contains(&link.owner)
            {
                self.watch(link.owner);
                watched.push(link.owner);
            }
            // Whoever is about to take it, or give it away, is not disturbed.
            if let Some(_alone) = shared.try_alone()
                && let Some((epoch, link)) = self.owner(&served, &shared)
            {
                self.tend_disk(daemon, &served, &shared, epoch, &link);
            }
        }
        lock(&self.others).retain(|owner, _| watched.contains(owner));
    }

    /// The newest epoch, and whose disk it is.
    fn owner(&self, served: &Served, shared: &SharedImage) -> Option<(u64, Link)> {
        let newest = shared.newest().unwrap_or_else(|error| {
            tracing::warn!(disk = %served.config.id, %error, "the disk's claims cannot be read");
            None
        });
        let (epoch, mut link) = newest?;
        let record = served.ownership.record();
        if shared.is_mine(&link)
            && is_returned(record.state.phase, epoch)
            && let Some(peer) = record.peer
        {
            // It is the source's, that has yet to claim it.
            (link.owner, link.address) = (peer.daemon, peer.address);
        }
        Some((epoch, link))
    }

    fn watch(&self, owner: DaemonId) {
        let beat = beat::read(self.root(), owner);
        let gap = self.settings.lease_ms * MS;
        let mut others = lock(&self.others);
        let other = others.entry(owner).or_default();
        // What cannot be read tells nothing: not that it is silent either.
        let Ok(beat) = beat else { return };
        let lease_ms = beat.as_ref().map_or(self.settings.lease_ms, |b| b.lease_ms);
        other.lease_ms = lease_ms.clamp(LEASE_MS.0, LEASE_MS.1);
        other
            .watch
            .look(beat.map(|beat| beat.counter), now_ns(), gap);
        other.told &= other.watch.silent_ns() > 0;
    }

    fn tend_disk(
        &self,
        daemon: &Arc<Daemon>,
        served: &Arc<Served>,
        shared: &Arc<SharedImage>,
        epoch: u64,
        link: &Link,
    ) {
        let phase = served.ownership.phase();
        let mine = shared.is_mine(link);
        if let Phase::Serving { epoch: at, .. } | Phase::Granted { epoch: at, .. } = phase
            && (!mine || epoch != at)
        {
            served.taken_over(epoch, link);
            // What is copied is not this host's to give. On another thread, as that may wait.
            let (daemon, id) = (daemon.clone(), served.config.id.clone());
            std::thread::spawn(move || daemon.migrations.forget(&id));
            return;
        }
        self.serve_again(served, shared, epoch);
        match phase {
            Phase::Serving { .. } | Phase::Granted { .. } | Phase::Incoming { .. } => {}
            // Given up, and not taken yet: its resolver's matter.
            Phase::Released { epoch: at, .. } | Phase::Handed { epoch: at, .. } if epoch < at => {}
            // Claimed by an earlier run of this daemon, and not recorded.
            _ if mine && !is_returned(phase, epoch) => match self.unfinished(shared, epoch, link) {
                Ok(old) => self.take_over_soon(daemon, served, shared, epoch, old),
                Err(error) => tracing::warn!(disk = %served.config.id, %error,
                    "the disk's claims cannot be read"),
            },
            _ if self.is_over(link.owner) && self.settings.fence == Fence::None => {
                self.tell(served, link);
            }
            _ if self.is_over(link.owner) => {
                let old = self.silent(link.clone());
                self.take_over_soon(daemon, served, shared, epoch, Some(old));
            }
            _ => {}
        }
    }

    /// What lapsed, or has just begun, is served while the lease holds.
    fn serve_again(&self, served: &Arc<Served>, shared: &SharedImage, epoch: u64) {
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
        if !matches!(shared.newest(), Ok(Some((newest, _))) if newest == epoch) {
            return;
        }
        // It may have waited long for the lock.
        if !lock(&self.holder).holds(now_ns()) {
            return;
        }
        shared.lapsed.store(false, Ordering::Release);
        if let Err(error) = served.device.disk().suspend(false) {
            tracing::error!(disk = %served.config.id, %error, "the disk is not served again");
        }
    }

    /// An owner whose lease is over.
    fn silent(&self, link: Link) -> Old {
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
    fn unfinished(
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

    fn is_over(&self, owner: DaemonId) -> bool {
        let others = lock(&self.others);
        others.get(&owner).is_some_and(|other| {
            let io_ns = self.settings.io_ms * MS;
            other.watch.expired(other.lease_ms * MS, io_ns)
        })
    }

    fn tell(&self, served: &Served, link: &Link) {
        let mut others = lock(&self.others);
        let Some(other) = others.get_mut(&link.owner) else {
            return;
        };
        if !std::mem::replace(&mut other.told, true) {
            tracing::error!(disk = %served.config.id, owner = %link.owner, address = link.address,
                "the owner's lease is over, and no fence is configured: nobody takes the disk over \
                 by itself; when that host is surely off, say: ferry lease break {} --fenced {}",
                served.config.id, link.owner);
        }
    }

    /// On a thread of its own: a fence may take long, and the lease must be renewed meanwhile.
    fn take_over_soon(
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

    fn line(&self, served: &Served, shared: &SharedImage) -> Done<Value> {
        let newest = shared.newest()?;
        let mine = newest
            .as_ref()
            .is_some_and(|(_, link)| shared.is_mine(link));
        let (silent_ms, lease_ms) = newest
            .as_ref()
            .and_then(|(_, link)| {
                let others = lock(&self.others);
                let other = others.get(&link.owner)?;
                Some((other.watch.silent_ns() / MS, other.lease_ms))
            })
            .unwrap_or((0, self.settings.lease_ms));
        let left = lock(&self.holder).ends_ns().saturating_sub(now_ns()) / MS;
        let state = match &newest {
            None => "unclaimed",
            Some(_) if mine && left > 0 => "held",
            Some(_) if mine => "lapsed",
            Some((_, link)) if self.is_over(link.owner) => "over",
            Some(_) => "elsewhere",
        };
        Ok(json!({
            "id": served.config.id,
            "disk": served.ownership.disk_uuid(),
            "datastore": self.root(),
            "fence": self.settings.fence,
            "phase": served.ownership.phase().name(),
            "lease": state,
            "epoch": newest.as_ref().map(|(epoch, _)| epoch),
            "owner": newest.as_ref().map(|(_, link)| link.owner),
            "address": newest.as_ref().map(|(_, link)| &link.address),
            "here": mine,
            "left_ms": mine.then_some(left),
            "silent_ms": (!mine && newest.is_some()).then_some(silent_ms),
            "over_after_ms": (!mine).then_some(lease_ms + self.settings.io_ms),
            "trouble": *lock(&self.trouble),
        }))
    }
}

impl Daemon {
    /// `ferry lease show`.
    pub fn leases(&self, id: Option<&DiskId>) -> Done<Value> {
        let disks: Vec<Arc<Served>> = match id {
            Some(id) => vec![self.disk(id)?],
            None => self.disks().values().cloned().collect(),
        };
        let mut lines = Vec::new();
        for served in &disks {
            match &served.shared {
                Some(shared) => lines.push(shared.datastore.line(served, shared)?),
                None if id.is_some() => {
                    return Err(Failure::Failed(format!(
                        "disk {} is not shared between hosts, so there is no lease on it",
                        served.config.id
                    )));
                }
                None => {}
            }
        }
        Ok(json!({ "leases": lines }))
    }

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
