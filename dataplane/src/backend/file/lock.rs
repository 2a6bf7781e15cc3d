//! Taking an image's lock, and how long to wait for it.
//!
//! A process that was killed keeps the lock through the requests it left in the kernel. They land
//! within milliseconds on an idle disk (371 ms was the longest measured) and within seconds on one
//! that others keep busy. A successor that gave up before would leave its guest without a disk, so
//! it waits, and says so. A process that lives and has the image open may keep it for ever: then
//! there is no use in waiting long.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::ImageError;
use crate::sys;

/// How long to wait for a process that lives: it may be about to end.
const PATIENCE_LIVING: Duration = Duration::from_secs(2);

/// How long to wait for what a dead one left in the kernel.
const PATIENCE_DEAD: Duration = Duration::from_secs(60);

/// When to say that there is a wait.
const ALARM: Duration = Duration::from_millis(500);

/// Locks an image on this very description: exclusive, or shared.
pub(in crate::backend) fn lock(file: &File, path: &Path, shared: bool) -> Result<(), ImageError> {
    let (began, mut told) = (Instant::now(), false);
    let (mut patience, mut judged) = (PATIENCE_LIVING, false);
    let failed = |source| ImageError::Open {
        path: path.to_owned(),
        source,
    };
    while !sys::lock_description(file, shared).map_err(failed)? {
        let waited = began.elapsed();
        if waited >= patience && !judged {
            judged = true;
            if !is_open_elsewhere(file).map_err(failed)? {
                patience = PATIENCE_DEAD;
            }
        }
        if waited >= patience {
            return Err(ImageError::Locked {
                path: path.to_owned(),
            });
        }
        if !told && waited > ALARM {
            told = true;
            tracing::warn!(path = %path.display(), "waiting for the image's lock");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if told {
        let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(path = %path.display(), waited_ms, "the image's lock is free");
    }
    Ok(())
}

/// Whether a process that lives, as far as this one may see, has the file open; this one too, on
/// another descriptor.
fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    let own = std::process::id().to_string();
    let wanted = file.metadata()?;
    let is_it =
        |there: &std::fs::Metadata| (there.dev(), there.ino()) == (wanted.dev(), wanted.ino());
    for process in std::fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // One that has ended meanwhile, or belongs to someone else, shows nothing.
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let open = descriptors.flatten().filter(|descriptor| {
            std::fs::metadata(descriptor.path()).is_ok_and(|there| is_it(&there))
        });
        let known = usize::from(name.to_str() == Some(&own));
        if open.count() > known {
            return Ok(true);
        }
    }
    Ok(false)
}
