//! What the tests of a move stand on: disks in memory, a host, and a network that can be cut.
#![allow(dead_code)]

pub mod disk;
pub mod host;
pub mod net;

use std::sync::Arc;
use std::time::Duration;

use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::destination::Server;
use ferry_migration::ids::{DaemonId, DiskId, MigrationId};
use ferry_migration::lease::{FileStore, MemoryStore, Ownership, RecordStore};
use ferry_migration::phase::Event;
use ferry_migration::source::{self, SourceError, SourceHandle, SourceParams};

pub use disk::FakeDisk;
pub use host::FakeHost;
pub use net::Net;

pub const MIB: u64 = 1 << 20;

/// A numbers' generator that needs no crate: splitmix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One disk, its record, a destination, and the network between.
pub struct World {
    pub disk: Arc<FakeDisk>,
    pub ownership: Arc<Ownership>,
    pub host: Arc<FakeHost>,
    pub server: Server,
    pub net: Net,
    pub dir: tempfile::TempDir,
}

pub fn disk_id() -> DiskId {
    "vda".parse().unwrap()
}

impl World {
    pub fn new(bytes: u64) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::beside(&dir.path().join("source.img"));
        World::with_store(bytes, dir, Box::new(store))
    }

    pub fn with_store(bytes: u64, dir: tempfile::TempDir, store: Box<dyn RecordStore>) -> World {
        let ownership = Ownership::open(store, uuid::Uuid::new_v4(), DaemonId::random()).unwrap();
        ownership.apply(Event::Create).unwrap();
        let host = FakeHost::new(dir.path());
        let server = Server::start("127.0.0.1:0", host.clone()).unwrap();
        let net = Net::before(server.address());
        let disk = FakeDisk::new(bytes);
        disk.fill(7);
        World {
            disk,
            ownership: Arc::new(ownership),
            host,
            server,
            net,
            dir,
        }
    }

    pub fn params(&self) -> SourceParams {
        SourceParams {
            disk: self.disk.clone(),
            ownership: self.ownership.clone(),
            disk_id: disk_id(),
            migration: MigrationId::random(),
            peer: self.net.address.to_string(),
            shape: self.disk.shape(),
            patience: Duration::from_secs(1),
            shared: None,
            group: None,
        }
    }

    pub fn start(&self) -> SourceHandle {
        source::start(self.params()).unwrap()
    }

    pub fn in_sync(&self) -> SourceHandle {
        let handle = self.start();
        handle.wait_in_sync(Duration::from_secs(60)).unwrap();
        handle
    }

    /// What the destination has, by its image.
    pub fn copy(&self) -> Vec<u8> {
        self.host.image_bytes()
    }

    /// Asserts that the source serves as if nothing had been.
    pub fn assert_source_serves(&self) {
        assert!(self.ownership.may_serve(), "{:?}", self.ownership.phase());
        assert!(!self.disk.tapped(), "the tap is still attached");
        assert!(self.disk.write(0, &[1; 512]), "the source does not serve");
    }

    /// A whole move that must succeed.
    pub fn move_all(&self) -> SourceHandle {
        let handle = self.in_sync();
        self.disk.stop_rings();
        handle.release(Duration::from_secs(30)).unwrap();
        assert!(
            self.copy() == self.disk.bytes(),
            "the copy differs from the disk"
        );
        handle
    }
}

pub fn memory() -> Box<dyn RecordStore> {
    Box::new(MemoryStore::default())
}

pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !ready() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn is_doubt(error: &SourceError) -> bool {
    matches!(error, SourceError::InDoubt(_))
}

pub fn as_lifecycle(disk: &Arc<FakeDisk>) -> Arc<dyn DiskLifecycle> {
    disk.clone()
}
