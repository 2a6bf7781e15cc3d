//! Which device a path is on: two datastores on one device are in each other's way.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// How many layers of mapped devices are looked through.
const LAYERS_MAX: usize = 8;

/// A device by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// The device that a directory's or an image's bytes are on, or a block device itself. A
    /// partition counts as the device that it is a part of, and what is mapped onto one device alone
    /// as that one.
    pub fn of(path: &Path) -> Option<Device> {
        let metadata = fs::metadata(path).ok()?;
        let number = if metadata.file_type().is_block_device() {
            metadata.rdev()
        } else {
            metadata.dev()
        };
        let mut device = Device::numbered(number);
        for _ in 0..LAYERS_MAX {
            match device.below() {
                Some(below) => device = below,
                None => break,
            }
        }
        Some(device)
    }

    fn numbered(number: u64) -> Device {
        Device {
            major: rustix::fs::major(number),
            minor: rustix::fs::minor(number),
        }
    }

    fn read(path: &Path) -> Option<Device> {
        let text = fs::read_to_string(path).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(Device {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }

    /// What it is a part of, or is mapped onto as a whole.
    fn below(self) -> Option<Device> {
        let sys = format!("/sys/dev/block/{}:{}", self.major, self.minor);
        let sys = fs::canonicalize(sys).ok()?;
        if sys.join("partition").exists() {
            return Device::read(&sys.parent()?.join("dev"));
        }
        let mut slaves = fs::read_dir(sys.join("slaves")).ok()?.flatten();
        match (slaves.next(), slaves.next()) {
            (Some(only), None) => Device::read(&only.path().join("dev")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_one_directory_is_on_one_device() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        fs::write(&file, b"x").unwrap();
        let device = Device::of(dir.path());
        assert!(device.is_some());
        assert_eq!(device, Device::of(&file));
        assert_ne!(device, Device::of(Path::new("/proc")));
        assert_eq!(Device::of(&dir.path().join("nowhere")), None);
    }
}
