//! The copier: lock, read, queue, unlock.
//!
//! A lock makes guests wait, so under one there is only a local read and a `try_send`. Room on the
//! way to the destination is waited for before the lock; if the queue is full all the same, the
//! lock is given up and the step is done again. What was queued of it then is harmless: it was
//! stable when it was read, and whatever changes it later comes later in the queue or is read again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use ferry_dataplane::buffer::AlignedBuf;
use ferry_dataplane::lifecycle::TapEvent;

use super::Stop;
use super::shared::{BULK_BYTES_MAX, Shared};
use crate::extents::{CHUNK_BYTES, EXTENT_BYTES, Step, zero_runs};

/// How long to wait before a full queue is tried again.
const FULL_PAUSE: Duration = Duration::from_micros(500);
/// Buffers kept for reuse: as many as may be under way.
const POOL_MAX: usize = 20;

pub(super) struct Copier {
    shared: Arc<Shared>,
    events: Sender<TapEvent>,
    pool: VecDeque<Arc<AlignedBuf>>,
    /// The tail of a release must end by then.
    pub deadline: Option<Instant>,
}

impl Copier {
    pub fn new(shared: &Arc<Shared>, events: Sender<TapEvent>) -> Copier {
        Copier {
            shared: shared.clone(),
            events,
            pool: VecDeque::new(),
            deadline: None,
        }
    }

    /// Walks the disk once.
    pub fn first_pass(&mut self) -> Result<(), Stop> {
        loop {
            self.check()?;
            let at = self.shared.plan().cursor_bytes();
            let Some(step) = self.next_step(at)? else {
                return Ok(());
            };
            let queued = match &step {
                Step::Data(range) => self.data(range, (at, range.end))?,
                Step::Hole(range) => self.hole(range)?,
            };
            match queued {
                Some(end) => self.shared.plan().advance(end),
                None => std::thread::sleep(FULL_PAUSE),
            }
        }
    }

    /// Copies dirty extents again until there is none.
    pub fn settle_dirty(&mut self) -> Result<(), Stop> {
        let all = self.shared.bytes_total;
        loop {
            self.check()?;
            let Some(run) = self.shared.plan().dirty_run() else {
                return Ok(());
            };
            if self.data(&run, (all, all))?.is_none() {
                self.shared
                    .plan()
                    .mark_dirty(run.start, run.end - run.start);
                std::thread::sleep(FULL_PAUSE);
            }
        }
    }

    /// Waits until the destination has applied every piece queued here.
    pub fn wait_applied(&self) -> Result<(), Stop> {
        self.wait(|shared| shared.bulk_bytes == 0)
    }

    /// Waits for something of `Live`, a stop, or the deadline.
    pub fn wait(&self, ready: impl Fn(&super::shared::Live) -> bool) -> Result<(), Stop> {
        self.shared
            .wait(self.deadline, |live| match Stop::of(live) {
                Some(stop) => Some(Err(stop)),
                None => ready(live).then_some(Ok(())),
            })
            .unwrap_or(Err(Stop::Late))
    }

    fn check(&self) -> Result<(), Stop> {
        match Stop::of(&self.shared.live()) {
            Some(stop) => Err(stop),
            None if self.deadline.is_some_and(|at| Instant::now() >= at) => Err(Stop::Late),
            None => Ok(()),
        }
    }

    fn next_step(&self, at: u64) -> Result<Option<Step>, Stop> {
        let data = self.shared.disk.next_data(at).map_err(|error| {
            Stop::Lost(format!("cannot find the data on the disk here: {error}"))
        })?;
        Ok(self.shared.plan().step(data))
    }

    fn hole(&mut self, range: &Range<u64>) -> Result<Option<u64>, Stop> {
        self.wait_room(EXTENT_BYTES)?;
        self.locked(range, (range.start, range.end), |copier| {
            // A write may have come before the lock.
            let Some(Step::Hole(still)) = copier.next_step(range.start)? else {
                return Ok(None);
            };
            let end = still.end.min(range.end);
            Ok(copier.queue_zero(range.start..end)?.then_some(end))
        })
    }

