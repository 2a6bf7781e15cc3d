//! Escalation: machines are watched through their disks and their guests' heartbeats. One that makes
//! no progress is restarted by a program of the operator's, a bounded number of times, and then
//! somebody is told.
//!
//! ```text
//!   workers ─ counts ─► watch ─ ages ─► fault ─ restart, escalate ─► hooks ─► the operator's program
//!   guests ─── beats ─►  (one thread)   (pure)                      (a thread for each machine)
//!                                                     takeover ─►      └─► report, events
//! ```
//!
//! Ferry does not know how a machine is started or stopped: the hook does. What is here decides when
//! it is called, how often, and with what knowledge.

pub mod fault;
mod heartbeat;
pub mod hook;
pub mod hooks;
mod progress;
mod report;
pub mod settings;
mod show;
pub mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_migration::ids::DiskId;

use crate::config::Config;
use crate::error::Done;
use heartbeat::Heartbeat;
use watch::{Seen, VmSeen};

/// What the daemon knows of its machines.
#[derive(Default)]
pub struct Escalation {
    seen: Mutex<Seen>,
    /// Why disks were not taken up.
    problems: Mutex<BTreeMap<DiskId, String>>,
}

impl Escalation {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn problems(&self) -> MutexGuard<'_, BTreeMap<DiskId, String>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk was not taken up.
    pub fn set_problem(&self, id: &DiskId, why: String) {
        self.problems().insert(id.clone(), why);
    }

    /// It was, or is not wanted any more.
    pub fn clear_problem(&self, id: &DiskId) {
        self.problems().remove(id);
    }

    /// Why it was not.
    pub fn problem(&self, id: &DiskId) -> Option<String> {
        self.problems().get(id).cloned()
    }

    /// Looks for the hooks, and opens the heartbeats; how often to look at them.
    fn start(&self, config: &Config) -> Done<Option<Duration>> {
        let all = &config.escalation;
        let hooks = config.vms.iter().filter_map(|vm| vm.hook.as_deref());
        for program in hooks.chain(all.hook.as_deref()) {
            hook::check(program)?;
        }
        let interval = watch::interval(config.vms.iter().map(|vm| vm.policy(all)));
        let mut vms = Vec::new();
        for vm in &config.vms {
            let at = vm.heartbeat.as_ref();
            let heartbeat = at.map(|at| Heartbeat::start(at, interval)).transpose()?;
            vms.push(VmSeen::new(vm.clone(), vm.policy(all), heartbeat));
        }
        let some = !vms.is_empty();
        self.seen().vms = vms;
        Ok(some.then_some(interval))
    }

    fn each_socket(&self, task: impl Fn(&Path)) {
        let seen = self.seen();
        let hearts = seen.vms.iter().filter_map(|vm| vm.heartbeat.as_ref());
        hearts.filter_map(Heartbeat::socket).for_each(task);
    }

    /// Closes the heartbeats.
    pub fn stop(&self) {
        self.seen().vms.clear();
    }
}
