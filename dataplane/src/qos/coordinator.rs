//! Divides a host's part of the window among its workers, and each disk's shares and reservation among the
//! workers that its queues are on.
//!
//! A disk's requests at one worker compete with others there only, so its weight there has to be the part
//! of its shares that it has use for there: in proportion to its demand. A worker's window is what its
//! disks have of the host's; so a disk that is alone on its worker does not get more than its shares for it.

use super::division::{Claim, Want, fill};

/// What one disk wants, and where.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskDemand {
    /// Its shares.
    pub shares: u32,
    /// I/Os a second that are reserved for it.
    pub reservation_iops: u64,
    /// Slots that its reservation takes at the device's present latency.
    pub floor: f64,
    /// I/Os under way and held at each worker, on average: what it could use.
    pub per_worker: Vec<f64>,
    /// Whether it has queues at each worker.
    pub has_queues: Vec<bool>,
}

/// What each worker gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allotment {
    /// The window of each worker, in slots; infinite while it is open.
    pub windows: Vec<f64>,
    /// Of each disk, its weight at each worker, in shares.
    pub weights: Vec<Vec<f64>>,
    /// Of each disk, I/Os a second that are reserved at each worker.
    pub reservations: Vec<Vec<f64>>,
}

/// The least part of a disk's shares at a worker where it wanted nothing so far: a first request there has
/// to be served before anything is known of it.
const LEAST: f64 = 1e-3;

/// A worker that nothing was asked of keeps this part of an even share of the window, a slot at most, so
/// that a first request does not wait until the window is divided again.
const SPARE: f64 = 1.0 / 16.0;

/// Divides `window` among the workers.
pub fn divide(window: f64, disks: &[DiskDemand], out: &mut Allotment) {
    let workers = disks
        .iter()
        .map(|disk| disk.per_worker.len().max(disk.has_queues.len()));
    let workers = workers.max().unwrap_or(0).max(out.windows.len());
    out.windows.clear();
    out.windows.resize(workers, 0.0);
    out.weights.resize_with(disks.len(), Vec::new);
    out.reservations.resize_with(disks.len(), Vec::new);
    let mut claims = Vec::with_capacity(disks.len());
    for (disk, (weights, reserved)) in disks
        .iter()
        .zip(out.weights.iter_mut().zip(&mut out.reservations))
    {
        // The fractions first; below they become what they are fractions of.
        disk.spread(workers, weights);
        reserved.clear();
        #[allow(clippy::cast_precision_loss)] // digits, not magnitude
        reserved.extend(weights.iter().map(|it| it * disk.reservation_iops as f64));
        claims.push(disk.claim());
    }
    let mut parts = Vec::with_capacity(disks.len());
    fill(window, &claims, &mut parts);
    for (weights, part) in out.weights.iter().zip(&parts) {
        for (slots, fraction) in out.windows.iter_mut().zip(weights) {
            *slots += part * fraction;
        }
    }
    for (disk, weights) in disks.iter().zip(&mut out.weights) {
        for weight in weights {
            *weight = f64::from(disk.shares.max(1)) * weight.max(LEAST);
        }
    }
    if window.is_infinite() {
        out.windows.fill(f64::INFINITY);
    } else {
        complete(window.max(0.0), &in_use(workers, disks), &mut out.windows);
    }
}

impl DiskDemand {
    fn claim(&self) -> Claim {
        let slots = self.per_worker.iter().map(|&it| demand(it)).sum();
        let shares = f64::from(self.shares.max(1));
        Claim {
            want: Want { shares, slots },
            floor: self.floor,
        }
    }

    /// The part of its demand that is at each worker; where there is none, even over its queues.
    fn spread(&self, workers: usize, fractions: &mut Vec<f64>) {
        fractions.clear();
        fractions.extend(self.per_worker.iter().map(|&it| demand(it)));
        fractions.resize(workers, 0.0);
        if fractions.iter().sum::<f64>() <= 0.0 {
            let queues = self
                .has_queues
                .iter()
                .map(|&has| if has { 1.0 } else { 0.0 });
            fractions.clear();
            fractions.extend(queues);
            fractions.resize(workers, 0.0);
        }
        let sum: f64 = fractions.iter().sum();
        if sum <= 0.0 {
            fractions.fill(1.0);
        }
        let sum: f64 = fractions.iter().sum();
        fractions.iter_mut().for_each(|it| *it /= sum);
    }
}

/// A demand that is a number.
fn demand(slots: f64) -> f64 {
    if slots > 0.0 { slots.min(1e9) } else { 0.0 }
}

/// The workers that have queues; all, if none has.
fn in_use(workers: usize, disks: &[DiskDemand]) -> Vec<bool> {
    let has = |worker: usize| {
        let at = |disk: &DiskDemand| disk.has_queues.get(worker).copied().unwrap_or(false);
        disks.iter().any(at)
    };
    let used: Vec<bool> = (0..workers).map(has).collect();
    if used.contains(&true) {
        used
    } else {
        vec![true; workers]
    }
}

/// Gives out what is left, evenly: who will want it next is not known. Then sees to it that no worker is
/// left without anything.
fn complete(window: f64, in_use: &[bool], windows: &mut [f64]) {
    #[allow(clippy::cast_precision_loss)]
    let count = in_use.iter().filter(|&&it| it).count().max(1) as f64;
    let rest = (window - windows.iter().sum::<f64>()).max(0.0);
    let spare = (window * SPARE / count).min(1.0);
    let (mut raised, mut above) = (0.0, 0.0);
    for (slots, _) in windows.iter_mut().zip(in_use).filter(|it| *it.1) {
        *slots += rest / count;
        if *slots < spare {
            raised += spare - *slots;
            *slots = spare;
        } else {
            above += *slots;
        }
    }
    let kept = if above > raised {
        (above - raised) / above
    } else {
        1.0
    };
    for slots in windows {
        if *slots > spare {
            *slots *= kept;
        }
        // Nothing is used of it where no queue is; but one may be on its way.
        *slots = slots.max(spare);
    }
}

#[cfg(test)]
mod tests;
