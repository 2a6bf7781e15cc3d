//! Many hosts and one array in virtual time: what happens next happens, and nothing waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ferry_dataplane::qos::{Cost, CostModel, Medium, Policy};
use ferry_dataplane::request::Op;

use super::array::{Array, Ticket};
use super::client::{Client, ClientSpec};
use super::file::File;
use super::host::{Host, Request};
use super::spec::{Control, HostSpec, Occurrence, WorldSpec};
use super::steering::Steering;
use super::tally::Series;

mod seen;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A host's scheduler wanted to be asked again.
    Wake(usize),
    /// A client with a rate has its next request.
    Arrival(usize),
    /// A client begins, or stops.
    Turn(usize, bool),
    /// A client is given another policy: which of its changes.
    Change(usize, usize),
    /// A host divides its window among its workers.
    Tick(usize),
    /// A host looks at the statistics file.
    Period(usize),
    /// A host dies.
    Death(usize),
}

#[derive(Debug, Clone, Copy, Default)]
struct Io {
    client: usize,
    lane: usize,
    cost: Cost,
    write: bool,
    arrived_ns: u64,
    begun_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    now_ns: u64,
    array: Array,
    medium: Medium,
    hosts: Vec<Host>,
    dead: Vec<bool>,
    steering: Vec<Steering>,
    control: Option<Control>,
    file: File,
    noticed: Vec<Occurrence>,
    /// What each host's window was from when on.
    windows: Vec<Vec<(u64, f64)>>,
    /// When each host's next [`Event::Wake`] is, of those that still count.
    armed_ns: Vec<Option<u64>>,
    clients: Vec<Client>,
    series: Vec<Series>,
    ios: Vec<Io>,
    free: Vec<Ticket>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sent: u64,
}

impl World {
    /// One in which nothing has happened yet.
    pub fn new(spec: WorldSpec) -> World {
        let host = |host: &HostSpec| Host::new(host.workers);
        let steering = spec.control.iter().flat_map(|control| {
            let hosts = spec.hosts.iter().enumerate();
            hosts.map(|(at, host)| Steering::new(control, at, host.workers))
        });
        let mut world = World {
            now_ns: 0,
            array: Array::new(spec.array),
            medium: spec.medium,
            hosts: spec.hosts.iter().map(host).collect(),
            dead: vec![false; spec.hosts.len()],
            steering: steering.collect(),
            control: spec.control,
            file: File::default(),
            noticed: Vec::new(),
            windows: vec![Vec::new(); spec.hosts.len()],
            armed_ns: vec![None; spec.hosts.len()],
            clients: Vec::new(),
            series: vec![Series::new(spec.piece_ns); spec.clients.len()],
            ios: Vec::new(),
            free: Vec::new(),
            events: BinaryHeap::new(),
            sent: 0,
        };
        world.file.faults = spec.faults;
        for client in spec.clients {
            world.add(client);
        }
        for (at, host) in spec.hosts.iter().enumerate() {
            if let Some(dies_ns) = host.dies_ns {
                world.send(dies_ns, Event::Death(at));
            }
            match spec.control {
                Some(control) => {
                    world.send(control.tick_ns, Event::Tick(at));
                    world.send(control.period_ns + host.phase_ns, Event::Period(at));
                }
                None => world.fix(at, host.slots),
            }
        }
        world
    }

    fn add(&mut self, spec: ClientSpec) {
        let at = self.clients.len();
        let disk = spec.host.map_or(0, |host| {
            let workers = spec.lanes.iter().map(|lane| lane.worker);
            self.hosts[host].add(spec.policy, workers);
            self.hosts[host].disks.len() - 1
        });
        for range in &spec.on {
            self.send(range.start, Event::Turn(at, true));
            self.send(range.end, Event::Turn(at, false));
        }
        for (change, (at_ns, _)) in spec.changes.iter().enumerate() {
            self.send(*at_ns, Event::Change(at, change));
        }
        if spec.on.is_empty() {
            self.send(0, Event::Turn(at, true));
        }
        self.clients.push(Client::new(spec, disk, at as u64 + 1));
    }

    /// Windows and weights that nothing changes.
    fn fix(&mut self, host: usize, slots: f64) {
        let host = &mut self.hosts[host];
        for worker in 0..host.workers() {
            host.set_window(0, worker, slots);
        }
        for disk in 0..host.disks.len() {
            let Policy {
                shares,
                reservation_iops,
                ..
            } = host.disks[disk].policy;
            #[allow(clippy::cast_precision_loss)]
            host.set_share(disk, 0, f64::from(shares), reservation_iops as f64);
        }
    }

    fn send(&mut self, at_ns: u64, event: Event) {
        self.sent += 1;
        self.events.push(Reverse((at_ns, self.sent, event)));
    }

