//! Regions of Ferry's own, for front-ends that keep none: a file for each running queue, under the
//! runtime directory.
//!
//! A front-end's region comes with the guest that it belongs to; a file does not say whose it was.
//! So it names the ring: this boot of the host, the memory that holds the ring, by device and inode,
//! and its addresses in the front-end's process and in the guest. Another machine on the same socket
//! has none of these. One that was reset has a used ring that does not go with the file's
//! (`Tracker::take_up`).
//!
//! The guest's choice of a cache mode is kept here as well: front-ends do not say it again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{InflightError, Region, Tracker, queue_bytes, take_space};
use crate::memory::MemoryMap;
use crate::vring::RingAddress;

/// Bytes before the queue's part: magic, and the ring's identity.
const NAME_BYTES: usize = 256;
const MAGIC: u64 = u64::from_le_bytes(*b"ferry-i1");

/// Where the boot's id begins, and how much of it counts.
const BOOT_AT: usize = 200;
const BOOT_BYTES: usize = 36;

/// Where the files of a device are.
#[derive(Debug, Clone)]
pub struct OwnRegions {
    dir: PathBuf,
    name: String,
}

/// What tells a ring from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingIdentity([u64; 16]);

impl RingIdentity {
    /// The ring at `address`; `None` while it is not in guest memory.
    pub fn of(map: &MemoryMap, address: RingAddress, size: u16) -> Option<RingIdentity> {
        let mut words = [u64::from(size); 16];
        let parts = [address.desc, address.avail, address.used];
        for (place, user) in words.chunks_exact_mut(5).zip(parts) {
            place.copy_from_slice(&map.identity_of(user)?);
        }
        Some(RingIdentity(words))
    }

    fn header(&self) -> [u8; NAME_BYTES] {
        let mut header = [0; NAME_BYTES];
        let words = [MAGIC].into_iter().chain(self.0);
        for (place, word) in header.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        // Inodes of memory begin anew with each boot.
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let len = boot.len().min(BOOT_BYTES);
        header[BOOT_AT..BOOT_AT + len].copy_from_slice(&boot[..len]);
        header
    }
}

impl OwnRegions {
    /// The files of the device called `name`, in `dir`, which is made when it is needed. The name
    /// may hold slashes; two devices of one directory need two names.
    pub fn new(dir: &Path, name: &str) -> OwnRegions {
        OwnRegions {
            dir: dir.to_owned(),
            name: name.replace('~', "~~").replace('/', "~-"),
        }
    }

    pub(super) fn path(&self, queue: usize) -> PathBuf {
        self.dir.join(format!("{}.{queue}.inflight", self.name))
    }

    /// What a predecessor left of this very ring, or a fresh region.
    pub fn tracker(
        &self,
        queue: usize,
        size: u16,
        identity: RingIdentity,
    ) -> Result<Tracker, InflightError> {
        std::fs::create_dir_all(&self.dir)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.path(queue))?;
        let bytes = (NAME_BYTES + queue_bytes(size)) as u64;
        if !is_of(&file, bytes, &identity)? {
            file.set_len(0)?; // whatever is there: zeroes after this
            file.set_len(bytes)?;
            take_space(&file, bytes)?;
            file.write_all_at(&identity.header(), 0)?;
        }
        let region = Region::map_after(file, (0, bytes), NAME_BYTES, 1, size)?;
        let mut tracker = Arc::new(region).tracker(0, size)?;
        tracker.doubts = true;
        Ok(tracker)
    }

    fn cache_mode(&self) -> PathBuf {
        self.dir.join(format!("{}.writethrough", self.name))
    }

    /// Whether the guest left its disk's cache on, which is how it begins.
    pub fn writeback(&self) -> bool {
        !self.cache_mode().exists()
    }

    /// Keeps the guest's choice.
    pub fn keep_writeback(&self, writeback: bool) {
        let kept = if writeback {
            absent(std::fs::remove_file(self.cache_mode()))
        } else {
            std::fs::create_dir_all(&self.dir)
                .and_then(|()| File::create(self.cache_mode()).map(drop))
        };
        if let Err(error) = kept {
            tracing::warn!(path = %self.cache_mode().display(), %error,
                "a successor will not know the guest's cache mode");
        }
    }

    /// The queue was stopped with nothing in flight, or its disk is gone.
    pub fn forget(&self, queue: usize) {
        if let Err(error) = absent(std::fs::remove_file(self.path(queue))) {
            tracing::warn!(path = %self.path(queue).display(), %error, "an in-flight region stays");
        }
    }
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_of(file: &File, bytes: u64, identity: &RingIdentity) -> io::Result<bool> {
    if file.metadata()?.len() != bytes {
        return Ok(false);
    }
    let mut header = [0; NAME_BYTES];
    file.read_exact_at(&mut header, 0)?;
    Ok(header == identity.header())
}
