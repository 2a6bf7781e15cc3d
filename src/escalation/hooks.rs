//! Hooks: what is run for which event, with what environment, and one at a time for each machine.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ferry_migration::ids::DiskId;

use super::hook::{Ended, Run};
use super::report;
use crate::daemon::Daemon;
use crate::events::{About, What};
use crate::name::Name;

/// Hooks that wait for one of the same machine to end. More are not run, and the log says so.
const WAITING_MAX: usize = 8;

/// What a hook is told of.
#[derive(Debug, Clone)]
pub enum HookEvent {
    /// A machine is to be restarted.
    Restart {
        vm: Name,
        attempt: u32,
        reason: String,
    },
    /// Restarts did not help.
    Escalate {
        vm: Name,
        attempts: u32,
        reason: String,
    },
    /// A disk is served here now that another host served, at `from`, and nobody has moved it: its
    /// machine is to be started here.
    Takeover {
        disk: DiskId,
        epoch: u64,
        from: String,
    },
}

impl HookEvent {
    /// As FERRY_EVENT has it.
    pub fn name(&self) -> &'static str {
        match self {
            HookEvent::Restart { .. } => "restart",
            HookEvent::Escalate { .. } => "escalate",
            HookEvent::Takeover { .. } => "takeover",
        }
    }

    /// Why, for a person.
    pub fn reason(&self) -> String {
        match self {
            HookEvent::Restart { reason, .. } | HookEvent::Escalate { reason, .. } => {
                reason.clone()
            }
            HookEvent::Takeover { disk, epoch, from } => {
                format!(
                    "disk {disk} was taken over from {from}, and is served here at epoch {epoch}"
                )
            }
        }
    }

    pub fn attempt(&self) -> Option<u32> {
        match self {
            HookEvent::Restart { attempt, .. } => Some(*attempt),
            HookEvent::Escalate { attempts, .. } => Some(*attempts),
            HookEvent::Takeover { .. } => None,
        }
    }

    pub fn disk(&self) -> Option<&DiskId> {
        match self {
            HookEvent::Takeover { disk, .. } => Some(disk),
            _ => None,
        }
    }

    /// The machine, if one lists the disk.
    pub fn vm<'a>(&'a self, daemon: &'a Daemon) -> Option<&'a Name> {
        match self {
            HookEvent::Restart { vm, .. } | HookEvent::Escalate { vm, .. } => Some(vm),
            HookEvent::Takeover { disk, .. } => daemon.config.vm_of(disk).map(|vm| &vm.name),
        }
    }
}

/// One hook to run.
struct Job {
    event: HookEvent,
    /// Nothing has happened: an operator tries the hook.
    trial: bool,
}

/// All hooks of a daemon.
pub struct Hooks {
    daemon: Weak<Daemon>,
    /// Those that wait, of each machine (or disk that is no machine's) for which one runs.
    lines: Mutex<BTreeMap<String, VecDeque<Job>>>,
}

