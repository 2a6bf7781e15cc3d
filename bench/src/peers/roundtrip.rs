//! How long a cache line takes from one core to another and back.
//!
//! Between two virtual cores that jumps, by a factor of four and more, every few
//! seconds, and moves every figure of this comparison with it. So it is measured
//! before and after each run, and runs are compared only if theirs agree.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::sys;

/// Round trips between two looks at the clock.
const BATCH: u64 = 200;
/// Batches measured: some milliseconds in all.
const BATCHES: usize = 61;
/// Longest wait for a core that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(2);
/// Ends the other thread.
const QUIT: u64 = u64::MAX;

#[repr(align(128))]
struct Line(AtomicU64);

/// Median time of a round trip between these cores, in nanoseconds. The caller
/// runs on `here` already.
pub fn measure(there: usize) -> Result<f64, BenchError> {
    let line = Line(AtomicU64::new(0));
    // Nobody spins before both are where they belong.
    let ready = Barrier::new(2);
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new()
            .name("round-trip".into())
            .spawn_scoped(scope, || {
                let _ = sys::pin(&[there]);
                ready.wait();
                answer(&line);
            })
            .map_err(|source| BenchError::Host {
                what: "a thread",
                source,
            })?;
        ready.wait();
        let times = ask(&line);
        line.0.store(QUIT, Ordering::Release);
        // It holds nothing and cannot fail.
        let _ = other.join();
        Ok(crate::spread::median(&times).unwrap_or(f64::NAN))
    })
}

fn ask(line: &Line) -> Vec<f64> {
    let began = Instant::now();
    let mut next = 1;
    let mut times = Vec::with_capacity(BATCHES);
    while times.len() < BATCHES && began.elapsed() < PATIENCE {
        let since = Instant::now();
        for _ in 0..BATCH {
            line.0.store(next, Ordering::Release);
            while line.0.load(Ordering::Acquire) == next {
                std::hint::spin_loop();
            }
            next += 2;
        }
        times.push(since.elapsed().as_nanos() as f64 / BATCH as f64);
    }
    times
}

/// Makes each odd number even.
fn answer(line: &Line) {
    loop {
        let seen = line.0.load(Ordering::Acquire);
        if seen == QUIT {
            return;
        }
        if seen % 2 == 1 {
            line.0.store(seen + 1, Ordering::Release);
        } else {
            std::hint::spin_loop();
        }
    }
}
