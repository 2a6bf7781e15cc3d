//! `[escalation]` and `[[vm]]` of the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ferry_migration::ids::DiskId;
use serde::Deserialize;

use super::fault::Policy;
use crate::error::{Done, Failure};
use crate::name::Name;

const RESTART_ATTEMPTS: u32 = 3;
const RESTART_ATTEMPTS_MAX: u32 = 100;
const FAULT_DELAY: Seconds = Seconds(30_000_000_000);
const HOOK_TIMEOUT: Seconds = Seconds(60_000_000_000);

/// The healthy period, in fault delays: unless set, and at least.
const HEALTHY_PERIOD: u64 = 10;
const HEALTHY_PERIOD_MIN: u64 = 2;

/// A tenth of a second, to a day.
const SECONDS: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;

/// A time, written as seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "f64")]
pub struct Seconds(u64);

impl Seconds {
    /// As nanoseconds.
    pub fn ns(self) -> u64 {
        self.0
    }
}

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Seconds, String> {
        if !SECONDS.contains(&seconds) {
            let (least, most) = (SECONDS.start(), SECONDS.end());
            return Err(format!("a time is {least} to {most} seconds"));
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
        #[expect(clippy::cast_sign_loss, reason = "bounded just above")]
        Ok(Seconds((seconds * 1e9) as u64))
    }
}

/// `[escalation]`: for all machines, unless their own section says otherwise.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EscalationConfig {
    /// Run when something is to be done about a machine, and when a disk was taken over.
    pub hook: Option<PathBuf>,
    /// How long a hook may run.
    pub hook_timeout: Option<Seconds>,
    pub restart_attempts: Option<u32>,
    pub fault_delay: Option<Seconds>,
    pub healthy_period: Option<Seconds>,
}

impl EscalationConfig {
    pub fn hook_timeout(&self) -> Seconds {
        self.hook_timeout.unwrap_or(HOOK_TIMEOUT)
    }
}

/// `[[vm]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    pub name: Name,
    /// Its disks, each after those that it needs.
    #[serde(default)]
    pub disks: Vec<DiskId>,
    /// Where its guest shows that it lives.
    pub heartbeat: Option<HeartbeatAt>,
    pub hook: Option<PathBuf>,
    pub restart_attempts: Option<u32>,
    pub fault_delay: Option<Seconds>,
    pub healthy_period: Option<Seconds>,
}

impl VmConfig {
    /// What is run for it, if anything.
    pub fn hook<'a>(&'a self, all: &'a EscalationConfig) -> Option<&'a Path> {
        self.hook.as_deref().or(all.hook.as_deref())
    }

    /// What counts as a fault of it. Without a hook nobody can restart it, and a fault is told once.
    pub fn policy(&self, all: &EscalationConfig) -> Policy {
        let attempts = self.restart_attempts.or(all.restart_attempts);
        let fault_delay = self.fault_delay.or(all.fault_delay);
        let healthy = self.healthy_period.or(all.healthy_period);
        let fault_delay_ns = fault_delay.unwrap_or(FAULT_DELAY).ns();
        Policy {
            restart_attempts: match self.hook(all) {
                Some(_) => attempts.unwrap_or(RESTART_ATTEMPTS),
                None => 0,
            },
            fault_delay_ns,
            healthy_ns: healthy.map_or(HEALTHY_PERIOD * fault_delay_ns, Seconds::ns),
        }
    }
}

/// Where heartbeats are seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum HeartbeatAt {
    /// A file that changes.
    File(PathBuf),
    /// A socket that the daemon listens on.
    Socket(PathBuf),
}

impl TryFrom<String> for HeartbeatAt {
    type Error = String;

    fn try_from(text: String) -> Result<HeartbeatAt, String> {
        let (kind, path) = text.split_once(':').unwrap_or_default();
        let path = PathBuf::from(path);
        match kind {
            "file" if path.is_absolute() => Ok(HeartbeatAt::File(path)),
            "socket" if path.is_absolute() => Ok(HeartbeatAt::Socket(path)),
            _ => Err(format!(
                "{text:?} is not a heartbeat; use file:/PATH or socket:/PATH"
            )),
        }
    }
}

impl fmt::Display for HeartbeatAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeartbeatAt::File(path) => write!(f, "file:{}", path.display()),
            HeartbeatAt::Socket(path) => write!(f, "socket:{}", path.display()),
        }
    }
}

