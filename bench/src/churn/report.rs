//! What came out of a run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::ChurnPlan;
use super::figures::Figures;
use crate::error::BenchError;

/// A part of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The overlay is made.
    Clone,
    /// The daemon takes the disk up.
    Add,
    /// A front-end connects and starts its ring.
    Attach,
    /// Reads, writes, a flush.
    Use,
    /// The ring is stopped.
    Detach,
    /// The daemon lets go of the disk.
    Remove,
    /// The overlay and its record are deleted.
    Delete,
}

impl Stage {
    const ALL: [Stage; 7] = [
        Stage::Clone,
        Stage::Add,
        Stage::Attach,
        Stage::Use,
        Stage::Detach,
        Stage::Remove,
        Stage::Delete,
    ];

    fn name(self) -> &'static str {
        match self {
            Stage::Clone => "clone",
            Stage::Add => "add",
            Stage::Attach => "attach",
            Stage::Use => "use",
            Stage::Detach => "detach",
            Stage::Remove => "remove",
            Stage::Delete => "delete",
        }
    }
}

/// How long the stages of one cycle took.
#[derive(Debug, Default)]
pub(super) struct Took([Duration; Stage::ALL.len()]);

impl Took {
    pub fn time<T>(
        &mut self,
        stage: Stage,
        work: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let began = Instant::now();
        let result = work();
        self.0[stage as usize] += began.elapsed();
        result
    }
}

/// The times of many cycles.
#[derive(Debug)]
pub(super) struct Tally {
    cycles: u64,
    cycle_us: Histogram<u64>,
    stages: [Duration; Stage::ALL.len()],
}

impl Tally {
    pub fn new() -> Self {
        Self {
            cycles: 0,
            // 1 us to an hour.
            cycle_us: Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("fixed bounds"),
            stages: Default::default(),
        }
    }

    pub fn record(&mut self, took: &Took) {
        let whole: Duration = took.0.iter().sum();
        self.cycles += 1;
        self.cycle_us
            .saturating_record(u64::try_from(whole.as_micros()).unwrap_or(u64::MAX));
        for (sum, took) in self.stages.iter_mut().zip(took.0) {
            *sum += took;
        }
    }

    pub fn add(&mut self, other: &Tally) {
        self.cycles += other.cycles;
        // Same bounds, so they add.
        let _ = self.cycle_us.add(&other.cycle_us);
        for (sum, more) in self.stages.iter_mut().zip(other.stages) {
            *sum += more;
        }
    }
}

/// The result of `ferry-bench churn`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Cycles done.
    pub cycles: u64,
    /// Threads that cycled.
    pub parallel: u16,
    /// How long that took.
    pub seconds: f64,
    /// Cycles a second.
    pub cycles_s: f64,
    /// Half of the cycles were at least this fast.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// Mean time of each stage.
    pub stage_ms: BTreeMap<Stage, f64>,
    /// The daemon after the warm-up.
    pub before: Figures,
    /// The daemon at the end.
    pub after: Figures,
    /// What is not back where it was; a leak.
    pub leaks: Vec<String>,
}

impl Report {
    pub(super) fn new(
        plan: &ChurnPlan,
        elapsed: Duration,
        tally: &Tally,
        before: &Figures,
        after: &Figures,
        stopped: Option<String>,
    ) -> Self {
        let seconds = elapsed.as_secs_f64();
        let ms = |quantile| tally.cycle_us.value_at_quantile(quantile) as f64 / 1000.0;
        let mean = |stage: Stage| {
            let sum = tally.stages[stage as usize].as_secs_f64();
            (stage, sum * 1000.0 / tally.cycles.max(1) as f64)
        };
        let mut leaks = before.leaks(after);
        leaks.extend(stopped);
        Self {
            cycles: tally.cycles,
            parallel: plan.parallel,
            seconds,
            cycles_s: tally.cycles as f64 / seconds,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            max_ms: tally.cycle_us.max() as f64 / 1000.0,
            stage_ms: Stage::ALL.into_iter().map(mean).collect(),
            before: before.clone(),
            after: after.clone(),
            leaks,
        }
    }

    /// Nothing is left behind.
    pub fn is_clean(&self) -> bool {
        self.leaks.is_empty()
    }

    /// As a table for people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let stages: Vec<String> = self
            .stage_ms
            .iter()
            .map(|(stage, ms)| format!("{} {ms:.2}", stage.name()))
            .collect();
        let (before, after) = (&self.before, &self.after);
        let pair = |before: u64, after: u64| format!("{before} before, {after} after");
        for (name, value) in [
            (
                "cycles",
                format!("{} by {} at once", self.cycles, self.parallel),
            ),
            ("rate", format!("{:.1} cycles/s", self.cycles_s)),
            (
                "a cycle",
                format!(
                    "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
                    self.p50_ms, self.p99_ms, self.max_ms
                ),
            ),
            ("mean ms", stages.join(", ")),
            (
                "daemon's RSS",
                pair(before.rss_kib, after.rss_kib) + " (KiB)",
            ),
            ("descriptors", pair(before.descriptors, after.descriptors)),
            ("threads", pair(before.threads, after.threads)),
            ("mappings", pair(before.mappings, after.mappings)),
            ("disks", pair(before.disks, after.disks)),
            (
                "files",
                pair(before.files.len() as u64, after.files.len() as u64),
            ),
        ] {
            table.add_row(vec![name.to_owned(), value]);
        }
        if let Some(column) = table.column_mut(0) {
            column.set_cell_alignment(CellAlignment::Left);
        }
        table.trim_fmt()
    }
}