impl Hooks {
    pub fn new(daemon: Weak<Daemon>) -> Hooks {
        Hooks {
            daemon,
            lines: Mutex::default(),
        }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<String, VecDeque<Job>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a hook runs, or waits, for a machine.
    pub fn is_running(&self, vm: &Name) -> bool {
        self.lines().contains_key(&key(Some(vm), None))
    }

    /// Has the hook for an event run, if there is one. Returns at once.
    pub fn run(&self, event: HookEvent) {
        if let (Some(daemon), HookEvent::Takeover { disk, .. }) = (self.daemon.upgrade(), &event) {
            let about = About {
                vm: event.vm(&daemon).map(Name::as_str),
                disk: Some(disk),
            };
            daemon.events.note(What::Takeover, about, event.reason());
        }
        let trial = false;
        self.submit(Job { event, trial });
    }

    /// Has it run as if the event had happened.
    pub fn try_out(&self, event: HookEvent) {
        let trial = true;
        self.submit(Job { event, trial });
    }

    fn submit(&self, job: Job) {
        let Some(daemon) = self.daemon.upgrade() else {
            return; // it ends
        };
        let (vm, disk) = (job.event.vm(&daemon).cloned(), job.event.disk().cloned());
        let key = key(vm.as_ref(), disk.as_ref());
        let about = About {
            vm: vm.as_ref().map(Name::as_str),
            disk: disk.as_ref(),
        };
        {
            let mut lines = self.lines();
            if let Some(line) = lines.get_mut(&key) {
                if line.len() < WAITING_MAX {
                    line.push_back(job);
                    return;
                }
                drop(lines);
                let name = job.event.name();
                let text = format!("{name} is not told: {WAITING_MAX} hooks wait already");
                return daemon.events.note(What::HookFailed, about, text);
            }
            lines.insert(key.clone(), VecDeque::from([job]));
        }
        let (own, line) = (daemon.clone(), key.clone());
        let spawned = std::thread::Builder::new()
            .name("ferry-hook".into())
            .spawn(move || own.hooks().work_off(&own, &line));
        if let Err(error) = spawned {
            self.lines().remove(&key);
            let text = format!("no thread for a hook: {error}");
            daemon.events.note(What::HookFailed, about, text);
        }
    }

    /// Runs what waits in a line, until nothing does.
    fn work_off(&self, daemon: &Arc<Daemon>, key: &str) {
        loop {
            let job = {
                let mut lines = self.lines();
                match lines.get_mut(key).and_then(VecDeque::pop_front) {
                    Some(job) => job,
                    None => {
                        lines.remove(key);
                        return;
                    }
                }
            };
            carry_out(daemon, &job);
        }
    }
}

/// The names of machines and disks could be the same.
fn key(vm: Option<&Name>, disk: Option<&DiskId>) -> String {
    match (vm, disk) {
        (Some(vm), _) => format!("vm {vm}"),
        (None, Some(disk)) => format!("disk {disk}"),
        (None, None) => String::new(),
    }
}

fn carry_out(daemon: &Arc<Daemon>, job: &Job) {
    let (event, all) = (&job.event, &daemon.config.escalation);
    let vm = event.vm(daemon);
    let section = vm.and_then(|vm| daemon.config.vm(vm));
    let hook = match section {
        Some(section) => section.hook(all),
        None => all.hook.as_deref(),
    };
    let about = About {
        vm: vm.map(Name::as_str),
        disk: event.disk(),
    };
    let name = event.name();
    let tell = |what, text: String| daemon.events.note(what, about, text);
    let Some(hook) = hook else {
        return tell(
            What::Hook,
            format!("{name}: no hook is set, nothing is run"),
        );
    };
    let report = report::write(daemon, event, vm, job.trial).map_err(|error| {
        tell(
            What::HookFailed,
            format!("{name}: there is no report: {error}"),
        );
    });
    let mut run = Run {
        program: hook.to_owned(),
        environment: environment(daemon, job, vm),
        timeout: Duration::from_nanos(all.hook_timeout().ns()),
        about: about
            .vm
            .map_or_else(|| name.to_owned(), |vm| format!("{vm} {name}")),
    };
    if let Ok(report) = report {
        run.environment.push(("FERRY_REPORT", report.into()));
    }
    let trial = if job.trial { ", as a trial" } else { "" };
    let attempt = event.attempt().map_or(String::new(), |n| format!(" {n}"));
    tell(
        What::Hook,
        format!("{name}{attempt}: {} is run{trial}", hook.display()),
    );
    match run.run() {
        Ended::Exited(status) if status.success() => {
            tell(What::Hook, format!("{name}{attempt}: the hook is done"));
        }
        Ended::Exited(status) => {
            tell(
                What::HookFailed,
                format!("{name}{attempt}: the hook failed, {status}"),
            );
        }
        Ended::Killed => tell(
            What::HookFailed,
            format!(
                "{name}{attempt}: the hook was killed after {:?}; raise hook_timeout if it needs \
                 longer",
                run.timeout
            ),
        ),
        Ended::NotStarted(error) => tell(
            What::HookFailed,
            format!("{name}{attempt}: {} cannot be run: {error}", hook.display()),
        ),
    }
}

fn environment(daemon: &Daemon, job: &Job, vm: Option<&Name>) -> Vec<(&'static str, OsString)> {
    let event = &job.event;
    let mut all: Vec<(&str, OsString)> = vec![
        ("FERRY_EVENT", event.name().into()),
        ("FERRY_REASON", event.reason().into()),
        ("FERRY_CONTROL", daemon.config.control_socket().into()),
    ];
    if let Some(vm) = vm {
        all.push(("FERRY_VM", vm.as_str().into()));
    }
    if let Some(attempt) = event.attempt() {
        all.push(("FERRY_ATTEMPT", attempt.to_string().into()));
    }
    if let HookEvent::Takeover { disk, epoch, from } = event {
        let served = daemon.disk(disk).map(|served| served.socket.clone());
        let socket: PathBuf = served.unwrap_or_else(|_| daemon.socket_of(disk));
        all.push(("FERRY_DISK", disk.as_str().into()));
        all.push(("FERRY_EPOCH", epoch.to_string().into()));
        all.push(("FERRY_FROM", from.into()));
        all.push(("FERRY_SOCKET", socket.into()));
    }
    if job.trial {
        all.push(("FERRY_TRIAL", "1".into()));
    }
    all
}
