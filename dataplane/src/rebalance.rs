//! Moves queues to where there is time for them: a thread of the process that looks once a second.
//!
//! What to move is decided in [`crate::placement`]. A look reads counters and stops nobody. With one
//! worker there is nothing to decide, and no thread.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::clock::now_ns;
use crate::disk::Disk;
use crate::placement::{Load, Placement, Unit};
use crate::worker::WorkerHandle;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// The thread; dropping it ends it.
#[derive(Debug)]
pub struct Rebalancer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rebalancer {
    /// Watches the disks that `disks` names at each look, on `workers`, which are those of every
    /// disk, in the same order.
    pub fn start(
        workers: Vec<WorkerHandle>,
        disks: impl Fn() -> Vec<Arc<Disk>> + Send + 'static,
    ) -> io::Result<Rebalancer> {
        if workers.len() < 2 {
            return Ok(Rebalancer {
                stop: None,
                thread: None,
            });
        }
        let (stop, stopped) = bounded::<()>(0);
        let mut watch = Watch::new(workers);
        let thread = std::thread::Builder::new()
            .name("ferry-balance".into())
            .spawn(move || {
                while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                    watch.look(now_ns(), &disks());
                }
            })?;
        Ok(Rebalancer {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Rebalancer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The readings of the last look.
struct Watch {
    workers: Vec<WorkerHandle>,
    placement: Placement,
    looked_ns: u64,
    busy_ns: Vec<u64>,
    units: HashMap<Unit, u64>,
}

impl Watch {
    fn new(workers: Vec<WorkerHandle>) -> Watch {
        Watch {
            busy_ns: workers.iter().map(|w| w.totals().busy_ns).collect(),
            workers,
            placement: Placement::default(),
            looked_ns: now_ns(),
            units: HashMap::new(),
        }
    }

    fn look(&mut self, now_ns: u64, disks: &[Arc<Disk>]) {
        let period_ns = now_ns - std::mem::replace(&mut self.looked_ns, now_ns);
        let busy_ns: Vec<u64> = self
            .workers
            .iter()
            .zip(&mut self.busy_ns)
            .map(|(worker, last)| {
                let now = worker.totals().busy_ns;
                now - std::mem::replace(last, now)
            })
            .collect();
        let loads = self.loads(disks, &busy_ns);
        let Some(found) = self.placement.look(now_ns, period_ns, &busy_ns, &loads) else {
            return;
        };
        let disk = disks.iter().find(|disk| disk.number() == found.unit.disk);
        let Some(disk) = disk else { return };
        match disk.move_to(found.unit.queue, found.to) {
            Ok(true) => tracing::info!(
                queue = ?found.unit.queue, from = found.from, to = found.to,
                "a busy queue was moved to a worker with more time"
            ),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "a queue could not be moved"),
        }
    }

    /// What each queue took of its worker's busy time: a share by the units that it asked for.
    fn loads(&mut self, disks: &[Arc<Disk>], busy_ns: &[u64]) -> Vec<Load> {
        let mut seen = HashMap::new();
        let mut asked = Vec::new();
        let mut sums = vec![0u64; busy_ns.len()];
        for disk in disks {
            for placed in disk.placed() {
                let unit = Unit {
                    disk: disk.number(),
                    queue: placed.queue,
                };
                // One that was not here at the last look shows at the next what it asks.
                let last = self.units.get(&unit).copied().unwrap_or(placed.units);
                seen.insert(unit, placed.units);
                let units = placed.units.saturating_sub(last);
                sums[placed.worker] += units;
                if units > 0 {
                    asked.push((unit, placed.worker, units));
                }
            }
        }
        self.units = seen;
        let share = |worker: usize, units: u64| {
            let busy = u128::from(busy_ns[worker]) * u128::from(units);
            u64::try_from(busy / u128::from(sums[worker])).unwrap_or(u64::MAX)
        };
        let load = |(unit, worker, units)| Load {
            unit,
            worker,
            busy_ns: share(worker, units),
        };
        asked.into_iter().map(load).collect()
    }
}
