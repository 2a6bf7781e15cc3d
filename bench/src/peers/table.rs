//! What came out, for people and for machines.

use std::fmt::{self, Write};

use comfy_table::{CellAlignment, Table as Text, presets};
use serde::Serialize;

use super::cell::{Backend, Cell};
use super::nets::NetTable;
use super::runs::{Cores, Peer, Sample};
use super::stats::{Ratio, steady};
use super::{Plan, meter, strangers};
use crate::spread::Spread;

/// A peer that is not in the table, and why.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    /// Which one.
    pub peer: Peer,
    /// On which kinds of disk.
    pub backends: Vec<Backend>,
    /// Why, and what to do.
    pub why: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backends: Vec<_> = self.backends.iter().map(|b| b.name()).collect();
        let (peer, backends) = (self.peer.name(), backends.join(", "));
        if self.peer == Peer::Ferry {
            write!(f, "LEFT OUT: {backends}: {}", self.why)
        } else {
            write!(f, "LEFT OUT: {peer} on {backends}: {}", self.why)
        }
    }
}

/// All runs of one cell.
#[derive(Debug, Clone, Serialize)]
pub struct CellResult {
    /// Which cell.
    #[serde(flatten)]
    pub cell: Cell,
    /// By peer, in the order of the table.
    pub peers: Vec<PeerResult>,
}

/// All runs of one peer on one cell.
#[derive(Debug, Clone, Serialize)]
pub struct PeerResult {
    /// Which one.
    pub peer: Peer,
    /// Requests a second.
    pub iops: Option<Spread>,
    /// Ferry's requests a second over this peer's, from runs of the same round.
    pub ratio: Option<Ratio>,
    /// Median latency at depth 1, in nanoseconds.
    pub p50_ns: Option<Spread>,
    /// Server's time on a core per request, in nanoseconds.
    pub cpu_ns: Option<Spread>,
    /// Cycles per request, where they are counted.
    pub cycles: Option<Spread>,
    /// Instructions per request, where they are counted.
    pub instructions: Option<Spread>,
    /// Requests that failed.
    pub errors: u64,
    /// By round.
    pub runs: Vec<Sample>,
}

impl CellResult {
    pub(super) fn new(cell: Cell, peers: impl Iterator<Item = Peer>) -> Self {
        let mut peers: Vec<Peer> = peers.collect();
        peers.sort_unstable();
        let blank = |peer| PeerResult {
            peer,
            iops: None,
            ratio: None,
            p50_ns: None,
            cpu_ns: None,
            cycles: None,
            instructions: None,
            errors: 0,
            runs: Vec::new(),
        };
        Self {
            cell,
            peers: peers.into_iter().map(blank).collect(),
        }
    }

    pub(super) fn add(&mut self, peer: Peer, sample: Sample) {
        if let Some(result) = self.peers.iter_mut().find(|p| p.peer == peer) {
            result.runs.push(sample);
        }
    }

    /// What this peer did, if it is here.
    pub fn of(&self, peer: Peer) -> Option<&PeerResult> {
        self.peers.iter().find(|p| p.peer == peer)
    }

    /// Pairs that may be compared, of the peer that has the fewest.
    pub(super) fn steady_pairs(&self) -> usize {
        let counts = self.peers.iter().filter(|p| p.peer != Peer::Ferry);
        let steady = counts.map(|p| self.pairs(p).iter().filter(|pair| pair.2).count());
        steady.min().unwrap_or(usize::MAX)
    }

    /// (Ferry's, theirs, comparable), one for each round.
    fn pairs(&self, peer: &PeerResult) -> Vec<(f64, f64, bool)> {
        let ferry = self.of(Peer::Ferry).map_or(&[][..], |f| &f.runs);
        let pair = |(ours, theirs): (&Sample, &Sample)| {
            let alone = strangers::few(ours.strangers.max(theirs.strangers));
            let alike = alone && steady(&[ours.round_trips_ns, theirs.round_trips_ns]);
            (ours.iops, theirs.iops, alike)
        };
        ferry.iter().zip(&peer.runs).map(pair).collect()
    }

    fn is_disturbed(&self) -> bool {
        let ratios = self.peers.iter().filter_map(|p| p.ratio);
        ratios.into_iter().any(|r| r.unsteady)
    }

