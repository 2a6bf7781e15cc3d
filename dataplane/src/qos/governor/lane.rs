//! What is remembered of a disk from one reading to the next.

use super::{DiskReading, LaneReading};
use crate::qos::Policy;

#[derive(Debug, Default)]
pub(super) struct Track {
    pub policy: Policy,
    /// It was in the last readings.
    pub seen: bool,
    /// What it wants, as other hosts are told.
    pub told: f64,
    lanes: Vec<Lane>,
    known: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Lane {
    last: LaneReading,
    recent: f64,
}

/// What a disk did since the last reading.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub ios: u64,
    pub latency_sum_ns: u64,
    pub cost: u64,
    pub in_flight: f64,
    pub waits: bool,
}

fn slots(number: f64) -> f64 {
    if number > 0.0 { number.min(1e9) } else { 0.0 }
}

/// Adds what a counter has gained. One that starts over is not a reason to count backwards.
fn more(sum: &mut u64, now: u64, last: u64) {
    *sum = sum.saturating_add(now.saturating_sub(last));
}

impl Track {
    /// Takes a reading, which counts so much in the two means. The first counts for all: there is nothing
    /// to take the mean with.
    pub fn take(&mut self, reading: &DiskReading, recent: f64, told: f64) -> Done {
        let first = !std::mem::replace(&mut self.known, true);
        let (recent, told) = if first { (1.0, 1.0) } else { (recent, told) };
        self.policy = reading.policy;
        self.seen = true;
        let news = reading.lanes.len().saturating_sub(self.lanes.len());
        let unknown = &reading.lanes[reading.lanes.len() - news..];
        self.lanes
            .extend(unknown.iter().map(|&last| Lane { last, recent: 0.0 }));
        self.lanes.truncate(reading.lanes.len());
        let mut done = Done::default();
        let mut all = 0.0;
        for (lane, reading) in self.lanes.iter_mut().zip(&reading.lanes) {
            let last = std::mem::replace(&mut lane.last, *reading);
            let now = slots(reading.in_flight) + slots(reading.waiting);
            lane.recent += recent * (now - lane.recent);
            all += now;
            more(&mut done.ios, reading.ios, last.ios);
            more(
                &mut done.latency_sum_ns,
                reading.latency_sum_ns,
                last.latency_sum_ns,
            );
            more(&mut done.cost, reading.units, last.units);
            done.in_flight += slots(reading.in_flight);
            done.waits |= reading.window_waits;
        }
        self.told += told * (all - self.told);
        done
    }

    /// What it wants at each worker.
    pub fn recent(&self) -> impl Iterator<Item = f64> {
        self.lanes.iter().map(|it| it.recent)
    }

    /// What it wants at all of them.
    pub fn recent_slots(&self) -> f64 {
        self.recent().sum()
    }
}
