//! Frames through any vhost-user-net server: a generator at one socket, a sink at
//! another, and a judgment of what came.
//!
//! ```text
//!   --tx  Port -- Sender ==>  server  ==> Sink -- Port  --rx      lane 0
//!         Port -- Sink   <==          <== Sender -- Port          lane 1
//! ```
//!
//! A [`Port`](port::Port) is the guest behind a socket; a lane is a direction. One
//! thread drives all lanes, or each has one: two lanes share no queue. Threads
//! never sleep, want no calls, and kick only where the device asks for it.
//! Frames that are lost are no fault of the server by themselves: a generator
//! without a rate is faster than it. What came twice, out of order or changed is.

mod frame;
mod lane;
mod port;
mod report;
mod sender;
mod sink;
mod track;

use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::error::BenchError;
use crate::sys;
use frame::{Ends, Form};
use lane::Lane;
use port::Port;
use sender::Marks;

pub use report::{Direction, Latency, PortReport, Report};

/// Pairs of queues that flows can be numbered for.
const PAIRS_MAX: u16 = 64;
/// The largest Ethernet frame that is not to be cut, and the largest IPv4 packet.
const BYTES_MAX: usize = 9000;
const GSO_BYTES_MAX: usize = 65535;

/// A run of `ferry-bench net`.
#[derive(Debug, Clone)]
pub struct NetPlan {
    /// The server's socket to send at.
    pub tx: PathBuf,
    /// Where the frames come out, if they do.
    pub rx: Option<PathBuf>,
    /// Send the other way too.
    pub bidirectional: bool,
    /// Bytes of a frame, without a checksum at its end.
    pub bytes: usize,
    /// How long.
    pub duration: Duration,
    /// Frames a second and direction; as many as the rings take if not given.
    pub rate_pps: Option<u64>,
    /// Most frames published at once.
    pub burst: usize,
    /// Most frames of a direction that were sent and have not come: what a receiver
    /// that was kept from running cannot lose. No bound if not given. A lost frame
    /// keeps its place, so that sending ends when as many are lost.
    pub outstanding: Option<usize>,
    /// Descriptors of a ring.
    pub queue_size: u16,
    /// Pairs of queues of each port; each has a flow.
    pub queue_pairs: u16,
    /// 802.1Q tag of the frames.
    pub vlan: Option<u16>,
    /// TCP to be cut into segments by whoever has to.
    pub tso: bool,
    /// Take frames in several buffers, if the server can.
    pub mrg_rxbuf: bool,
    /// Put chains into tables, if the server can.
    pub indirect: bool,
    /// Kicks by index, if the server can.
    pub event_idx: bool,
    /// Compare every byte of the payload, not only the stamps.
    pub every_byte: bool,
    /// Threads; more than directions are not used.
    pub threads: u16,
    /// Cores to run on; any if empty.
    pub cores: Vec<usize>,
    /// How long the first frames may take to arrive.
    pub wait: Duration,
    /// How long the server may take no frame at all.
    pub timeout: Duration,
    /// A lost frame makes the run a failure.
    pub lossless: bool,
}

impl NetPlan {
    /// What can be judged without the server.
    pub fn check(&self) -> Result<(), BenchError> {
        let fail = |message: String| Err(BenchError::Usage(message));
        let most = if self.tso { GSO_BYTES_MAX } else { BYTES_MAX };
        let least = self.form().bytes_min();
        if self.bytes < least || self.bytes > most {
            let mend = if self.tso {
                ""
            } else {
                "; --tso takes up to 65535"
            };
            return fail(format!(
                "--size {} is not in {least} to {most}{mend}",
                self.bytes
            ));
        }
        if !self.queue_size.is_power_of_two() || !(64..=32768).contains(&self.queue_size) {
            return fail(format!(
                "--queue-size {} is not a power of two from 64 to 32768",
                self.queue_size
            ));
        }
        if self.queue_pairs == 0 || self.queue_pairs > PAIRS_MAX {
            return fail(format!(
                "--queue-pairs {} is not in 1 to {PAIRS_MAX}",
                self.queue_pairs
            ));
        }
        if self.burst == 0 || self.burst > usize::from(self.queue_size) {
            return fail(format!(
                "--burst {} is not in 1 to --queue-size {}",
                self.burst, self.queue_size
            ));
        }
        if self.vlan.is_some_and(|id| id == 0 || id > 4094) {
            return fail("--vlan is not in 1 to 4094".into());
        }
        if self.rate_pps == Some(0) {
            return fail("--rate 0 sends nothing; use 1 or more".into());
        }
        if self.outstanding == Some(0) {
            return fail("--outstanding 0 sends nothing; use 1 or more".into());
        }
        if self.rx.is_none() && self.outstanding.is_some() {
            return fail("--outstanding needs a port to receive at; give --rx".into());
        }
        if self.rx.is_none() && (self.bidirectional || self.lossless || self.every_byte) {
            return fail(
                "--bidirectional, --lossless and --every-byte need a port to receive at; give --rx"
                    .into(),
            );
        }
        if self.rx.as_ref() == Some(&self.tx) {
            return fail("--tx and --rx are the same socket; give two".into());
        }
        Ok(())
    }

