//! The watch: one thread that looks at every machine at an even pace, ages what it sees, and says
//! when something is to be done. It waits for nothing but its next look: no disk, no file, no hook.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use ferry_dataplane::clock::now_ns;
use ferry_migration::ids::DiskId;

use super::fault::{Action, Fault, Machine, Policy, Vitals};
use super::heartbeat::Heartbeat;
use super::hooks::HookEvent;
use super::progress::{Ages, Progress, WatchClock};
use super::settings::VmConfig;
use crate::daemon::Daemon;
use crate::error::Done;
use crate::events::{About, What};

/// Looks in a fault delay, and the bounds of the time between two.
const LOOKS_A_DELAY: u64 = 16;
const INTERVAL_NS_MIN: u64 = 10_000_000;
const INTERVAL_NS_MAX: u64 = 1_000_000_000;

/// How often the watch may look, by the most impatient machine.
pub fn interval(policies: impl Iterator<Item = Policy>) -> Duration {
    let delay_ns = policies.map(|policy| policy.fault_delay_ns).min();
    let interval_ns = delay_ns.unwrap_or(u64::MAX) / LOOKS_A_DELAY;
    Duration::from_nanos(interval_ns.clamp(INTERVAL_NS_MIN, INTERVAL_NS_MAX))
}

/// One disk of a machine.
#[derive(Default)]
pub struct DiskSeen {
    pub progress: Progress,
    /// Which disk was seen: one that is removed and added again begins anew.
    number: Option<u64>,
}

/// One machine.
pub struct VmSeen {
    pub config: VmConfig,
    pub policy: Policy,
    pub machine: Machine,
    pub disks: Vec<(DiskId, DiskSeen)>,
    pub heartbeat: Option<Heartbeat>,
    beats: u64,
    beat_at_ns: Option<u64>,
    /// What was wrong when something was last done about it.
    pub reason: Option<String>,
}

impl VmSeen {
    pub fn new(config: VmConfig, policy: Policy, heartbeat: Option<Heartbeat>) -> VmSeen {
        let disks = config.disks.iter();
        VmSeen {
            policy,
            machine: Machine::new(policy),
            disks: disks.map(|id| (id.clone(), DiskSeen::default())).collect(),
            heartbeat,
            beats: 0,
            beat_at_ns: None,
            reason: None,
            config,
        }
    }

    /// Time since the last heartbeat.
    pub fn silent_ns(&self, now_ns: u64) -> Option<u64> {
        self.beat_at_ns.map(|at_ns| now_ns.saturating_sub(at_ns))
    }

    /// The disk without progress for longest.
    fn stalled(&self, now_ns: u64) -> Option<(&DiskId, Ages)> {
        let ages = self
            .disks
            .iter()
            .map(|(id, disk)| (id, disk.progress.ages(now_ns)));
        let stalled = ages.filter(|(_, ages)| ages.stalled_ns.is_some());
        stalled.max_by_key(|(_, ages)| ages.stalled_ns)
    }

    /// Reads counters, and what the heartbeat's thread has found.
    fn see(&mut self, daemon: &Daemon, now_ns: u64) {
        let served = daemon.disks();
        for (id, seen) in &mut self.disks {
            let disk = served.get(id).map(|served| served.device.disk());
            let number = disk.map(|disk| disk.number());
            if number != seen.number {
                *seen = DiskSeen {
                    number,
                    ..DiskSeen::default()
                };
            }
            if let Some(disk) = disk {
                seen.progress.look(now_ns, disk.flow());
            }
        }
        drop(served);
        let beats = self.heartbeat.as_ref().map_or(0, Heartbeat::beats);
        if beats != self.beats {
            (self.beats, self.beat_at_ns) = (beats, Some(now_ns));
        }
    }

    /// Decides, and says what is wrong in words.
    fn judge(&mut self, now_ns: u64, hook_runs: bool) -> Option<(Action, String)> {
        let stalled = self.stalled(now_ns);
        let vitals = Vitals {
            stalled_ns: stalled.and_then(|(_, ages)| ages.stalled_ns),
            silent_ns: self.silent_ns(now_ns),
        };
        let which = stalled.map(|(id, ages)| (id.clone(), ages.in_flight));
        let action = self.machine.look(now_ns, &vitals, hook_runs)?;
        let reason = match action {
            Action::Forget => {
                self.reason = None;
                return Some((action, "no fault for a healthy period".into()));
            }
            Action::Restart { fault, .. } | Action::Escalate { fault, .. } => match fault {
                Fault::Stalled { ns } => {
                    let (id, in_flight) = which.expect("what is stalled was found");
                    format!(
                        "disk {id} has completed nothing for {}, with {in_flight} in flight",
                        seconds(ns)
                    )
                }
                Fault::Silent { ns } => format!("no heartbeat for {}", seconds(ns)),
            },
        };
        self.reason = Some(reason.clone());
        Some((action, reason))
    }
}

/// Nanoseconds for a person.
pub fn seconds(ns: u64) -> String {
    let tenths = ns / 100_000_000;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// The watching thread, until it is dropped.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches what the daemon's configuration lists; no thread if that is nothing.
    pub fn start(daemon: &Arc<Daemon>) -> Done<Watch> {
        let over = Arc::new(AtomicBool::new(false));
        let watched = daemon.escalation.start(&daemon.config)?;
        let mut thread = None;
        if let Some(interval) = watched {
            daemon
                .escalation
                .each_socket(|socket| daemon.give_to_group(socket));
            let (own, over) = (Arc::downgrade(daemon), over.clone());
            let begun = std::thread::Builder::new()
                .name("ferry-watch".into())
                .spawn(move || watch(&own, interval, &over))?;
            thread = Some(begun);
        }
        Ok(Watch { over, thread })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn watch(daemon: &Weak<Daemon>, interval: Duration, over: &AtomicBool) {
    let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    while !over.load(Ordering::Relaxed) {
        let Some(own) = daemon.upgrade() else { return };
        look(&own, interval_ns);
        drop(own);
        std::thread::park_timeout(interval);
    }
}

/// Looks at all machines once.
fn look(daemon: &Daemon, interval_ns: u64) {
    let mut due = Vec::new();
    {
        let mut seen = daemon.escalation.seen();
        let now_ns = seen.clock.advance(now_ns(), interval_ns);
        for vm in &mut seen.vms {
            let hook_runs = daemon.hooks().is_running(&vm.config.name);
            vm.see(daemon, now_ns);
            if let Some((action, reason)) = vm.judge(now_ns, hook_runs) {
                due.push((vm.config.name.clone(), action, reason));
            }
        }
    }
    for (vm, action, reason) in due {
        let about = About::vm(vm.as_str());
        let what = match action {
            Action::Forget => What::Healthy,
            _ => What::Fault,
        };
        daemon.events.note(what, about, &reason);
        let event = match action {
            Action::Forget => continue,
            Action::Restart { attempt, .. } => HookEvent::Restart {
                vm,
                attempt,
                reason,
            },
            Action::Escalate { attempts, .. } => HookEvent::Escalate {
                vm,
                attempts,
                reason,
            },
        };
        daemon.hooks().run(event);
    }
}

/// For the clock of what was seen.
#[derive(Default)]
pub struct Seen {
    pub clock: WatchClock,
    pub vms: Vec<VmSeen>,
}
