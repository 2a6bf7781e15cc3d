//! What came out of the rows on NICs.

use comfy_table::{CellAlignment, Table as Text};
use serde::Serialize;

use crate::peers::stats::{Ratio, RoundTrips, steady};
use crate::peers::strangers;
use crate::spread::Spread;

/// By whom frames were sent and received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// testpmd, both ways.
    Testpmd,
    /// `ferry-bench net`, one way.
    Generator,
}

impl View {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            View::Testpmd => "testpmd, both ways",
            View::Generator => "ferry-bench net, one way",
        }
    }
}

/// The rows, or why there are none.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NetTable {
    /// Descriptors of a ring.
    pub ring: u16,
    /// The rows.
    pub rows: Vec<NetResult>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// One run of one server.
#[derive(Debug, Clone, Serialize)]
pub struct NetRun {
    /// Frames that came through in a second, all directions together.
    pub frames_per_s: f64,
    /// As with disks.
    pub strangers: f64,
    /// As with disks.
    pub round_trips_ns: RoundTrips,
}

/// All runs of one row.
#[derive(Debug, Clone, Serialize)]
pub struct NetResult {
    /// Bytes of a frame.
    pub bytes: usize,
    /// By whom they were sent.
    pub client: View,
    /// Ferry's frames a second.
    pub ferry_frames_per_s: Option<Spread>,
    /// testpmd's.
    pub testpmd_frames_per_s: Option<Spread>,
    /// Ferry's over testpmd's, from runs of the same round.
    pub ratio: Option<Ratio>,
    /// By round.
    pub ferry_runs: Vec<NetRun>,
    /// By round.
    pub testpmd_runs: Vec<NetRun>,
}

impl NetResult {
    pub(super) fn new(bytes: usize, client: View) -> Self {
        Self {
            bytes,
            client,
            ferry_frames_per_s: None,
            testpmd_frames_per_s: None,
            ratio: None,
            ferry_runs: Vec::new(),
            testpmd_runs: Vec::new(),
        }
    }

    /// (Ferry's, testpmd's, comparable), one for each round.
    fn pairs(&self) -> Vec<(f64, f64, bool)> {
        let pair = |(ours, theirs): (&NetRun, &NetRun)| {
            let alone = strangers::few(ours.strangers.max(theirs.strangers));
            let alike = alone && steady(&[ours.round_trips_ns, theirs.round_trips_ns]);
            (ours.frames_per_s, theirs.frames_per_s, alike)
        };
        let runs = self.ferry_runs.iter().zip(&self.testpmd_runs);
        runs.map(pair).collect()
    }

    pub(super) fn steady_pairs(&self) -> usize {
        self.pairs().iter().filter(|pair| pair.2).count()
    }

    pub(super) fn sum_up(&mut self) {
        let spread = |runs: &[NetRun]| {
            let alone = |run: &&NetRun| strangers::few(run.strangers);
            let any = runs.iter().any(|run| alone(&run));
            let kept = runs.iter().filter(|run| !any || alone(run));
            Spread::of(kept.map(|run| run.frames_per_s))
        };
        self.ferry_frames_per_s = spread(&self.ferry_runs);
        self.testpmd_frames_per_s = spread(&self.testpmd_runs);
        self.ratio = Ratio::of(&self.pairs());
    }
}

impl NetTable {
    /// As text or Markdown; nothing if nothing was asked for.
    pub(in crate::peers) fn layout(&self, preset: &str) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut table = Text::new();
        table.load_preset(preset);
        table.set_header([
            "frames",
            "client",
            "ferry Mpps",
            "testpmd Mpps",
            "ferry/testpmd",
            "pairs",
        ]);
        for row in &self.rows {
            let mega =
                |s: Option<Spread>| s.map_or("-".into(), |s| format!("{:.2}", s.median / 1e6));
            table.add_row([
                format!("{} B", row.bytes),
                row.client.name().into(),
                mega(row.ferry_frames_per_s),
                mega(row.testpmd_frames_per_s),
                row.ratio.map_or("-".into(), |ratio| ratio.to_string()),
                row.ratio.map_or("-".into(), |ratio| ratio.counted()),
            ]);
        }
        for column in 2..6 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!(
            "\n### Frames between two ports of a switch, rings of {}\n\n{}\n",
            self.ring,
            table.trim_fmt()
        )
    }

    /// Whether others disturbed all runs of a row.
    pub(in crate::peers) fn is_disturbed(&self) -> bool {
        let ratios = self.rows.iter().filter_map(|row| row.ratio);
        ratios.into_iter().any(|ratio| ratio.unsteady)
    }
}
