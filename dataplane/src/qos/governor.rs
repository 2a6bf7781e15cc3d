//! Joins it all for one datastore in one process: readings of the workers in, windows and weights out.
//!
//! ```text
//!   tick, every 10 ms     readings ──► means of what each disk wants ──► windows, weights, reservations
//!   report, every period  what was done since the last one, for the statistics file
//!   decide, after it      own and others' reports ──► controller ──► this host's part of the window
//! ```
//!
//! What a disk wants is what it has at the device and what it has waiting for the window, on average.
//! Within a host the mean goes back some 30 ms, so that a change has come through in a tenth of a second;
//! what other hosts are told goes back an eighth of a period. A host whose disks want more than it said
//! takes its part of that at once, and the others make room when they read of it; one whose disks want less
//! keeps its part until then, in case it was a pause.
//!
//! A disk with a limit has no use for more slots than keep it at its limit. A disk with a reservation that
//! its shares do not cover is presented to other hosts with the shares that would.

use std::collections::BTreeMap;

use super::controller::{Controller, Decision, HostReport, Settings};
use super::coordinator::{Allotment, DiskDemand, divide};
use super::division::{Bins, Want};
use super::{COST_ONE, Policy, UNIT_BYTES};
use lane::Track;

mod lane;

/// What one worker counted of one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LaneReading {
    /// The disk has queues at this worker.
    pub has_queues: bool,
    /// What is at the device now, in I/Os of one unit.
    pub in_flight: f64,
    /// What waits for the window now, in the same measure; not what waits for a limit.
    pub waiting: f64,
    /// Something has waited for the window since the last reading.
    pub window_waits: bool,
    /// Reads and writes ended since the start.
    pub ios: u64,
    /// Their latencies at the device, less what their size accounts for, in nanoseconds.
    pub latency_sum_ns: u64,
    /// Their costs, in parts of [`COST_ONE`].
    pub units: u64,
}

/// What was read of one disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskReading {
    /// Which one it is; the same number at every tick.
    pub disk: u64,
    /// What it is to get.
    pub policy: Policy,
    /// By worker.
    pub lanes: Vec<LaneReading>,
}

/// What was read of a datastore.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings {
    /// Its disks. What is allotted comes in the same order.
    pub disks: Vec<DiskReading>,
}

/// How far back the means within a host go.
const RECENT_NS: f64 = 30e6;
/// How far back those that other hosts are told go, as a part of a period.
const TOLD: f64 = 0.125;
/// Something waited for the window in so much of the time, at least, if a host says that it did.
const WAITED: f64 = 0.05;
/// A limit has use for some more slots than keep it there on average.
const LIMIT_MARGIN: f64 = 1.05;
/// The most shares that a disk may be presented with.
const SHARES_SHOWN_MAX: f64 = 1e9;

/// See the module.
#[derive(Debug)]
pub struct Governor {
    controller: Controller,
    decision: Decision,
    workers: usize,
    tracks: BTreeMap<u64, Track>,
    period: Period,
    at_ns: Option<u64>,
    /// Since when something has been at the device without anything coming back.
    stuck_ns: Option<u64>,
    demands: Vec<DiskDemand>,
    allotment: Allotment,
}

/// What was seen since the last report.
#[derive(Debug, Default)]
struct Period {
    begun_ns: Option<u64>,
    ios: u64,
    latency_sum_ns: u64,
    cost: u64,
    /// Slots, and time in which something waited; times nanoseconds.
    outstanding: f64,
    waited_ns: f64,
    seen_ns: f64,
}

impl Governor {
    /// For so many workers, with an open window.
    pub fn new(settings: Settings, workers: usize) -> Governor {
        Governor {
            controller: Controller::new(settings),
            decision: Decision {
                window: f64::INFINITY,
                window_total: f64::INFINITY,
                latency_ns: 0,
                level: f64::INFINITY,
                unmanaged: false,
                event: None,
            },
            workers,
            tracks: BTreeMap::new(),
            period: Period::default(),
            at_ns: None,
            stuck_ns: None,
            demands: Vec::new(),
            allotment: Allotment::default(),
        }
    }