    /// The figures of the runs.
    pub(super) fn sum_up(&mut self) {
        let ratios: Vec<_> = self
            .peers
            .iter()
            .map(|p| Ratio::of(&self.pairs(p)).filter(|_| p.peer != Peer::Ferry))
            .collect();
        for (peer, ratio) in self.peers.iter_mut().zip(ratios) {
            // Undisturbed runs, if there are any.
            let alone = |s: &&Sample| strangers::few(s.strangers);
            let any = peer.runs.iter().any(|s| alone(&s));
            let runs: Vec<_> = peer.runs.iter().filter(|s| !any || alone(s)).collect();
            let spread =
                |of: fn(&Sample) -> Option<f64>| Spread::of(runs.iter().filter_map(|s| of(s)));
            peer.iops = spread(|s| Some(s.iops));
            peer.p50_ns = spread(|s| s.p50_ns);
            peer.cpu_ns = spread(|s| s.cpu_ns);
            peer.cycles = spread(|s| s.cycles);
            peer.instructions = spread(|s| s.instructions);
            peer.errors = peer.runs.iter().map(|s| s.errors).sum();
            peer.ratio = ratio;
        }
    }
}

/// A cell in a few words.
pub(super) fn cell_name(cell: &Cell) -> String {
    let mut name = format!(
        "{} {} {}k depth {}",
        cell.backend.name(),
        cell.mix.name(),
        cell.block_bytes >> 10,
        cell.depth
    );
    if cell.queues > 1 {
        name += &format!(" queues {}", cell.queues);
    }
    if cell.disks > 1 {
        name += &format!(" disks {}", cell.disks);
    }
    name
}

/// The whole comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// Kernel and processor.
    pub machine: String,
    /// Cores used.
    pub cores: Cores,
    /// Measured time of a run.
    pub seconds: f64,
    /// Rounds asked for.
    pub alternations: usize,
    /// Round trip of a cache line between the cores, in nanoseconds, of all runs.
    pub round_trip_ns: Option<Spread>,
    /// Whether Ferry kept an in-flight region in every run.
    pub inflight: bool,
    /// Whether cycles and instructions are counted, or why not.
    pub counters: String,
    /// Whether it was ended before all cells were done.
    pub interrupted: bool,
    /// The rows.
    pub cells: Vec<CellResult>,
    /// The rows on NICs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<NetTable>,
    /// Who is not here.
    pub left_out: Vec<LeftOut>,
}

impl Table {
    pub(super) fn new(
        plan: &Plan,
        cores: Cores,
        mut cells: Vec<CellResult>,
        left_out: Vec<LeftOut>,
    ) -> Self {
        for cell in &mut cells {
            cell.sum_up();
        }
        let runs = |cell: &CellResult| cell.peers.iter().flat_map(|p| p.runs.clone()).collect();
        let all: Vec<Sample> = cells
            .iter()
            .flat_map(|c| -> Vec<Sample> { runs(c) })
            .collect();
        let ferry = |c: &CellResult| c.of(Peer::Ferry).map_or(vec![], |f| f.runs.clone());
        Self {
            machine: machine(),
            cores,
            seconds: plan.duration.as_secs_f64(),
            alternations: plan.alternations,
            round_trip_ns: Spread::of(all.iter().flat_map(|s| s.round_trips_ns)),
            inflight: cells.iter().flat_map(ferry).all(|s| s.inflight),
            counters: match meter::counters_here() {
                Ok(()) => "counted".into(),
                Err(error) => format!("not counted here ({error})"),
            },
            interrupted: false,
            cells,
            net: None,
            left_out,
        }
    }

    /// Whether all was run and every request succeeded.
    pub fn is_clean(&self) -> bool {
        !self.interrupted && self.errors() == 0
    }

    fn errors(&self) -> u64 {
        let peers = self.cells.iter().flat_map(|c| &c.peers);
        peers.map(|p| p.errors).sum()
    }

    /// As aligned text.
    pub fn text(&self) -> String {
        self.layout(presets::NOTHING)
    }

    /// As tables in Markdown.
    pub fn markdown(&self) -> String {
        self.layout(presets::ASCII_MARKDOWN)
    }

    fn layout(&self, preset: &str) -> String {
        let mut out = self.head();
        let growth = |grown: bool| {
            self.cells
                .iter()
                .filter(move |c| c.cell.is_growth() == grown)
        };
        for backend in Backend::ALL {
            let of_kind: Vec<_> = growth(false)
                .filter(|c| c.cell.backend == backend)
                .collect();
            if !of_kind.is_empty() {
                let _ = write!(
                    out,
                    "\n### {}\n\n{}\n",
                    backend.name(),
                    rows(&of_kind, preset)
                );
            }
        }
        let grown: Vec<_> = growth(true).collect();
        if !grown.is_empty() {
            let _ = write!(
                out,
                "\n### Growth with queues and disks, one worker, one client thread\n\n{}\n",
                rows(&grown, preset)
            );
        }
        if let Some(net) = &self.net {
            out += &net.layout(preset);
        }
        out
    }

