//! Names that cross hosts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One attempt to move one disk. Never used twice, so that a late message of an old attempt can be
/// told from the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MigrationId(pub Uuid);

impl MigrationId {
    /// A fresh random id.
    pub fn random() -> MigrationId {
        MigrationId(Uuid::new_v4())
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MigrationId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<MigrationId, uuid::Error> {
        Uuid::parse_str(text).map(MigrationId)
    }
}

/// A daemon, by the random id in its state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DaemonId(pub Uuid);

impl DaemonId {
    /// A fresh random id.
    pub fn random() -> DaemonId {
        DaemonId(Uuid::new_v4())
    }
}

impl FromStr for DaemonId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<DaemonId, uuid::Error> {
        Uuid::parse_str(text).map(DaemonId)
    }
}

impl fmt::Display for DaemonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A disk's name, the same on both hosts: 1 to 64 letters, digits, dots, dashes and underscores,
/// not beginning with a dot. It may become part of a file name, and a peer chooses it, so nothing
/// that could leave a directory passes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskId(String);

/// A disk id that breaks the rules.
#[derive(Debug, thiserror::Error)]
#[error(
    "a disk id is 1 to 64 letters, digits, dots, dashes or underscores and does not begin with a \
     dot; choose another name"
)]
pub struct BadDiskId;

impl DiskId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DiskId {
    type Error = BadDiskId;

    fn try_from(name: String) -> Result<DiskId, BadDiskId> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
            return Err(BadDiskId);
        }
        Ok(DiskId(name))
    }
}

impl FromStr for DiskId {
    type Err = BadDiskId;

    fn from_str(name: &str) -> Result<DiskId, BadDiskId> {
        DiskId::try_from(name.to_owned())
    }
}

impl From<DiskId> for String {
    fn from(id: DiskId) -> String {
        id.0
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A NIC's name, of the same form.
pub type NicId = DiskId;

/// What every message of a handover is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The attempt.
    pub migration: MigrationId,
    /// The disk.
    pub disk: DiskId,
    /// The epoch the disk has once the destination owns it: the source's plus one.
    pub epoch: u64,
}

/// Another disk of the same VM, which moves with it or not at all: same attempt, its own epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The disk.
    pub disk: DiskId,
    /// The epoch that it has once the destination owns it.
    pub epoch: u64,
}

/// Most disks that move as one.
pub const MEMBERS_MAX: usize = 64;

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "migration {} of disk {} to epoch {}",
            self.migration, self.disk, self.epoch
        )
    }
}
