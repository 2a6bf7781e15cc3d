//! What the governor reads of the workers, and what it gives back to them.

use std::sync::Arc;

use ferry_dataplane::qos::COST_ONE;
use ferry_dataplane::qos::coordinator::Allotment;
use ferry_dataplane::qos::domain::DiskControl;
use ferry_dataplane::qos::governor::{DiskReading, LaneReading, Readings};

use super::{Datastore, Member};

/// A change of a window or a weight that is worth telling the workers.
const WORTH: f64 = 0.01;

/// Reads one datastore, again and again.
pub struct Reader {
    readings: Readings,
    /// In the order of the readings.
    controls: Vec<Arc<DiskControl>>,
    /// What the workers were given last: by worker, and by disk and worker.
    windows: Vec<f64>,
    shares: Vec<Vec<(f64, f64)>>,
    shortages: u64,
    ios: u64,
    busy: bool,
    under_way: bool,
    held: bool,
}

impl Reader {
    pub fn new(datastore: &Datastore) -> Reader {
        let mut reader = Reader {
            readings: Readings::default(),
            controls: Vec::new(),
            windows: vec![f64::INFINITY; datastore.domain.workers()],
            shares: Vec::new(),
            shortages: datastore.domain.shortages(),
            ios: 0,
            busy: false,
            under_way: false,
            held: false,
        };
        reader.read(datastore, true);
        reader.busy = reader.under_way;
        reader
    }

    /// What was read last.
    pub fn readings(&self) -> &Readings {
        &self.readings
    }

    /// Whether anything is under way or held, or has ended since the reading before.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Reads all disks; `places`: also where their queues are.
    pub fn read(&mut self, datastore: &Datastore, places: bool) {
        let shortages = datastore.domain.shortages();
        let waits = std::mem::replace(&mut self.shortages, shortages) != shortages;
        let steering = datastore.steering();
        self.follow(&steering.members);
        let (mut ios, mut under_way) = (0u64, false);
        self.held = false;
        let disks = self.readings.disks.iter_mut().zip(&steering.members);
        for (reading, member) in disks {
            reading.policy = member.control.policy();
            let queues = if places { member.queues() } else { None };
            for (at, lane) in reading.lanes.iter_mut().enumerate() {
                let read = member.control.meters()[at].read();
                *lane = LaneReading {
                    has_queues: queues
                        .as_ref()
                        .map_or(lane.has_queues, |it| it.contains(&at)),
                    in_flight: slots(read.in_flight),
                    waiting: slots(read.waiting),
                    window_waits: waits,
                    ios: read.ios,
                    latency_sum_ns: read.latency_sum_ns,
                    units: read.cost,
                };
                ios = ios.wrapping_add(read.ios);
                under_way |= read.in_flight > 0 || read.held > 0;
                self.held |= read.held > 0;
            }
        }
        self.under_way = under_way;
        self.busy = under_way || std::mem::replace(&mut self.ios, ios) != ios;
    }

    /// Disks come and go.
    fn follow(&mut self, members: &[Member]) {
        let known = self.controls.len() == members.len()
            && self
                .controls
                .iter()
                .zip(members)
                .all(|(control, member)| Arc::ptr_eq(control, &member.control));
        if known {
            return;
        }
        self.controls = members.iter().map(|it| it.control.clone()).collect();
        self.shares = members.iter().map(|_| Vec::new()).collect();
        let reading = |member: &Member| DiskReading {
            disk: member.number,
            policy: member.control.policy(),
            lanes: vec![LaneReading::default(); member.control.meters().len()],
        };
        self.readings.disks = members.iter().map(reading).collect();
    }

    /// Gives the workers open windows.
    pub fn open(&mut self, datastore: &Datastore) {
        datastore.open();
        self.windows.fill(f64::INFINITY);
    }

    /// Gives the workers their windows, and the disks their weights there.
    pub fn apply(&mut self, datastore: &Datastore, allotment: &Allotment) {
        let mut changed = false;
        for (worker, (was, &now)) in self.windows.iter_mut().zip(&allotment.windows).enumerate() {
            if differ(*was, now) {
                datastore.domain.set_window(worker, now);
                (*was, changed) = (now, true);
            }
        }
        let shares = allotment.weights.iter().zip(&allotment.reservations);
        let disks = self.controls.iter().zip(&mut self.shares);
        for ((control, last), (weights, reservations)) in disks.zip(shares) {
            let given = weights.iter().copied().zip(reservations.iter().copied());
            last.resize(weights.len(), (f64::NAN, f64::NAN));
            for ((meter, last), now) in control.meters().iter().zip(last).zip(given) {
                if differ(last.0, now.0) || differ(last.1, now.1) {
                    meter.set_share(now.0, now.1);
                    (*last, changed) = (now, true);
                }
            }
        }
        if changed {
            datastore.domain.announce();
            if self.held {
                datastore.wake_workers();
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "digits, not magnitude")]
fn slots(cost: u64) -> f64 {
    cost as f64 / f64::from(COST_ONE)
}

/// Whether a number is another, by more than is worth it.
fn differ(was: f64, now: f64) -> bool {
    if was.is_finite() && now.is_finite() {
        (now - was).abs() > WORTH * was.abs().max(now.abs())
    } else {
        was.to_bits() != now.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::differ;

    #[test]
    fn what_is_worth_telling() {
        let open = f64::INFINITY;
        assert!(!differ(open, open) && differ(open, 4.0) && differ(4.0, open));
        assert!(differ(f64::NAN, 1.0) && differ(0.0, 0.1) && !differ(0.0, 0.0));
        assert!(!differ(100.0, 100.5) && differ(100.0, 102.0));
    }
}
