//! Regions of Ferry's own, for front-ends that keep none: a file for each running queue, under the
//! runtime directory.
//!
//! A front-end's region comes with the guest that it belongs to; a file does not say whose it was.
//! So it names the ring: the memory that holds it, by device and inode, and its addresses in the
//! front-end's process and in the guest. Another machine on the same socket has none of these. One
//! that was reset has a used index that does not go with the file's (`Tracker::take_up`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{InflightError, Region, Tracker, queue_bytes};
use crate::memory::MemoryMap;
use crate::vring::RingAddress;

/// Bytes before the queue's part: magic, and the ring's identity.
const NAME_BYTES: usize = 128;
const MAGIC: u64 = u64::from_le_bytes(*b"ferry-i1");

/// Where the files of a device are.
#[derive(Debug, Clone)]
pub struct OwnRegions {
    dir: PathBuf,
    name: String,
}

/// What tells a ring from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingIdentity([u64; 9]);

impl RingIdentity {
    /// The ring at `address`; `None` while it is not in guest memory.
    pub fn of(map: &MemoryMap, address: RingAddress, size: u16) -> Option<RingIdentity> {
        let [device, inode, offset, guest, user] = map.identity_of(address.desc)?;
        Some(RingIdentity([
            device,
            inode,
            offset,
            guest,
            user,
            address.desc,
            address.avail,
            address.used,
            size.into(),
        ]))
    }

    fn header(&self) -> [u8; NAME_BYTES] {
        let mut header = [0; NAME_BYTES];
        let words = [MAGIC].into_iter().chain(self.0);
        for (place, word) in header.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        header
    }
}

impl OwnRegions {
    /// The files of the device called `name`, in `dir`, which is made when it is needed. The name
    /// may hold slashes; two devices of one directory need two names.
    pub fn new(dir: &Path, name: &str) -> OwnRegions {
        OwnRegions {
            dir: dir.to_owned(),
            name: name.trim_start_matches('/').replace('/', "-"),
        }
    }

    fn path(&self, queue: usize) -> PathBuf {
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
            file.write_all_at(&identity.header(), 0)?;
        }
        let region = Region::map_after(file, (0, bytes), NAME_BYTES, 1, size)?;
        Arc::new(region).tracker(0, size)
    }

    /// The queue was stopped with nothing in flight, or its disk is gone.
    pub fn forget(&self, queue: usize) {
        match std::fs::remove_file(self.path(queue)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path(queue).display(), %error,
                    "an in-flight region stays");
            }
            _ => {}
        }
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
