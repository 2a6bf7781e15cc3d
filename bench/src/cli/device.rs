//! `ferry-bench device`.
//!
//! One line a second on stdout, flushed at once: whoever started it may only
//! have a guest's serial line to read. With `--ask` one more for each line on
//! stdin, so that what is counted can be told to lie after an event outside.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ferry_bench::device::{self, DevicePlan, RingPort};
use ferry_bench::error::BenchError;
use ferry_bench::verify::{Finding, Progress, Verdict, Verifier};

use super::size;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The block device or file; its contents are destroyed
    path: PathBuf,
    /// Stop after so long; 10 unless told to stop otherwise
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Stop when this file appears
    #[arg(long, alias = "until-file", value_name = "PATH")]
    stop_file: Option<PathBuf>,
    /// Stop at a line on stdin, or at its end
    #[arg(long)]
    until_stdin_eof: bool,
    /// Answer each line on stdin with a VERIFY line that repeats its first word
    /// as `mark`, and tells the longest time without a completion since the
    /// answer before
    #[arg(long, conflicts_with = "until_stdin_eof")]
    ask: bool,
    /// Threads, each with an io_uring
    #[arg(long, default_value_t = 4)]
    queues: u16,
    /// Requests in flight per thread
    #[arg(long, default_value_t = 32)]
    depth: u16,
    /// Use only this much, from the start
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = size::bytes)]
    span: u64,
    /// Longest request
    #[arg(long, default_value = "1M", value_name = "SIZE", value_parser = size::bytes_u32)]
    max_size: u32,
    /// The disk is all zero now, so anything else is a mismatch
    #[arg(long)]
    fresh: bool,
    /// Draws the load; the same seed draws the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with one JSON object instead of the VERIFY-DONE line
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Summary {
    ops: u64,
    errors: u64,
    mismatches: u64,
    sectors_checked: u64,
    seconds: f64,
    gap_ms: u128,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

pub(super) fn run(args: Args) -> Result<bool, BenchError> {
    let stop = Stop::new(&args)?;
    let plan = DevicePlan {
        path: args.path,
        queues: args.queues,
        depth: args.depth,
        span_bytes: args.span,
        largest_bytes: args.max_size,
        fresh: args.fresh,
        seed: args.seed,
    };
    plan.check()?;
    let questions = args.ask.then(questions);
    let verifier = device::start(&plan)?;
    let began = Instant::now();
    let told_so_far = load(&verifier, &stop, questions.as_ref(), began);
    let seconds = began.elapsed().as_secs_f64();
    let mut next = Instant::now();
    let verdict = verifier.finish(|checked, total| {
        if Instant::now() >= next {
            next = Instant::now() + Duration::from_secs(1);
            say(&format!(
                "VERIFY-SWEEP t={} checked={checked} of={total}",
                tick(began)
            ));
        }
    })?;
    for finding in verdict.findings.iter().skip(told_so_far) {
        say(&told(finding));
    }
    if args.json {
        super::print_json(&summary(&verdict, seconds))?;
    } else {
        say(&format!(
            "VERIFY-DONE ops={} errors={} mismatches={} sectors_checked={}",
            verdict.progress.ops,
            verdict.progress.errors,
            verdict.progress.mismatches,
            verdict.sectors_checked
        ));
    }
    Ok(verdict.is_clean())
}

/// The words asked on stdin.
fn questions() -> Receiver<String> {
    let (ask, asked) = channel();
    // Left behind at the end, as the thread of `Stop` is.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let word = line.split_whitespace().next().unwrap_or_default();
            if ask.send(word.to_owned()).is_err() {
                return;
            }
        }
    });
    asked
}

/// Runs until it is time to stop; returns the number of mismatches told.
fn load(
    verifier: &Verifier<RingPort>,
    stop: &Stop,
    questions: Option<&Receiver<String>>,
    began: Instant,
) -> usize {
    let mut count = 0;
    let mut next = began + Duration::from_secs(1);
    while !stop.is_due(began) && !verifier.has_failed() {
        if let Some(word) = next_question(questions) {
            let line = status(tick(began), &verifier.progress());
            let stall_us = verifier.take_gap().as_micros();
            say(&format!("{line} stall_us={stall_us} mark={word}"));
        }
        if Instant::now() >= next {
            next += Duration::from_secs(1);
            say(&status(tick(began), &verifier.progress()));
            for finding in verifier.new_findings() {
                say(&told(&finding));
                count += 1;
            }
        }
    }
    count
}

/// Waits a moment for a question.
fn next_question(questions: Option<&Receiver<String>>) -> Option<String> {
    const MOMENT: Duration = Duration::from_millis(50);
    match questions.map(|asked| asked.recv_timeout(MOMENT)) {
        Some(Ok(word)) => return Some(word),
        Some(Err(RecvTimeoutError::Timeout)) => {}
        Some(Err(RecvTimeoutError::Disconnected)) | None => std::thread::sleep(MOMENT),
    }
    None
}

fn status(t: u64, p: &Progress) -> String {
    format!(
        "VERIFY t={t} ops={} errors={} mismatches={} inflight={} gap_ms={}",
        p.ops,
        p.errors,
        p.mismatches,
        p.in_flight,
        p.gap_max.as_millis()
    )
}

fn told(finding: &Finding) -> String {
    format!("VERIFY-MISMATCH {finding}")
}

fn tick(began: Instant) -> u64 {
    began.elapsed().as_secs()
}

/// A line on stdout, at once. Nobody listening is no reason to stop verifying.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn summary(verdict: &Verdict, seconds: f64) -> Summary {
    let us = |q| verdict.latency_ns.value_at_quantile(q) as f64 / 1000.0;
    Summary {
        ops: verdict.progress.ops,
        errors: verdict.progress.errors,
        mismatches: verdict.progress.mismatches,
        sectors_checked: verdict.sectors_checked,
        seconds,
        gap_ms: verdict.progress.gap_max.as_millis(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        max_us: verdict.latency_ns.max() as f64 / 1000.0,
    }
}

/// When to end the load.
struct Stop {
    after: Option<Duration>,
    file: Option<PathBuf>,
    told: Arc<AtomicBool>,
}

impl Stop {
    fn new(args: &Args) -> Result<Self, BenchError> {
        let told = Arc::new(AtomicBool::new(false));
        if args.until_stdin_eof {
            let told = told.clone();
            // Left behind when the run ends otherwise: the process ends with it.
            std::thread::spawn(move || {
                let _ = std::io::stdin().read_line(&mut String::new());
                told.store(true, Ordering::Relaxed);
            });
        }
        let endless = args.stop_file.is_none() && !args.until_stdin_eof;
        let after = match args.seconds {
            Some(seconds) => Some(super::seconds(seconds)?),
            None => endless.then_some(Duration::from_secs(10)),
        };
        Ok(Self {
            after,
            file: args.stop_file.clone(),
            told,
        })
    }

    fn is_due(&self, began: Instant) -> bool {
        self.after.is_some_and(|after| began.elapsed() >= after)
            || self.told.load(Ordering::Relaxed)
            || self.file.as_ref().is_some_and(|file| file.exists())
    }
}
