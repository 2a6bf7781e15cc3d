//! What is agreed before the first byte of a disk is sent.

use ferry_dataplane::lifecycle::Geometry;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Claim, DaemonId, MEMBERS_MAX, Member};
use crate::schema::blk_v1::BlkV1;
use crate::schema::check_blk;

/// How the bytes on the wire relate to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKind {
    /// Byte for byte.
    Raw,
    /// Nothing is sent: the destination sees the same image.
    Shared,
}

/// The source's offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Migration, disk and the epoch the destination would own.
    pub claim: Claim,
    /// The disk's own id, whatever its name.
    pub disk_uuid: Uuid,
    /// The daemon that offers.
    pub daemon: DaemonId,
    /// What is sent.
    pub image: ImageKind,
    /// The device as it is now: capacity, block, queues, features, serial.
    pub shape: BlkV1,
    /// The VM's other disks, all in this attempt: the destination serves all of them or none.
    pub members: Vec<Member>,
}

/// The destination's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The daemon that consents; later answers must come from it.
    pub daemon: DaemonId,
    /// There is a copy of an earlier attempt: digests will do for what it has.
    pub kept: bool,
}

/// Checks an offer by itself, before the host is asked to make room for it.
pub fn check_hello(hello: &Hello) -> Result<(), String> {
    check_blk(&hello.shape).map_err(|error| error.to_string())?;
    if hello.shape.read_only {
        return Err("read-only disks are not moved by copying; share the image instead".into());
    }
    if hello.members.len() > MEMBERS_MAX {
        return Err(format!("at most {MEMBERS_MAX} disks move as one"));
    }
    if hello.claim.epoch < 2 {
        return Err(format!(
            "epoch {} cannot follow a serving disk's",
            hello.claim.epoch
        ));
    }
    Ok(())
}

/// Checks that what the source will send can be written to `target`.
pub fn check_target(hello: &Hello, target: Geometry) -> Result<(), String> {
    let (want, have) = (hello.shape.capacity_bytes, target.capacity_bytes);
    if want != have {
        return Err(format!(
            "the destination's image has {have} bytes, the disk has {want}"
        ));
    }
    let (ours, theirs) = (target.block_bytes, hello.shape.block_bytes);
    if ours == 0 || !theirs.is_multiple_of(ours) {
        return Err(format!(
            "the destination's storage takes blocks of {ours} bytes, the disk has blocks of \
             {theirs}; choose storage with blocks of {theirs} bytes or less"
        ));
    }
    Ok(())
}
