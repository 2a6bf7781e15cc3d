//! qemu-storage-daemon's vhost-user-blk export: the server that the rig itself
//! is checked with.

use std::path::{Path, PathBuf};

use super::process::{Process, find_program};
use super::wait::{secs, wait_for};
use super::{Check, Failure, TestDir};

/// A running qemu-storage-daemon with one export.
pub struct StorageDaemon {
    _process: Process,
    socket: PathBuf,
}

impl StorageDaemon {
    /// Serves an image. Its locks are off: two of them share it in a move.
    pub fn spawn(dir: &TestDir, name: &str, image: &Path, queues: u16) -> Check<Self> {
        let program = find_program("qemu-storage-daemon")
            .ok_or_else(|| Failure("qemu-storage-daemon is missing".to_owned()))?;
        let socket = dir.path(format!("{name}.sock"));
        let blockdev = format!(
            "driver=file,filename={},node-name=d0,cache.direct=on,aio=io_uring,locking=off,discard=unmap",
            image.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,num-queues={queues}",
            socket.display()
        );
        let mut process = Process::spawn(
            dir,
            name,
            &program,
            ["--blockdev", &blockdev, "--export", &export],
        )?;
        wait_for(&format!("the socket of {name}"), secs(120), || {
            process.ensure_alive()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self {
            _process: process,
            socket,
        })
    }

    /// The device's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}
