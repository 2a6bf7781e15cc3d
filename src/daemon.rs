//! The daemon: workers, disks, the migration listener and the control socket.
//!
//! Each disk is served under the rule of its ownership record: it is opened for its VM only while
//! the record says that this host serves it.

mod add;
mod datastore;
pub mod disks;
mod fence;
mod host;
pub mod kept;
mod nics;
mod open;
mod order;
pub mod place;
mod remove;
mod resize;
mod shared;
mod sioc;
mod taken;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ferry_dataplane::rebalance::Rebalancer;
use ferry_dataplane::worker::{Worker, WorkerHandle};
use ferry_migration::destination::{DestinationHost, Server};
use ferry_migration::ids::{DaemonId, DiskId};
use ferry_migration::lease::{self, Ownership};

use crate::config::Config;
use crate::error::{Done, Failure};
use crate::escalation::Escalation;
use crate::escalation::hooks::Hooks;
use crate::events::{About, Events, What};
use crate::migrate::Migrations;
use crate::workers;
use add::Origin;
pub use add::group_id;
use datastore::Datastores;
use disks::Served;
use kept::Kept;
use nics::Nics;
use sioc::Sioc;
use taken::Taken;

/// A running daemon.
pub struct Daemon {
    pub config: Config,
    pub id: DaemonId,
    pub migrations: Migrations,
    datastores: Datastores,
    sioc: Sioc,
    /// What happened lately.
    pub events: Events,
    /// How the machines are.
    pub escalation: Escalation,
    hooks: Hooks,
    disks: Mutex<BTreeMap<DiskId, Arc<Served>>>,
    nics: Nics,
    /// Names, places and sockets of the disks that are here or are being added.
    taken: Mutex<BTreeMap<DiskId, Taken>>,
    /// Records of unannounced disks that were let go of: a source may still ask what became of its
    /// offer.
    retired: Mutex<BTreeMap<DiskId, Arc<Ownership>>>,
    next_home: AtomicUsize,
    /// Dropped last: the disks need them to drain.
    workers: Vec<Worker>,
    own: Weak<Daemon>,
}

impl Daemon {
    /// Starts the workers; no disk is served yet.
    pub fn start(config: Config) -> Done<Arc<Daemon>> {
        for dir in [&config.state_dir, &config.run_dir] {
            std::fs::create_dir_all(dir).map_err(|error| {
                Failure::Failed(format!("cannot make {}: {error}", dir.display()))
            })?;
        }
        let id = lease::owner_id(&config.state_dir)?;
        let workers = workers::start(config.workers, config.spin_us)?;
        let sioc = Sioc::new(&config);
        Ok(Arc::new_cyclic(|own| Daemon {
            config,
            id,
            migrations: Migrations::default(),
            datastores: Datastores::default(),
            sioc,
            events: Events::default(),
            escalation: Escalation::default(),
            hooks: Hooks::new(own.clone()),
            disks: Mutex::default(),
            nics: Nics::default(),
            taken: Mutex::default(),
            retired: Mutex::default(),
            next_home: AtomicUsize::new(0),
            workers,
            own: own.clone(),
        }))
    }

    fn own(&self) -> Arc<Daemon> {
        self.own.upgrade().expect("called through an Arc")
    }

    /// What the operator has run when something happens to a machine or a disk.
    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub fn workers(&self) -> Vec<WorkerHandle> {
        self.workers.iter().map(Worker::handle).collect()
    }

    /// Moves queues between the workers as their loads change, until it is dropped.
    pub fn balance(self: &Arc<Self>) -> Done<Rebalancer> {
        let own = self.own.clone();
        let disks = move || {
            let Some(daemon) = own.upgrade() else {
                return Vec::new();
            };
            let disks = daemon.disks();
            disks
                .values()
                .map(|served| served.device.disk().clone())
                .collect()
        };
        Ok(Rebalancer::start(self.workers(), disks)?)
    }

    fn next_home(&self) -> usize {
        self.next_home.fetch_add(1, Ordering::Relaxed)
    }

    pub fn disks(&self) -> MutexGuard<'_, BTreeMap<DiskId, Arc<Served>>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retired(&self) -> MutexGuard<'_, BTreeMap<DiskId, Arc<Ownership>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up the disks of the configuration, and then those that were added before the last end.
    /// A machine's are taken up in its order.
    pub fn take_up_disks(&self) {
        let version = env!("CARGO_PKG_VERSION");
        let text = format!("daemon {} begins, version {version}", self.id);
        self.events.note(What::Started, About::default(), text);
        let configured = self.config.disks.iter().cloned();
        let mut disks: Vec<_> = configured.map(|disk| (disk, Origin::Configured)).collect();
        for kept in kept::load::<Kept>(&self.config.state_dir) {
            let id = &kept.disk.id;
            if self.config.disks.iter().any(|disk| disk.id == *id) {
                tracing::warn!(disk = %id, "what the configuration says of the disk is used, and \
                    not what ferry disk add said");
                continue;
            }
            let unannounced = kept.unannounced;
            disks.push((kept.disk, Origin::Kept { unannounced }));
        }
        self.take_up_in_order(disks);
    }

    /// A disk by its id.
    pub fn disk(&self, id: &DiskId) -> Done<Arc<Served>> {
        self.disks().get(id).cloned().ok_or_else(|| {
            Failure::Failed(format!(
                "there is no disk {id} here; ferry disk list names those there are"
            ))
        })
    }

    /// Listens for peers, until the server is dropped.
    pub fn listen_for_peers(self: &Arc<Self>) -> Done<Server> {
        let address = &self.config.migration.listen;
        let host: Arc<dyn DestinationHost> = self.clone();
        let server = Server::start(address, host).map_err(|error| {
            Failure::Failed(format!("cannot listen for peers on {address}: {error}"))
        })?;
        if !server.address().ip().is_loopback() {
            tracing::warn!(address = %server.address(),
                "peers are not authenticated yet: whoever reaches this address may move disks");
        }
        Ok(server)
    }

    /// Stops every disk: in reverse of the start, migrations first.
    pub fn stop(&self) {
        self.escalation.stop();
        self.migrations.stop();
        self.nics.stop();
        self.sioc.stop();
        let disks = std::mem::take(&mut *self.disks());
        drop(disks);
        self.datastores.stop();
    }

    /// Where a disk without a socket of its own listens.
    pub fn socket_of(&self, id: &DiskId) -> PathBuf {
        self.config.run_dir.join(format!("{id}.sock"))
    }
}
