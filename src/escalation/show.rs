//! Machines as `ferry vm` and the reports show them.

use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use super::Escalation;
use super::fault::Standing;
use super::progress::Ages;
use super::report::disk_line;
use super::watch::VmSeen;
use crate::daemon::Daemon;
use crate::error::{Done, Failure};
use crate::name::Name;

impl Escalation {
    /// `vm.list`.
    pub fn vm_lines(&self, daemon: &Daemon) -> Value {
        let seen = self.seen();
        let now_ns = seen.clock.now_ns();
        let lines = seen.vms.iter().map(|vm| line(daemon, vm, now_ns));
        json!({ "vms": lines.collect::<Vec<_>>() })
    }

    /// One machine, with the ages of its disks' requests.
    pub fn vm_line(&self, daemon: &Daemon, name: &Name) -> Option<Value> {
        let seen = self.seen();
        let vm = seen.vms.iter().find(|vm| vm.config.name == *name)?;
        Some(line(daemon, vm, seen.clock.now_ns()))
    }

    /// `vm.show`: with all that is known of the disks.
    pub fn vm_shown(&self, daemon: &Daemon, name: &Name) -> Done<Value> {
        let Some(mut line) = self.vm_line(daemon, name) else {
            return Err(Failure::Failed(format!(
                "there is no vm {name} in the daemon's configuration; ferry vm list names those \
                 there are"
            )));
        };
        for disk in line["disks"].as_array_mut().into_iter().flatten() {
            let Ok(id) = serde_json::from_value::<DiskId>(disk["id"].clone()) else {
                continue;
            };
            if let Value::Object(known) = disk_line(daemon, &id)
                && let Value::Object(disk) = disk
            {
                disk.extend(known);
            }
        }
        Ok(line)
    }
}

/// Asks no disk, as that may hang.
fn line(daemon: &Daemon, vm: &VmSeen, now_ns: u64) -> Value {
    let config = &vm.config;
    let hook = config.hook(&daemon.config.escalation);
    let ages = vm
        .disks
        .iter()
        .map(|(id, disk)| (id, disk.progress.ages(now_ns)));
    let ages: Vec<_> = ages.collect();
    let oldest_ns = ages.iter().filter_map(|(_, ages)| ages.oldest_ns).max();
    let completed_ns = ages.iter().filter_map(|(_, ages)| ages.completed_ns).min();
    let in_flight: u64 = ages.iter().map(|(_, ages)| ages.in_flight).sum();
    let disks = ages.iter().map(|(id, ages)| disk(daemon, id, ages));
    let heartbeat = config
        .heartbeat
        .as_ref()
        .map(|at| json!({ "at": at.to_string(), "age_ms": ms(vm.silent_ns(now_ns)) }));
    json!({
        "name": config.name,
        "state": standing(vm.machine.standing()),
        "reason": vm.reason,
        "attempts": vm.machine.attempts(),
        "restart_attempts": vm.policy.restart_attempts,
        "fault_delay_ms": vm.policy.fault_delay_ns / 1_000_000,
        "healthy_period_ms": vm.policy.healthy_ns / 1_000_000,
        "hook": hook,
        "hook_running": daemon.hooks().is_running(&config.name),
        "in_flight": in_flight,
        "oldest_ms": ms(oldest_ns),
        "completed_ms": ms(completed_ns),
        "heartbeat": heartbeat,
        "disks": disks.collect::<Vec<_>>(),
    })
}

fn disk(daemon: &Daemon, id: &DiskId, ages: &Ages) -> Value {
    let is_here = daemon.disks().contains_key(id);
    let problem = if is_here {
        None
    } else {
        daemon.escalation.problem(id)
    };
    json!({
        "id": id,
        "here": is_here,
        "problem": problem,
        "in_flight": ages.in_flight,
        "oldest_ms": ms(ages.oldest_ns),
        "completed_ms": ms(ages.completed_ns),
        "stalled_ms": ms(ages.stalled_ns),
    })
}

fn ms(ns: Option<u64>) -> Option<u64> {
    ns.map(|ns| ns / 1_000_000)
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Healthy => "healthy",
        Standing::Recovering => "recovering",
        Standing::Faulty => "faulty",
        Standing::Escalated => "escalated",
    }
}
