//! A host's control: the production [`Governor`], its readings and the statistics file.

use ferry_dataplane::qos::controller::{Division, Event, Settings, UnmanagedPolicy};
use ferry_dataplane::qos::governor::{DiskReading, Governor, LaneReading, Readings};
use ferry_dataplane::qos::stats_file::{Block, Ignored, Peers};

use super::file::{File, id_of};
use super::host::Host;
use super::spec::{Control, Happened, Unmanaged};

/// See the module.
#[derive(Debug)]
pub(super) struct Steering {
    host: usize,
    peers: Peers,
    counter: u64,
    place: Option<usize>,
    governor: Governor,
    readings: Readings,
}

fn settings(control: &Control) -> Settings {
    let mut settings = Settings::new(control.threshold_ns, control.period_ns);
    settings.unmanaged = match control.unmanaged {
        Unmanaged::Stop => UnmanagedPolicy::Stop,
        Unmanaged::Keep => UnmanagedPolicy::Keep,
    };
    settings.division = match control.by_host {
        true => Division::Hosts,
        false => Division::Disks,
    };
    settings
}

impl Steering {
    pub fn new(control: &Control, host: usize, workers: usize) -> Steering {
        Steering {
            host,
            peers: Peers::new(id_of(host), control.period_ns),
            counter: 0,
            place: None,
            governor: Governor::new(settings(control), workers),
            readings: Readings::default(),
        }
    }

    /// This host's part of the window.
    pub fn window(&self) -> f64 {
        self.governor.decision().window
    }

    /// Divides the window among the workers.
    pub fn tick(&mut self, now_ns: u64, host: &mut Host) {
        self.read(host);
        let allotment = self.governor.tick(now_ns, &self.readings);
        for (worker, &slots) in allotment.windows.iter().enumerate() {
            host.set_window(now_ns, worker, slots);
        }
        for disk in 0..host.disks.len() {
            for lane in 0..host.disks[disk].lanes.len() {
                let worker = host.disks[disk].lanes[lane].worker;
                let weight = allotment.weights[disk][worker];
                let reservation = allotment.reservations[disk][worker];
                host.set_share(disk, lane, weight, reservation);
            }
        }
    }

    fn read(&mut self, host: &mut Host) {
        let window_waits = std::mem::take(&mut host.short);
        let disks = &mut self.readings.disks;
        disks.resize_with(host.disks.len(), DiskReading::default);
        for (at, (disk, reading)) in host.disks.iter().zip(disks).enumerate() {
            reading.disk = at as u64;
            reading.policy = disk.policy;
            reading.lanes.clear();
            let workers = host.workers.len();
            reading.lanes.resize(workers, LaneReading::default());
            for lane in &disk.lanes {
                reading.lanes[lane.worker] = LaneReading {
                    has_queues: true,
                    in_flight: lane.in_flight(),
                    waiting: lane.waiting(),
                    window_waits,
                    ios: lane.ios,
                    latency_sum_ns: lane.latency_ns,
                    units: lane.cost,
                };
            }
        }
    }

    /// Looks at the statistics file, and decides on the next period.
    pub fn period(&mut self, now_ns: u64, host: &mut Host, file: &mut File) -> Option<Happened> {
        self.tick(now_ns, host);
        let report = self.governor.report(now_ns);
        self.peers.observe(now_ns, file.blocks());
        self.place = self.peers.choose(now_ns, self.place);
        if let Some(place) = self.place {
            self.counter += 1;
            let block = Block {
                id: id_of(self.host),
                counter: self.counter,
                left: false,
                report: report.clone(),
            };
            file.write(now_ns, self.host, place, &block);
        }
        let others = self.peers.alive(now_ns);
        let decision = self.governor.decide(now_ns, &report, &others);
        self.tick(now_ns, host);
        decision.event.map(|event| match event {
            Event::UnmanagedFound { .. } => Happened::StrangerFound,
            Event::UnmanagedGone => Happened::StrangerGone,
        })
    }

    /// Blocks that it did not believe.
    pub fn ignored(&self) -> Ignored {
        self.peers.ignored()
    }
}
