//! Locks that a panicked thread does not take down with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; what a panicked holder left is whole, because every holder changes its value in one step.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
