//! An io_uring on a device as a port of the verified load.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::ring::{self, Request, Ring};
use crate::error::BenchError;
use crate::stamp::{Kind, Span};
use crate::verify::{Outcome, Port};

/// Ways to zero a range without sending zeroes; both must read back as zero.
const ZERO_MODES: [i32; 2] = [
    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
];

/// One thread's queue on a block device or file.
pub struct RingPort {
    ring: Ring,
    sizes: Vec<usize>,
    /// What each slot waits for.
    asked: Vec<Request>,
    /// Done without the ring.
    ready: Vec<(usize, Outcome)>,
    zero_modes: Vec<i32>,
    next_mode: usize,
    discards: bool,
}

impl RingPort {
    pub(super) fn new(file: File, is_block: bool, sizes: &[usize]) -> Result<Self, BenchError> {
        let ring = Ring::new(file, sizes).map_err(|source| BenchError::Host {
            what: "an io_uring (is it disabled by kernel.io_uring_disabled?)",
            source,
        })?;
        Ok(Self {
            ring,
            sizes: sizes.to_vec(),
            asked: vec![Request::Sync; sizes.len()],
            ready: Vec::new(),
            zero_modes: ZERO_MODES.to_vec(),
            next_mode: 0,
            discards: is_block,
        })
    }

    fn zeroes(&mut self, offset: u64, bytes: u64) -> Request {
        self.next_mode += 1;
        let mode = self.zero_modes[self.next_mode % self.zero_modes.len()];
        Request::Allocate {
            mode,
            offset,
            bytes,
        }
    }

    fn discard(&mut self, offset: u64, bytes: u64) -> Outcome {
        match ring::discard(self.ring.file(), offset, bytes) {
            Ok(()) => Outcome::Ok,
            Err(e) if is_unknown(e.raw_os_error().unwrap_or(0)) => {
                self.discards = false;
                Outcome::Refused
            }
            Err(_) => Outcome::Failed,
        }
    }

    fn outcome(&mut self, slot: usize, result: i32) -> Outcome {
        let wanted = match self.asked[slot] {
            Request::Read { bytes, .. } | Request::Write { bytes, .. } => bytes,
            Request::Sync => 0,
            Request::Allocate { mode, .. } => {
                if is_unknown(-result) {
                    self.zero_modes.retain(|m| *m != mode);
                    return Outcome::Refused;
                }
                0
            }
        };
        if u32::try_from(result) == Ok(wanted) {
            Outcome::Ok
        } else {
            Outcome::Failed
        }
    }
}

fn is_unknown(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
}

impl Port for RingPort {
    fn slots(&self) -> &[usize] {
        &self.sizes
    }

    fn sectors_max(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Discard if !self.discards => 0,
            Kind::WriteZeroes if self.zero_modes.is_empty() => 0,
            _ => u64::MAX,
        }
    }

    fn fill(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&mut [u8])) {
        with(&mut self.ring.buffer_mut(slot)[..bytes]);
    }

    fn show(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&[u8])) {
        with(&self.ring.buffer(slot)[..bytes]);
    }

    fn start(&mut self, slot: usize, kind: Kind, span: Span) -> Result<(), BenchError> {
        let offset = span.start * 512;
        let bytes = u32::try_from(span.bytes()).unwrap_or(u32::MAX);
        let request = match kind {
            Kind::Read => Request::Read { offset, bytes },
            Kind::Write => Request::Write { offset, bytes },
            Kind::Flush => Request::Sync,
            Kind::WriteZeroes => self.zeroes(offset, u64::from(bytes)),
            Kind::Discard => {
                // The requests queued so far should not wait for it.
                self.ring.enter(Duration::ZERO).map_err(failed)?;
                let outcome = self.discard(offset, u64::from(bytes));
                self.ready.push((slot, outcome));
                return Ok(());
            }
        };
        self.asked[slot] = request;
        self.ring.push(slot, request).map_err(failed)
    }

    fn reap(&mut self, wait: Duration, done: &mut Vec<(usize, Outcome)>) -> Result<(), BenchError> {
        let wait = if self.ready.is_empty() {
            wait
        } else {
            Duration::ZERO
        };
        self.ring.enter(wait).map_err(failed)?;
        done.append(&mut self.ready);
        while let Some((slot, result)) = self.ring.pop() {
            let outcome = self.outcome(slot, result);
            done.push((slot, outcome));
        }
        Ok(())
    }
}

fn failed(source: io::Error) -> BenchError {
    BenchError::Host {
        what: "io_uring_enter",
        source,
    }
}
