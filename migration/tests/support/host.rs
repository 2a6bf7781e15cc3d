//! A destination daemon with one device.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ferry_dataplane::backend::file::Image;
use ferry_dataplane::lifecycle::DiskLifecycle;
use ferry_migration::destination::{DestinationHost, PreparedTarget, TargetBytes};
use ferry_migration::ids::{Claim, DaemonId, DiskId, MigrationId};
use ferry_migration::lease::{FileStore, LeaseError, Ownership, Record, RecordStore};
use ferry_migration::negotiate::Hello;

use super::FakeDisk;

pub struct FakeHost {
    pub daemon: DaemonId,
    image_path: PathBuf,
    pub device: Mutex<Option<Arc<FakeDisk>>>,
    ownership: Mutex<Option<Arc<Ownership>>>,
    target: Mutex<Option<(MigrationId, Arc<Image>)>>,
    pub refuse_install: AtomicBool,
    pub refuse_prepare: AtomicBool,
    pub stores_fail: Arc<AtomicBool>,
    pub activated: AtomicU64,
    pub discarded: AtomicU64,
}

/// A file store that can be told to fail.
struct Flaky(FileStore, Arc<AtomicBool>);

impl RecordStore for Flaky {
    fn load(&self) -> Result<Option<Record>, LeaseError> {
        self.0.load()
    }

    fn store(&mut self, record: &Record) -> Result<(), LeaseError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(LeaseError::Store("no space left".into()));
        }
        self.0.store(record)
    }
}

impl FakeHost {
    pub fn new(dir: &Path) -> Arc<FakeHost> {
        FakeHost::named(dir, "target.img", DaemonId::random())
    }

    pub fn named(dir: &Path, name: &str, daemon: DaemonId) -> Arc<FakeHost> {
        Arc::new(FakeHost {
            daemon,
            image_path: dir.join(name),
            device: Mutex::default(),
            ownership: Mutex::default(),
            target: Mutex::default(),
            refuse_install: AtomicBool::new(false),
            refuse_prepare: AtomicBool::new(false),
            stores_fail: Arc::default(),
            activated: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
        })
    }

    /// A host that serves the disk already and may get it back.
    pub fn adopt(&self, disk: &Arc<FakeDisk>, ownership: &Arc<Ownership>) {
        *self.device.lock().unwrap() = Some(disk.clone());
        *self.ownership.lock().unwrap() = Some(ownership.clone());
    }

    pub fn image_bytes(&self) -> Vec<u8> {
        std::fs::read(&self.image_path).unwrap()
    }

    pub fn has_image(&self) -> bool {
        self.image_path.exists()
    }

    pub fn device(&self) -> Arc<FakeDisk> {
        self.device.lock().unwrap().clone().unwrap()
    }

    pub fn record(&self) -> Arc<Ownership> {
        self.ownership.lock().unwrap().clone().unwrap()
    }

    /// Loses all memory, as a killed daemon does, and reads its record again.
    pub fn restart(&self) {
        *self.device.lock().unwrap() = None;
        *self.target.lock().unwrap() = None;
        *self.ownership.lock().unwrap() = None;
        let store = FileStore::beside(&self.image_path);
        let ownership = Ownership::open(Box::new(store), uuid::Uuid::nil(), self.daemon).unwrap();
        *self.ownership.lock().unwrap() = Some(Arc::new(ownership));
    }
}

impl DestinationHost for FakeHost {
    fn prepare(&self, hello: &Hello) -> Result<PreparedTarget, String> {
        if self.refuse_prepare.load(Ordering::SeqCst) {
            return Err("no room".into());
        }
        let mut target = self.target.lock().unwrap();
        if target.is_some() {
            return Err("busy with another copy".into());
        }
        let image = Image::create(&self.image_path, hello.shape.capacity_bytes)
            .map_err(|error| error.to_string())?;
        let image = Arc::new(image);
        *target = Some((hello.claim.migration, image.clone()));
        let mut ownership = self.ownership.lock().unwrap();
        let ownership = ownership.get_or_insert_with(|| {
            let store = Flaky(
                FileStore::beside(&self.image_path),
                self.stores_fail.clone(),
            );
            Arc::new(Ownership::open(Box::new(store), hello.disk_uuid, self.daemon).unwrap())
        });
        let mut device = self.device.lock().unwrap();
        let device = device.get_or_insert_with(|| FakeDisk::new(hello.shape.capacity_bytes));
        device.stop_rings();
        Ok(PreparedTarget {
            bytes: TargetBytes::Copy { image, kept: false },
            ownership: ownership.clone(),
            disk: device.clone(),
        })
    }

    fn install(&self, _: &Claim, device_state: &[u8]) -> Result<(), String> {
        if self.refuse_install.load(Ordering::SeqCst) {
            return Err("the device has other queues".into());
        }
        let device = self.device();
        device.set_bytes(self.image_bytes());
        device
            .import(device_state)
            .map_err(|error| error.to_string())
    }

    fn discard(&self, claim: &Claim, _: bool, _: &str) {
        let mut target = self.target.lock().unwrap();
        if target
            .as_ref()
            .is_some_and(|(migration, _)| *migration == claim.migration)
        {
            *target = None;
            let _ = std::fs::remove_file(&self.image_path);
            self.discarded.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn activated(&self, _: &Claim) {
        self.activated.fetch_add(1, Ordering::SeqCst);
    }

    fn ownership(&self, _: &DiskId) -> Option<Arc<Ownership>> {
        self.ownership.lock().unwrap().clone()
    }

    fn qmp(&self, socket: &Path, command: &str) -> Result<String, String> {
        if socket != Path::new("/run/vm.qmp") {
            return Err("no such monitor".into());
        }
        Ok(format!("{{\"return\":{command}}}"))
    }
}
