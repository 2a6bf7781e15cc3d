//! The plain copy loop: what a memory disk could do if there were nothing else.
//!
//! It copies the same blocks that a memory disk is asked for, drawn the same way,
//! between a memfd of the disk's size and as many buffers as there are requests
//! in flight, with `memcpy`, on the server's core.

use std::time::{Duration, Instant};

use super::cell::Cell;
use super::meter;
use super::runs::Sample;
use super::strangers::Moment;
use crate::error::BenchError;
use crate::frontend::{GuestMemory, View};
use crate::rng::{Rng, mix};
use crate::sys;

/// Copies between two looks at the clock.
const LOOK_UP: u32 = 32;

/// The memory that blocks are copied from and to.
pub struct CopyLoop {
    disk: View,
    span_bytes: u64,
}

impl CopyLoop {
    /// Takes and fills the memory.
    pub fn new(span_bytes: u64) -> Result<Self, BenchError> {
        let disk = filled(span_bytes)?;
        Ok(Self { disk, span_bytes })
    }

    /// Copies a second by the cell's pattern.
    pub fn run(&self, cell: &Cell, core: usize, duration: Duration) -> Result<Sample, BenchError> {
        let block = u64::from(cell.block_bytes);
        let buffers = filled(block * u64::from(cell.depth))?;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("copy-loop".into())
                .spawn_scoped(scope, || {
                    let _ = sys::pin(&[core]);
                    let moment = || Moment::now(core, meter::own_cpu_ns());
                    let before = moment();
                    let iops = self.copy(cell, &buffers, duration);
                    let alone = |b: &Moment| Some(b.strangers_until(&moment()?));
                    Sample {
                        iops,
                        cpu_ns: Some(1e9 / iops),
                        strangers: before.as_ref().and_then(alone).unwrap_or(0.0),
                        ..Sample::default()
                    }
                })
                .map_err(|source| BenchError::Host {
                    what: "a thread",
                    source,
                })?;
            Ok(thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn copy(&self, cell: &Cell, buffers: &View, duration: Duration) -> f64 {
        let block = cell.block_bytes as usize;
        let blocks = self.span_bytes / u64::from(cell.block_bytes);
        let mut rng = Rng::new(mix(u64::from(cell.depth)));
        let (mut buffer, mut count) = (0, 0u64);
        let began = Instant::now();
        loop {
            for _ in 0..LOOK_UP {
                let read = rng.percent(cell.mix.read_percent());
                let at = usize::try_from(rng.below(blocks)).unwrap_or(0) * block;
                if read {
                    self.disk.copy_to(at, buffers, buffer * block, block);
                } else {
                    buffers.copy_to(buffer * block, &self.disk, at, block);
                }
                buffer = (buffer + 1) % usize::from(cell.depth);
            }
            count += u64::from(LOOK_UP);
            let elapsed = began.elapsed();
            if elapsed >= duration {
                return count as f64 / elapsed.as_secs_f64();
            }
        }
    }
}

/// Memory whose every page was written.
fn filled(bytes: u64) -> Result<View, BenchError> {
    let memory = GuestMemory::new(bytes)?;
    let addr = memory.alloc(bytes, 4096)?;
    let view = memory.view(addr, bytes)?;
    let mut rng = Rng::new(bytes);
    let mut chunk = vec![0; 64 << 10];
    let len = usize::try_from(bytes).unwrap_or(usize::MAX);
    for at in (0..len).step_by(chunk.len()) {
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        view.write(at, &chunk[..chunk.len().min(len - at)]);
    }
    Ok(view)
}
