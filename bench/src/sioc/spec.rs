//! What is simulated: hosts, their clients, their control, and what goes wrong.

use std::ops::Range;

use ferry_dataplane::qos::Medium;

use super::array::ArraySpec;
use super::client::{ClientSpec, MS, SECOND};

/// What a host is like.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Its workers.
    pub workers: usize,
    /// The window of each of them, where nothing steers it; infinity for none.
    pub slots: f64,
    /// When it begins its periods, in nanoseconds.
    pub phase_ns: u64,
    /// When it dies, with all of its clients.
    pub dies_ns: Option<u64>,
}

impl Default for HostSpec {
    fn default() -> HostSpec {
        HostSpec {
            workers: 1,
            slots: f64::INFINITY,
            phase_ns: 0,
            dies_ns: None,
        }
    }
}

/// How a host's windows are steered.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// Latency above which the array is congested, in nanoseconds.
    pub threshold_ns: u64,
    /// From one look at the statistics file to the next, in nanoseconds.
    pub period_ns: u64,
    /// From one division among the workers to the next, in nanoseconds.
    pub tick_ns: u64,
    /// What to do about strangers.
    pub unmanaged: Unmanaged,
    /// Shares are those of the hosts first.
    pub by_host: bool,
}

impl Default for Control {
    fn default() -> Control {
        Control {
            threshold_ns: 30 * MS,
            period_ns: 4 * SECOND,
            tick_ns: 10 * MS,
            unmanaged: Unmanaged::Stop,
            by_host: false,
        }
    }
}

/// What to do when somebody uses the array who is not managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmanaged {
    /// Hold nothing back, and try again later.
    Stop,
    /// Go on.
    Keep,
}

/// What a world is like.
#[derive(Debug, Clone)]
pub struct WorldSpec {
    /// The array.
    pub array: ArraySpec,
    /// What it is taken for.
    pub medium: Medium,
    /// The hosts.
    pub hosts: Vec<HostSpec>,
    /// The clients.
    pub clients: Vec<ClientSpec>,
    /// How the hosts steer their windows; without, they are what the hosts' specifications say.
    pub control: Option<Control>,
    /// What is wrong with the statistics file.
    pub faults: Vec<Fault>,
    /// Pieces of time in which is counted what clients had, in nanoseconds.
    pub piece_ns: u64,
}

impl WorldSpec {
    /// As many hosts and workers as the clients name, with nothing steered.
    pub fn new(array: ArraySpec, clients: Vec<ClientSpec>) -> WorldSpec {
        let hosts = clients.iter().filter_map(|client| client.host).max();
        let mut hosts = vec![HostSpec::default(); hosts.map_or(0, |most| most + 1)];
        for client in &clients {
            let workers = client.lanes.iter().map(|lane| lane.worker + 1).max();
            if let (Some(host), Some(workers)) = (client.host, workers) {
                hosts[host].workers = hosts[host].workers.max(workers);
            }
        }
        WorldSpec {
            array,
            medium: Medium::Fc,
            hosts,
            clients,
            control: None,
            faults: Vec::new(),
            piece_ns: 100 * MS,
        }
    }

    /// With windows that are steered.
    pub fn controlled(self, control: Control) -> WorldSpec {
        let control = Some(control);
        WorldSpec { control, ..self }
    }
}

/// Something that is wrong with a host's block in the statistics file, for a time.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Whose block.
    pub host: usize,
    /// When.
    pub time_ns: Range<u64>,
    /// What.
    pub damage: Damage,
}

/// What is wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Half of it is the one before.
    Torn,
    /// A bit is wrong.
    Flipped,
    /// It is of a format that nobody knows yet.
    FromTheFuture,
    /// It is not written: the one before stays.
    Lost,
    /// It is the first that the host has written.
    Stale,
}

/// What a host noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// When.
    pub at_ns: u64,
    /// Which host.
    pub host: usize,
    /// What.
    pub what: Happened,
}

/// See [`Occurrence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// Somebody uses the array who is not managed.
    StrangerFound,
    /// Nobody does any more.
    StrangerGone,
}