    fn form(&self) -> Form {
        Form {
            bytes: self.bytes,
            vlan: self.vlan,
            tso: self.tso,
        }
    }
}

/// Runs a plan. The plan has passed [`NetPlan::check`].
pub fn run(plan: &NetPlan) -> Result<Report, BenchError> {
    if !plan.cores.is_empty() {
        sys::pin(&plan.cores).map_err(|source| BenchError::Host {
            what: "the cores of --core",
            source,
        })?;
    }
    let run = crate::blk::run_id(0).to_le_bytes();
    let mut ports = vec![Port::open(plan, &plan.tx, [run[1], run[2], run[3], 1])?];
    if let Some(rx) = &plan.rx {
        ports.push(Port::open(plan, rx, [run[1], run[2], run[3], 2])?);
    }
    let mut lanes = lanes(plan, &mut ports, run[0])?;
    for port in &mut ports {
        port.start()?;
    }
    if !lane::meet(&mut lanes, plan.wait)? {
        return Err(BenchError::Unheard { after: plan.wait });
    }
    let elapsed = load(plan, &mut lanes)?;
    for port in &mut ports {
        port.stop()?;
    }
    Ok(Report::new(plan, elapsed, &ports, &mut lanes))
}

/// Both directions, whether they are measured or not.
fn lanes(plan: &NetPlan, ports: &mut [Port], run: u8) -> Result<Vec<Lane>, BenchError> {
    // Nobody has this MAC: a port that frames are only counted into.
    let nowhere = [2, 0xfe, 0, 0, 0, 0xff];
    let macs = [ports[0].mac, ports.get(1).map_or(nowhere, |port| port.mac)];
    let mut lanes = Vec::new();
    for lane in 0..2u8 {
        let (from, to) = (usize::from(lane), usize::from(1 - lane));
        let ends = Ends {
            from: macs[from],
            to: macs[to],
            lane,
        };
        let sender = match ports.get(from) {
            Some(port) => Some(port.sender(plan, ends, Marks { run, lane })?),
            None => None,
        };
        let sink = match ports.get(to) {
            Some(port) => Some(port.sink(plan, ends, run)?),
            None => None,
        };
        let watched = ports.get(from).unwrap_or(&ports[0]);
        let mut made = Lane::new(sender, sink, watched.watch()?);
        made.measured = lane == 0 || plan.bidirectional;
        lanes.push(made);
    }
    Ok(lanes)
}

/// The load itself, on this thread or on one for each direction.
fn load(plan: &NetPlan, lanes: &mut [Lane]) -> Result<Duration, BenchError> {
    let measured = lanes.iter().filter(|lane| lane.measured).count();
    if measured < 2 || plan.threads < 2 {
        return lane::drive(lanes, plan);
    }
    let cores = &plan.cores;
    std::thread::scope(|scope| {
        let start = |(i, lane): (usize, &mut Lane)| -> Result<Duration, BenchError> {
            if let Some(core) = cores.get(i) {
                // Allowed a moment ago, together with the others.
                let _ = sys::pin(&[*core]);
            }
            lane::drive(std::slice::from_mut(lane), plan)
        };
        let threads: Vec<_> = lanes
            .iter_mut()
            .enumerate()
            .map(|each| scope.spawn(move || start(each)))
            .collect();
        let mut longest = Duration::ZERO;
        for thread in threads {
            let end = thread.join();
            let elapsed = end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            longest = longest.max(elapsed);
        }
        Ok(longest)
    })
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline]
fn clock_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // It counts from boot, and so is never negative.
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
