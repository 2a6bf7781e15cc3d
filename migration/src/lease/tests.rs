use super::*;
use crate::ids::MigrationId;
use crate::lease::ownership::{Applied, OwnershipError};
use crate::phase::{Event, RefusedId};
use std::sync::atomic::{AtomicBool, Ordering};

fn id(n: u128) -> MigrationId {
    MigrationId(Uuid::from_u128(n))
}

fn record(phase: Phase) -> Record {
    Record {
        disk_uuid: Uuid::from_u128(1),
        owner: DaemonId(Uuid::from_u128(2)),
        state: State {
            phase,
            refused: vec![RefusedId {
                migration: id(9),
                epoch: 4,
            }],
        },
        peer: Some(Peer {
            address: "host:7077".into(),
            daemon: DaemonId(Uuid::from_u128(3)),
        }),
        device_state: Some(vec![0, 1, 255]),
        members: vec![],
    }
}

#[test]
fn every_phase_survives_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = FileStore::beside(&dir.path().join("disk.img"));
    assert_eq!(store.load().unwrap(), None);
    let (migration, epoch) = (id(5), 7);
    for phase in [
        Phase::Vacant,
        Phase::Serving {
            epoch,
            through: None,
        },
        Phase::Serving {
            epoch,
            through: Some(migration),
        },
        Phase::Released { migration, epoch },
        Phase::Handed { migration, epoch },
        Phase::Moved { migration, epoch },
        Phase::Incoming { migration, epoch },
        Phase::Granted { migration, epoch },
        Phase::Returned { migration, epoch },
        Phase::Taken { epoch },
    ] {
        store.store(&record(phase)).unwrap();
        assert_eq!(store.load().unwrap(), Some(record(phase)));
    }
    assert_eq!(store.path(), dir.path().join("disk.img.ferry"));
}

/// What version 1 wrote once, every later Ferry must read.
const GOLDEN: &str = r#"{
  "version": 1,
  "disk_uuid": "00000000-0000-0000-0000-000000000001",
  "owner": "00000000-0000-0000-0000-000000000002",
  "phase": {
    "granted": {
      "migration": "00000000-0000-0000-0000-000000000005",
      "epoch": 7
    }
  },
  "refused": [
    {
      "migration": "00000000-0000-0000-0000-000000000009",
      "epoch": 4
    }
  ],
  "peer": {
    "address": "host:7077",
    "daemon": "00000000-0000-0000-0000-000000000003"
  },
  "device_state": "0001ff"
}
"#;

#[test]
fn the_golden_record_is_written_and_read() {
    let granted = record(Phase::Granted {
        migration: id(5),
        epoch: 7,
    });
    assert_eq!(String::from_utf8(v1::print(&granted)).unwrap(), GOLDEN);
    assert_eq!(v1::parse(GOLDEN.as_bytes()).unwrap(), granted);
}

#[test]
fn damaged_records_are_refused_with_the_cause() {
    let refused = |from: &str, to: &str| {
        assert!(GOLDEN.contains(from));
        v1::parse(GOLDEN.replace(from, to).as_bytes()).unwrap_err()
    };
    assert!(refused("\"version\": 1", "\"version\": 2").contains("version 2"));
    assert!(refused("\"0001ff\"", "null").contains("no device state"));
    assert!(refused("0001ff", "0001f").contains("half"));
    assert!(refused("0001ff", "0001zz").contains("hexadecimal"));
    assert!(refused("\"epoch\": 7", "\"epoch\": 0").contains("epoch 0"));
    refused("granted", "stolen");
    for cut in 0..GOLDEN.len() - 2 {
        assert!(
            v1::parse(&GOLDEN.as_bytes()[..cut]).is_err(),
            "cut at {cut}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::at(dir.path().join("r"));
    fs::write(store.path(), vec![b' '; 1 << 20]).unwrap();
    assert!(store.load().unwrap_err().to_string().contains("too large"));
}

#[test]
fn the_daemon_keeps_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/b");
    let first = owner_id(&state).unwrap();
    assert_eq!(owner_id(&state).unwrap(), first);
    fs::write(state.join("daemon-id"), "nonsense").unwrap();
    assert!(owner_id(&state).is_err());
}

struct Failing(MemoryStore, Arc<AtomicBool>);

impl RecordStore for Failing {
    fn load(&self) -> Result<Option<Record>, LeaseError> {
        self.0.load()
    }

    fn store(&mut self, record: &Record) -> Result<(), LeaseError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(LeaseError::Store("no space".into()));
        }
        self.0.store(record)
    }
}

#[test]
fn nothing_is_believed_that_is_not_stored() {
    let memory = MemoryStore::default();
    let fails = Arc::new(AtomicBool::new(false));
    let store = Box::new(Failing(memory.clone(), fails.clone()));
    let owner = DaemonId::random();
    let ownership = Ownership::open(store, Uuid::new_v4(), owner).unwrap();
    assert_eq!(ownership.apply(Event::Create).unwrap(), Applied::Changed);
    fails.store(true, Ordering::SeqCst);
    let peer = Peer {
        address: "b:1".into(),
        daemon: DaemonId::random(),
    };
    let error = ownership.release(id(1), peer.clone(), vec![]).unwrap_err();
    assert!(matches!(error, OwnershipError::Lease(_)));
    assert!(ownership.may_serve());
    fails.store(false, Ordering::SeqCst);
    assert_eq!(
        ownership.release(id(1), peer.clone(), vec![]).unwrap(),
        Applied::Changed
    );
    assert_eq!(
        ownership.release(id(1), peer.clone(), vec![]).unwrap(),
        Applied::Repeated
    );
    assert!(!ownership.may_serve());
    let stored = memory.load().unwrap().unwrap();
    assert_eq!((stored.peer, stored.owner), (Some(peer), owner));
    assert_eq!(stored.disk_uuid, ownership.disk_uuid());
}
