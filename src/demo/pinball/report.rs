//! What was seen, for machines and for people.

use std::time::Duration;

use serde_json::json;

use super::guest::Account;
use super::moves::Move;
use super::player::Seen;
use super::record::{SECTOR_BYTES, sector};
use crate::error::{Done, Failure};
use crate::output;

/// Milliseconds, with microseconds behind the point.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The end of a game.
pub struct Report {
    seen: Seen,
    account: Account,
    moves: Vec<Move>,
    findings: Vec<String>,
    mismatches: u64,
    seconds: f64,
}

impl Report {
    /// Compares what arrived with what is on the disk.
    pub fn new(seen: Seen, account: Account, moves: Vec<Move>, seconds: f64) -> Report {
        let mut findings = seen.findings.clone();
        let mut found = |count: u64, what: String| {
            if count > 0 {
                findings.push(what);
            }
            count
        };
        let lost = account.frames.abs_diff(seen.frames);
        let mut mismatches = seen.mismatches
            + found(lost, format!("{lost} frames were sent that never came"))
            + found(
                account.bad_keys,
                format!("{} keys came damaged or out of order", account.bad_keys),
            )
            + found(
                account.disk_errors,
                format!("{} requests of the disk failed", account.disk_errors),
            );
        let sectors = account.sectors.chunks(SECTOR_BYTES);
        for (at, (record, found)) in seen.records.iter().zip(sectors).enumerate() {
            if sector(record) != found {
                mismatches += 1;
                findings.push(format!(
                    "sector {at} of the disk does not hold its frame's record"
                ));
            }
        }
        Report {
            seen,
            account,
            moves,
            findings,
            mismatches,
            seconds,
        }
    }

    fn resets(&self) -> u32 {
        // There is one connection, whichever end finds it broken.
        u32::from(self.seen.reset || self.account.reset)
    }

    /// Prints it; fails unless the game went on undisturbed.
    pub fn show(&self) -> Done {
        if output::json_mode() {
            self.show_json();
        } else {
            self.show_text();
        }
        for finding in self.findings.iter().take(10) {
            eprintln!("ferry: mismatch: {finding}");
        }
        if self.mismatches > 0 || self.resets() > 0 {
            return Err(Failure::Failed(format!(
                "the game was disturbed: {} connections reset, {} mismatches",
                self.resets(),
                self.mismatches
            )));
        }
        Ok(())
    }

    fn show_json(&self) {
        output::json_line(&json!({
            "frames": self.seen.frames,
            "longest_gap_ms": millis(self.seen.longest_gap),
            "connections_reset": self.resets(),
            "mismatches": self.mismatches,
            "moves": self.moves.iter().map(Move::line).collect::<Vec<_>>(),
            "sectors_checked": self.account.sectors.len() / SECTOR_BYTES,
            "keys_sent": self.seen.keys_sent,
            "score": self.seen.score,
            "balls": self.seen.balls,
            "cable_dropped": self.seen.cable_dropped,
            "seconds": self.seconds,
        }));
    }

    fn show_text(&self) {
        let header = ["MOVE", "COPY", "RINGS STOPPED", "LONGEST GAP", "CAPTURED"];
        let rows = self.moves.iter().map(Move::row);
        output::line(&format!("\n{}\n", output::table(&header, rows.collect())));
        let lines = [
            (
                "score",
                format!("{}, ball {}", self.seen.score, self.seen.balls),
            ),
            ("frames", self.seen.frames.to_string()),
            (
                "longest gap",
                format!("{:.1} ms between two frames", millis(self.seen.longest_gap)),
            ),
            ("resets", self.resets().to_string()),
            ("mismatches", self.mismatches.to_string()),
            (
                "verified",
                format!(
                    "every frame in order and of this game, {} sectors of the disk read back",
                    self.account.sectors.len() / SECTOR_BYTES
                ),
            ),
        ];
        for (what, value) in lines {
            output::line(&format!("{what:<14} {value}"));
        }
    }
}
