//! The operator's command that makes sure that a host writes no more.

use std::path::Path;
use std::time::Duration;

use ferry_migration::ids::DiskId;
use ferry_migration::lease::chain::Link;

use crate::escalation::hook::{Ended, Run};

/// A host that is not off by then is taken for one that is on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it and waits: only exit status 0 says that the host is off.
pub fn run(path: &Path, disk: &DiskId, link: &Link) -> Result<(), String> {
    tracing::warn!(%disk, owner = %link.owner, address = link.address, command = %path.display(),
        "the owner's lease is over: it is fenced");
    let run = Run {
        program: path.to_owned(),
        environment: vec![
            ("FERRY_DISK", disk.as_str().into()),
            ("FERRY_OWNER", link.owner.to_string().into()),
            ("FERRY_ADDRESS", link.address.as_str().into()),
        ],
        timeout: PATIENCE,
        about: format!("fence of {}", link.address),
    };
    let path = path.display();
    match run.run() {
        Ended::Exited(status) if status.success() => Ok(()),
        Ended::Exited(status) => Err(format!("the fence {path} says no: {status}")),
        Ended::Killed => Err(format!("the fence {path} does not end")),
        Ended::NotStarted(error) => Err(format!("the fence {path} cannot be run: {error}")),
    }
}
