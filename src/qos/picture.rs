//! What is judged: the datastores of a configuration, with the disks that are on them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::device::Device;
use super::lint::{DatastoreFacts, DiskFacts, Finding, lint};
use super::said::{Home, Said, disks};
use crate::config::{Config, DiskConfig};
use crate::daemon::place::Place;

/// What of a configuration, and of what is kept with it, is against good practice.
pub fn judge(config: &Config) -> Vec<Finding> {
    judge_said(&Said::load(config), &disks(config))
}

/// The same of what is said by now.
pub fn judge_said(said: &Said, disks: &[DiskConfig]) -> Vec<Finding> {
    let mut datastores: BTreeMap<PathBuf, DatastoreFacts> = BTreeMap::new();
    for (path, qos) in &said.datastores {
        let home = Home {
            path: path.clone(),
            named: true,
            qos: qos.clone(),
        };
        datastores.insert(path.clone(), facts(&home));
    }
    for disk in disks {
        // What is in memory is on no datastore; what has no place yet is said when it is added.
        let Ok(Some(place)) = Place::of(&disk.path) else {
            continue;
        };
        let home = said.home(&place.path);
        let there = datastores
            .entry(home.path.clone())
            .or_insert_with(|| facts(&home));
        there.disks.push(disk_facts(disk, said));
    }
    let groups: Vec<_> = said
        .groups
        .values()
        .map(|group| {
            let in_it = |disk: &&DiskConfig| disk.group.as_ref() == Some(&group.name);
            (group.clone(), disks.iter().filter(in_it).count())
        })
        .collect();
    let datastores: Vec<_> = datastores.into_values().collect();
    lint(&datastores, &groups)
}

fn facts(home: &Home) -> DatastoreFacts {
    DatastoreFacts {
        path: home.path.clone(),
        named: home.named,
        medium_said: home.qos.medium.is_some(),
        settings: home.settings(),
        device: Device::of(&home.path),
        is_directory: home.path.is_dir(),
        disks: Vec::new(),
    }
}

fn disk_facts(disk: &DiskConfig, said: &Said) -> DiskFacts {
    let qos = disk.qos();
    let group = qos.group.as_ref().and_then(|name| said.groups.get(name));
    DiskFacts {
        id: disk.id.clone(),
        limited: qos.is_limited() || group.is_some_and(|group| group.is_limited()),
        reservation: qos.reservation.unwrap_or(0),
        shared: disk.shared,
    }
}
