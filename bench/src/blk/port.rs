//! A virtqueue as a port of the verified load.

use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::frontend::{
    BlkConfig, BlkQueue, GuestMemory, MemoryError, Op, PeerWatch, Segment, Status, Token, View,
    feature,
};
use crate::rng::Rng;
use crate::stamp::{Kind, Span};
use crate::verify::{Outcome, Port};

const SECTOR_BYTES: u32 = 512;

/// Buffer sizes for a depth: one of `largest`, a few of a quarter of it, the
/// rest of 32 KiB, so that large requests are seen and memory stays small.
pub fn slot_sizes(depth: usize, largest: usize) -> Vec<usize> {
    let small = largest.min(32 << 10);
    let size = |i| match i {
        0 => largest,
        1..4 => (largest / 4).next_multiple_of(4096).max(small),
        _ => small,
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
    watch: Option<PeerWatch>,
    timeout: Option<Duration>,
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
        let told = usize::from(config.segments_max(features));
        Ok(Self {
            slot_of: vec![None; queue.depth()],
            segments_max: told.min(queue.segments_at_depth()),
            queue,
            buffers,
            sizes: sizes.to_vec(),
            scratch: vec![0; sizes.iter().copied().max().unwrap_or(0)],
            features,
            config,
            rng: Rng::new(seed),
            spin: Duration::from_micros(20),
            watch: None,
            timeout: None,
            last_seen: Instant::now(),
        })
    }

    /// How long to poll before sleeping.
    pub fn with_spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Fails when the server closes this connection. Not for a device that moves
    /// between servers.
    pub fn with_watch(mut self, watch: PeerWatch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Fails when nothing completes for so long. Without, the port waits for ever.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// A buffer in as many pieces as the limits demand, or at random in more.
    fn segments(&mut self, slot: usize, bytes: usize) -> Vec<Segment> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let limit = self.config.segment_bytes_max(self.features);
        let fewest = u64::from(bytes.div_ceil(limit));
        let more = (self.segments_max as u64).saturating_sub(fewest).min(3);
        let pieces = u32::try_from(fewest + self.rng.below(more + 1)).unwrap_or(1);
        // Whole sectors each, so a little more than the even share.
        let share = bytes.div_ceil(pieces).next_multiple_of(SECTOR_BYTES);
        Segment::cut(self.buffers[slot].0, bytes, share.min(limit))
    }

    fn check_peer(&self) -> Result<(), BenchError> {
        let in_flight = self.queue.in_flight();
        if self.watch.as_ref().is_some_and(PeerWatch::gone) {
            return Err(BenchError::Gone { in_flight });
        }
        match self.timeout {
            Some(after) if in_flight > 0 && self.last_seen.elapsed() > after => {
                Err(BenchError::Stuck { after, in_flight })
            }
            _ => Ok(()),
        }
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
