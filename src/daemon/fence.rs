//! The operator's command that makes sure that a host writes no more.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ferry_migration::ids::DiskId;
use ferry_migration::lease::chain::Link;

/// A host that is not off by then is taken for one that is on.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs it and waits: only exit status 0 says that the host is off.
pub fn run(path: &Path, disk: &DiskId, link: &Link) -> Result<(), String> {
    tracing::warn!(%disk, owner = %link.owner, address = link.address, command = %path.display(),
        "the owner's lease is over: it is fenced");
    let mut child = Command::new(path)
        .env("FERRY_DISK", disk.as_str())
        .env("FERRY_OWNER", link.owner.to_string())
        .env("FERRY_ADDRESS", &link.address)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("the fence {} cannot be run: {error}", path.display()))?;
    let until = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                return Err(format!("the fence {} says no: {status}", path.display()));
            }
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the fence {} does not end", path.display()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
