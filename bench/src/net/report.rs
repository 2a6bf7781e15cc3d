//! What came out of a run.

use std::path::PathBuf;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::lane::Lane;
use super::port::Port;
use super::{Form, NetPlan};
use crate::frontend::net::feature;

/// The result of `ferry-bench net`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Bytes of a frame.
    pub size: usize,
    /// How long the load ran.
    pub seconds: f64,
    /// Pairs of queues of each port.
    pub queue_pairs: u16,
    /// Frames a second that were asked for.
    pub rate_pps: Option<u64>,
    /// The ports, the sending one first.
    pub ports: Vec<PortReport>,
    /// The measured directions, that from the sending port first.
    pub directions: Vec<Direction>,
    /// Whether a loss counts as a failure.
    #[serde(skip)]
    lossless: bool,
}

/// A port, as it was negotiated.
#[derive(Debug, Clone, Serialize)]
pub struct PortReport {
    /// The server's socket.
    pub socket: PathBuf,
    /// The MAC that sent from there.
    pub mac: String,
    /// Frames may come in several buffers.
    pub mrg_rxbuf: bool,
    /// Tables of descriptors.
    pub indirect: bool,
    /// Kicks by index.
    pub event_idx: bool,
    /// TCP frames come as they were sent.
    pub guest_tso4: bool,
}

/// One direction. Rates are those while it was sent; bits are those of the frames,
/// without preamble, checksum and gap. Lost, duplicated and out of order count
/// segments: of a plain frame one, of one to be cut as many as it makes.
#[derive(Debug, Clone, Serialize)]
pub struct Direction {
    /// Frames sent.
    pub tx_frames: u64,
    /// A second.
    pub tx_pps: f64,
    /// Bits sent a second.
    pub tx_bps: f64,
    /// What was received; nothing without a port to receive at.
    #[serde(flatten)]
    pub received: Option<Received>,
}

/// What was received of one direction.
#[derive(Debug, Clone, Serialize)]
pub struct Received {
    /// Frames received, whole ones and segments alike.
    pub rx_frames: u64,
    /// A second.
    pub rx_pps: f64,
    /// Bits received a second.
    pub rx_bps: f64,
    /// Segments that never came, in any shape.
    pub lost: u64,
    /// Segments that came again.
    pub duplicated: u64,
    /// Segments that came after a newer one of their flow.
    pub out_of_order: u64,
    /// Frames that were not as they were sent.
    pub corrupted: u64,
    /// Frames that were none of this load.
    pub other: u64,
    /// From the sending of a segment to when its receiver saw it.
    pub latency_us: Latency,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// Half were at least this fast.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

impl Report {
    pub(super) fn new(
        plan: &NetPlan,
        elapsed: Duration,
        ports: &[Port],
        lanes: &mut [Lane],
    ) -> Self {
        let seconds = elapsed.as_secs_f64();
        let measured = lanes.iter_mut().filter(|lane| lane.measured);
        Self {
            size: plan.bytes,
            seconds,
            queue_pairs: plan.queue_pairs,
            rate_pps: plan.rate_pps,
            ports: ports.iter().map(PortReport::new).collect(),
            directions: measured
                .map(|lane| Direction::new(plan.form(), lane, seconds))
                .collect(),
            lossless: plan.lossless,
        }
    }

    /// Nothing came twice, out of order or changed; nothing was lost, if that matters.
    pub fn is_clean(&self) -> bool {
        let each = self.directions.iter().filter_map(|d| d.received.as_ref());
        let faults = |r: &Received| {
            let lost = if self.lossless { r.lost } else { 0 };
            r.duplicated + r.out_of_order + r.corrupted + lost
        };
        each.map(faults).sum::<u64>() == 0
    }

    /// As a table for people: a column for each direction.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        for (name, port) in ["tx", "rx"].iter().zip(&self.ports) {
            let line = format!("port {name}");
            table.add_row([&line, &port.mac, &port.socket.display().to_string()]);
        }
        let columns: Vec<_> = self.directions.iter().map(Direction::rows).collect();
        if columns.len() > 1 {
            table.add_row(["", "tx to rx", "rx to tx"]);
        }
        for (i, (name, _)) in columns.first().into_iter().flatten().enumerate() {
            let mut row = vec![(*name).to_owned()];
            row.extend(columns.iter().filter_map(|c| Some(c.get(i)?.1.clone())));
            table.add_row(row);
        }
        for i in [1, 2] {
            if let Some(column) = table.column_mut(i) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }
}

impl PortReport {
    fn new(port: &Port) -> Self {
        let has = |bit| port.features() & bit != 0;
        let mac = port.mac.map(|byte| format!("{byte:02x}"));
        Self {
            socket: port.socket.clone(),
            mac: mac.join(":"),
            mrg_rxbuf: has(feature::MRG_RXBUF),
            indirect: has(feature::INDIRECT),
            event_idx: has(feature::EVENT_IDX),
            guest_tso4: has(feature::GUEST_TSO4),
        }
    }
}

impl Direction {
    fn new(form: Form, lane: &mut Lane, seconds: f64) -> Self {
        let sent = lane.sender.as_ref().map_or(0, |sender| sender.frames);
        Self {
            tx_frames: sent,
            tx_pps: sent as f64 / seconds,
            tx_bps: sent as f64 * form.bytes as f64 * 8.0 / seconds,
            received: Received::new(lane, seconds),
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let mpps = |v: f64| format!("{:.3} Mpps", v / 1e6);
        let gbps = |v: f64| format!("{:.3} Gbit/s", v / 1e9);
        let us = |v: f64| format!("{v:.1} us");
        let mut rows = vec![
            ("sent", mpps(self.tx_pps)),
            ("", gbps(self.tx_bps)),
            ("frames sent", self.tx_frames.to_string()),
        ];
        if let Some(received) = &self.received {
            let latency = &received.latency_us;
            rows.extend([
                ("received", mpps(received.rx_pps)),
                ("", gbps(received.rx_bps)),
                ("frames received", received.rx_frames.to_string()),
                ("lost", received.lost.to_string()),
                ("duplicated", received.duplicated.to_string()),
                ("out of order", received.out_of_order.to_string()),
                ("corrupted", received.corrupted.to_string()),
                ("of others", received.other.to_string()),
                ("latency mean", us(latency.mean)),
                ("latency p50", us(latency.p50)),
                ("latency p90", us(latency.p90)),
                ("latency p99", us(latency.p99)),
                ("latency p99.9", us(latency.p999)),
                ("latency max", us(latency.max)),
            ]);
        }
        rows
    }
}

impl Received {
    fn new(lane: &mut Lane, seconds: f64) -> Option<Self> {
        let lost = lane.missing();
        let (frames, bytes) = lane.by_end;
        let eye = &mut lane.sink.as_mut()?.eye;
        Some(Self {
            rx_frames: eye.frames,
            rx_pps: frames as f64 / seconds,
            rx_bps: bytes as f64 * 8.0 / seconds,
            lost,
            duplicated: eye.sum(|t| t.duplicated),
            out_of_order: eye.sum(|t| t.out_of_order),
            corrupted: eye.corrupted,
            other: eye.other,
            latency_us: {
                let all = eye.latency_ns();
                let us = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
                Latency {
                    mean: all.mean() / 1000.0,
                    p50: us(0.5),
                    p90: us(0.9),
                    p99: us(0.99),
                    p999: us(0.999),
                    max: all.max() as f64 / 1000.0,
                }
            },
        })
    }
}
