//! The disk's uuid in an extended attribute of its image, `user.ferry.disk`.
//!
//! The record lies beside the image and is found by its name. This goes with the image itself: to
//! another name, and into a copy that keeps attributes. So an image whose record is missing or is
//! another disk's is told from one that was never served.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use uuid::Uuid;

use super::Record;
use crate::phase::Phase;

/// The attribute.
const NAME: &str = "user.ferry.disk";
/// Of an image that is being received, and is no disk's yet.
const COPY: &str = "user.ferry.copy";

/// A uuid in text, and room to see that there is more.
const BYTES_MAX: usize = 64;

/// Why an image is not taken for the disk it is said to be, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is a disk's, and nothing says who owns that.
    #[error(
        "{image} is the image of disk {disk}, and its ownership record {record} is not there: bring \
         the record back; or, if this is a copy that is to be a disk of its own, say --new-identity"
    )]
    NoRecord {
        /// The image.
        image: PathBuf,
        /// The disk it says it is.
        disk: Uuid,
        /// Where its record would be.
        record: PathBuf,
    },
    /// It is not the disk that its record is about.
    #[error(
        "{image} is the image of disk {disk}, and its ownership record {record} is that of disk \
         {recorded}: bring the right one back; or, if this is a copy that is to be a disk of its \
         own, remove the record and say --new-identity"
    )]
    Differs {
        /// The image.
        image: PathBuf,
        /// The disk it says it is.
        disk: Uuid,
        /// Its record.
        record: PathBuf,
        /// The disk that is about.
        recorded: Uuid,
    },
    /// The attribute cannot be read.
    #[error("cannot read the identity of {image} (extended attribute {NAME}): {source}")]
    Unreadable {
        /// The image.
        image: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The disk that the image says it is. Nothing where it says nothing, or the file system has no
/// attributes.
pub fn read(image: &Path) -> io::Result<Option<Uuid>> {
    let mut value = [0; BYTES_MAX];
    match getxattr(image, NAME, &mut value) {
        Ok(len) => std::str::from_utf8(&value[..len])
            .ok()
            .and_then(|text| Uuid::parse_str(text.trim()).ok())
            .map(Some)
            .ok_or_else(|| io::Error::other("it is not a uuid")),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the disk's uuid to its image. Without effect where the file system has no attributes.
pub fn write(image: &Path, disk: Uuid) -> io::Result<()> {
    put(image, NAME, disk)
}

/// Takes it off again, durably.
pub fn remove(image: &Path) -> io::Result<()> {
    take_off(image, NAME)
}

/// Says that the image is a copy of `disk` that arrives. If the daemon dies before its record says so
/// too, the next one knows that it is nobody's data.
pub fn mark_copy(image: &Path, disk: Uuid) -> io::Result<()> {
    put(image, COPY, disk)
}

/// Takes that back, durably: the copy is about to be the disk.
pub fn unmark_copy(image: &Path) -> io::Result<()> {
    take_off(image, COPY)
}

fn put(image: &Path, attribute: &str, disk: Uuid) -> io::Result<()> {
    let disk = disk.to_string();
    match setxattr(image, attribute, disk.as_bytes(), XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn take_off(image: &Path, attribute: &str) -> io::Result<()> {
    match removexattr(image, attribute) {
        Ok(()) => File::open(image)?.sync_all(),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the image is a copy that never became a disk.
pub fn is_copy(image: &Path) -> bool {
    getxattr(image, COPY, &mut [0; BYTES_MAX]).is_ok()
}

/// The disk that the image is a copy of, and never became.
pub fn copy_of(image: &Path) -> Option<Uuid> {
    let mut value = [0; BYTES_MAX];
    let len = getxattr(image, COPY, &mut value).ok()?;
    Uuid::parse_str(std::str::from_utf8(&value[..len]).ok()?).ok()
}

/// Whether the image is the disk that the record is about; `record` was read at `place`.
pub fn check(image: &Path, record: &Record, place: &Path) -> Result<(), IdentityError> {
    let said = read(image).map_err(|source| IdentityError::Unreadable {
        image: image.to_owned(),
        source,
    })?;
    let Some(disk) = said else {
        return Ok(()); // never served, or a copy without attributes: the record speaks
    };
    let (image, place) = (image.to_owned(), place.to_owned());
    if record.state.phase == Phase::Vacant {
        return Err(IdentityError::NoRecord {
            image,
            disk,
            record: place,
        });
    }
    if record.disk_uuid != disk {
        return Err(IdentityError::Differs {
            image,
            disk,
            record: place,
            recorded: record.disk_uuid,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DaemonId;

    #[test]
    fn an_image_is_known_by_its_attribute() {
        let dir = tempfile::tempdir().unwrap();
        let (image, place) = (dir.path().join("d.raw"), dir.path().join("d.raw.ferry"));
        std::fs::write(&image, b"bytes").unwrap();
        assert_eq!(read(&image).unwrap(), None);
        let disk = Uuid::new_v4();
        write(&image, disk).unwrap();
        if read(&image).unwrap().is_none() {
            eprintln!("SKIPPED: an_image_is_known_by_its_attribute: no attributes here");
            return;
        }
        let vacant = Record::vacant(disk, DaemonId::random());
        let refusal = check(&image, &vacant, &place).unwrap_err().to_string();
        assert!(refusal.contains("--new-identity"), "{refusal}");
        let serving = |disk| {
            let mut record = Record::vacant(disk, DaemonId::random());
            record.state.phase = Phase::Serving {
                epoch: 1,
                through: None,
            };
            record
        };
        check(&image, &serving(disk), &place).unwrap();
        let other = check(&image, &serving(Uuid::new_v4()), &place);
        assert!(matches!(other, Err(IdentityError::Differs { .. })));
        // Under another name it is the same disk.
        let renamed = dir.path().join("d.raw.moved.2");
        std::fs::rename(&image, &renamed).unwrap();
        assert_eq!(read(&renamed).unwrap(), Some(disk));
        remove(&renamed).unwrap();
        check(&renamed, &vacant, &place).unwrap();
        setxattr(&renamed, NAME, b"nonsense", XattrFlags::empty()).unwrap();
        assert!(check(&renamed, &vacant, &place).is_err());
    }
}
