//! Hosts whose workers hold requests back as the scheduler does on average: by weight within a worker's
//! window, reservations first, nobody more than it wants.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::super::*;
use crate::qos::controller::HostReport;
use crate::qos::division::{Claim, fill};

pub const PERIOD_NS: u64 = 1_000_000_000;
pub const TICK_NS: u64 = 10_000_000;
const SERVICE_NS: f64 = 1e9 / 8000.0;
const BASE_NS: f64 = 5e6;

pub fn policy(shares: u32) -> Policy {
    Policy {
        shares,
        ..Policy::default()
    }
}

pub struct Host {
    pub governor: Governor,
    /// What each has, and its depth at each worker.
    pub disks: Vec<(Policy, Vec<f64>)>,
    counts: Vec<Vec<LaneReading>>,
    /// Ticks until it begins.
    asleep: u64,
    report: Option<HostReport>,
}

pub struct World {
    pub hosts: Vec<Host>,
    tick: u64,
    latency_ns: f64,
    got: Vec<f64>,
    latency: (f64, f64),
}

impl World {
    pub fn new() -> World {
        World {
            hosts: Vec::new(),
            tick: 0,
            latency_ns: BASE_NS,
            got: Vec::new(),
            latency: (0.0, 0.0),
        }
    }

    pub fn host(
        &mut self,
        settings: Settings,
        asleep: u64,
        workers: usize,
        disks: Vec<(Policy, Vec<f64>)>,
    ) {
        self.got.extend(disks.iter().map(|_| 0.0));
        let counts = disks
            .iter()
            .map(|_| vec![LaneReading::default(); workers])
            .collect();
        let governor = Governor::new(settings, workers);
        self.hosts.push(Host {
            governor,
            disks,
            counts,
            asleep,
            report: None,
        });
    }

    pub fn run(&mut self, periods: f64) {
        for _ in 0..(periods * (PERIOD_NS / TICK_NS) as f64).round() as u64 {
            self.advance();
        }
    }

    fn advance(&mut self) {
        let before_ns = self.latency_ns;
        let slots: Vec<Vec<Vec<f64>>> = self.hosts.iter().map(|it| it.slots(before_ns)).collect();
        let outstanding: f64 = slots.iter().flatten().flatten().sum();
        self.latency_ns = BASE_NS.max(outstanding * SERVICE_NS);
        self.latency.0 += self.latency_ns / 1e6;
        self.latency.1 += 1.0;
        self.tick += 1;
        let now_ns = self.tick * TICK_NS;
        let mut disks = self.got.iter_mut();
        for (host, slots) in self.hosts.iter_mut().zip(&slots) {
            for (disk, slots) in slots.iter().enumerate() {
                let units = host.count(disk, slots, self.latency_ns);
                *disks.next().unwrap() += units;
            }
            if self.tick > host.asleep {
                let readings = host.readings();
                host.governor.tick(now_ns, &readings);
            }
        }
        for index in 0..self.hosts.len() {
            if self.hosts[index].governor.due(now_ns) {
                let own = self.hosts[index].governor.report(now_ns);
                self.hosts[index].report = Some(own.clone());
                let others = self.hosts.iter().enumerate().filter(|it| it.0 != index);
                let others: Vec<HostReport> = others.filter_map(|it| it.1.report.clone()).collect();
                self.hosts[index].governor.decide(now_ns, &own, &others);
            }
        }
    }

    /// Mean latency in milliseconds, and what each disk got as a part of all, since this was last asked.
    pub fn take(&mut self) -> (f64, Vec<f64>) {
        let latency = std::mem::take(&mut self.latency);
        let sum: f64 = self.got.iter().sum();
        let got = self
            .got
            .iter_mut()
            .map(|it| std::mem::take(it) / sum)
            .collect();
        (latency.0 / latency.1, got)
    }
}

impl Host {
    /// Slots of each disk at each worker.
    fn slots(&self, latency_ns: f64) -> Vec<Vec<f64>> {
        let allotment = self.governor.allotment();
        let mut slots = vec![Vec::new(); self.disks.len()];
        let mut parts = Vec::new();
        for worker in 0..self.counts[0].len() {
            let window = allotment
                .windows
                .get(worker)
                .copied()
                .unwrap_or(f64::INFINITY);
            let claim = |(index, disk): (usize, &(Policy, Vec<f64>))| {
                let of = |it: &Vec<Vec<f64>>| it.get(index).map_or(0.0, |it| it[worker]);
                let reserved = of(&allotment.reservations);
                let limit = disk
                    .0
                    .limit_iops
                    .map_or(f64::INFINITY, |it| it as f64 * latency_ns / 1e9);
                let want = Want {
                    shares: of(&allotment.weights).max(1e-3),
                    slots: disk.1[worker].min(limit),
                };
                Claim {
                    want,
                    floor: reserved * latency_ns / 1e9,
                }
            };
            let claims: Vec<Claim> = self.disks.iter().enumerate().map(claim).collect();
            fill(window, &claims, &mut parts);
            slots
                .iter_mut()
                .zip(&parts)
                .for_each(|(slots, &part)| slots.push(part));
        }
        slots
    }

    fn count(&mut self, disk: usize, slots: &[f64], latency_ns: f64) -> f64 {
        let mut sum = 0.0;
        let limit = self.disks[disk].0.limit_iops;
        let limit = limit.map_or(f64::INFINITY, |it| it as f64 * latency_ns / 1e9);
        for (worker, &slots) in slots.iter().enumerate() {
            let units = slots * TICK_NS as f64 / latency_ns;
            let depth = self.disks[disk].1[worker];
            let count = &mut self.counts[disk][worker];
            count.has_queues = depth > 0.0;
            count.in_flight = slots;
            // At its limit, what waits does not wait for the window.
            count.waiting = if slots > 0.999 * limit {
                0.0
            } else {
                (depth - slots).max(0.0)
            };
            count.window_waits = count.waiting > 1e-3;
            count.ios += units.round() as u64;
            count.units += (units * f64::from(COST_ONE)) as u64;
            count.latency_sum_ns += (units.round() * latency_ns) as u64;
            sum += units;
        }
        sum
    }

    fn readings(&self) -> Readings {
        let mut readings = Readings::default();
        for (index, (disk, lanes)) in self.disks.iter().zip(&self.counts).enumerate() {
            readings.disks.push(DiskReading {
                disk: index as u64,
                policy: disk.0,
                lanes: lanes.clone(),
            });
        }
        readings
    }
}
