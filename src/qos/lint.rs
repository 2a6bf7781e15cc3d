//! What of a configuration is against good practice: nothing of it is wrong, and all of it is
//! served; but shares, latencies or alarms will not be what somebody expects.
//!
//! The practice is VMware's for its Storage I/O Control: have it on everywhere, give a medium a
//! threshold that fits it, treat datastores on the same spindles alike, and limit disks where others
//! would suffer from one that floods the datastore.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ferry_migration::ids::DiskId;
use serde::Serialize;

use super::datastore::{Settings, Sioc, Threshold, ms};
use super::device::Device;
use super::group::GroupConfig;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Should be mended.
    Warning,
    /// Nothing can be served with it.
    Error,
}

impl Level {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "ERROR",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Which rule, for machines.
    pub check: &'static str,
    /// What it is about.
    pub about: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Finding {
    pub fn new(
        level: Level,
        check: &'static str,
        about: impl ToString,
        found: impl ToString,
        mend: Option<&str>,
    ) -> Finding {
        Finding {
            level,
            check,
            about: about.to_string(),
            found: found.to_string(),
            mend: mend.map(str::to_owned),
        }
    }
}

/// A datastore, as far as it matters here.
#[derive(Debug, Clone)]
pub struct DatastoreFacts {
    pub path: PathBuf,
    /// A section, or `ferry datastore set`, names it. Otherwise it is a directory with disks.
    pub named: bool,
    /// Somebody said what it is made of.
    pub medium_said: bool,
    pub settings: Settings,
    pub device: Option<Device>,
    /// It is a directory, where hosts can write down what they did.
    pub is_directory: bool,
    pub disks: Vec<DiskFacts>,
}

/// A disk, as far as it matters here.
#[derive(Debug, Clone)]
pub struct DiskFacts {
    pub id: DiskId,
    /// Bounded by itself or by its group.
    pub limited: bool,
    pub reservation: u64,
    /// Other hosts serve disks from its datastore.
    pub shared: bool,
}

impl DatastoreFacts {
    fn is_shared(&self) -> bool {
        self.disks.iter().any(|disk| disk.shared)
    }

    fn set_command(&self, what: &str) -> String {
        format!("ferry datastore set {} {what}", self.path.display())
    }

