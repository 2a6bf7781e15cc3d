//! Storage I/O Control in the daemon: which disk is on which datastore, what was said of both, and a
//! thread for each datastore that is steered.
//!
//! ```text
//!   configuration, kept files, commands ──► Said ──► Datastore, one for each place ──► Domain
//!                                                        │    disks ──► DiskControl ──► workers
//!                                                        ▼
//!                                               thread.rs: the governor, every 10 ms under load;
//!                                               the statistics file, every period; events
//! ```
//!
//! Every disk is under a control, one in memory too: limits hold and latencies are measured whatever
//! the mode. Only a datastore that somebody has named is steered, and only that has a thread.
//!
//! Locks are taken in this order: the state's, a disk's, a datastore's.

mod change;
mod exchange;
mod groups;
mod iostat;
mod moved;
mod probe;
mod readings;
mod show;
mod status;
mod steer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use ferry_dataplane::clock::now_ns;
use ferry_dataplane::qos::domain::{DiskControl, Domain, Group};
use ferry_dataplane::worker::WorkerHandle;
use ferry_migration::ids::DiskId;

use super::Daemon;
use super::disks::Served;
use super::place::follow;
use crate::config::Config;
use crate::error::{Done, Failure};
use crate::name::Name;
use crate::qos::datastore::{Settings, Sioc as Mode, Threshold};
use crate::qos::said::{Home, Said};
use moved::Keeper;
use status::Status;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All datastores and groups of a daemon.
pub struct Sioc {
    state: Mutex<State>,
}

struct State {
    said: Said,
    datastores: BTreeMap<PathBuf, Arc<Datastore>>,
    groups: BTreeMap<Name, Arc<Group>>,
}

/// A place with disks of this daemon.
pub struct Datastore {
    /// Its directory or device; empty for all that is in memory.
    path: PathBuf,
    domain: Arc<Domain>,
    steering: Mutex<Steering>,
    status: Mutex<Status>,
    daemon: Weak<Daemon>,
    workers: Vec<WorkerHandle>,
    /// The thread that steers it, once there is one.
    thread: Mutex<Option<JoinHandle<()>>>,
    steered: AtomicBool,
    over: AtomicBool,
    /// The thread is to begin anew.
    changed: AtomicBool,
    /// A threshold is being looked for.
    probing: AtomicBool,
}

struct Steering {
    home: Home,
    settings: Settings,
    /// The threshold that was found by trying, in nanoseconds.
    found_ns: Option<u64>,
    members: Vec<Member>,
}

/// A disk on it.
struct Member {
    id: DiskId,
    number: u64,
    control: Arc<DiskControl>,
    served: Weak<Served>,
}

/// A disk's place, and its control there.
pub struct Controlled {
    pub datastore: Arc<Datastore>,
    pub control: Arc<DiskControl>,
}

