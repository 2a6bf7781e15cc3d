//! A datastore as the workers and the control thread share it: what control has decided, and what the
//! workers have counted. Both sides read and write atomics; no worker is asked, and none waits.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::Thread;

use super::latency::{Counted, Latencies};
use super::pacer::Pacer;
use super::{CostModel, Medium, Policy};

/// One datastore of this process.
#[derive(Debug)]
pub struct Domain {
    /// See [`CostModel`], and the medium: one byte each.
    model: AtomicU8,
    medium: AtomicU8,
    /// Whoever steers it sleeps until it is used.
    dozing: AtomicBool,
    steered_by: Mutex<Option<Thread>>,
    ports: Vec<Port>,
}

/// A datastore on one worker.
#[derive(Debug)]
#[repr(align(128))]
pub struct Port {
    /// Goes up with every change that the worker should see.
    generation: AtomicU64,
    /// Slots, as the bits of an `f64`.
    window: AtomicU64,
    /// Turns in which something waited for the window; written by the worker.
    short: AtomicU64,
}

impl Domain {
    /// A datastore on so many workers, its windows open.
    pub fn new(workers: usize, model: CostModel, medium: Medium) -> Domain {
        let domain = Domain {
            model: AtomicU8::new(0),
            medium: AtomicU8::new(0),
            dozing: AtomicBool::new(false),
            steered_by: Mutex::new(None),
            ports: (0..workers)
                .map(|_| Port {
                    generation: AtomicU64::new(1),
                    window: AtomicU64::new(f64::INFINITY.to_bits()),
                    short: AtomicU64::new(0),
                })
                .collect(),
        };
        domain.set_model(model, medium);
        domain
    }

    /// Workers it was made for.
    pub fn workers(&self) -> usize {
        self.ports.len()
    }

    /// How requests are counted from now on.
    pub fn set_model(&self, model: CostModel, medium: Medium) {
        let place = Medium::ALL.iter().position(|&it| it == medium);
        let place = u8::try_from(place.unwrap_or(0)).expect("five media");
        let word = match model {
            CostModel::Size => 0,
            CostModel::DeviceTime(_) => 1,
            CostModel::Requests => 2,
        };
        self.medium.store(place, Ordering::Relaxed);
        self.model.store(word, Ordering::Relaxed);
        self.announce();
    }

    /// How requests are counted.
    pub fn model(&self) -> CostModel {
        match self.model.load(Ordering::Relaxed) {
            0 => CostModel::Size,
            1 => CostModel::DeviceTime(self.medium()),
            _ => CostModel::Requests,
        }
    }

    /// What it is made of.
    pub fn medium(&self) -> Medium {
        Medium::ALL[usize::from(self.medium.load(Ordering::Relaxed)).min(Medium::ALL.len() - 1)]
    }

    /// Gives a worker its part of the window, in slots; infinity opens it.
    pub fn set_window(&self, worker: usize, slots: f64) {
        self.ports[worker]
            .window
            .store(slots.to_bits(), Ordering::Relaxed);
    }

    /// The windows of all workers together.
    pub fn window(&self) -> f64 {
        let windows = self.ports.iter().map(Port::window);
        windows.sum()
    }

    /// How often, over all workers, something waited for the window. It only grows.
    pub fn shortages(&self) -> u64 {
        let ports = self.ports.iter();
        ports.map(|port| port.short.load(Ordering::Relaxed)).sum()
    }

