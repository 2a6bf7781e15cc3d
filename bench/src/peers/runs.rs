//! One run of one contestant on one cell.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::ceiling::SelfCompleting;
use super::cell::{Cell, Mix};
use super::client::{self, Lane, Load, Run};
use super::copy::CopyLoop;
use super::fio;
use super::meter::{self, Meter, Reading};
use super::server::{self, Server};
use super::stats::RoundTrips;
use super::strangers::Moment;
use crate::error::BenchError;
use crate::frontend::{ExpressOptions, ExpressQueue, GuestDevice, GuestMemory, Vmm, feature};
use crate::sys;

/// Largest ring that servers take.
const RING_MAX: u16 = 1024;

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Peer {
    /// `ferry serve`.
    #[serde(rename = "ferry")]
    Ferry,
    /// qemu-storage-daemon.
    #[serde(rename = "qemu-storage-daemon")]
    Qsd,
    /// The vhost-user-backend framework as it is commonly used.
    #[serde(rename = "stock")]
    Stock,
    /// fio on the file, without a server.
    #[serde(rename = "io_uring")]
    Native,
    /// memcpy, without anything else.
    #[serde(rename = "copy loop")]
    Copy,
    /// A ring that completes by itself.
    #[serde(rename = "client alone")]
    Ceiling,
}

impl Peer {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Ferry => "ferry",
            Peer::Qsd => "qemu-storage-daemon",
            Peer::Stock => "stock",
            Peer::Native => "io_uring",
            Peer::Copy => "copy loop",
            Peer::Ceiling => "client alone",
        }
    }
}

/// What came out of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// Requests a second.
    pub iops: f64,
    /// Median latency in nanoseconds; at depth 1 only.
    pub p50_ns: Option<f64>,
    /// Server's time on a core per request, in nanoseconds.
    pub cpu_ns: Option<f64>,
    /// Cycles per request, where they are counted.
    pub cycles: Option<f64>,
    /// Instructions per request, where they are counted.
    pub instructions: Option<f64>,
    /// Requests that failed.
    pub errors: u64,
    /// Whether the server kept an in-flight region.
    pub inflight: bool,
    /// Share of the server's or the client's core, the greater, that others had
    /// meanwhile, from 0 to 1.
    pub strangers: f64,
    /// Cache-line round trips around the run, in nanoseconds.
    pub round_trips_ns: RoundTrips,
}

/// The machine's cores.
#[derive(Debug, Clone, Serialize)]
pub struct Cores {
    /// The server's.
    pub server: usize,
    /// The client's.
    pub client: usize,
}

/// Runs `what` with this thread on a core, and comes back.
pub fn on_core<T>(
    core: usize,
    back: usize,
    what: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    pin(core)?;
    let result = what();
    pin(back)?;
    result
}

/// Puts this thread on one core.
pub fn pin(core: usize) -> Result<(), BenchError> {
    sys::pin(&[core]).map_err(|source| BenchError::Host {
        what: "to pin a thread to a core",
        source,
    })
}

/// Someone to compare, ready to run.
pub enum Contestant {
    /// A process that serves vhost-user sockets.
    Server(Peer, Server),
    /// fio.
    Native(PathBuf),
    /// The copy loop.
    Copy(CopyLoop),
    /// The ring that completes by itself.
    Ceiling,
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Course {
    /// Cores.
    pub cores: Cores,
    /// Bytes of each disk in use.
    pub span_bytes: u64,
    /// Not measured.
    pub warm_up: Duration,
    /// Measured.
    pub duration: Duration,
}

impl Contestant {
    /// Which one it is.
    pub fn peer(&self) -> Peer {
        match self {
            Contestant::Server(peer, _) => *peer,
            Contestant::Native(_) => Peer::Native,
            Contestant::Copy(_) => Peer::Copy,
            Contestant::Ceiling => Peer::Ceiling,
        }
    }

