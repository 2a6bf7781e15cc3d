//! A datastore with guests that keep their queues full, hosts that each control themselves, and nothing
//! else of Ferry: latency is `max(base, outstanding * service)`.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::super::*;
use crate::qos::division::{Claim, Want, fill};

pub const PERIOD_NS: u64 = 1_000_000_000;
pub const MS: f64 = 1e6;
/// Steps in a period.
const STEPS: u64 = 20;
/// A host that has not written for so long is forgotten at the next look, which is at most a period later.
const FORGOTTEN: u64 = 2 * STEPS;
const STEP_NS: u64 = PERIOD_NS / STEPS;

#[derive(Debug, Clone, Copy)]
pub struct Disk {
    pub shares: f64,
    pub depth: f64,
}

pub struct Host {
    pub controller: Controller,
    pub disks: Vec<Disk>,
    /// It says nothing, reads nothing and does nothing.
    pub dead: bool,
    pub decision: Decision,
    pub events: Vec<Event>,
    phase: u64,
    part: f64,
    report: Option<HostReport>,
    silent: u64,
    sums: Sums,
    /// What its disks got of late, in units, since it was last asked.
    pub got: Vec<f64>,
}

#[derive(Default, Clone)]
struct Sums {
    ios: f64,
    latency: f64,
    outstanding: f64,
    waited: bool,
}

pub struct Plant {
    /// What one unit takes, with nothing to hide it behind.
    pub base_ns: f64,
    /// What one unit takes of a busy device.
    pub service_ns: f64,
    /// What an outsider keeps there.
    pub outsider: f64,
    /// Standard deviation of a period's latency, as a part of it.
    pub noise: f64,
    /// Latencies are measured so many steps late.
    pub lag: usize,
    pub hosts: Vec<Host>,
    /// What all of them read besides.
    pub liar: Option<HostReport>,
    pub step: u64,
    recent: Vec<f64>,
    random: u64,
    /// Sums since they were last asked for.
    latency: f64,
    units: f64,
    steps: f64,
}

impl Plant {
    /// An array of 8000 units a second, of 5 ms.
    pub fn new() -> Plant {
        Plant {
            base_ns: 5.0 * MS,
            service_ns: 1e9 / 8000.0,
            outsider: 0.0,
            noise: 0.0,
            lag: 0,
            hosts: Vec::new(),
            liar: None,
            step: 0,
            recent: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            latency: 0.0,
            units: 0.0,
            steps: 0.0,
        }
    }

    pub fn seeded(mut self, seed: u64) -> Plant {
        self.random ^= seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
        self
    }

    /// Adds a host whose periods begin with this step.
    pub fn host(&mut self, settings: Settings, phase: u64, disks: &[(f64, f64)]) -> usize {
        let controller = Controller::new(settings);
        let disks: Vec<Disk> = disks
            .iter()
            .map(|&(shares, depth)| Disk { shares, depth })
            .collect();
        self.hosts.push(Host {
            controller,
            dead: false,
            decision: Decision {
                window: f64::INFINITY,
                window_total: f64::INFINITY,
                latency_ns: 0,
                level: f64::INFINITY,
                unmanaged: false,
                event: None,
            },
            events: Vec::new(),
            phase: phase % STEPS,
            part: f64::INFINITY,
            report: None,
            silent: 0,
            sums: Sums::default(),
            got: vec![0.0; disks.len()],
            disks,
        });
        self.hosts.len() - 1
    }

    /// From -1 to 1.
    pub fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// One of so many.
    pub fn pick(&mut self, of: usize) -> usize {
        self.random();
        usize::try_from(self.random >> 33).unwrap() % of
    }

    pub fn run(&mut self, periods: f64) {
        for _ in 0..(periods * STEPS as f64).round() as u64 {
            self.advance();
        }
    }

