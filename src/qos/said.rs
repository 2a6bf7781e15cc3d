//! All that is said of datastores and groups: by the configuration, and by commands of earlier runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::datastore::{DatastoreQos, Settings, Sioc};
use super::group::GroupConfig;
use crate::config::{Config, DiskConfig};
use crate::daemon::kept::{self, Kept, KeptDatastore};
use crate::name::Name;

/// See the module.
#[derive(Debug, Default)]
pub struct Said {
    /// By directory or device, without links.
    pub datastores: BTreeMap<PathBuf, DatastoreQos>,
    /// Thresholds that were found by trying, in nanoseconds.
    pub found: BTreeMap<PathBuf, u64>,
    pub groups: BTreeMap<Name, GroupConfig>,
}

/// Where a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub path: PathBuf,
    /// Somebody said something of it; else it is the directory that the image happens to be in.
    pub named: bool,
    pub qos: DatastoreQos,
}

impl Home {
    /// How it is steered. What nobody has named is left alone.
    pub fn settings(&self) -> Settings {
        let unnamed = DatastoreQos {
            sioc: Some(Sioc::Off),
            ..DatastoreQos::default()
        };
        if self.named {
            self.qos.settings()
        } else {
            unnamed.settings()
        }
    }
}

impl Said {
    /// What the configuration leaves open is as it was kept.
    pub fn load(config: &Config) -> Said {
        let mut said = Said::default();
        for datastore in &config.datastores {
            said.datastores
                .insert(datastore.path.clone(), datastore.qos());
        }
        for kept in kept::load::<KeptDatastore>(&config.state_dir) {
            let KeptDatastore {
                path,
                qos,
                found_ns,
            } = kept;
            if let Some(found_ns) = found_ns {
                said.found.insert(path.clone(), found_ns);
            }
            let there = said.datastores.entry(path).or_default();
            *there = there.or(&qos);
        }
        let kept = kept::load::<GroupConfig>(&config.state_dir);
        for group in kept.into_iter().chain(config.groups.iter().cloned()) {
            said.groups.insert(group.name.clone(), group);
        }
        said
    }

    /// The datastore of an image: of several that its path leads through, the innermost.
    pub fn home(&self, image: &Path) -> Home {
        let around = self
            .datastores
            .iter()
            .filter(|(root, _)| image.starts_with(root));
        match around.max_by_key(|(root, _)| root.components().count()) {
            Some((root, qos)) => Home {
                path: root.clone(),
                named: true,
                qos: qos.clone(),
            },
            None => Home {
                path: image.parent().unwrap_or(image).to_owned(),
                named: false,
                qos: DatastoreQos::default(),
            },
        }
    }
}

/// All disks that a daemon of this configuration takes up.
pub fn disks(config: &Config) -> Vec<DiskConfig> {
    let kept = kept::load::<Kept>(&config.state_dir).into_iter();
    let known = |disk: &DiskConfig| config.disks.iter().any(|it| it.id == disk.id);
    let kept = kept.map(|kept| kept.disk).filter(|disk| !known(disk));
    config.disks.iter().cloned().chain(kept).collect()
}
