//! What was added or set while the daemon ran, kept for its next start: `disks/ID.json`,
//! `nics/ID.json`, `switches/NAME.json`, `datastores/PATH.json` and `groups/NAME.json` under the state
//! directory.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::DiskConfig;
use crate::error::{Done, Failure};
use crate::nic::{NicConfig, SwitchConfig};
use crate::qos::datastore::DatastoreQos;
use crate::qos::group::GroupConfig;

/// Something that is kept.
pub trait Keepable: Serialize + DeserializeOwned {
    /// What it is, for messages.
    const KIND: &'static str;
    /// The directory of its files.
    const DIR: &'static str;
    /// Its name.
    fn name(&self) -> String;
}

/// What a disk's file says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub disk: DiskConfig,
    /// Nobody added it: it arrived in the directory for such disks.
    #[serde(default)]
    pub unannounced: bool,
}

impl Keepable for Kept {
    const KIND: &'static str = "disk";
    const DIR: &'static str = "disks";

    fn name(&self) -> String {
        self.disk.id.to_string()
    }
}

impl Keepable for NicConfig {
    const KIND: &'static str = "NIC";
    const DIR: &'static str = "nics";

    fn name(&self) -> String {
        self.id.to_string()
    }
}

impl Keepable for SwitchConfig {
    const KIND: &'static str = "switch";
    const DIR: &'static str = "switches";

    fn name(&self) -> String {
        self.name.to_string()
    }
}

/// What a datastore's file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptDatastore {
    pub path: PathBuf,
    #[serde(default)]
    pub qos: DatastoreQos,
    /// The threshold that was found by trying, in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_ns: Option<u64>,
}

impl KeptDatastore {
    /// One of which nothing is said yet.
    pub fn plain(path: &Path) -> KeptDatastore {
        KeptDatastore {
            path: path.to_owned(),
            qos: DatastoreQos::default(),
            found_ns: None,
        }
    }
}

impl Keepable for KeptDatastore {
    const KIND: &'static str = "datastore";
    const DIR: &'static str = "datastores";

    /// As sysfs writes such names.
    fn name(&self) -> String {
        let name = self.path.to_string_lossy().replace('/', "!");
        name.trim_start_matches('!').to_owned()
    }
}

impl Keepable for GroupConfig {
    const KIND: &'static str = "group";
    const DIR: &'static str = "groups";

    fn name(&self) -> String {
        self.name.to_string()
    }
}

fn file<T: Keepable>(state_dir: &Path, name: &impl Display) -> PathBuf {
    state_dir.join(T::DIR).join(format!("{name}.json"))
}

/// Keeps it. A power cut leaves the old file or the new one.
pub fn store<T: Keepable>(state_dir: &Path, kept: &T) -> Done {
    let name = kept.name();
    let path = file::<T>(state_dir, &name);
    let text = serde_json::to_vec_pretty(kept)?;
    replace(&path, &text).map_err(|error| {
        Failure::Failed(format!(
            "{} {name} cannot be kept for the next start in {}: {error}",
            T::KIND,
            path.display()
        ))
    })
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

/// Whether it is kept.
pub fn is_kept<T: Keepable>(state_dir: &Path, name: &impl Display) -> bool {
    file::<T>(state_dir, name).exists()
}

/// Forgets it, kept or not.
pub fn remove<T: Keepable>(state_dir: &Path, name: &impl Display) -> Done {
    let path = file::<T>(state_dir, name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::Failed(format!(
            "{} {name} will come back at the next start: cannot remove {}: {error}",
            T::KIND,
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// All that are kept, by name. A file that cannot be used is named in the log.
pub fn load<T: Keepable>(state_dir: &Path) -> Vec<T> {
    let mut paths: Vec<PathBuf> = fs::read_dir(state_dir.join(T::DIR))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read(path)?;
        serde_json::from_slice::<T>(&text).map_err(io::Error::other)
    };
    let usable = |path: PathBuf| match read(&path) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::error!(file = %path.display(), %error,
                "a kept {} is not taken up; mend or remove the file", T::KIND);
            None
        }
    };
    paths.into_iter().filter_map(usable).collect()
}
