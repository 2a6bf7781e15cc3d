//! Where a disk is: what its path leads to, and where its record is kept.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ferry_migration::lease::FileStore;

use crate::error::{Done, Failure};
use crate::spec::DiskSpec;

/// Links followed before they count as a circle, as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// The file or device that a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Without links, so that one image has one place whatever it is called.
    pub path: PathBuf,
    pub is_device: bool,
}

impl Place {
    /// Where the disk is, if it is anywhere but in memory.
    pub fn of(disk: &DiskSpec) -> Done<Option<Place>> {
        let Some(path) = disk.path() else {
            return Ok(None);
        };
        let path = follow(path).map_err(|error| {
            Failure::Failed(format!(
                "cannot find the directory of {}: {error}",
                path.display()
            ))
        })?;
        let is_device = fs::metadata(&path).is_ok_and(|it| it.file_type().is_block_device());
        Ok(Some(Place { path, is_device }))
    }

    /// The record: beside an image; of a device, which has no beside, under `state_dir`.
    pub fn record(&self, state_dir: &Path) -> FileStore {
        if !self.is_device {
            return FileStore::beside(&self.path);
        }
        // As sysfs writes such names.
        let name = self.path.to_string_lossy().replace('/', "!");
        let name = name.trim_start_matches('!');
        FileStore::at(state_dir.join(format!("{name}.ferry")))
    }

    /// The spec with links followed once and for all, so that image and record stay together. The
    /// name of a device is kept: the links under /dev outlive a boot, what they lead to does not.
    pub fn settle(&self, disk: DiskSpec) -> DiskSpec {
        if self.is_device {
            return disk;
        }
        disk.at(self.path.clone())
    }
}

/// A path without links; its last part need not exist.
pub fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::other("it names no file"));
        };
        let dir = fs::canonicalize(dir)?;
        path = dir.join(name);
        match fs::read_link(&path) {
            Ok(target) => path = dir.join(target),
            Err(_) => return Ok(path), // no link, or nothing there yet
        }
    }
    Err(io::Error::other("its links lead in a circle"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_even_to_what_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real/image", root.join("link")).unwrap();
        std::os::unix::fs::symlink("real", root.join("dir")).unwrap();
        std::os::unix::fs::symlink("circle", root.join("circle")).unwrap();
        assert_eq!(follow(&root.join("link")).unwrap(), root.join("real/image"));
        assert_eq!(
            follow(&root.join("dir/../dir/image")).unwrap(),
            root.join("real/image")
        );
        assert!(follow(&root.join("circle")).is_err());
        assert!(follow(&root.join("nowhere/image")).is_err());
    }

    #[test]
    fn a_device_has_one_record_whatever_the_disk_is_called() {
        let place = Place {
            path: "/dev/mapper/vm1".into(),
            is_device: true,
        };
        assert_eq!(
            place.record(Path::new("/state")).path(),
            Path::new("/state/dev!mapper!vm1.ferry")
        );
    }
}