    /// Changes the settings, without a jump of the window.
    pub fn configure(&mut self, settings: Settings) {
        self.controller.configure(settings);
    }

    /// The settings it goes by.
    pub fn settings(&self) -> &Settings {
        self.controller.settings()
    }

    /// What was decided last.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// What was allotted last.
    pub fn allotment(&self) -> &Allotment {
        &self.allotment
    }

    /// Takes a reading, and divides.
    pub fn tick(&mut self, now_ns: u64, readings: &Readings) -> &Allotment {
        let since_ns = self.at_ns.map_or(0, |at| now_ns.saturating_sub(at));
        self.at_ns = Some(self.at_ns.unwrap_or(0).max(now_ns));
        self.period.begun_ns.get_or_insert(now_ns);
        self.take(now_ns, since_ns, readings);
        let mut recent = Bins::default();
        self.demands.truncate(readings.disks.len());
        self.demands
            .resize_with(readings.disks.len(), DiskDemand::default);
        for (index, reading) in readings.disks.iter().enumerate() {
            let Some(track) = self.tracks.get(&reading.disk) else {
                continue;
            };
            let want = track.recent_slots();
            let most = self.most(&reading.policy);
            let kept = if want > most { most / want } else { 1.0 };
            let floor = self.reserved_slots(&reading.policy);
            let demand = &mut self.demands[index];
            demand.shares = reading.policy.shares;
            demand.reservation_iops = reading.policy.reservation_iops;
            demand.floor = floor;
            demand.per_worker.clear();
            demand.per_worker.extend(track.recent().map(|it| it * kept));
            demand.per_worker.resize(self.workers, 0.0);
            demand.has_queues.clear();
            demand
                .has_queues
                .extend(reading.lanes.iter().map(|it| it.has_queues));
            demand.has_queues.resize(self.workers, false);
            recent.add(self.shown(&reading.policy, want));
        }
        let window = self.decision.window.max(self.controller.part(&recent));
        self.allotment.windows.truncate(self.workers);
        self.allotment.windows.resize(self.workers, 0.0);
        divide(window, &self.demands, &mut self.allotment);
        &self.allotment
    }

    /// Whether it is time for a report.
    pub fn due(&self, now_ns: u64) -> bool {
        let period_ns = self.settings().period_ns;
        let begun_ns = self.period.begun_ns;
        begun_ns.is_some_and(|begun| now_ns.saturating_sub(begun) >= period_ns)
    }

    /// What was done since the last report, and what is wanted now.
    #[allow(clippy::cast_precision_loss)] // digits, not magnitude
    pub fn report(&mut self, now_ns: u64) -> HostReport {
        let period = std::mem::take(&mut self.period);
        self.period.begun_ns = Some(now_ns);
        let length_ns = now_ns
            .saturating_sub(period.begun_ns.unwrap_or(now_ns))
            .max(1);
        let seen_ns = period.seen_ns.max(1.0);
        let outstanding = period.outstanding / seen_ns;
        let mut demand = Bins::default();
        for track in self.tracks.values() {
            demand.add(self.shown(&track.policy, track.told));
        }
        let units = period.cost as f64 / f64::from(COST_ONE);
        let (ios, latency_ns) = match self.stuck_for(now_ns) {
            // Nothing has come back for long: that is no good latency, but a bad one.
            Some(stuck_ns) if period.ios == 0 => (rounded(outstanding).max(1), stuck_ns),
            _ => (period.ios, period.latency_sum_ns / period.ios.max(1)),
        };
        HostReport {
            ios,
            latency_ns,
            units: units * self.settings().period_ns as f64 / length_ns as f64,
            outstanding,
            limited: period.waited_ns >= WAITED * seen_ns,
            demand,
            window_total: self.controller.window_total(),
            unmanaged: self.controller.unmanaged(),
            late: false,
        }
    }

