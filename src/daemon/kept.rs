//! Disks that were added while the daemon ran, kept for its next start: `disks/ID.json` under the
//! state directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ferry_migration::ids::DiskId;
use serde::{Deserialize, Serialize};

use crate::config::DiskConfig;
use crate::error::{Done, Failure};

/// What a file says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub disk: DiskConfig,
    /// Nobody added it: it arrived in the directory for such disks.
    #[serde(default)]
    pub unannounced: bool,
}

fn dir(state_dir: &Path) -> PathBuf {
    state_dir.join("disks")
}

fn file(state_dir: &Path, id: &DiskId) -> PathBuf {
    dir(state_dir).join(format!("{id}.json"))
}

/// Keeps a disk. A power cut leaves the old file or the new one.
pub fn store(state_dir: &Path, kept: &Kept) -> Done {
    let path = file(state_dir, &kept.disk.id);
    let text = serde_json::to_vec_pretty(kept)?;
    replace(&path, &text).map_err(|error| {
        Failure::Failed(format!(
            "disk {} cannot be kept for the next start in {}: {error}",
            kept.disk.id,
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
pub fn is_kept(state_dir: &Path, id: &DiskId) -> bool {
    file(state_dir, id).exists()
}

/// Forgets a disk, kept or not.
pub fn remove(state_dir: &Path, id: &DiskId) -> Done {
    let path = file(state_dir, id);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::Failed(format!(
            "disk {id} will come back at the next start: cannot remove {}: {error}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// All that are kept, by name. A file that cannot be used is named in the log.
pub fn load(state_dir: &Path) -> Vec<Kept> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir(state_dir))
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
        serde_json::from_slice::<Kept>(&text).map_err(io::Error::other)
    };
    let usable = |path: PathBuf| match read(&path) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::error!(file = %path.display(), %error,
                "a kept disk is not taken up; mend or remove the file");
            None
        }
    };
    paths.into_iter().filter_map(usable).collect()
}