    /// Has the workers look at what was changed, in their next turn. One that sleeps looks when it
    /// wakes up: call [`crate::disk::Disk::wake`] where that may be long.
    pub fn announce(&self) {
        for port in &self.ports {
            port.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// The calling thread, which steers it, is about to sleep: it is to be unparked when a disk takes a
    /// request. It looks once more after this whether one has, and then parks while
    /// [`Domain::is_dozing`].
    pub fn doze(&self) {
        let mut steered_by = self
            .steered_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *steered_by = Some(std::thread::current());
        drop(steered_by);
        self.dozing.store(true, Ordering::SeqCst);
    }

    /// Whether it was not used since [`Domain::doze`].
    pub fn is_dozing(&self) -> bool {
        self.dozing.load(Ordering::SeqCst)
    }

    /// Ends a doze.
    #[cold]
    pub fn rouse(&self) {
        if !self.dozing.swap(false, Ordering::SeqCst) {
            return;
        }
        let steered_by = self
            .steered_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*steered_by {
            thread.unpark();
        }
    }

    /// A disk took requests. One that comes while the doze begins may be missed, as the next is not.
    #[inline]
    pub(crate) fn used(&self) {
        if self.dozing.load(Ordering::Relaxed) {
            self.rouse();
        }
    }

    pub(crate) fn port(&self, worker: usize) -> &Port {
        &self.ports[worker]
    }
}

impl Port {
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn window(&self) -> f64 {
        f64::from_bits(self.window.load(Ordering::Relaxed))
    }

    pub(crate) fn was_short(&self) {
        crate::metrics::add(&self.short, 1);
    }
}

/// A limit that several disks share, of one machine for instance.
#[derive(Debug, Default)]
pub struct Group {
    changes: AtomicU64,
    pub(crate) iops: Pacer,
    pub(crate) bytes: Pacer,
}

impl Group {
    /// Sets its limits; `None` for none. Domains of its disks have to be told ([`Domain::announce`]).
    #[allow(clippy::cast_precision_loss)]
    pub fn set(&self, now_ns: u64, limit_iops: Option<u64>, limit_bytes: Option<u64>) {
        self.iops.set_rate(now_ns, limit_iops.map(|it| it as f64));
        self.bytes.set_rate(now_ns, limit_bytes.map(|it| it as f64));
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn is_limited(&self) -> bool {
        self.iops.is_limited() || self.bytes.is_limited()
    }
}

/// One disk: what it is to get, and what it got.
#[derive(Debug)]
pub struct DiskControl {
    domain: Arc<Domain>,
    policy: Mutex<Policy>,
    pub(crate) iops: Pacer,
    pub(crate) bytes: Pacer,
    group: RwLock<Option<Arc<Group>>>,
    /// Changes of limits and of the group.
    changes: AtomicU64,
    meters: Vec<Arc<Meter>>,
}

impl DiskControl {
    /// A disk of a datastore.
    pub fn new(domain: Arc<Domain>, now_ns: u64, policy: Policy) -> DiskControl {
        let meters = (0..domain.workers()).map(|_| Arc::default()).collect();
        let control = DiskControl {
            domain,
            policy: Mutex::new(policy),
            iops: Pacer::default(),
            bytes: Pacer::default(),
            group: RwLock::new(None),
            changes: AtomicU64::new(1),
            meters,
        };
        control.set_policy(now_ns, policy);
        control
    }

    /// Its datastore.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// What it is to get.
    pub fn policy(&self) -> Policy {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes that, while it serves. Shares and reservation hold from the governor's next turn on.
    #[allow(clippy::cast_precision_loss)]
    pub fn set_policy(&self, now_ns: u64, policy: Policy) {
        let mut was = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let was = std::mem::replace(&mut *was, policy);
        if (was.limit_iops, was.limit_bytes) != (policy.limit_iops, policy.limit_bytes) {
            self.changes.fetch_add(1, Ordering::Release);
        }
        self.iops
            .set_rate(now_ns, policy.limit_iops.map(|it| it as f64));
        self.bytes
            .set_rate(now_ns, policy.limit_bytes.map(|it| it as f64));
        for meter in &self.meters {
            // Until the governor has divided it by demand.
            meter.set_share(f64::from(policy.shares), 0.0);
        }
        self.domain.announce();
    }

    /// Puts it into a group, or into none.
    pub fn set_group(&self, group: Option<Arc<Group>>) {
        *self.group.write().unwrap_or_else(PoisonError::into_inner) = group;
        self.changes.fetch_add(1 << 32, Ordering::Release);
        self.domain.announce();
    }

    /// Its group.
    pub fn group(&self) -> Option<Arc<Group>> {
        let group = self.group.read().unwrap_or_else(PoisonError::into_inner);
        group.clone()
    }

    /// Another number after every change of its limits, its group's included.
    pub(crate) fn limits_changed(&self) -> u64 {
        let group = self.group();
        let of_group = group.map_or(0, |it| it.changes.load(Ordering::Acquire));
        self.changes
            .load(Ordering::Acquire)
            .wrapping_add(of_group << 16)
    }

    /// Whether it, or its group, has a limit.
    pub(crate) fn is_limited(&self) -> bool {
        let group = self.group().is_some_and(|group| group.is_limited());
        group || self.iops.is_limited() || self.bytes.is_limited()
    }

    /// What was counted on each worker.
    pub fn meters(&self) -> &[Arc<Meter>] {
        &self.meters
    }

    /// How far ahead its IOPS limit is booked; see [`Pacer::booked_ns`].
    pub fn booked_ns(&self, now_ns: u64) -> i64 {
        self.iops.booked_ns(now_ns)
    }

    /// Takes over what it had booked elsewhere.
    pub fn set_booked(&self, now_ns: u64, ahead_ns: i64) {
        self.iops.set_booked(now_ns, ahead_ns);
    }

    /// Device, throttle and guest latency, over all workers.
    pub fn latencies(&self) -> Breakdown {
        let mut all = Breakdown::default();
        for meter in &self.meters {
            meter.device.add_to(&mut all.device);
            meter.throttle.add_to(&mut all.throttle);
            meter.guest.add_to(&mut all.guest);
        }
        // Those that were not held are not counted one by one.
        let unheld = all.device.count().wrapping_sub(all.throttle.count());
        #[allow(clippy::cast_possible_truncation)] // counts wrap around
        all.throttle.add_instant(unheld as u32);
        all
    }
}

/// Where the time of reads and writes went: GAVG = QAVG + DAVG + Ferry's own.
#[derive(Debug, Clone, Default)]
pub struct Breakdown {
    /// DAVG: at the device.
    pub device: Counted,
    /// QAVG: held by limits, shares and windows.
    pub throttle: Counted,
    /// GAVG: from popped to used.
    pub guest: Counted,
}

/// What one worker counted of one disk, and the disk's part there. Two parties write, to lines of
/// their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Meter {
    share: Share,
    /// In [`super::COST_ONE`]ths: at the device now, and held now.
    pub(crate) in_flight: AtomicU64,
    pub(crate) waiting: AtomicU64,
    /// Requests held now.
    pub(crate) held: AtomicU64,
    /// Reads and writes that ended, their costs, and what their size alone accounts for of their
    /// latency.
    ios: AtomicU64,
    cost: AtomicU64,
    transfer_ns: AtomicU64,
    device_ns: AtomicU64,
    pub(crate) device: Latencies,
    pub(crate) throttle: Latencies,
    pub(crate) guest: Latencies,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Share {
    weight: AtomicU64,
    reservation: AtomicU64,
}

/// What a worker did for a disk so far, and does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MeterReading {
    /// Cost of what is at the device now, in [`super::COST_ONE`]ths.
    pub in_flight: u64,
    /// Cost of what is held now.
    pub waiting: u64,
    /// Requests held now.
    pub held: u64,
    /// Reads and writes ended since the start.
    pub ios: u64,
    /// Their cost.
    pub cost: u64,
    /// Their latencies at the device, less what their size accounts for, in nanoseconds.
    pub latency_sum_ns: u64,
}

impl Meter {
    /// The disk's weight on this worker, and the I/Os a second that it has there whatever happens.
    pub fn set_share(&self, weight: f64, reservation: f64) {
        let share = &self.share;
        share.weight.store(weight.to_bits(), Ordering::Relaxed);
        let bits = reservation.to_bits();
        share.reservation.store(bits, Ordering::Relaxed);
    }

    /// See [`Meter::set_share`].
    pub(crate) fn share(&self) -> (f64, f64) {
        let share = &self.share;
        (
            f64::from_bits(share.weight.load(Ordering::Relaxed)),
            f64::from_bits(share.reservation.load(Ordering::Relaxed)),
        )
    }

    /// A reading.
    pub fn read(&self) -> MeterReading {
        let load = |it: &AtomicU64| it.load(Ordering::Relaxed);
        let transfer_ns = load(&self.transfer_ns);
        MeterReading {
            in_flight: load(&self.in_flight),
            waiting: load(&self.waiting),
            held: load(&self.held),
            ios: load(&self.ios),
            cost: load(&self.cost),
            latency_sum_ns: load(&self.device_ns).saturating_sub(transfer_ns),
        }
    }

    /// Reads or writes ended: so many of one latency at the device, with their cost, and the part of
    /// each one's latency that its size accounts for.
    pub(crate) fn ended(&self, requests: u32, cost: u64, device_ns: u64, transfer_ns: u64) {
        use crate::metrics::add;
        let count = u64::from(requests);
        add(&self.ios, count);
        add(&self.cost, cost);
        if device_ns > 0 {
            add(&self.device_ns, device_ns * count);
        }
        if transfer_ns > 0 {
            add(&self.transfer_ns, transfer_ns.min(device_ns) * count);
        }
        self.device.count(device_ns, requests);
    }
}