    /// `below` is what is mirrored before and after. Answers where the copied range ends, or `None`
    /// when the queue was full.
    fn data(&mut self, range: &Range<u64>, below: (u64, u64)) -> Result<Option<u64>, Stop> {
        self.wait_room(CHUNK_BYTES)?;
        self.locked(range, below, |copier| {
            copier.shared.plan().clear(range);
            let len = usize::try_from(range.end - range.start).unwrap_or(0);
            let mut buffer = copier.buffer();
            let bytes = Arc::get_mut(&mut buffer).expect("a buffer of the pool has no other owner");
            copier
                .shared
                .disk
                .read_at(range.start, bytes, len)
                .map_err(|error| {
                    Stop::Lost(format!(
                        "cannot read the disk here at byte {}: {error}",
                        range.start
                    ))
                })?;
            let queued = copier.queue_runs(range.start, &buffer, len)?;
            copier.keep(buffer);
            Ok(queued.then_some(range.end))
        })
    }

    /// Runs `work` with the range locked. What is mirrored moves on only as far as `work` says.
    fn locked(
        &mut self,
        range: &Range<u64>,
        (below, below_after): (u64, u64),
        work: impl FnOnce(&mut Copier) -> Result<Option<u64>, Stop>,
    ) -> Result<Option<u64>, Stop> {
        let disk = self.shared.disk.clone();
        let failed = |error| Stop::Lost(format!("the disk cannot be mirrored any more: {error}"));
        disk.lock_range(range.clone()).map_err(failed)?;
        let done = work(self);
        let below = match done {
            Ok(Some(end)) => end.min(below_after).max(below),
            _ => below,
        };
        disk.unlock_range(below).map_err(failed)?;
        done
    }

    fn queue_runs(
        &mut self,
        offset: u64,
        buffer: &Arc<AlignedBuf>,
        len: usize,
    ) -> Result<bool, Stop> {
        let runs = zero_runs(&buffer[..len]);
        for (run, zero) in &runs {
            let start = offset + run.start as u64;
            let queued = if *zero {
                self.queue_zero(start..offset + run.end as u64)?
            } else if run.start == 0 {
                self.queue_data(start, buffer.clone(), run.len())?
            } else {
                let mut part = self.buffer();
                let bytes =
                    Arc::get_mut(&mut part).expect("a buffer of the pool has no other owner");
                bytes[..run.len()].copy_from_slice(&buffer[run.clone()]);
                let queued = self.queue_data(start, part.clone(), run.len())?;
                self.keep(part);
                queued
            };
            if !queued {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn queue_zero(&self, range: Range<u64>) -> Result<bool, Stop> {
        let len_bytes = range.end - range.start;
        self.queue(
            TapEvent::Zero {
                seq: 0,
                offset_bytes: range.start,
                len_bytes,
            },
            EXTENT_BYTES,
        )
    }

    fn queue_data(
        &self,
        offset_bytes: u64,
        data: Arc<AlignedBuf>,
        len: usize,
    ) -> Result<bool, Stop> {
        self.queue(
            TapEvent::Write {
                seq: 0,
                offset_bytes,
                data,
                len,
            },
            len as u64,
        )
    }

    /// Puts a piece into the ordered queue, counted before it can be acknowledged.
    fn queue(&self, event: TapEvent, cost: u64) -> Result<bool, Stop> {
        self.shared.tell(|live| {
            live.bulk.push_back(cost);
            live.bulk_bytes += cost;
        });
        let sent = self.events.try_send(event);
        if sent.is_err() {
            self.shared
                .tell(|live| live.bulk_bytes -= live.bulk.pop_back().unwrap_or(0));
        }
        match sent {
            Ok(()) => Ok(true),
            Err(TrySendError::Full(_)) => Ok(false),
            Err(TrySendError::Disconnected(_)) => {
                Err(Stop::Lost("the link to the destination is lost".into()))
            }
        }
    }

    fn wait_room(&self, bytes: u64) -> Result<(), Stop> {
        self.wait(|live| live.bulk_bytes == 0 || live.bulk_bytes + bytes <= BULK_BYTES_MAX)
    }

    /// A buffer that nobody else holds.
    fn buffer(&mut self) -> Arc<AlignedBuf> {
        let free = self
            .pool
            .iter()
            .position(|buffer| Arc::strong_count(buffer) == 1);
        match free.and_then(|at| self.pool.swap_remove_back(at)) {
            Some(buffer) => buffer,
            None => Arc::new(AlignedBuf::new(
                usize::try_from(CHUNK_BYTES).unwrap_or(1 << 18),
            )),
        }
    }

    fn keep(&mut self, buffer: Arc<AlignedBuf>) {
        if self.pool.len() < POOL_MAX {
            self.pool.push_back(buffer);
        }
    }
}