/// Checks what types cannot say; hooks are looked for when the daemon starts.
pub fn check(all: &EscalationConfig, vms: &[VmConfig]) -> Done {
    let wrong = |what: String| Err(Failure::Usage(what));
    let hooks = vms.iter().filter_map(|vm| vm.hook.as_ref());
    for hook in hooks.chain(&all.hook) {
        if !hook.is_absolute() {
            return wrong(format!(
                "hook {} must be an absolute path: the daemon has a working directory of its own",
                hook.display()
            ));
        }
    }
    let (mut names, mut owners, mut hearts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for vm in vms {
        let name = &vm.name;
        if names.insert(name, ()).is_some() {
            return wrong(format!("vm {name} is there twice; names must differ"));
        }
        for disk in &vm.disks {
            if let Some(other) = owners.insert(disk, name) {
                return wrong(format!(
                    "disk {disk} is listed by vm {other} and by vm {name}; a disk is one VM's, and \
                     listed once"
                ));
            }
        }
        if let Some(at) = &vm.heartbeat
            && let Some(other) = hearts.insert(at, name)
        {
            return wrong(format!(
                "{at} is the heartbeat of vm {other} and of vm {name}; give each its own"
            ));
        }
        let attempts = vm.restart_attempts.or(all.restart_attempts);
        if attempts.is_some_and(|attempts| attempts > RESTART_ATTEMPTS_MAX) {
            return wrong(format!(
                "vm {name}: restart_attempts must be 0 to {RESTART_ATTEMPTS_MAX}"
            ));
        }
        let policy = vm.policy(all);
        if policy.healthy_ns < HEALTHY_PERIOD_MIN * policy.fault_delay_ns {
            return wrong(format!(
                "vm {name}: healthy_period must be at least {HEALTHY_PERIOD_MIN} times fault_delay: \
                 for so long a fault that goes on can look like none"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Sections {
        #[serde(default)]
        escalation: EscalationConfig,
        #[serde(default)]
        vm: Vec<VmConfig>,
    }

    fn read(text: &str) -> Result<Sections, String> {
        let read: Sections = toml::from_str(text).map_err(|error| error.to_string())?;
        check(&read.escalation, &read.vm).map_err(|error| error.to_string())?;
        Ok(read)
    }

    #[test]
    fn what_a_machine_does_not_say_is_said_for_all() {
        let text = "[escalation]\nhook = '/h'\nfault_delay = 5\nrestart_attempts = 2\n\
                    [[vm]]\nname = 'a'\n\
                    [[vm]]\nname = 'b'\nfault_delay = 0.5\nrestart_attempts = 1\nhealthy_period = 9";
        let read = read(text).unwrap();
        let policies: Vec<_> = read
            .vm
            .iter()
            .map(|vm| vm.policy(&read.escalation))
            .collect();
        let policy = |restart_attempts, fault_delay_ns, healthy_ns| Policy {
            restart_attempts,
            fault_delay_ns,
            healthy_ns,
        };
        let ms = 1_000_000;
        let expected = [
            policy(2, 5000 * ms, 50_000 * ms),
            policy(1, 500 * ms, 9000 * ms),
        ];
        assert_eq!(policies, expected);
        let bare = self::read("[[vm]]\nname = 'a'").unwrap();
        let policy_of_bare = bare.vm[0].policy(&bare.escalation);
        assert_eq!(policy_of_bare, policy(0, 30_000 * ms, 300_000 * ms));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let refused = |text: &str, words: &str| {
            let error = read(text).err().unwrap_or_default();
            assert!(error.contains(words), "{text}: {error}");
        };
        refused("[escalation]\nhook = 'bin/hook'", "absolute path");
        refused("[[vm]]\nname = 'a/b'", "not a name");
        refused("[[vm]]\nname = 'a'\n[[vm]]\nname = 'a'", "twice");
        refused(
            "[[vm]]\nname = 'a'\ndisks = ['d']\n[[vm]]\nname = 'b'\ndisks = ['d']",
            "listed by vm a and by vm b",
        );
        refused("[[vm]]\nname = 'a'\ndisks = ['d', 'd']", "listed once");
        refused("[[vm]]\nname = 'a'\nheartbeat = 'tcp:1'", "file:/PATH");
        refused("[[vm]]\nname = 'a'\nheartbeat = 'file:here'", "file:/PATH");
        refused("[[vm]]\nname = 'a'\nfault_delay = 0", "0.1 to 86400");
        refused("[[vm]]\nname = 'a'\nfault_delay = nan", "0.1 to 86400");
        refused("[[vm]]\nname = 'a'\nrestart_attempts = 101", "0 to 100");
        refused(
            "[[vm]]\nname = 'a'\nfault_delay = 5\nhealthy_period = 6",
            "at least 2 times",
        );
        let beat = "heartbeat = 'file:/f'";
        refused(
            &format!("[[vm]]\nname = 'a'\n{beat}\n[[vm]]\nname = 'b'\n{beat}"),
            "give each its own",
        );
    }
}
