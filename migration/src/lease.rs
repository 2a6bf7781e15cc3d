//! The durable record of who owns a disk, beside its image.
//!
//! A record is replaced as a whole: written to a temporary file, synced, renamed over the old one,
//! and the directory synced. So a reader finds the old one or the new one, and once `store` has
//! returned a power cut cannot take the new one back. If `store` fails, either may be there; every
//! user of [`RecordStore`] must be safe with both.

pub mod beat;
pub mod chain;
pub mod identity;
pub mod ownership;
mod restart;
pub mod shared;
mod v1;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use crate::envelope::ENVELOPE_BYTES_MAX;
use crate::ids::{DaemonId, Member};
use crate::phase::{Phase, State};
pub use ownership::Ownership;
pub use restart::Restart;

/// A record is small; a file beyond this is not one.
const RECORD_BYTES_MAX: u64 = 4 * ENVELOPE_BYTES_MAX as u64;

/// Where the other side of a move is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `host:port` to reach it at; empty where this side cannot call it.
    pub address: String,
    /// Its daemon, so that an answer from a stranger at the same address is not taken for its word.
    pub daemon: DaemonId,
}

/// Everything a host must remember of a disk's ownership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The disk, whatever its name.
    pub disk_uuid: Uuid,
    /// The daemon that wrote the record.
    pub owner: DaemonId,
    /// Phase, and the attempts that are over.
    pub state: State,
    /// The other side, while there is one.
    pub peer: Option<Peer>,
    /// The device's state that came with the grant, until it is activated.
    pub device_state: Option<Vec<u8>>,
    /// The disks that move with it or not at all, while it is on its way.
    pub members: Vec<Member>,
}

impl Record {
    /// The record of a disk that was never here.
    pub fn vacant(disk_uuid: Uuid, owner: DaemonId) -> Record {
        let state = State {
            phase: Phase::Vacant,
            refused: Vec::new(),
        };
        Record {
            disk_uuid,
            owner,
            state,
            peer: None,
            device_state: None,
            members: Vec::new(),
        }
    }
}

/// Why a record cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The file system refused.
    #[error("cannot {doing} the ownership record {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The record.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not a record.
    #[error(
        "the ownership record {path} is not valid ({why}); restore it, or decide by hand which \
         host owns the disk and remove it"
    )]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// For tests and for stores that are not files.
    #[error("cannot store the ownership record: {0}")]
    Store(String),
}

/// Where a record is kept. `store` returns only when a power cut cannot undo it.
pub trait RecordStore: Send {
    /// The record, or `None` when there never was one.
    fn load(&self) -> Result<Option<Record>, LeaseError>;
    /// Replaces the record.
    fn store(&mut self, record: &Record) -> Result<(), LeaseError>;
}

/// A record in a file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// The record of the image at `image`: the file `<image>.ferry`.
    pub fn beside(image: &Path) -> FileStore {
        let mut name = image.as_os_str().to_owned();
        name.push(".ferry");
        FileStore { path: name.into() }
    }

    /// A record at a path of the caller's, for a block device.
    pub fn at(path: PathBuf) -> FileStore {
        FileStore { path }
    }

    /// Where the record is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> LeaseError {
        let path = self.path.clone();
        move |source| LeaseError::Io {
            doing,
            path,
            source,
        }
    }
}

impl RecordStore for FileStore {
    fn load(&self) -> Result<Option<Record>, LeaseError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open")(error)),
        };
        let mut text = Vec::new();
        file.take(RECORD_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .map_err(self.failed("read"))?;
        let damaged = |why| LeaseError::Damaged {
            path: self.path.clone(),
            why,
        };
        if text.len() as u64 > RECORD_BYTES_MAX {
            return Err(damaged("it is too large".into()));
        }
        v1::parse(&text).map(Some).map_err(damaged)
    }

    fn store(&mut self, record: &Record) -> Result<(), LeaseError> {
        replace_durably(&self.path, &v1::print(record)).map_err(self.failed("write"))
    }
}

/// A record for a disk that has no file and does not outlive its daemon.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    record: Arc<Mutex<Option<Record>>>,
}

impl RecordStore for MemoryStore {
    fn load(&self) -> Result<Option<Record>, LeaseError> {
        Ok(crate::sync::lock(&self.record).clone())
    }

    fn store(&mut self, record: &Record) -> Result<(), LeaseError> {
        *crate::sync::lock(&self.record) = Some(record.clone());
        Ok(())
    }
}

/// The daemon's own id: read from its state directory, or made there once.
pub fn owner_id(state_dir: &Path) -> Result<DaemonId, LeaseError> {
    let path = state_dir.join("daemon-id");
    let failed = |doing| {
        let path = path.clone();
        move |source| LeaseError::Io {
            doing,
            path,
            source,
        }
    };
    fs::create_dir_all(state_dir).map_err(failed("make the directory of"))?;
    match fs::read_to_string(&path) {
        Ok(text) => {
            Uuid::parse_str(text.trim())
                .map(DaemonId)
                .map_err(|error| LeaseError::Damaged {
                    path: path.clone(),
                    why: format!("not an id: {error}"),
                })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = DaemonId::random();
            replace_durably(&path, format!("{id}\n").as_bytes()).map_err(failed("write"))?;
            Ok(id)
        }
        Err(error) => Err(failed("read")(error)),
    }
}

fn replace_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
