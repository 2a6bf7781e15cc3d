//! Every bound of the engine, by name.

/// Bytes of a virtio-blk sector, whatever the device's block.
pub const SECTOR_BYTES: u64 = 512;

/// Requests in hand on one worker at a time; more wait in their virtqueues.
pub const SLOTS_PER_WORKER: usize = 1024;

/// Memory segments of one request after translation. A longer chain is refused as malformed.
pub const SEGMENTS_PER_REQUEST: usize = 256;

/// Bytes of a request that go through one bounce buffer at a time.
pub const BOUNCE_BYTES: usize = 256 * 1024;

/// Bounce buffers of one worker. A request that finds none waits for one.
pub const BOUNCE_BUFFERS: usize = 64;

/// Largest block a device may ask for; a bounce buffer has room to round a chunk out to it on
/// either side.
pub const BLOCK_BYTES_MAX: usize = 4096;

/// Entries of a worker's submission queue.
pub const SUBMISSION_ENTRIES: u32 = 512;

/// Entries of a worker's completion queue: each slot, each armed kick, with room to spare.
pub const COMPLETION_ENTRIES: u32 = 8192;

/// Requests popped from one queue before the worker turns to the next.
pub const FETCH_BUDGET: usize = 64;

/// Commands a worker takes between two polls.
pub const COMMAND_BUDGET: usize = 16;

/// Commands that may wait for a worker.
pub const COMMAND_QUEUE: usize = 1024;

/// Queues that one worker may hold, armed or polled.
pub const QUEUES_PER_WORKER: usize = 4096;

/// How long a queue without requests is polled before its worker goes back to kicks, in
/// nanoseconds. After gaps longer than this, spinning was measured to buy nothing.
pub const SPIN_NS: u64 = 50_000;

const _: () = assert!(SLOTS_PER_WORKER + QUEUES_PER_WORKER + 16 <= COMPLETION_ENTRIES as usize);
const _: () = assert!(BOUNCE_BYTES.is_multiple_of(BLOCK_BYTES_MAX));
