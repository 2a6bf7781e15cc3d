//! What NICs cost that do nothing, on a switch with a pair that is busy.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::idle::share_of_a_core;
use super::server::{Server, Shape};
use super::{Cores, ScalePlan, host};
use crate::error::BenchError;
use crate::frontend::net::{HEADER_BYTES, RxOptions, RxQueue, TxOptions, TxQueue, feature};
use crate::frontend::{GuestDevice, GuestMemory, Vmm, VmmOptions};
use crate::net::{self, NetPlan};
use crate::spread::Spread;
use crate::sys;

/// Bytes of a frame: the shortest, for which the way counts most.
const FRAME_BYTES: u32 = 64;
/// Descriptors of a ring.
const RING: u16 = 256;
/// Those of a NIC that does nothing.
const IDLE_RING: u16 = 16;
/// How long a frame may take to be sent.
const PATIENCE: Duration = Duration::from_secs(10);
/// The idle NICs are watched for so many measurements' time.
const WATCHED_TIMES: u32 = 10;

/// A busy pair of NICs, alone on a switch of two, and on one of many.
#[derive(Debug, Serialize)]
pub struct Nics {
    /// NICs on the larger switch: the pair, and idle ones, each with a guest that has sent a frame.
    pub nics: usize,
    /// Alternations.
    pub rounds: usize,
    /// Frames of 64 bytes a second that came through, alone.
    pub alone_pps: Spread,
    /// The same among the idle NICs.
    pub among_pps: Spread,
    /// What the idle NICs cost of it, in percent, by pairs of runs.
    pub cost_percent: Spread,
    /// How long the server was watched while no NIC had anything to do, in seconds.
    pub idle_seconds: f64,
    /// What it took of a core then, with all NICs but the pair attached, in percent.
    pub idle_core_percent: f64,
    /// Memory of the server for each idle NIC, in bytes: its own pages, without the guest's.
    pub bytes_per_nic: u64,
    /// Descriptors of the server for each.
    pub descriptors_per_nic: f64,
    /// Threads of the server for each.
    pub threads_per_nic: f64,
}

/// A guest with a NIC and nothing to say.
struct Quiet {
    _vmm: Vmm,
    _rx: RxQueue,
    tx: TxQueue,
}

impl Quiet {
    fn attach(socket: &Path, mac: [u8; 6]) -> Result<Quiet, BenchError> {
        let mut vmm = Vmm::connect(socket, VmmOptions::net())?;
        let features = vmm.features();
        let tx = TxOptions {
            frame_bytes: FRAME_BYTES,
            indirect: false,
        };
        let rx = RxOptions {
            frame_bytes_max: 1518,
            mergeable: features & feature::MRG_RXBUF != 0,
            indirect: false,
        };
        let memory = GuestMemory::new(tx.memory_bytes(IDLE_RING) + rx.memory_bytes(IDLE_RING))?;
        let device = GuestDevice::new(&memory, 2, IDLE_RING)?;
        let rx = RxQueue::new(&device, 0, features, rx)?;
        // To itself, of a type for experiments: the switch learns where it is, and tells nobody.
        let mut frame = [&mac[..], &mac[..], &[0x88, 0xb5]].concat();
        frame.resize(FRAME_BYTES as usize, 0);
        let tx = TxQueue::new(&device, 1, features, tx, &[0; HEADER_BYTES], &frame)?;
        vmm.start(&device)?;
        let mut quiet = Quiet {
            _vmm: vmm,
            _rx: rx,
            tx,
        };
        quiet.speak()?;
        Ok(quiet)
    }

