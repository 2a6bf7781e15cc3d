//! A host: what stands between its disks and the array.
//!
//! Its workers are the production [`Scheduler`]s, fed as a worker feeds them: a disk's requests are
//! counted and pass while nothing holds them back, and otherwise wait in a queue of the disk's, whose
//! head is with the scheduler.

use std::collections::VecDeque;

use ferry_dataplane::limits::HELD_PER_LANE;
use ferry_dataplane::qos::pacer::{Lease, Pacer};
use ferry_dataplane::qos::scheduler::{Client, Head, Next, Scheduler};
use ferry_dataplane::qos::{COST_ONE, Cost, Policy};

use super::array::Ticket;

/// A request on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub ticket: Ticket,
    pub cost: Cost,
    pub bytes: u64,
}

/// A disk's queue at one worker.
#[derive(Debug)]
pub(super) struct Lane {
    pub worker: usize,
    client: Client,
    leases: [Lease; 2],
    waiting: VecDeque<Request>,
    /// What is at the array.
    in_flight_cost: u64,
    /// What has ended.
    pub ios: u64,
    pub latency_ns: u64,
    pub cost: u64,
}

/// A disk of a host.
#[derive(Debug)]
pub(super) struct Disk {
    pub policy: Policy,
    /// Its limits: of I/Os, and of bytes.
    pacers: [Pacer; 2],
    pub lanes: Vec<Lane>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Host {
    pub workers: Vec<Scheduler>,
    /// When each worker is to be asked again.
    wake_ns: Vec<Option<u64>>,
    pub disks: Vec<Disk>,
    /// Something has waited for the window since this was last asked for.
    pub short: bool,
    /// By worker, which disk and lane a client of its scheduler is.
    clients: Vec<Vec<(usize, usize)>>,
}

impl Host {
    pub fn new(workers: usize) -> Host {
        Host {
            workers: (0..workers).map(|_| Scheduler::new()).collect(),
            wake_ns: vec![None; workers],
            disks: Vec::new(),
            short: false,
            clients: vec![Vec::new(); workers],
        }
    }

    /// Adds a disk with a lane at each of these workers.
    pub fn add(&mut self, policy: Policy, workers: impl Iterator<Item = usize>) {
        let disk = self.disks.len();
        let mut lanes = Vec::new();
        for worker in workers {
            let client = self.workers[worker].add();
            self.clients[worker].push((disk, lanes.len()));
            lanes.push(Lane {
                worker,
                client,
                leases: Default::default(),
                waiting: VecDeque::new(),
                in_flight_cost: 0,
                ios: 0,
                latency_ns: 0,
                cost: 0,
            });
        }
        self.disks.push(Disk {
            policy,
            pacers: Default::default(),
            lanes,
        });
        self.set_policy(0, disk, policy);
    }

    /// Limits count at once; the rest when the weights are divided the next time.
    pub fn set_policy(&mut self, now_ns: u64, disk: usize, policy: Policy) {
        let disk = &mut self.disks[disk];
        disk.policy = policy;
        #[allow(clippy::cast_precision_loss)]
        let rate = |limit: Option<u64>| limit.map(|limit| limit as f64);
        disk.pacers[0].set_rate(now_ns, rate(policy.limit_iops));
        disk.pacers[1].set_rate(now_ns, rate(policy.limit_bytes));
        for lane in &mut disk.lanes {
            // What was booked under the old limit counts no more.
            lane.leases = Default::default();
            lane.offer(now_ns, &mut self.workers[lane.worker], &disk.pacers);
            self.wake_ns[lane.worker] = Some(now_ns);
        }
    }

    pub fn set_share(&mut self, disk: usize, lane: usize, weight: f64, reservation: f64) {
        let lane = &self.disks[disk].lanes[lane];
        self.workers[lane.worker].set_share(lane.client, weight, reservation);
    }