    /// One run; this thread is on the client's core.
    pub fn run(&self, cell: &Cell, course: &Course) -> Result<Sample, BenchError> {
        match self {
            Contestant::Server(_, server) => {
                server.resume()?;
                let sample = load(server, cell, course);
                server.pause()?;
                sample
            }
            Contestant::Native(file) => on_core(course.cores.server, course.cores.client, || {
                let (warm_up, duration) = (course.warm_up, course.duration);
                let cores = &course.cores;
                fio::run(file, cell, course.span_bytes, warm_up, duration, cores)
            }),
            Contestant::Copy(copy) => copy.run(cell, course.cores.server, course.duration),
            Contestant::Ceiling => ceiling(cell, course),
        }
    }

    /// Writes the whole of a memory disk once: pages that were never written are
    /// read from one and the same page of zeroes, which costs nothing.
    pub fn fill(&self, cell: &Cell, course: &Course) -> Result<(), BenchError> {
        let Contestant::Server(_, server) = self else {
            return Ok(());
        };
        let cell = Cell {
            mix: Mix::Write,
            block_bytes: 128 << 10,
            depth: 16,
            ..*cell
        };
        server.resume()?;
        let mut guest = Guest::new(&server.sockets, &cell, course, false)?;
        let blocks = course.span_bytes / u64::from(cell.block_bytes);
        // Each disk is written, by each of its queues: some are served sooner than others.
        while guest.lanes.iter().any(|lane| lane.put_in_all() < blocks) {
            let run = Run {
                warm_up: Duration::ZERO,
                duration: Duration::from_millis(20),
                watch: None,
                mark: &mut || {},
            };
            client::drive(&mut guest.lanes, run)?;
        }
        guest.stop()?;
        server.pause()
    }
}

/// A guest with the cell's disks and queues, attached.
struct Guest {
    vmms: Vec<Vmm>,
    lanes: Vec<Lane>,
}

impl Guest {
    fn new(
        sockets: &[PathBuf],
        cell: &Cell,
        course: &Course,
        random: bool,
    ) -> Result<Self, BenchError> {
        let mut guest = Self {
            vmms: Vec::new(),
            lanes: Vec::new(),
        };
        for socket in sockets {
            let mut vmm = server::attach(socket)?;
            let disk = vmm.config().capacity_sectors * 512;
            let load = load_of(cell, course.span_bytes.min(disk), random);
            let limit = vmm.config().segment_bytes_max(vmm.features());
            let device = shape(cell, limit)?;
            guest.add_lanes(&device, vmm.features(), limit, cell, &load)?;
            vmm.start(&device)?;
            guest.vmms.push(vmm);
        }
        Ok(guest)
    }

    fn add_lanes(
        &mut self,
        device: &GuestDevice,
        features: u64,
        limit: u32,
        cell: &Cell,
        load: &Load,
    ) -> Result<(), BenchError> {
        for queue in 0..device.queues().len() {
            let queue = ExpressQueue::new(device, queue, features, options(cell, limit))?;
            let number = self.lanes.len() as u64;
            self.lanes.push(Lane::new(queue, load, number));
        }
        Ok(())
    }

