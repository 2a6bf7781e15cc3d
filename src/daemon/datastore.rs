//! Datastores that several hosts serve disks from: this daemon's lease there, and the others'.
//!
//! ```text
//!   ferry-lease   renews by a heartbeat, every fifth of the lease, and does nothing else
//!   ferry-guard   looks every twentieth of it whether the lease still holds; if not, nothing is
//!                 served from the datastore until it does
//!   ferry-look    reads the claims of all disks as often as it beats: that is part of the lease
//!   ferry-tend    after each beat: whose disks were taken over? whose owner is silent for too long?
//!                 may what lapsed be served again?
//! ```
//!
//! A heartbeat that hangs in the storage is what the guard is for, and a lock that is waited for is no
//! reason to be late with a heartbeat. Claims and heartbeats are in the directory of the images,
//! whatever a host's configuration calls the datastore: all hosts must find the same.

mod lease;
mod show;
mod takeover;
mod tend;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ferry_migration::ids::DaemonId;
use ferry_migration::lease::beat::{Heart, Holder, Observer};
use rustix::time::{ClockId, clock_gettime};

use super::Daemon;
use super::disks::Served;
use super::shared::SharedImage;
use crate::config::DatastoreConfig;
use crate::error::{Done, Failure};

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
        let settings = match daemon.config.datastore_of(dir) {
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
        let (renewing, guarding, looking, tending) = (own(), own(), own(), own());
        thread("ferry-lease").spawn(move || renewing.renew(heart))?;
        thread("ferry-guard").spawn(move || guarding.guard())?;
        thread("ferry-look").spawn(move || looking.look_all())?;
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
}
