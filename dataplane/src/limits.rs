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

/// Bytes of a mapped disk that one lock covers while they are copied.
pub const STRIPE_BYTES: u64 = 64 * 1024;

/// Locks of a mapped disk, on a cache line each.
pub const MAP_STRIPES: usize = 64;

/// Bytes of a mapped disk that a worker zeroes itself; a kernel thread does more than that.
pub const ZERO_INLINE_BYTES: u64 = 1 << 20;

/// Images that a worker registers with its ring. The requests of more name a descriptor.
pub const FILES_PER_WORKER: u32 = 1024;

/// Bounce buffers and pieces of guest memory, 1 GiB each at most, that a worker registers with its
/// ring.
pub const BUFFERS_PER_WORKER: u32 = 4096;

/// Entries of a worker's submission queue.
pub const SUBMISSION_ENTRIES: u32 = 512;

/// Entries of a worker's completion queue: each slot, each armed kick, with room to spare.
pub const COMPLETION_ENTRIES: u32 = 8192;

/// Requests that are worth a call to the kernel of their own while a device has nothing to do.
pub const FIRST_BATCH: u32 = 8;

/// Requests popped from all queues of one disk before the worker turns to the next disk.
pub const FETCH_BUDGET: usize = 64;

/// Bytes of requests popped from one disk after which the worker turns to the next.
pub const FETCH_BYTES: u64 = 1 << 20;

/// Requests of a disk whose bytes the worker copies itself, after which the guest is shown them.
pub const COPY_BUDGET: usize = 16;

/// How many requests ahead of the one that is copied the next block is fetched to the cache.
pub const LOOK_AHEAD: usize = 2;

/// How much of it. Where this was measured, a whole block of 4 KiB was worse than its start.
pub const PREFETCH_BYTES: usize = 512;

/// A disk may hold this many times as many slots of its worker as are free: four fifths of them
/// alone, and with others that want many an equal part each.
pub const SLOT_SHARE: usize = 4;

/// Requests of a disk that a worker holds back for its datastore; more wait in the guest's rings.
pub const HELD_PER_LANE: usize = 64;

/// Requests held back that a worker lets go in one turn, of one datastore.
pub const DISPATCH_BUDGET: usize = 256;

/// Commands a worker takes between two polls.
pub const COMMAND_BUDGET: usize = 16;

/// Commands that may wait for a worker.
pub const COMMAND_QUEUE: usize = 1024;

/// Queues that one worker may hold, armed or polled.
pub const QUEUES_PER_WORKER: usize = 4096;

/// How long a queue without requests is polled before its worker goes back to kicks, in
/// nanoseconds, unless an option says otherwise. On the machine where this was measured, a request
/// after a gap of 50 us waited 0.1 us for a worker that polls and 25 us for one that sleeps. Polling
/// through longer gaps spares little more, and keeps a core for as long.
pub const SPIN_NS: u64 = 50_000;

/// Gaps in a row that were longer than the polling, after which a queue is not polled in vain.
pub const SPIN_MISSES: u8 = 4;

/// A queue whose requests take longer than the polling is polled for this part of the time, once
/// its guest has answered what it was shown: the rest of the answer comes in it.
pub const SPIN_SHORT: u64 = 16;

/// How long a queue that gave something is left alone, so that a batch gathers, in nanoseconds:
/// somewhat more than a cache line's way to another core and back.
pub const POLL_FLOOR_NS: u64 = 600;

/// Polls in a row with a single request that show the floor to be of no use.
pub const FLOOR_SINGLES: u32 = 4;

/// Polls for which it stays away then: at first, and at most.
pub const FLOOR_PAUSE_MIN: u32 = 256;
/// See [`FLOOR_PAUSE_MIN`].
pub const FLOOR_PAUSE_MAX: u32 = 65_536;

/// Threads of this process that do the I/O of thin disks, whatever the number of disks.
pub const THIN_THREADS: usize = 4;

/// Jobs of thin disks that may wait for those threads; more wait at their workers.
pub const THIN_QUEUE: usize = 1024;

/// Images that a thin disk may be made of, its own included.
pub const THIN_CHAIN_MAX: usize = 16;

/// Largest qcow2 file that is written to, in bytes.
pub const THIN_FILE_BYTES_MAX: u64 = 64 << 40;

/// How soon a job that found the queue of thin disks full is tried again, in nanoseconds.
pub const THIN_RETRY_NS: u64 = 200_000;

/// Frames taken from one queue of a NIC before the worker turns to the next.
pub const FRAME_BUDGET: usize = 64;

/// Frames read from a tap in one call at most.
pub const TAP_BATCH: u16 = 64;

/// Frames on their way to a tap.
pub const TAP_WRITES: u16 = 256;

/// Datagrams that Linux makes one of at most (UDP_MAX_SEGMENTS): so many writes are left free for one, where
/// a tap does not cut it up.
pub const TAP_DATAGRAMS: u16 = 128;

/// How soon a frame is tried again that found fewer buffers than it takes, in nanoseconds: its guest gives
/// no kick for more of them.
pub const ROOM_RETRY_NS: u64 = 500_000;

/// Commands of a NIC's control queue in [`CONTROL_WINDOW`]; more wait for the next.
pub const CONTROL_COMMANDS: u32 = 64;

/// How long a window of control commands is.
pub const CONTROL_WINDOW: std::time::Duration = std::time::Duration::from_millis(10);

/// Longest data of a control command, in bytes: tables of ten thousand addresses.
pub const CONTROL_DATA_BYTES: usize = 64 << 10;

/// Frames that are kept for a guest whose queues stand still.
pub const CAPTURE_FRAMES: usize = 512;

/// Bytes of these at most.
pub const CAPTURE_BYTES: usize = 4 << 20;

/// Frames that are kept for a guest whose NIC moves.
pub const MOVE_CAPTURE_FRAMES: usize = 4096;

/// Bytes of these at most.
pub const MOVE_CAPTURE_BYTES: usize = 16 << 20;

/// How long frames wait for the buffers of a guest that has moved, or was about to. It finds at once all
/// that came in its blackout, on a host whose caches know nothing of it.
pub const CATCH_UP: std::time::Duration = std::time::Duration::from_secs(1);

/// Frames of each way that are remembered while a NIC arrives, to be told from those that come the other way.
pub const CAPTURE_TWINS: usize = MOVE_CAPTURE_FRAMES;

/// Addresses that are remembered of what a guest says of itself.
pub const SPOKEN_ADDRESSES: usize = 16;

/// Seconds for which they are. What a guest has not spoken of for longer may be another's by now.
pub const SPOKEN_S: u32 = 600;

/// Ports of one bridge.
pub const PORTS_PER_BRIDGE: u16 = 1024;

/// Bridges of one worker.
pub const BRIDGES_PER_WORKER: usize = 256;

const _: () = assert!(SLOTS_PER_WORKER + QUEUES_PER_WORKER + 16 <= COMPLETION_ENTRIES as usize);
const _: () = assert!(BOUNCE_BYTES.is_multiple_of(BLOCK_BYTES_MAX));
const _: () = assert!(BOUNCE_BUFFERS < BUFFERS_PER_WORKER as usize);
const _: () = assert!(STRIPE_BYTES.is_multiple_of(BLOCK_BYTES_MAX as u64));