    fn head(&self) -> String {
        let mut out = format!(
            "{}\nServer on core {}, client on core {}; {} rounds of {} s.",
            self.machine, self.cores.server, self.cores.client, self.alternations, self.seconds
        );
        if let Some(trip) = self.round_trip_ns {
            let _ = write!(
                out,
                " Cache-line round trip {:.0} ns ({:.0} to {:.0}).",
                trip.median, trip.min, trip.max
            );
        }
        let _ = writeln!(out);
        if !self.cells.is_empty() {
            let inflight = if self.inflight { "on" } else { "OFF" };
            let _ = writeln!(
                out,
                "In-flight tracking of Ferry {inflight}. Cycles and instructions {}.",
                self.counters
            );
        }
        for left_out in &self.left_out {
            let _ = writeln!(out, "{left_out}");
        }
        if let Some(why) = self.net.as_ref().and_then(|net| net.left_out.as_ref()) {
            let _ = writeln!(out, "LEFT OUT: testpmd, and so the rows on NICs: {why}");
        }
        if self.interrupted {
            let _ = writeln!(out, "INTERRUPTED: the cells that were done by then.");
        }
        let net = self.net.as_ref().is_some_and(NetTable::is_disturbed);
        if net || self.cells.iter().any(CellResult::is_disturbed) {
            let _ = writeln!(
                out,
                "A ratio marked ! is of pairs that others disturbed, as no other pair was left."
            );
        }
        if self.errors() > 0 {
            let _ = writeln!(out, "REQUESTS FAILED: see the errors with --json.");
        }
        out
    }
}

const COLUMNS: [&str; 8] = [
    "cell",
    "peer",
    "ferry kIOPS",
    "peer kIOPS",
    "ferry/peer",
    "p50 us",
    "CPU us",
    "pairs",
];

fn rows(cells: &[&CellResult], preset: &str) -> String {
    let counted = cells
        .iter()
        .flat_map(|c| &c.peers)
        .any(|p| p.instructions.is_some());
    let mut table = Text::new();
    table.load_preset(preset);
    let mut header: Vec<_> = COLUMNS.to_vec();
    if counted {
        header.push("instructions");
        header.push("cycles");
    }
    table.set_header(header);
    for cell in cells {
        let Some(ferry) = cell.of(Peer::Ferry) else {
            continue;
        };
        for peer in cell.peers.iter().filter(|p| p.peer != Peer::Ferry) {
            let mut row = row(cell, ferry, peer);
            if counted {
                row.push(pair(ferry.instructions, peer.instructions, 1.0, 0));
                row.push(pair(ferry.cycles, peer.cycles, 1.0, 0));
            }
            table.add_row(row);
        }
    }
    for column in 2..COLUMNS.len() + 2 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn row(cell: &CellResult, ferry: &PeerResult, peer: &PeerResult) -> Vec<String> {
    let kilo = |s: Option<Spread>| s.map_or("-".into(), |s| digits(s.median / 1000.0));
    let ratio = peer.ratio.map_or("-".into(), |r| r.to_string());
    let pairs = peer.ratio.map_or("-".into(), |r| r.counted());
    vec![
        cell_name(&cell.cell),
        peer.peer.name().into(),
        kilo(ferry.iops),
        kilo(peer.iops),
        ratio,
        pair(ferry.p50_ns, peer.p50_ns, 1000.0, 2),
        pair(ferry.cpu_ns, peer.cpu_ns, 1000.0, 2),
        pairs,
    ]
}

/// Ferry's median beside the peer's.
fn pair(ferry: Option<Spread>, peer: Option<Spread>, unit: f64, decimals: usize) -> String {
    let side =
        |s: Option<Spread>| s.map_or("-".into(), |s| format!("{:.decimals$}", s.median / unit));
    match (ferry, peer) {
        (None, None) => "-".into(),
        _ => format!("{} : {}", side(ferry), side(peer)),
    }
}

/// Three digits that matter.
fn digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name"));
    let model = model
        .and_then(|l| l.split(": ").nth(1))
        .unwrap_or("a processor");
    let cores = info.lines().filter(|l| l.starts_with("processor")).count();
    format!("Linux {} on {model}, {cores} cores.", release.trim())
}