    /// Decides on the next period, from the last report and those of the hosts that are alive.
    pub fn decide(&mut self, now_ns: u64, own: &HostReport, others: &[HostReport]) -> Decision {
        self.decision = self.controller.update(now_ns, own, others);
        self.decision
    }

    fn take(&mut self, now_ns: u64, since_ns: u64, readings: &Readings) {
        #[allow(clippy::cast_precision_loss)]
        let (since, told_ns) = (since_ns as f64, TOLD * self.settings().period_ns as f64);
        for track in self.tracks.values_mut() {
            track.seen = false;
        }
        let (mut in_flight, mut waits, mut ended) = (0.0, false, 0);
        for reading in &readings.disks {
            let track = self.tracks.entry(reading.disk).or_default();
            let done = track.take(reading, weight(since, RECENT_NS), weight(since, told_ns));
            let period = &mut self.period;
            period.ios = period.ios.saturating_add(done.ios);
            period.latency_sum_ns = period.latency_sum_ns.saturating_add(done.latency_sum_ns);
            period.cost = period.cost.saturating_add(done.cost);
            ended |= done.ios;
            in_flight += done.in_flight;
            waits |= done.waits;
        }
        self.tracks.retain(|_, track| track.seen);
        self.period.outstanding += in_flight * since;
        self.period.waited_ns += if waits { since } else { 0.0 };
        self.period.seen_ns += since;
        if ended > 0 || in_flight <= 0.0 {
            self.stuck_ns = None;
        } else {
            self.stuck_ns.get_or_insert(now_ns);
        }
    }

    /// For how long the device has given nothing back, if it is worth saying.
    fn stuck_for(&self, now_ns: u64) -> Option<u64> {
        let stuck_ns = now_ns.saturating_sub(self.stuck_ns?);
        let settings = self.settings();
        let long = settings
            .period_ns
            .max(settings.threshold_ns.saturating_mul(2));
        (stuck_ns >= long).then_some(stuck_ns)
    }

    /// The latency that slots are reckoned with, in seconds: the threshold's at least, which it comes to
    /// when slots are scarce.
    #[allow(clippy::cast_precision_loss)]
    fn latency_s(&self) -> f64 {
        let threshold_ns = self.settings().threshold_ns;
        let latency_ns = self.decision.latency_ns;
        let least_ns = if threshold_ns == u64::MAX {
            0
        } else {
            threshold_ns
        };
        latency_ns.max(least_ns) as f64 / 1e9
    }

    /// The slots that a disk has use for at its limit.
    #[allow(clippy::cast_precision_loss)]
    fn most(&self, policy: &Policy) -> f64 {
        let iops = policy.limit_iops.map_or(f64::INFINITY, |it| it as f64);
        let bytes = policy
            .limit_bytes
            .map_or(f64::INFINITY, |it| it as f64 / UNIT_BYTES as f64);
        let limit = iops.min(bytes);
        if limit.is_infinite() {
            limit
        } else {
            limit * self.latency_s() * LIMIT_MARGIN
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn reserved_slots(&self, policy: &Policy) -> f64 {
        policy.reservation_iops as f64 * self.latency_s()
    }

    /// A disk as the division among hosts sees it.
    fn shown(&self, policy: &Policy, slots: f64) -> Want {
        let slots = slots.min(self.most(policy));
        let floor = self.reserved_slots(policy).min(slots);
        let shares = f64::from(policy.shares.max(1));
        let level = self.decision.level;
        let covered = floor <= 0.0 || level.is_infinite() || level * shares >= floor;
        let shares = if covered {
            shares
        } else {
            (floor / level).min(SHARES_SHOWN_MAX).max(shares)
        };
        Want { shares, slots }
    }
}

/// What a reading counts for in a mean that goes back so far.
fn weight(since_ns: f64, back_ns: f64) -> f64 {
    1.0 - (-since_ns / back_ns.max(1.0)).exp()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
fn rounded(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests;
