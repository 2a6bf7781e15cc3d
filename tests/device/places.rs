//! Places for images that take root to make.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ferry_dataplane::backend::file::{Cache, Image};
use ferry_dataplane::backend::{Backend, Store};

use crate::rig::{is_root, skip};

/// A loop device with blocks of 4096 bytes; detached on drop.
pub struct Loop(PathBuf);

impl Loop {
    pub fn new(test: &str, dir: &Path, bytes: u64) -> Option<Loop> {
        if !is_root() {
            skip(test, "needs root for a loop device");
            return None;
        }
        let file = dir.join("loop.raw");
        std::fs::File::create(&file)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let out = Command::new("losetup")
            .args(["-b", "4096", "--direct-io=on", "--show", "-f"])
            .arg(&file)
            .output();
        match out {
            Ok(out) if out.status.success() => {
                let path = String::from_utf8(out.stdout).unwrap();
                Some(Loop(path.trim().into()))
            }
            other => {
                skip(test, &format!("losetup failed: {other:?}"));
                None
            }
        }
    }

    pub fn open(&self, cache: Cache) -> Backend {
        let image = Image::open_with(&self.0, false, cache).unwrap();
        Backend::new(Store::Image(Arc::new(image)), false)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A file system of its own that is soon full; unmounted on drop.
pub struct Small(tempfile::TempDir);

impl Small {
    pub fn mount(test: &str, size: &str) -> Option<Small> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", size, "none"])
                .arg(dir.path())
                .status()
                .is_ok_and(|status| status.success());
        if !mounted {
            skip(test, "cannot mount a small file system");
            return None;
        }
        Some(Small(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
