//! The threads that do the blocking I/O of thin disks: a fixed number for the whole process, fed
//! through one bounded queue. A worker never waits for them: a job that finds the queue full stays
//! with the worker, which tries again.

use std::io;
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::ThinImage;
use crate::buffer::AlignedBuf;
use crate::limits::{THIN_QUEUE, THIN_THREADS};
use crate::worker::command::Wake;

/// What to do with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Fill the buffer.
    Read,
    /// Write the buffer; durably, with `through`.
    Write { through: bool },
    /// Make a range read as zeroes, and give its space back.
    Zero { unmap: bool },
    /// Make everything durable.
    Flush,
}

/// Work for a slot of a worker.
pub(crate) struct Job {
    pub image: Arc<ThinImage>,
    pub work: Work,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    /// The slot's buffer, lent, and where in it the bytes are.
    pub buffer: Option<Arc<AlignedBuf>>,
    pub at: usize,
    pub slot: u32,
    /// Where the answer goes.
    pub port: Arc<Port>,
}

/// The answer to a job.
pub(crate) struct Done {
    pub slot: u32,
    /// Bytes, or a negated errno, as a CQE has them.
    pub result: i32,
    pub buffer: Option<Arc<AlignedBuf>>,
}

/// Where a worker takes its answers; with room for all its slots, each of which has one job at most.
pub(crate) struct Port {
    pub done: Sender<Done>,
    pub wake: Arc<Wake>,
}

static QUEUE: OnceLock<Sender<Job>> = OnceLock::new();

/// Starts the threads, the first time.
pub(super) fn start() -> io::Result<()> {
    static STARTING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = STARTING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if QUEUE.get().is_some() {
        return Ok(());
    }
    let (jobs, queue) = bounded(THIN_QUEUE);
    for n in 0..THIN_THREADS {
        let queue: Receiver<Job> = queue.clone();
        std::thread::Builder::new()
            .name(format!("ferry-thin-{n}"))
            .spawn(move || queue.iter().for_each(Job::run))?;
    }
    let _ = QUEUE.set(jobs);
    Ok(())
}

/// Hands a job to the threads, or back when their queue is full.
pub(crate) fn submit(job: Job) -> Result<(), Job> {
    let queue = QUEUE.get().expect("an open image has started the threads");
    queue.try_send(job).map_err(|refused| match refused {
        TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
    })
}

impl Job {
    fn run(mut self) {
        let result = match self.carry_out() {
            Ok(()) => i32::try_from(self.len_bytes).unwrap_or(0),
            Err(error) => -errno(&error),
        };
        let result = match self.work {
            Work::Read | Work::Write { .. } => result,
            Work::Zero { .. } | Work::Flush => result.min(0),
        };
        let done = Done {
            slot: self.slot,
            result,
            buffer: self.buffer.take(),
        };
        // A worker that is gone has no slot that waits.
        let _ = self.port.done.send(done);
        self.port.wake.wake();
    }

    fn carry_out(&mut self) -> io::Result<()> {
        let (image, offset) = (&self.image, self.offset_bytes);
        match self.work {
            Work::Flush => image.flush(),
            Work::Zero { unmap } => image.zero(offset..offset + self.len_bytes, unmap),
            Work::Read | Work::Write { .. } => {
                let buffer = self.buffer.as_mut().expect("a transfer has a buffer");
                let len = usize::try_from(self.len_bytes).expect("within a buffer");
                let bytes = self.at..self.at + len;
                if let Work::Write { through } = self.work {
                    image.write(offset, &buffer[bytes])?;
                    return if through { image.flush() } else { Ok(()) };
                }
                let buffer = Arc::get_mut(buffer).expect("not shared while it is read");
                image.read(offset, &mut buffer[bytes])
            }
        }
    }
}

/// What a CQE would say. An error that would have the worker try again is none of those here.
fn errno(error: &io::Error) -> i32 {
    match (error.raw_os_error(), error.kind()) {
        (Some(libc::EAGAIN | libc::EINTR), _) => libc::EIO,
        (Some(code), _) if code > 0 => code,
        (_, io::ErrorKind::StorageFull) => libc::ENOSPC,
        _ => libc::EIO,
    }
}