    fn finding(&self, level: Level, check: &'static str, found: String, mend: &str) -> Finding {
        Finding::new(level, check, self.path.display(), found, Some(mend))
    }
}

/// All that is found.
pub fn lint(datastores: &[DatastoreFacts], groups: &[(GroupConfig, usize)]) -> Vec<Finding> {
    let mut found = Vec::new();
    for datastore in datastores {
        found.extend(not_on(datastore));
        found.extend(threshold(datastore));
        found.extend(unlimited(datastore));
        found.extend(reserved(datastore));
        found.extend(alone(datastore));
    }
    found.extend(same_device(datastores));
    for (group, disks) in groups {
        if *disks > 0 && !group.is_limited() {
            found.push(Finding::new(
                Level::Warning,
                "group-without-limit",
                format!("group {}", group.name),
                format!("it bounds none of its {disks} disks"),
                Some(&format!(
                    "give it a limit: ferry group set {} --limit-iops N",
                    group.name
                )),
            ));
        }
    }
    found
}

/// A datastore with disks, and without SIOC.
fn not_on(datastore: &DatastoreFacts) -> Option<Finding> {
    let disks = datastore.disks.len();
    let said = match (datastore.named, datastore.settings.sioc) {
        _ if disks == 0 => return None,
        (_, Sioc::On) => return None,
        (false, _) => "no [[datastore]] section names it".to_owned(),
        (true, sioc) => format!("sioc is {}", sioc.name()),
    };
    // One disk has nobody to share with, unless others do from elsewhere.
    let level = match datastore.settings.sioc {
        Sioc::Stats if datastore.named && disks == 1 && !datastore.is_shared() => Level::Note,
        _ => Level::Warning,
    };
    let mend = format!(
        "turn it on: {}, or sioc = \"on\" in its section",
        datastore.set_command("--sioc on")
    );
    Some(datastore.finding(
        level,
        "datastore-without-sioc",
        format!("{said}: one of its {disks} disk(s) may take all of it"),
        &mend,
    ))
}

/// A threshold that does not fit the medium.
fn threshold(datastore: &DatastoreFacts) -> Option<Finding> {
    let settings = &datastore.settings;
    let (least, most) = settings.medium.threshold_range_ns();
    let Threshold::Ns(ns) = settings.threshold else {
        return None;
    };
    if !datastore.named || settings.sioc == Sioc::Off || (least..=most).contains(&ns) {
        return None;
    }
    let effect = if ns < least {
        "throughput is lost"
    } else {
        "latency is high before anything is done"
    };
    let medium = settings.medium;
    let found = format!(
        "a threshold of {} ms for {medium} is out of {} to {} ms: {effect}",
        ms(ns),
        ms(least),
        ms(most)
    );
    let mend = if datastore.medium_said {
        format!(
            "set one that fits, or have it found: {}",
            datastore.set_command("--threshold-ms auto")
        )
    } else {
        format!(
            "say what it is made of, as {medium} is only supposed: {}",
            datastore.set_command("--medium fc|sas|sata|ssd|nvme")
        )
    };
    Some(datastore.finding(Level::Warning, "threshold-out-of-range", found, &mend))
}

/// Disks without a limit where other hosts would suffer from them.
fn unlimited(datastore: &DatastoreFacts) -> Vec<Finding> {
    if !datastore.is_shared() {
        return Vec::new();
    }
    let unlimited = datastore.disks.iter().filter(|disk| !disk.limited);
    let warn = |disk: &DiskFacts| {
        Finding::new(
            Level::Warning,
            "disk-without-limit",
            format!("disk {}", disk.id),
            format!(
                "it may take as much as it likes of {}, which other hosts share",
                datastore.path.display()
            ),
            Some(&format!(
                "give it a limit: ferry disk set {} --limit-iops 1000",
                disk.id
            )),
        )
    };
    unlimited.map(warn).collect()
}

/// Nobody knows whether reservations can be kept.
fn reserved(datastore: &DatastoreFacts) -> Option<Finding> {
    let sum = datastore
        .disks
        .iter()
        .fold(0u64, |sum, disk| sum.saturating_add(disk.reservation));
    if sum == 0 {
        return None;
    }
    let found = format!("its disks reserve {sum} I/Os a second, and what it can do is not known");
    let mend = "make sure that the device does more than that (ferry iostat under load); what is \
                reserved beyond is kept for nobody";
    Some(datastore.finding(Level::Note, "reservations", found, mend))
}

/// A block device has no place for what hosts tell each other.
fn alone(datastore: &DatastoreFacts) -> Option<Finding> {
    let steered = datastore.named && datastore.settings.sioc != Sioc::Off;
    if datastore.is_directory || !steered {
        return None;
    }
    let found = "a block device has no directory for the statistics file: other hosts and daemons \
                 on it are not seen";
    let mend = "use it from one daemon only, or put images into a directory";
    Some(datastore.finding(Level::Note, "no-statistics-file", found.into(), mend))
}

/// Two on one device, and not treated alike.
fn same_device(datastores: &[DatastoreFacts]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    for (at, one) in datastores.iter().enumerate() {
        for other in &datastores[at + 1..] {
            let (Some(device), Some(others)) = (one.device, other.device) else {
                continue;
            };
            let differ = differences(&one.settings, &other.settings);
            if device != others || differ.is_empty() || !told.insert((&one.path, &other.path)) {
                continue;
            }
            let text = format!(
                "it is on the same device as {}, and differs in {}: one takes what the other gives \
                 back",
                other.path.display(),
                differ.join(", ")
            );
            let mend = "give both the same settings, or make one datastore of them by a directory \
                        above";
            found.push(one.finding(Level::Warning, "same-device", text, mend));
        }
    }
    found
}

fn differences(one: &Settings, other: &Settings) -> Vec<&'static str> {
    let keys = [
        ("sioc", one.sioc != other.sioc),
        ("medium", one.medium != other.medium),
        ("threshold_ms", one.threshold != other.threshold),
        ("stats_period_ms", one.period_ns != other.period_ns),
        ("unmanaged", one.unmanaged != other.unmanaged),
        ("cost", one.cost != other.cost),
        ("divide", one.divide != other.divide),
    ];
    let differ = keys.into_iter().filter(|(_, differ)| *differ);
    differ.map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests;
