//! A virtqueue as a port of the verified load.

use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::frontend::{
    BlkConfig, BlkQueue, GuestMemory, MemoryError, Op, PeerWatch, Segment, Status, Token, View,
    feature,
};
use crate::rng::Rng;
use crate::stamp::{Kind, SECTOR, Span};
use crate::verify::{Outcome, Port};

/// Buffer sizes for a depth: one of `largest`, a few of a quarter of it, the
/// rest of 32 KiB, so that large requests are seen and memory stays small.
pub fn slot_sizes(depth: usize, largest: usize) -> Vec<usize> {
    let size = |i| match i {
        0 => largest,
        1..4 => largest / 4,
        _ => 32 << 10,
    };
    (0..depth).map(size).collect()
}

/// One queue of a vhost-user-blk device, whichever server serves it.
#[derive(Debug)]
pub struct BlkPort {
    queue: BlkQueue,
    buffers: Vec<(u64, View)>,
    sizes: Vec<usize>,
    /// Our slot by the queue's slot.
    slot_of: Vec<Option<(Token, usize)>>,
    scratch: Vec<u8>,
    features: u64,
    config: BlkConfig,
    rng: Rng,
    spin: Duration,
    watch: Option<(PeerWatch, Duration)>,
    last_seen: Instant,
    segments_max: usize,
}

impl BlkPort {
    /// `sizes` are the buffers to lay out in guest memory, at most the queue's
    /// depth; `features` and `config` are those negotiated.
    pub fn new(
        queue: BlkQueue,
        memory: &GuestMemory,
        sizes: &[usize],
        features: u64,
        config: BlkConfig,
        seed: u64,
    ) -> Result<Self, BenchError> {
        let buffer = |size: &usize| -> Result<_, MemoryError> {
            let addr = memory.alloc(*size as u64, 4096)?;
            Ok((addr, memory.view(addr, *size as u64)?))
        };
        let buffers = sizes.iter().map(buffer).collect::<Result<_, _>>()?;
        let told = usize::try_from(config.seg_max).unwrap_or(usize::MAX);
        let known = features & feature::SEG_MAX != 0;
        Ok(Self {
            slot_of: vec![None; queue.depth()],
            segments_max: if known {
                told.clamp(1, queue.segments_max())
            } else {
                1
            },
            queue,
            buffers,
            sizes: sizes.to_vec(),
            scratch: vec![0; sizes.iter().copied().max().unwrap_or(0)],
            features,
            config,
            rng: Rng::new(seed),
            spin: Duration::from_micros(20),
            watch: None,
            last_seen: Instant::now(),
        })
    }

    /// How long to poll before sleeping.
    pub fn with_spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Fail when the server closes this connection, or completes nothing for
    /// `timeout`. Without, the port waits for ever: what a device that moves
    /// between servers needs.
    pub fn with_watch(mut self, watch: PeerWatch, timeout: Duration) -> Self {
        self.watch = Some((watch, timeout));
        self
    }

    fn segments(&mut self, slot: usize, bytes: usize) -> Vec<Segment> {
        let addr = self.buffers[slot].0;
        let sectors = bytes / SECTOR;
        let most = self.segments_max.min(sectors).max(1) as u64;
        let pieces = usize::try_from(1 + self.rng.below(most)).unwrap_or(1);
        let each = sectors / pieces * SECTOR;
        let piece = |i: usize| {
            let len = if i + 1 == pieces {
                bytes - each * i
            } else {
                each
            };
            Segment {
                addr: addr + (each * i) as u64,
                len: u32::try_from(len).unwrap_or(u32::MAX),
            }
        };
        (0..pieces).map(piece).collect()
    }

    fn check_peer(&self) -> Result<(), BenchError> {
        let Some((watch, timeout)) = &self.watch else {
            return Ok(());
        };
        let in_flight = self.queue.in_flight();
        if watch.gone() {
            return Err(BenchError::Gone { in_flight });
        }
        if self.last_seen.elapsed() > *timeout {
            return Err(BenchError::Stuck {
                after: *timeout,
                in_flight,
            });
        }
        Ok(())
    }

    fn pop_all(&mut self, done: &mut Vec<(usize, Outcome)>) -> Result<bool, BenchError> {
        let before = done.len();
        while let Some(completion) = self.queue.pop()? {
            let Some((token, slot)) = self.slot_of[completion.token.slot()].take() else {
                continue;
            };
            debug_assert_eq!(token, completion.token);
            let outcome = match completion.status {
                Status::Ok => Outcome::Ok,
                Status::Unsupported => Outcome::Refused,
                _ => Outcome::Failed,
            };
            done.push((slot, outcome));
        }
        Ok(done.len() > before)
    }
}

impl Port for BlkPort {
    fn slots(&self) -> &[usize] {
        &self.sizes
    }

    fn sectors_max(&self, kind: Kind) -> u64 {
        let offers = |bit: u64| self.features & bit != 0;
        match kind {
            Kind::Read | Kind::Flush if kind == Kind::Read || offers(feature::FLUSH) => u64::MAX,
            Kind::Write if !offers(feature::RO) => u64::MAX,
            Kind::Discard if offers(feature::DISCARD) => u64::from(self.config.max_discard_sectors),
            Kind::WriteZeroes if offers(feature::WRITE_ZEROES) => {
                u64::from(self.config.max_write_zeroes_sectors)
            }
            _ => 0,
        }
    }

    fn fill(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&mut [u8])) {
        with(&mut self.scratch[..bytes]);
        self.buffers[slot].1.write(0, &self.scratch[..bytes]);
    }

    fn show(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&[u8])) {
        self.buffers[slot].1.read(0, &mut self.scratch[..bytes]);
        with(&self.scratch[..bytes]);
    }

    fn start(&mut self, slot: usize, kind: Kind, span: Span) -> Result<(), BenchError> {
        if self.queue.in_flight() == 0 {
            self.last_seen = Instant::now();
        }
        let unmap = self.rng.percent(50);
        let (op, data) = match kind {
            Kind::Read => (Op::Read, self.segments(slot, span.bytes())),
            Kind::Write => (Op::Write, self.segments(slot, span.bytes())),
            Kind::Flush => (Op::Flush, Vec::new()),
            Kind::Discard => (Op::Discard, whole(span)),
            Kind::WriteZeroes => (Op::WriteZeroes { unmap }, whole(span)),
        };
        let token = self.queue.submit(op, span.start, &data)?;
        self.slot_of[token.slot()] = Some((token, slot));
        Ok(())
    }

    fn reap(&mut self, wait: Duration, done: &mut Vec<(usize, Outcome)>) -> Result<(), BenchError> {
        self.queue.commit()?;
        let began = Instant::now();
        loop {
            if self.pop_all(done)? {
                self.last_seen = Instant::now();
                return Ok(());
            }
            if began.elapsed() >= self.spin {
                break;
            }
            std::hint::spin_loop();
        }
        if !self.queue.wait(wait)? {
            return self.check_peer();
        }
        self.last_seen = Instant::now();
        self.pop_all(done)?;
        Ok(())
    }
}

/// A span as the one segment that carries its length, for ranges.
fn whole(span: Span) -> Vec<Segment> {
    vec![Segment {
        addr: 0,
        len: u32::try_from(span.bytes()).unwrap_or(u32::MAX),
    }]
}