    fn stop(mut self) -> Result<(), BenchError> {
        for vmm in &mut self.vmms {
            vmm.stop()?;
        }
        Ok(())
    }
}

fn load_of(cell: &Cell, span_bytes: u64, random: bool) -> Load {
    Load {
        mix: cell.mix,
        random,
        block_bytes: cell.block_bytes,
        span_bytes,
        seed: 1,
    }
}

fn options(cell: &Cell, segment_bytes_max: u32) -> ExpressOptions {
    ExpressOptions {
        depth: cell.depth,
        block_bytes: cell.block_bytes,
        segment_bytes_max,
    }
}

/// Memory and rings for the cell's queues.
fn shape(cell: &Cell, segment_bytes_max: u32) -> Result<GuestDevice, BenchError> {
    let options = options(cell, segment_bytes_max);
    let wanted = u32::from(cell.depth) * u32::from(options.descriptors());
    let size = u16::try_from(wanted.next_power_of_two().max(128)).unwrap_or(u16::MAX);
    if size > RING_MAX {
        return Err(BenchError::Usage(format!(
            "--depth {} with blocks of {} bytes takes {wanted} descriptors, and a ring has at most \
             {RING_MAX}; use less",
            cell.depth, cell.block_bytes
        )));
    }
    let per_queue = options.bytes() + (64 << 10);
    let memory = GuestMemory::new(per_queue * u64::from(cell.queues))?;
    Ok(GuestDevice::new(&memory, cell.queues, size)?)
}

fn load(server: &Server, cell: &Cell, course: &Course) -> Result<Sample, BenchError> {
    let mut guest = Guest::new(&server.sockets, cell, course, true)?;
    let inflight = guest.vmms.iter().all(|v| v.inflight().is_some());
    let watch = guest.vmms[0].watch()?;
    let meter = Meter::new(server.pid());
    let mut marks: Vec<(Reading, [Option<Moment>; 2])> = Vec::with_capacity(2);
    let tally = client::drive(
        &mut guest.lanes,
        Run {
            warm_up: course.warm_up,
            duration: course.duration,
            watch: Some(&watch),
            mark: &mut || {
                let reading = meter.read();
                marks.push((reading, both(&course.cores, reading.cpu_ns)));
            },
        },
    )?;
    guest.stop()?;
    let spent = marks[1].0.since(&marks[0].0);
    let each = |total: u64| total as f64 / tally.ops as f64;
    Ok(Sample {
        cpu_ns: Some(each(spent.cpu_ns)),
        cycles: spent.cycles.map(each),
        instructions: spent.instructions.map(each),
        inflight,
        strangers: strangers(&marks[0].1, &marks[1].1),
        ..sample(cell, &tally)
    })
}

/// The server's core, whose measured threads have spent so much, and the client's,
/// which is this thread's.
fn both(cores: &Cores, server_ns: u64) -> [Option<Moment>; 2] {
    [
        Moment::now(cores.server, server_ns),
        Moment::now(cores.client, meter::own_cpu_ns()),
    ]
}

/// The share of the server's or the client's core, the greater, that others had between the two.
pub fn strangers(before: &[Option<Moment>; 2], after: &[Option<Moment>; 2]) -> f64 {
    let of = |(before, after): (&Option<Moment>, &Option<Moment>)| {
        Some(before.as_ref()?.strangers_until(after.as_ref()?))
    };
    let shares = before.iter().zip(after).filter_map(of);
    shares.fold(0.0, f64::max)
}

fn sample(cell: &Cell, tally: &client::Tally) -> Sample {
    let single = u32::from(cell.depth) * u32::from(cell.queues) * u32::from(cell.disks) == 1;
    Sample {
        iops: tally.ops as f64 / tally.elapsed.as_secs_f64(),
        p50_ns: single.then(|| tally.latency_ns.value_at_quantile(0.5) as f64),
        errors: tally.errors,
        ..Sample::default()
    }
}

fn ceiling(cell: &Cell, course: &Course) -> Result<Sample, BenchError> {
    // No server, no features: nobody kicks and nobody calls.
    let features = feature::VERSION_1;
    let limit = u32::MAX;
    let mut guest = Guest {
        vmms: Vec::new(),
        lanes: Vec::new(),
    };
    let mut devices = Vec::new();
    for _ in 0..cell.disks {
        let device = shape(cell, limit)?;
        let load = load_of(cell, course.span_bytes, true);
        guest.add_lanes(&device, features, limit, cell, &load)?;
        devices.push(device);
    }
    let ring = SelfCompleting::start(&devices, course.cores.server)?;
    let mut marks = Vec::with_capacity(2);
    let tally = client::drive(
        &mut guest.lanes,
        Run {
            warm_up: course.warm_up,
            duration: course.duration,
            watch: None,
            mark: &mut || {
                // The ring's thread is the only other one that does anything.
                let ring_ns = meter::cpu_ns(std::process::id()) - meter::own_cpu_ns();
                marks.push(both(&course.cores, ring_ns));
            },
        },
    )?;
    drop(ring);
    Ok(Sample {
        errors: 0, // nobody wrote a status
        strangers: strangers(&marks[0], &marks[1]),
        ..sample(cell, &tally)
    })
}
