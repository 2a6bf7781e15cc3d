//! A host's durable records, as far as the daemon sees them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_migration::lease::{LeaseError, Record, RecordStore};

/// Outlives the daemon, and a power cut.
#[derive(Debug, Clone, Default)]
pub struct Shelf(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    record: Option<Record>,
    /// Nothing can be stored, and this says which record stands then: the old one, or the new one
    /// though the daemon is told that it does not.
    failing: Option<fastrand::Rng>,
}

impl Shelf {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fail(&self, seed: Option<u64>) {
        self.inner().failing = seed.map(fastrand::Rng::with_seed);
    }

    /// What a daemon that starts would read.
    pub fn record(&self) -> Option<Record> {
        self.inner().record.clone()
    }
}

impl RecordStore for Shelf {
    fn load(&self) -> Result<Option<Record>, LeaseError> {
        Ok(self.record())
    }

    fn store(&mut self, record: &Record) -> Result<(), LeaseError> {
        let inner = &mut *self.inner();
        if inner.failing.as_mut().is_none_or(fastrand::Rng::bool) {
            inner.record = Some(record.clone());
        }
        match inner.failing {
            Some(_) => Err(LeaseError::Store("no space left".into())),
            None => Ok(()),
        }
    }
}
