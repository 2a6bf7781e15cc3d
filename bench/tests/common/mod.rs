//! What the tests share: programs found, or skipped by name; qemu-storage-daemon as the peer.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The ferry of this build, which a run of this package's tests alone does not make.
pub fn ferry(test: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_ferry-bench")).with_file_name("ferry");
    if path.is_file() {
        return Some(path);
    }
    skip(test, "ferry is not built; cargo test --workspace builds it");
    None
}

/// Says that a test is skipped and why; fails instead where CI=true.
pub fn skip(test: &str, why: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test}: {why}, and CI=true forbids skipping"
    );
    eprintln!("SKIPPED: {test}: {why}");
}

/// What a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running daemon with one vhost-user-blk export; killed on drop.
pub struct Peer {
    child: Child,
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Peer {
    /// Starts one on this block device; says so and returns nothing when the
    /// daemon is not installed, and fails instead where CI=true.
    pub fn start(test: &str, blockdev: &str, queues: u16) -> Option<Self> {
        if !installed() {
            skip(test, "qemu-storage-daemon is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let export = format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,num-queues={queues}",
            socket.display()
        );
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", blockdev, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let peer = Self {
            child,
            socket,
            _dir: dir,
        };
        wait_for(&peer.socket);
        Some(peer)
    }

    pub fn null(test: &str, queues: u16) -> Option<Self> {
        Self::start(
            test,
            "driver=null-co,node-name=d0,size=1073741824,read-zeroes=on",
            queues,
        )
    }

    pub fn file(test: &str, path: &Path, queues: u16) -> Option<Self> {
        // Unlocked, so that two daemons may stand for the two ends of a move.
        let spec = format!(
            "driver=file,node-name=d0,filename={},discard=unmap,locking=off",
            path.display()
        );
        Self::start(test, &spec, queues)
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn installed() -> bool {
    Command::new("qemu-storage-daemon")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn wait_for(socket: &Path) {
    let until = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        assert!(Instant::now() < until, "no socket at {}", socket.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file of zeroes.
pub fn image(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("disk.raw");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    path
}