impl Sioc {
    /// What the configuration and earlier runs have said; nothing is steered yet.
    pub fn new(config: &Config) -> Sioc {
        let said = Said::load(config);
        let groups = said.groups.values().map(|config| {
            let group = Arc::new(Group::default());
            group.set(now_ns(), config.limit_iops, config.limit_bytes());
            (config.name.clone(), group)
        });
        let groups = groups.collect();
        Sioc {
            state: Mutex::new(State {
                said,
                datastores: BTreeMap::new(),
                groups,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Refuses a group that is not there.
    pub fn has_group(&self, disk: &DiskId, group: &Name) -> Done {
        if self.state().groups.contains_key(group) {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "disk {disk}: there is no group {group}; make it: ferry group set {group} --limit-iops N"
        )))
    }

    /// Ends all threads.
    pub fn stop(&self) {
        let datastores = std::mem::take(&mut self.state().datastores);
        datastores.values().for_each(|datastore| datastore.end());
    }
}

impl Datastore {
    fn new(home: Home, found_ns: Option<u64>, daemon: &Daemon) -> Datastore {
        let settings = home.settings();
        let (count, model) = (daemon.workers.len(), settings.cost_model());
        Datastore {
            path: home.path.clone(),
            domain: Arc::new(Domain::new(count, model, settings.medium)),
            status: Mutex::default(),
            daemon: daemon.own.clone(),
            workers: daemon.workers(),
            thread: Mutex::default(),
            steered: AtomicBool::new(false),
            over: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            steering: Mutex::new(Steering {
                home,
                settings,
                found_ns,
                members: Vec::new(),
            }),
        }
    }

    fn steering(&self) -> MutexGuard<'_, Steering> {
        lock(&self.steering)
    }

    /// How it is steered now; and its threshold: as set, as found, or its medium's.
    fn settings(&self) -> (Settings, u64) {
        let steering = self.steering();
        let threshold_ns = match (steering.settings.threshold, steering.found_ns) {
            (Threshold::Auto, Some(found_ns)) => found_ns,
            _ => steering.settings.threshold_ns(),
        };
        (steering.settings, threshold_ns)
    }

    /// Opens all its windows.
    fn open(&self) {
        if self.domain.window().is_finite() {
            (0..self.domain.workers()).for_each(|at| self.domain.set_window(at, f64::INFINITY));
            self.domain.announce();
            self.wake_workers();
        }
    }

    fn wake_workers(&self) {
        self.workers.iter().for_each(WorkerHandle::wake);
    }

    /// Its path and its mode; none for what is in memory.
    pub fn home(&self) -> Option<(PathBuf, Mode)> {
        let sioc = self.steering().settings.sioc;
        let somewhere = !self.path.as_os_str().is_empty();
        somewhere.then(|| (self.path.clone(), sioc))
    }
}

impl Daemon {
    /// Puts a disk under the control of the datastore that it is on, instead of another if need be.
    pub(super) fn control(&self, served: &Arc<Served>) -> Done {
        let mut state = self.sioc.state();
        self.control_in(&mut state, served)
    }

    fn control_in(&self, state: &mut State, served: &Arc<Served>) -> Done {
        let home = home_of(&state.said, served);
        let known = state.datastores.get(&home.path).cloned();
        let datastore = known.unwrap_or_else(|| {
            let found_ns = state.said.found.get(&home.path).copied();
            let datastore = Arc::new(Datastore::new(home.clone(), found_ns, self));
            state.datastores.insert(home.path, datastore.clone());
            datastore
        });
        let qos = served.qos().clone();
        let domain = datastore.domain.clone();
        let control = Arc::new(DiskControl::new(domain, now_ns(), qos.policy()));
        if let Some(name) = &qos.group {
            let group = state.groups.get(name).cloned();
            if group.is_none() {
                tracing::warn!(disk = %served.config.id, group = %name,
                    "there is no such group any more: the disk is under no limits but its own; make it \
                     with ferry group set");
            }
            control.set_group(group);
        }
        served.device.disk().set_qos(Some(&control))?;
        served
            .device
            .keep_qos(Arc::new(Keeper::new(&self.own, served)));
        let member = Member {
            id: served.config.id.clone(),
            number: served.device.disk().number(),
            control: control.clone(),
            served: Arc::downgrade(served),
        };
        let controlled = Controlled {
            datastore: datastore.clone(),
            control,
        };
        let before = served.controlled().replace(controlled);
        if let Some(before) = before {
            before.datastore.forget(served);
        }
        datastore.steering().members.push(member);
        datastore.steer()?;
        Ok(())
    }

    /// A disk that is let go of is on no datastore any more.
    pub(super) fn uncontrol(&self, served: &Arc<Served>) {
        if let Some(before) = served.controlled().take() {
            before.datastore.forget(served);
        }
    }
}

impl Member {
    /// The workers that its queues are on; `None` if that cannot be told now.
    fn queues(&self) -> Option<Vec<usize>> {
        let placed = self.served.upgrade()?.device.disk().placed();
        let workers: Vec<usize> = placed.iter().map(|it| it.worker).collect();
        (!workers.is_empty()).then_some(workers)
    }
}

impl Datastore {
    fn forget(&self, served: &Arc<Served>) {
        let own = Arc::as_ptr(served);
        self.steering()
            .members
            .retain(|member| member.served.as_ptr() != own);
    }
}

/// Where a disk is; what is in memory is together, and nowhere.
fn home_of(said: &Said, served: &Served) -> Home {
    match served.image_path() {
        Some(path) => said.home(&follow(path).unwrap_or_else(|_| path.to_owned())),
        None => Home {
            path: PathBuf::new(),
            named: false,
            qos: Default::default(),
        },
    }
}
