//! What migration may do with a disk, and all it may know of one.
//!
//! `migration` sees a disk only through [`DiskLifecycle`]: it reads and locks ranges, listens to
//! the writes, stops and starts service, and carries the device's state as bytes it does not
//! interpret. It never sees a virtqueue.
//!
//! # The mirror's order
//!
//! One cursor walks the disk. For a write that arrives while a tap is attached:
//!
//! ```text
//!   0 ........... mirrored_below ........[ locked range ]........ capacity
//!   behind: both sides, from one copy     waits for unlock        ahead: this side only
//! ```
//!
//! The copier locks a range ([`DiskLifecycle::lock_range`]), reads it, hands the bytes to the same
//! ordered channel that the tap writes to, and only then unlocks. So whatever is mirrored for that
//! range later is also later in the channel. A lock is held for local reads only, never while
//! something waits for the network.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::Sender;

use crate::buffer::AlignedBuf;

/// A disk's shape. Its block never changes; its size may grow, but not while it is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk in bytes, a multiple of `block_bytes`.
    pub capacity_bytes: u64,
    /// The device's block in bytes, as the guest sees it in `blk_size`; a power of two, 512 or more.
    pub block_bytes: u32,
}

/// A virtqueue, as far as it tells one machine from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingView {
    /// The available index that is served next. Of a ring that is held since it was started, what
    /// its VMM set (SET_VRING_BASE); of one that was stopped, what its VMM was told (GET_VRING_BASE).
    pub next_avail: u16,
    /// Whether its VMM has started it.
    pub running: bool,
}

/// A change of a mirrored disk, in the order in which the other side must apply it.
#[derive(Debug, Clone)]
pub enum TapEvent {
    /// `data[..len]` was given to the local disk at `offset_bytes`; the guest's request waits for
    /// [`DiskLifecycle::acknowledge`] of `seq`. `data` does not change until every clone of the
    /// `Arc` is dropped: drop it once it has been sent.
    Write {
        /// Counts up by one with every `Write` and `Zero` of this tap, from 1.
        seq: u64,
        /// First byte on the disk.
        offset_bytes: u64,
        /// The stable copy both sides take the bytes from.
        data: Arc<AlignedBuf>,
        /// Bytes of `data` that count.
        len: usize,
    },
    /// The range reads as zeroes from now on (a write-zeroes or a discard).
    Zero {
        /// As in `Write`.
        seq: u64,
        /// First byte on the disk.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The two sides may differ here (a local write failed or was partial): copy it again.
    Dirty {
        /// First byte on the disk.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The disk gave the mirror up (a mirrored write waited too long, say); the tap is detached,
    /// the guest goes on locally. Nothing follows.
    Failed(String),
}

/// Where a disk sends its changes while it is mirrored.
#[derive(Debug)]
pub struct WriteTap {
    /// Ordered and bounded. The disk never blocks on it: when it is full, the disk fails the
    /// mirror, not the guest. Give it room for every request in hand
    /// ([`crate::limits::SLOTS_PER_WORKER`]) and for what else goes through it.
    pub events: Sender<TapEvent>,
    /// Set when the disk gives the mirror up: [`TapEvent::Failed`] says so as well, where the
    /// channel has room for it.
    pub failed: Arc<AtomicBool>,
    /// How long a mirrored request may wait for its acknowledgement, in nanoseconds.
    pub patience_ns: u64,
}

/// Why a lifecycle call could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// The disk is mirrored already, or the tap is gone.
    #[error("{0}")]
    Refused(String),
    /// The device's worker has ended.
    #[error("the disk's worker has stopped; the daemon is shutting down")]
    Gone,
    /// The state to import is not this device's.
    #[error("device state refused: {0}")]
    BadState(String),
    /// The disk itself failed.
    #[error("I/O error on the disk")]
    Io(#[from] io::Error),
}

/// Called once, on a control thread, when a disk in [`DiskLifecycle::await_activation`] has its
/// first descriptor waiting. Returns whether the disk may serve from now on.
pub type ActivationHook = Box<dyn FnOnce() -> bool + Send>;

/// Called, possibly more than once, on a control thread, when a quiesced disk's rings are started
/// by its VMM.
pub type RestartHook = Box<dyn Fn() + Send + Sync>;

/// The view of a disk that a migration has. All calls are made from threads that may block, never
/// from a worker. Every method may be called at any time; a call that makes no sense in the
/// present state answers [`LifecycleError::Refused`] and changes nothing.
pub trait DiskLifecycle: Send + Sync {
    /// The disk's shape.
    fn geometry(&self) -> Geometry;

    /// Makes every completed write durable.
    fn flush(&self) -> io::Result<()>;

    /// Attaches the tap. When this returns, the disk's queues go through one worker, nothing is
    /// mirrored yet (`mirrored_below` is 0), and no range is locked.
    fn attach_tap(&self, tap: WriteTap) -> Result<(), LifecycleError>;

    /// Detaches the tap. Requests that waited for acknowledgement complete by their local result.
    /// Harmless when there is none.
    fn detach_tap(&self);

    /// Holds new writes, discards and zeroes that overlap the range, and returns when those in
    /// flight on it, mirrored or not, have landed on the local disk. One range at a time.
    fn lock_range(&self, range: Range<u64>) -> Result<(), LifecycleError>;

    /// Ends the lock; from now on writes that begin below `mirrored_below` bytes are mirrored.
    fn unlock_range(&self, mirrored_below: u64) -> Result<(), LifecycleError>;

    /// The other side has applied every event up to and including `seq`. Never blocks.
    fn acknowledge(&self, seq: u64);

    /// Reads `len` bytes at `offset_bytes` (both multiples of the block) into `buf`. For ranges
    /// that are locked, the bytes are stable.
    fn read_at(&self, offset_bytes: u64, buf: &mut AlignedBuf, len: usize) -> io::Result<()>;

    /// The first run at or after `offset_bytes` that may hold data, clipped to the disk; `None`
    /// when only holes follow. A backend without holes answers all that is left.
    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>>;

    /// Whether any virtqueue is running. False once the VMM has stopped every ring and each has
    /// been drained.
    fn rings_running(&self) -> bool;

    /// The virtqueues, in their order. While the disk is in service the index of one that runs is
    /// not the present one.
    fn rings(&self) -> Vec<RingView>;

    /// Forgets the rings of a VMM that is gone: a person says that the disk goes to another machine,
    /// and that one begins at 0.
    fn forget_departed(&self);

    /// Takes the disk out of service: nothing is popped any more and what was popped is drained.
    /// The VMM's messages are still answered. `on_restart` is called whenever the VMM starts
    /// a ring of the disk while it is out of service; it must not block.
    fn quiesce(&self, on_restart: RestartHook) -> Result<(), LifecycleError>;

    /// Takes a disk into service again, whatever held it.
    fn resume(&self);

    /// Out of service until the first descriptor is about to be popped; then `hook` decides.
    fn await_activation(&self, hook: ActivationHook) -> Result<(), LifecycleError>;

    /// The device's state as an encoded envelope. Only while it is quiesced or all its rings are
    /// stopped.
    fn export(&self) -> Result<Vec<u8>, LifecycleError>;

    /// Takes over a state that [`DiskLifecycle::export`] gave elsewhere. Validates all of it
    /// before it changes anything.
    fn import(&self, envelope: &[u8]) -> Result<(), LifecycleError>;
}
