//! What the workers of one run share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::VerifyPlan;
use crate::stamp::{Mismatch, Oracle, Span, Stamper};

/// Mismatches told in detail; the rest are only counted.
const FINDINGS_MAX: usize = 16;

/// A mismatch and when it was found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Since the run began.
    pub at: Duration,
    /// What is wrong.
    pub mismatch: Mismatch,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let m = &self.mismatch;
        let at = self.at.as_secs_f64();
        write!(f, "sector={} kind={:?} found=", m.sector, m.kind)?;
        write!(
            f,
            "{:?} allowed={:?} read={} t={at:.3}",
            m.seen, m.allowed, m.read.0
        )
    }
}

/// Counts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Operations that came back.
    pub ops: u64,
    /// Of these, those that failed.
    pub errors: u64,
    /// Sectors that held what they should not.
    pub mismatches: u64,
    /// Operations in flight.
    pub in_flight: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// The longest time without any completion, among all queues.
    pub gap_max: Duration,
}

#[derive(Debug)]
pub(super) struct Shared {
    oracle: Mutex<Oracle>,
    pub stamper: Stamper,
    pub stop: AtomicBool,
    pub ops: AtomicU64,
    pub errors: AtomicU64,
    pub in_flight: AtomicU64,
    pub bytes: AtomicU64,
    mismatches: AtomicU64,
    checked: AtomicU64,
    began: Instant,
    last_done_ns: AtomicU64,
    gap_max_ns: AtomicU64,
    /// As `gap_max_ns`, since it was last taken.
    gap_untaken_ns: AtomicU64,
    findings: Mutex<Vec<Finding>>,
    told: AtomicU64,
    sweep: Mutex<VecDeque<Span>>,
}

impl Shared {
    pub fn new(plan: &VerifyPlan) -> Self {
        let oracle = Oracle::new(plan.sectors, plan.initial, plan.run);
        Self {
            stamper: oracle.stamper(),
            oracle: Mutex::new(oracle),
            stop: AtomicBool::new(false),
            ops: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            began: Instant::now(),
            last_done_ns: AtomicU64::new(0),
            gap_max_ns: AtomicU64::new(0),
            gap_untaken_ns: AtomicU64::new(0),
            findings: Mutex::new(Vec::new()),
            told: AtomicU64::new(0),
            sweep: Mutex::new(VecDeque::new()),
        }
    }

    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        lock(&self.oracle)
    }

    pub fn progress(&self) -> Progress {
        Progress {
            ops: self.ops.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            mismatches: self.mismatches.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            gap_max: Duration::from_nanos(self.gap_max_ns.load(Ordering::Relaxed)),
        }
    }

    /// Notes that something came back just now.
    pub fn saw_completion(&self) {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let last = self.last_done_ns.swap(now, Ordering::Relaxed);
        // Another thread may have been a little later; that is no gap.
        let gap = now.saturating_sub(last);
        self.gap_max_ns.fetch_max(gap, Ordering::Relaxed);
        self.gap_untaken_ns.fetch_max(gap, Ordering::Relaxed);
    }

    pub fn take_gap(&self) -> Duration {
        Duration::from_nanos(self.gap_untaken_ns.swap(0, Ordering::Relaxed))
    }

    pub fn report(&self, wrong: Vec<Mismatch>) {
        if wrong.is_empty() {
            return;
        }
        self.mismatches
            .fetch_add(wrong.len() as u64, Ordering::Relaxed);
        let at = self.began.elapsed();
        let mut findings = lock(&self.findings);
        let room = FINDINGS_MAX.saturating_sub(findings.len());
        findings.extend(
            wrong
                .into_iter()
                .take(room)
                .map(|mismatch| Finding { at, mismatch }),
        );
    }

    pub fn findings(&self) -> Vec<Finding> {
        lock(&self.findings).clone()
    }

    pub fn new_findings(&self) -> Vec<Finding> {
        let findings = lock(&self.findings);
        let told = self.told.swap(findings.len() as u64, Ordering::Relaxed);
        findings[usize::try_from(told).unwrap_or(0)..].to_vec()
    }

    /// Lists what the last reading must read; returns its sectors.
    pub fn plan_sweep(&self, sectors_max: u64) -> u64 {
        let spans = self.oracle().sweep(sectors_max);
        let total = spans.iter().map(|s| s.sectors).sum();
        *lock(&self.sweep) = spans.into();
        total
    }

    pub fn next_sweep(&self) -> Option<Span> {
        lock(&self.sweep).pop_front()
    }

    pub fn give_up_sweep(&self) {
        lock(&self.sweep).clear();
    }

    pub fn add_checked(&self, sectors: u64) {
        self.checked.fetch_add(sectors, Ordering::Relaxed);
    }

    pub fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }
}

/// A worker that panicked ends the run by its join; the data is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
