//! What the first request after a pause waits longer, against what this machine takes to wake a
//! thread by an eventfd.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use super::client::{Client, spin};
use super::server::{Server, Shape};
use super::{Cores, ScalePlan, host};
use crate::error::BenchError;
use crate::spread::Spread;
use crate::sys;

/// Pauses that are longer than a server polls.
const GAPS: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(3)];

/// Measurements of each kind in a round.
const SAMPLES: usize = 150;

/// After a pause of this length.
#[derive(Debug, Serialize)]
pub struct Wake {
    /// The pause, in microseconds.
    pub gap_us: u64,
    /// Alternations.
    pub rounds: usize,
    /// From a write to an eventfd to the thread that waits for it, in microseconds.
    pub machine_us: Spread,
    /// What the first request took longer than one that finds the server polling, in microseconds.
    pub penalty_us: Spread,
    /// The second by the first, by rounds.
    pub ratio: Spread,
}

pub(super) fn measure(plan: &ScalePlan, cores: Cores) -> Result<Vec<Wake>, BenchError> {
    let shape = Shape {
        workers: 1,
        disks: 1,
        disk: "null:1G",
        queues: 1,
        core: cores.server,
        back: cores.client,
        ..Shape::default()
    };
    let server = Server::start(&plan.server, &shape)?;
    let mut client = Client::attach(&server.socket(0))?;
    let sleeper = Sleeper::start(cores.server)?;
    GAPS.iter()
        .map(|&gap| after(plan, gap, &mut client, &sleeper))
        .collect()
}

fn after(
    plan: &ScalePlan,
    gap: Duration,
    client: &mut Client,
    sleeper: &Sleeper,
) -> Result<Wake, BenchError> {
    let (mut machine, mut penalty, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let (mut woken, mut first, mut polled) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            spin(gap);
            woken.push(sleeper.wake()?.as_secs_f64() * 1e6);
            spin(gap);
            first.push(client.read()?.as_secs_f64() * 1e6);
            polled.push(client.read()?.as_secs_f64() * 1e6);
        }
        let woken = Spread::of_some(woken).median;
        let more = Spread::of_some(first).median - Spread::of_some(polled).median;
        machine.push(woken);
        penalty.push(more);
        ratio.push(more / woken);
    }
    Ok(Wake {
        gap_us: u64::try_from(gap.as_micros()).unwrap_or(u64::MAX),
        rounds: plan.rounds,
        machine_us: Spread::of_some(machine),
        penalty_us: Spread::of_some(penalty),
        ratio: Spread::of_some(ratio),
    })
}

/// A thread on the server's core that waits for an eventfd, and notes when it woke.
struct Sleeper {
    event: Arc<EventFd>,
    /// Nanoseconds from `origin` to the last wake-up; 0 while there was none.
    woke_ns: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    origin: Instant,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sleeper {
    fn start(core: Option<usize>) -> Result<Sleeper, BenchError> {
        let event = Arc::new(EventFd::new(0).map_err(host("an eventfd"))?);
        let (woke_ns, ends) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let origin = Instant::now();
        let thread = {
            let (event, woke_ns, ends) = (event.clone(), woke_ns.clone(), ends.clone());
            std::thread::spawn(move || {
                if let Some(core) = core {
                    let _ = sys::pin(&[core]); // not pinned, it measures something close
                }
                while event.read().is_ok() && !ends.load(Ordering::Acquire) {
                    woke_ns.store(nanos(origin.elapsed()), Ordering::Release);
                }
            })
        };
        Ok(Sleeper {
            event,
            woke_ns,
            ends,
            origin,
            thread: Some(thread),
        })
    }

    /// From before the write to after the read.
    fn wake(&self) -> Result<Duration, BenchError> {
        self.woke_ns.store(0, Ordering::Release);
        let began_ns = nanos(self.origin.elapsed());
        self.event.write(1).map_err(host("an eventfd"))?;
        loop {
            let woke_ns = self.woke_ns.load(Ordering::Acquire);
            if woke_ns > 0 {
                return Ok(Duration::from_nanos(woke_ns.saturating_sub(began_ns)));
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        let _ = self.event.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Wake {
    pub(super) fn line(&self) -> String {
        format!(
            "first request after {} us, {} rounds: {} us longer than to a polling server; an eventfd \
             wakes a thread here in {} us: ratio {}",
            self.gap_us, self.rounds, self.penalty_us, self.machine_us, self.ratio
        )
    }
}
