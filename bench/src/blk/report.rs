//! What came out of a run.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::{BlkPlan, load};
use crate::verify::{Finding, Progress, Verdict};

/// One thread's counts, and their sum.
#[derive(Debug)]
pub(super) struct Tally {
    ops: u64,
    errors: u64,
    latency_ns: Histogram<u64>,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            ops: 0,
            errors: 0,
            latency_ns: load::histogram(),
        }
    }

    pub fn record(&mut self, latency: Duration, ok: bool) {
        self.ops += 1;
        self.errors += u64::from(!ok);
        self.latency_ns
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn add(&mut self, other: &Tally) {
        self.ops += other.ops;
        self.errors += other.errors;
        // Same bounds, so they add.
        let _ = self.latency_ns.add(&other.latency_ns);
    }
}

/// The result of `ferry-bench blk`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests a second.
    pub iops: f64,
    /// Data moved, MiB a second.
    pub mib_s: f64,
    /// Mean latency.
    pub mean_us: f64,
    /// Half of the requests were at least this fast.
    pub p50_us: f64,
    /// Nine of ten.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// Requests that failed.
    pub errors: u64,
    /// Sectors that held what they should not; zero without `--verify`.
    pub mismatches: u64,
    /// Requests in all.
    pub ops: u64,
    /// How long the load ran.
    pub seconds: f64,
    /// Queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Bytes of a request; zero where sizes are mixed.
    pub block_bytes: u32,
    /// Whether the data was checked.
    pub verified: bool,
    /// Sectors of the last reading.
    pub sectors_checked: u64,
    /// The first mismatches, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

impl Report {
    pub(super) fn of_load(plan: &BlkPlan, elapsed: Duration, tally: &Tally) -> Self {
        let bytes = tally.ops * u64::from(plan.block_bytes);
        let blank = Self::blank(plan, elapsed, tally.ops, bytes, &tally.latency_ns);
        Self {
            errors: tally.errors,
            block_bytes: plan.block_bytes,
            ..blank
        }
    }

    pub(super) fn of_verdict(
        plan: &BlkPlan,
        elapsed: Duration,
        at_end: Progress,
        verdict: Verdict,
    ) -> Self {
        let Verdict {
            progress,
            sectors_checked,
            findings,
            latency_ns,
        } = verdict;
        Self {
            errors: progress.errors,
            mismatches: progress.mismatches,
            verified: true,
            sectors_checked,
            findings: findings.iter().map(Finding::to_string).collect(),
            ..Self::blank(plan, elapsed, at_end.ops, at_end.bytes, &latency_ns)
        }
    }

    fn blank(
        plan: &BlkPlan,
        elapsed: Duration,
        ops: u64,
        bytes: u64,
        latency_ns: &Histogram<u64>,
    ) -> Self {
        let seconds = elapsed.as_secs_f64();
        let us = |quantile| latency_ns.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            iops: ops as f64 / seconds,
            mib_s: bytes as f64 / seconds / f64::from(1 << 20),
            mean_us: latency_ns.mean() / 1000.0,
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: latency_ns.max() as f64 / 1000.0,
            errors: 0,
            mismatches: 0,
            ops,
            seconds,
            queues: plan.queues,
            depth: plan.depth,
            block_bytes: 0,
            verified: false,
            sectors_checked: 0,
            findings: Vec::new(),
        }
    }

    /// Nothing failed and nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.mismatches == 0
    }

    /// As a table for people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let us = |v: f64| format!("{v:.1} us");
        let mut rows = vec![
            ("throughput", format!("{:.0} IOPS", self.iops)),
            ("bandwidth", format!("{:.1} MiB/s", self.mib_s)),
            ("latency mean", us(self.mean_us)),
            ("latency p50", us(self.p50_us)),
            ("latency p90", us(self.p90_us)),
            ("latency p99", us(self.p99_us)),
            ("latency p99.9", us(self.p999_us)),
            ("latency max", us(self.max_us)),
            ("requests", self.ops.to_string()),
            ("errors", self.errors.to_string()),
        ];
        if self.verified {
            rows.push(("mismatches", format!("{} sectors", self.mismatches)));
            rows.push(("last reading", format!("{} sectors", self.sectors_checked)));
        }
        for (name, value) in rows {
            table.add_row([name, &value]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.trim_fmt()
    }
}