    fn advance(&mut self) {
        let mut parts = Vec::new();
        let of_hosts: Vec<Vec<f64>> = self
            .hosts
            .iter()
            .map(|host| {
                let claims: Vec<Claim> = host.disks.iter().map(Disk::claim).collect();
                fill(host.part, &claims, &mut parts);
                if host.dead {
                    vec![0.0; parts.len()]
                } else {
                    parts.clone()
                }
            })
            .collect();
        let outstanding: f64 = of_hosts.iter().flatten().sum();
        let latency = self
            .base_ns
            .max((outstanding + self.outsider) * self.service_ns);
        self.recent.push(latency);
        let lagged = self.recent[self.recent.len().saturating_sub(1 + self.lag)];
        // Uniform, with this deviation over a period's steps.
        let spread = self.noise * (3.0 * STEPS as f64).sqrt();
        for (index, parts) in of_hosts.iter().enumerate() {
            let noise = 1.0 + spread.min(0.9) * self.random();
            let host = &mut self.hosts[index];
            let units = |slots: f64| slots * STEP_NS as f64 / latency;
            for (got, slots) in host.got.iter_mut().zip(parts) {
                *got += units(*slots);
            }
            let slots: f64 = parts.iter().sum();
            host.sums.ios += units(slots);
            host.sums.latency += units(slots) * lagged * noise;
            host.sums.outstanding += slots / STEPS as f64;
            let wanted: f64 = host.disks.iter().map(|it| it.depth).sum();
            host.sums.waited |= wanted > slots + 1e-6;
        }
        self.latency += latency;
        self.units += outstanding / latency;
        self.steps += 1.0;
        self.step += 1;
        for index in 0..self.hosts.len() {
            if self.step % STEPS == self.hosts[index].phase && !self.hosts[index].dead {
                self.exchange(index);
            }
        }
    }

    fn exchange(&mut self, index: usize) {
        let steps = self.step - self.hosts[index].silent;
        let own = self.hosts[index].report(steps as f64 / STEPS as f64);
        self.hosts[index].report = Some(own.clone());
        self.hosts[index].silent = self.step;
        let others: Vec<HostReport> = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(other, host)| *other != index && self.step - host.silent < FORGOTTEN)
            .filter_map(|(_, host)| host.report.clone())
            .chain(self.liar.clone())
            .collect();
        let now_ns = self.step * STEP_NS;
        let host = &mut self.hosts[index];
        host.decision = host.controller.update(now_ns, &own, &others);
        host.part = host.decision.window;
        host.events.extend(host.decision.event);
    }

    /// Mean latency in milliseconds and units a second, since this was last asked.
    pub fn taken(&mut self) -> (f64, f64) {
        let taken = (
            self.latency / self.steps / MS,
            self.units / self.steps * 1e9,
        );
        (self.latency, self.units, self.steps) = (0.0, 0.0, 0.0);
        taken
    }

    /// What each disk got since this was last asked, as parts of all.
    pub fn parts(&mut self) -> Vec<f64> {
        let got: Vec<f64> = self
            .hosts
            .iter_mut()
            .flat_map(|it| it.got.iter_mut().map(std::mem::take))
            .collect();
        let sum: f64 = got.iter().sum();
        got.iter().map(|it| it / sum).collect()
    }

    /// What each disk should get, as parts of all, if so much is outstanding.
    pub fn ideal(&self, total: f64) -> Vec<f64> {
        let alive = self.hosts.iter().flat_map(|host| {
            host.disks.iter().map(|it| {
                if host.dead {
                    Disk { depth: 0.0, ..*it }
                } else {
                    *it
                }
            })
        });
        let claims: Vec<Claim> = alive.map(|it| it.claim()).collect();
        let mut parts = Vec::new();
        fill(total, &claims, &mut parts);
        let sum: f64 = parts.iter().sum();
        parts.iter().map(|it| it / sum).collect()
    }
}

impl Disk {
    fn claim(&self) -> Claim {
        let want = Want {
            shares: self.shares,
            slots: self.depth,
        };
        Claim { want, floor: 0.0 }
    }
}

impl Host {
    fn report(&mut self, periods: f64) -> HostReport {
        let sums = std::mem::take(&mut self.sums);
        let mut demand = Bins::default();
        self.disks.iter().for_each(|it| demand.add(it.claim().want));
        HostReport {
            ios: sums.ios.round() as u64,
            latency_ns: if sums.ios > 0.0 {
                (sums.latency / sums.ios) as u64
            } else {
                0
            },
            units: sums.ios / periods,
            outstanding: sums.outstanding / periods,
            limited: sums.waited,
            demand,
            window_total: self.controller.window_total(),
            unmanaged: self.controller.unmanaged(),
            late: false,
        }
    }
}