    /// Lets things happen until a time.
    pub fn run_to(&mut self, end_ns: u64) {
        loop {
            let event = self.events.peek().map_or(u64::MAX, |event| event.0.0);
            let ended = self.array.next_ns().unwrap_or(u64::MAX);
            let next = event.min(ended);
            if next > end_ns {
                break;
            }
            self.now_ns = next;
            while let Some(ticket) = self.array.take(next) {
                self.end(ticket);
            }
            while let Some(&Reverse((at, _, event))) = self.events.peek()
                && at <= next
            {
                self.events.pop();
                self.happen(event);
            }
            self.pump();
        }
        self.now_ns = end_ns;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(host) => {
                if self.armed_ns[host].is_some_and(|at| at <= self.now_ns) {
                    self.armed_ns[host] = None;
                }
            }
            Event::Arrival(client) => self.arrival(client),
            Event::Turn(client, on) => self.turn(client, on),
            Event::Change(client, change) => {
                let Client { spec, disk, .. } = &self.clients[client];
                if let Some(host) = spec.host {
                    self.hosts[host].set_policy(self.now_ns, *disk, spec.changes[change].1);
                }
            }
            Event::Tick(host) => self.tick(host),
            Event::Period(host) => self.period(host),
            Event::Death(host) => {
                self.dead[host] = true;
                for client in &mut self.clients {
                    client.on &= client.spec.host != Some(host);
                }
            }
        }
    }

    fn tick(&mut self, host: usize) {
        let Some(control) = self.control.filter(|_| !self.dead[host]) else {
            return;
        };
        self.steering[host].tick(self.now_ns, &mut self.hosts[host]);
        self.send(self.now_ns + control.tick_ns, Event::Tick(host));
    }

    fn period(&mut self, host: usize) {
        let Some(control) = self.control.filter(|_| !self.dead[host]) else {
            return;
        };
        let steering = &mut self.steering[host];
        let what = steering.period(self.now_ns, &mut self.hosts[host], &mut self.file);
        self.windows[host].push((self.now_ns, steering.window()));
        self.noticed.extend(what.map(|what| Occurrence {
            at_ns: self.now_ns,
            host,
            what,
        }));
        self.send(self.now_ns + control.period_ns, Event::Period(host));
    }

    fn turn(&mut self, client: usize, on: bool) {
        let here = &mut self.clients[client];
        let alive = here.spec.host.is_none_or(|host| !self.dead[host]);
        here.on = on && alive;
        if let Some(gap_ns) = here.gap_ns().filter(|_| on) {
            self.send(self.now_ns + gap_ns, Event::Arrival(client));
        }
        for lane in 0..self.clients[client].spec.lanes.len() {
            self.refill(client, lane);
        }
    }

    fn arrival(&mut self, client: usize) {
        let Some(gap_ns) = self.clients[client]
            .gap_ns()
            .filter(|_| self.clients[client].on)
        else {
            return;
        };
        self.send(self.now_ns + gap_ns, Event::Arrival(client));
        if let Some(lane) = self.clients[client].turn() {
            self.begin(client, lane);
        }
    }

    fn refill(&mut self, client: usize, lane: usize) {
        for _ in 0..self.clients[client].missing(lane) {
            self.begin(client, lane);
        }
    }

    /// A guest has a request.
    fn begin(&mut self, client: usize, lane: usize) {
        let here = &mut self.clients[client];
        here.under_way[lane] += 1;
        let write = here.writes();
        let bytes = here.spec.bytes;
        let io = Io {
            client,
            lane,
            cost: CostModel::default().cost(if write { Op::Write } else { Op::Read }, bytes),
            write,
            arrived_ns: self.now_ns,
            begun_ns: self.now_ns,
        };
        let ticket = self.free.pop().unwrap_or_else(|| {
            self.ios.push(Io::default());
            u32::try_from(self.ios.len() - 1).unwrap_or(u32::MAX)
        });
        self.ios[ticket as usize] = io;
        let (cost, disk) = (io.cost, here.disk);
        let request = Request {
            ticket,
            cost,
            bytes,
        };
        let host = here.spec.host;
        let goes =
            host.is_none_or(|host| self.hosts[host].arrive(self.now_ns, (disk, lane), request));
        if goes {
            self.array.submit(self.now_ns, ticket, bytes, write);
        }
    }

    /// The array has ended a request.
    fn end(&mut self, ticket: Ticket) {
        let io = self.ios[ticket as usize];
        self.free.push(ticket);
        let here = &mut self.clients[io.client];
        here.under_way[io.lane] -= 1;
        let device_ns = self.now_ns - io.begun_ns;
        let guest_ns = self.now_ns - io.arrived_ns;
        self.series[io.client].add(self.now_ns, io.cost.into(), device_ns, guest_ns);
        if let Some(host) = here.spec.host {
            let adjusted_ns = device_ns.saturating_sub(self.medium.transfer_ns(here.spec.bytes));
            self.hosts[host].done(self.now_ns, (here.disk, io.lane), io.cost, adjusted_ns);
        }
        self.refill(io.client, io.lane);
    }

    /// Every host lets go what it may, and says when it wants to be asked again.
    fn pump(&mut self) {
        for host in 0..self.hosts.len() {
            if self.dead[host] {
                continue;
            }
            let (array, ios, clients) = (&mut self.array, &mut self.ios, &self.clients);
            self.hosts[host].pump(self.now_ns, |ticket| {
                let io = &mut ios[ticket as usize];
                io.begun_ns = self.now_ns;
                let bytes = clients[io.client].spec.bytes;
                array.submit(self.now_ns, ticket, bytes, io.write);
            });
            let Some(wake_ns) = self.hosts[host].wake_ns() else {
                continue;
            };
            if self.armed_ns[host].is_none_or(|armed| armed > wake_ns) {
                self.armed_ns[host] = Some(wake_ns);
                self.send(wake_ns, Event::Wake(host));
            }
        }
    }
}

#[cfg(test)]
mod tests;
