//! The stamped verifier inside the guest: it never pauses, knows what every
//! sector must hold, and reads all of it again at the end.

use std::time::{Duration, Instant};

use super::guest::Guest;
use super::wait::{secs, wait_for};
use super::{Check, Failure};
use crate::ensure;

const NAME: &str = "verify";
/// Reading everything again, emulated, while others compile.
const FINISH_LIMIT: Duration = secs(180);
/// How long a guest's disk may stand still before the guest is said to hang.
const PROGRESS_LIMIT: Duration = secs(40);
/// How long a verifier may take to answer a question.
const ANSWER_LIMIT: Duration = secs(30);

/// One line of its report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Requests completed.
    pub ops: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Sectors that held something else.
    pub mismatches: u64,
    /// Requests in flight when the line was printed.
    pub inflight: u64,
    /// Sectors read again and compared; known at the end.
    pub sectors_checked: u64,
    /// The longest time without a completion since the answer before, in
    /// microseconds; known to [`Asked`] only.
    pub stall_us: u64,
}

/// A verifier that runs.
pub struct Verifier;

impl Verifier {
    /// Starts it on the guest's first disk, with four queues of depth 32.
    pub fn start(guest: &mut Guest) -> Check<Self> {
        guest.expect("rm -f /tmp/stop")?;
        guest.spawn_bg(
            NAME,
            "ferry-bench device /dev/vda --queues 4 --depth 32 --stop-file /tmp/stop",
        )?;
        let verifier = Self;
        verifier.wait_progress(guest)?;
        Ok(verifier)
    }

    /// Its last line; fails at once if it tells of an error.
    pub fn report(&self, guest: &mut Guest) -> Check<Report> {
        let log = guest.bg_log(NAME, 5)?;
        let Some(line) = log.lines().rev().find(|line| line.starts_with("VERIFY ")) else {
            return Ok(Report::default());
        };
        let report = parse(line);
        ensure!(
            report.errors == 0 && report.mismatches == 0,
            "the verifier in the guest says: {line}\n{}",
            guest.bg_log(NAME, 20)?
        );
        Ok(report)
    }

    /// Waits until requests are completed that were not before.
    pub fn wait_progress(&self, guest: &mut Guest) -> Check<Report> {
        let before = self.report(guest)?;
        let progress = wait_for("the verifier to go on", PROGRESS_LIMIT, || {
            if let Some(status) = guest.bg_status(NAME)? {
                let log = guest.bg_log(NAME, 20)?;
                return Err(Failure(format!("the verifier ended with {status}: {log}")));
            }
            let now = self.report(guest)?;
            Ok((now.ops > before.ops).then_some(now))
        });
        if progress.is_err() {
            guest.ensure_no_disk_errors()?;
        }
        progress
    }

    /// Ends it, and requires that it found all it wrote, without one error.
    pub fn finish(self, guest: &mut Guest) -> Check<Report> {
        guest.expect("touch /tmp/stop")?;
        guest.finish_bg(NAME, FINISH_LIMIT)?;
        let log = guest.bg_log(NAME, 20)?;
        let line = log
            .lines()
            .rev()
            .find(|line| line.starts_with("VERIFY-DONE "));
        let report = line.map(parse).unwrap_or_default();
        ensure!(
            report.errors == 0 && report.mismatches == 0,
            "the verifier in the guest found faults: {log}"
        );
        ensure!(
            report.ops > 0 && report.sectors_checked > 0,
            "the verifier in the guest did nothing: {log}"
        );
        guest.ensure_no_disk_errors()?;
        Ok(report)
    }

    /// The same, and says how much that was.
    pub fn finish_aloud(self, guest: &mut Guest) -> Check {
        let report = self.finish(guest)?;
        println!(
            "{} operations, {} sectors read again",
            report.ops, report.sectors_checked
        );
        Ok(())
    }
}

/// A verifier that answers over the guest's second port, so that what it has
/// counted is known to lie after the question.
pub struct Asked {
    questions: u64,
}

impl Asked {
    /// Starts it on the guest's first disk. `flags` are more of its flags.
    pub fn start(guest: &mut Guest, flags: &str) -> Check<Self> {
        let port = guest.expect("rm -f /tmp/stop; ls /dev/vport*p2")?;
        let port = port.trim();
        guest.spawn_bg(
            NAME,
            &format!(
                "ferry-bench device /dev/vda {flags} --stop-file /tmp/stop --ask <>{port} >&0"
            ),
        )?;
        Ok(Self { questions: 0 })
    }

    /// Where it stands now; fails if it has found a fault.
    pub fn ask(&mut self, guest: &mut Guest) -> Check<Report> {
        self.questions += 1;
        let number = self.questions;
        guest.tell_second_port(&number.to_string())?;
        let end = format!(" mark={number}\n");
        let (line, fault) =
            guest.wait_second_port("the verifier's answer", ANSWER_LIMIT, |text| {
                let text = text.replace('\r', "");
                if let Some(fault) = text.find("VERIFY-MISMATCH ") {
                    return Some((text[fault..].to_owned(), true));
                }
                let to = text.rfind(&end)?;
                let from = text[..to].rfind("VERIFY ")?;
                Some((text[from..to].to_owned(), false))
            })?;
        ensure!(!fault, "the verifier in the guest says: {line}");
        let report = parse(&line);
        ensure!(
            report.errors == 0 && report.mismatches == 0,
            "the verifier in the guest says: {line}"
        );
        Ok(report)
    }

    /// Waits until a request that was begun after `since` is done; returns
    /// the last answer, with the longest stall of all.
    pub fn wait_progress(&mut self, guest: &mut Guest, since: &Report) -> Check<Report> {
        let wanted = since.ops + since.inflight;
        let began = Instant::now();
        let mut stall_us = since.stall_us;
        loop {
            let now = self.ask(guest)?;
            stall_us = stall_us.max(now.stall_us);
            if now.ops > wanted {
                return Ok(Report { stall_us, ..now });
            }
            if began.elapsed() > PROGRESS_LIMIT {
                guest.ensure_no_disk_errors()?;
                return Err(Failure(format!(
                    "no progress in the guest for {PROGRESS_LIMIT:?}: {now:?}, since {since:?}"
                )));
            }
        }
    }

    /// Ends it, and requires that it found all it wrote, without one error.
    pub fn finish(self, guest: &mut Guest) -> Check<Report> {
        guest.expect("touch /tmp/stop")?;
        let line = guest.wait_second_port("the verifier's end", FINISH_LIMIT, |text| {
            let from = text.rfind("VERIFY-DONE ")?;
            Some(text[from..from + text[from..].find('\n')?].to_owned())
        })?;
        let report = parse(&line);
        ensure!(
            report.errors == 0 && report.mismatches == 0,
            "the verifier in the guest found faults: {line}"
        );
        ensure!(
            report.ops > 0 && report.sectors_checked > 0,
            "the verifier in the guest did nothing: {line}"
        );
        guest.finish_bg(NAME, FINISH_LIMIT)?;
        guest.ensure_no_disk_errors()?;
        Ok(report)
    }
}

/// Reads `key=value` words; a key that is not there counts as zero.
fn parse(line: &str) -> Report {
    let value = |key: &str| {
        line.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| *name == key)
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(0)
    };
    Report {
        ops: value("ops"),
        errors: value("errors"),
        mismatches: value("mismatches"),
        inflight: value("inflight"),
        sectors_checked: value("sectors_checked"),
        stall_us: value("stall_us"),
    }
}