    pub fn set_window(&mut self, now_ns: u64, worker: usize, slots: f64) {
        self.workers[worker].set_window(now_ns, slots);
        self.wake_ns[worker] = Some(now_ns);
    }

    /// A request comes from a guest. True: it goes to the array at once.
    pub fn arrive(&mut self, now_ns: u64, (disk, lane): (usize, usize), request: Request) -> bool {
        let disk = &mut self.disks[disk];
        let limited = disk.pacers.iter().any(Pacer::is_limited);
        let lane = &mut disk.lanes[lane];
        let scheduler = &mut self.workers[lane.worker];
        let held = limited || !scheduler.window().is_open() || !scheduler.is_empty();
        if !held {
            lane.in_flight_cost += u64::from(request.cost);
            scheduler.pass(now_ns, request.cost);
            return true;
        }
        lane.waiting.push_back(request);
        if lane.waiting.len() == 1 {
            lane.offer(now_ns, scheduler, &disk.pacers);
        }
        self.wake_ns[lane.worker] = Some(now_ns);
        false
    }

    /// The array has ended a request.
    pub fn done(&mut self, now_ns: u64, (disk, lane): (usize, usize), cost: Cost, latency_ns: u64) {
        let lane = &mut self.disks[disk].lanes[lane];
        lane.in_flight_cost -= u64::from(cost);
        lane.ios += 1;
        lane.cost += u64::from(cost);
        lane.latency_ns += latency_ns;
        self.workers[lane.worker].done(now_ns, cost);
        self.wake_ns[lane.worker] = Some(now_ns);
    }

    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// When it is to be asked again.
    pub fn wake_ns(&self) -> Option<u64> {
        self.wake_ns.iter().flatten().min().copied()
    }

    /// Lets go what may go now.
    pub fn pump(&mut self, now_ns: u64, mut go: impl FnMut(Ticket)) {
        for worker in 0..self.workers.len() {
            if self.wake_ns[worker].is_none_or(|at| at > now_ns) {
                continue;
            }
            let scheduler = &mut self.workers[worker];
            self.wake_ns[worker] = loop {
                let client = match scheduler.next(now_ns) {
                    Next::Go(client) => client,
                    Next::At(at) => break Some(at),
                    Next::Idle => break None,
                };
                let (disk, lane) = self.clients[worker][client as usize];
                let disk = &mut self.disks[disk];
                let lane = &mut disk.lanes[lane];
                let Some(request) = lane.waiting.pop_front() else {
                    break None;
                };
                lane.in_flight_cost += u64::from(request.cost);
                go(request.ticket);
                if !lane.waiting.is_empty() {
                    lane.offer(now_ns, scheduler, &disk.pacers);
                }
            };
            self.short |= scheduler.is_short();
        }
    }
}

/// A cost in I/Os.
fn units(cost: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let cost = cost as f64;
    cost / f64::from(COST_ONE)
}

impl Lane {
    fn offer(&mut self, now_ns: u64, scheduler: &mut Scheduler, pacers: &[Pacer; 2]) {
        let Some(request) = self.waiting.front() else {
            return;
        };
        #[allow(clippy::cast_precision_loss)]
        let amounts = [units(request.cost.into()), request.bytes as f64];
        let mut eligible_ns = now_ns;
        for ((lease, pacer), amount) in self.leases.iter_mut().zip(pacers).zip(amounts) {
            eligible_ns = eligible_ns.max(lease.book(pacer, now_ns, amount));
        }
        let head = Head {
            cost: request.cost,
            eligible_ns,
        };
        scheduler.offer(now_ns, self.client, head);
    }

    /// I/Os at the array.
    pub fn in_flight(&self) -> f64 {
        units(self.in_flight_cost)
    }

    /// I/Os that wait, for a limit or for the window. Those that a worker has not taken from its guest's
    /// rings are not seen.
    pub fn waiting(&self) -> f64 {
        let seen = self.waiting.iter().take(HELD_PER_LANE);
        units(seen.map(|request| u64::from(request.cost)).sum())
    }
}