    /// Sends a frame, and waits until the switch has taken it.
    fn speak(&mut self) -> Result<(), BenchError> {
        let (began, all) = (Instant::now(), self.tx.slots());
        self.tx.put(|_| {});
        self.tx.commit()?;
        while self.tx.reclaim()? < all {
            if began.elapsed() > PATIENCE {
                return Err(BenchError::Stuck {
                    after: PATIENCE,
                    in_flight: 1,
                });
            }
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// Frames a second from the first NIC to the second and back.
fn busy_pair(server: &Server, duration: Duration) -> Result<f64, BenchError> {
    let plan = NetPlan {
        tx: server.nic_socket(0),
        rx: Some(server.nic_socket(1)),
        bidirectional: true,
        bytes: FRAME_BYTES as usize,
        duration,
        rate_pps: None,
        burst: 32,
        outstanding: None,
        queue_size: RING,
        queue_pairs: 1,
        vlan: None,
        tso: false,
        mrg_rxbuf: true,
        indirect: true,
        event_idx: true,
        every_byte: false,
        threads: 1,
        cores: Vec::new(),
        wait: PATIENCE,
        timeout: PATIENCE,
        lossless: false,
    };
    let report = net::run(&plan)?;
    let received = report.directions.iter().flat_map(|it| &it.received);
    Ok(received.map(|it| it.rx_pps).sum())
}

pub(super) fn among(plan: &ScalePlan, cores: Cores) -> Result<Nics, BenchError> {
    let shape = |nics| Shape {
        workers: 1,
        nics,
        core: cores.server,
        back: cores.client,
        ..Shape::default()
    };
    let two = Server::start(&plan.server, &shape(2))?;
    let many = Server::start(&plan.server, &shape(plan.nics))?;
    if let Some(core) = cores.client {
        sys::pin(&[core]).map_err(host("to pin a thread to a core"))?;
    }
    let idle = (2..plan.nics)
        .map(|at| Quiet::attach(&many.nic_socket(at), Shape::mac(at)))
        .collect::<Result<Vec<_>, _>>()?;
    let watched = plan.duration * WATCHED_TIMES;
    let idle_core_percent = share_of_a_core(&many, watched)?;
    let (small, large) = (two.size()?, many.size()?);
    let mut pps = [Vec::new(), Vec::new()];
    for round in 0..plan.rounds {
        for turn in 0..2 {
            let side = (round + turn) % 2; // who goes first changes
            pps[side].push(busy_pair([&two, &many][side], plan.duration)?);
        }
    }
    let count = idle.len() as f64;
    let each = |small: u64, large: u64| large.saturating_sub(small) as f64 / count;
    let pairs = pps[0].iter().zip(&pps[1]);
    let cost_percent = Spread::of_some(pairs.map(|(a, b)| (1.0 - b / a) * 100.0).collect());
    let [alone_pps, among_pps] = pps.map(Spread::of_some);
    Ok(Nics {
        nics: plan.nics,
        rounds: plan.rounds,
        alone_pps,
        among_pps,
        cost_percent,
        idle_seconds: watched.as_secs_f64(),
        idle_core_percent,
        bytes_per_nic: large.anonymous_bytes.saturating_sub(small.anonymous_bytes)
            / idle.len() as u64,
        descriptors_per_nic: each(small.descriptors, large.descriptors),
        threads_per_nic: each(small.threads, large.threads),
    })
}

impl Nics {
    pub(super) fn lines(&self) -> Vec<String> {
        let mega = |spread: Spread| Spread {
            median: spread.median / 1e6,
            min: spread.min / 1e6,
            max: spread.max / 1e6,
        };
        vec![
            format!(
                "a switch of {} NICs, one pair of them busy, {} alternations with a switch of two:",
                self.nics, self.rounds
            ),
            format!(
                "  64 B both ways: {} million frames a second alone, {} among them: they cost {} %",
                mega(self.alone_pps),
                mega(self.among_pps),
                self.cost_percent
            ),
            format!(
                "  idle for {} s: {:.3} % of a core; each takes {:.1} KiB of the server's own memory, \
                 {:.1} descriptors, {:.1} threads",
                self.idle_seconds,
                self.idle_core_percent,
                self.bytes_per_nic as f64 / 1024.0,
                self.descriptors_per_nic,
                self.threads_per_nic
            ),
        ]
    }
}
