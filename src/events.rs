//! What happened to the daemon's disks and machines lately: the last few events, in memory, for
//! `ferry events` and for the reports that hooks get. Each is logged as well; the log is what lasts.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ferry_migration::ids::DiskId;
use serde::Serialize;
use serde_json::{Value, json};

/// Events kept.
pub const EVENTS_MAX: usize = 256;

/// Longest text kept of one, in characters.
const TEXT_CHARS_MAX: usize = 400;

/// What kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The daemon has begun.
    Started,
    /// A disk was taken up at the start.
    DiskUp,
    /// A disk could not be taken up.
    DiskRefused,
    /// Something was changed by command.
    Command,
    /// A machine makes no progress, or is silent.
    Fault,
    /// A machine is well again.
    Healthy,
    /// A disk was taken over from another host.
    Takeover,
    /// A hook begins, or ended well.
    Hook,
    /// A hook failed.
    HookFailed,
    /// A datastore's latency is above its threshold.
    CongestionBegun,
    /// It is well below it again.
    CongestionEnded,
    /// Something loads a datastore that Ferry does not steer.
    UnmanagedFound,
    /// It is gone.
    UnmanagedGone,
    /// Blocks of a datastore's statistics file are not used.
    StatisticsIgnored,
    /// A threshold was found by trying.
    ThresholdFound,
}

impl What {
    fn is_bad(self) -> bool {
        matches!(
            self,
            What::DiskRefused
                | What::Fault
                | What::HookFailed
                | What::UnmanagedFound
                | What::StatisticsIgnored
        )
    }

    fn name(self) -> String {
        json!(self).as_str().unwrap_or_default().to_owned()
    }
}

/// Whom an event is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct About<'a> {
    pub vm: Option<&'a str>,
    pub disk: Option<&'a DiskId>,
}

impl<'a> About<'a> {
    pub fn vm(vm: &'a str) -> About<'a> {
        About {
            vm: Some(vm),
            disk: None,
        }
    }
}

/// One event.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Counts up by one from 1: a gap shows what has fallen out.
    pub number: u64,
    /// Wall-clock time in UTC.
    pub time: String,
    pub unix_ms: u64,
    pub what: What,
    pub vm: Option<String>,
    pub disk: Option<DiskId>,
    pub text: String,
}

/// The last events of the daemon.
#[derive(Default)]
pub struct Events {
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    count: u64,
    kept: VecDeque<Event>,
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an event, and logs it.
    pub fn note(&self, what: What, about: About<'_>, text: impl Display) {
        let text: String = text.to_string().chars().take(TEXT_CHARS_MAX).collect();
        let (vm, disk) = (about.vm, about.disk.map(tracing::field::display));
        if what.is_bad() {
            tracing::warn!(event = what.name(), vm, disk, "{text}");
        } else {
            tracing::info!(event = what.name(), vm, disk, "{text}");
        }
        let unix_ms = unix_ms();
        let mut ring = self.ring();
        ring.count += 1;
        let event = Event {
            number: ring.count,
            time: utc(unix_ms),
            unix_ms,
            what,
            vm: about.vm.map(str::to_owned),
            disk: about.disk.cloned(),
            text,
        };
        if ring.kept.len() == EVENTS_MAX {
            ring.kept.pop_front();
        }
        ring.kept.push_back(event);
    }

    /// The last `count` events, the oldest first.
    pub fn last(&self, count: usize) -> Vec<Event> {
        let ring = self.ring();
        let skipped = ring.kept.len().saturating_sub(count);
        ring.kept.iter().skip(skipped).cloned().collect()
    }

    /// All that are kept, as `ferry events` has them.
    pub fn lines(&self) -> Value {
        json!({ "events": self.last(EVENTS_MAX) })
    }
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}

/// A time as RFC 3339 writes it, in UTC.
pub fn utc(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the day that some of them lack is their last one; and they
    // are counted in the 400 years after which the calendar repeats itself.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_numbered() {
        let events = Events::default();
        for n in 0..EVENTS_MAX + 10 {
            events.note(What::Command, About::vm("web"), n);
        }
        let kept = events.last(EVENTS_MAX + 10);
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[0].number, 11);
        assert_eq!(events.last(1)[0].text, (EVENTS_MAX + 9).to_string());
        events.note(What::Fault, About::default(), "x".repeat(5000));
        assert_eq!(events.last(1)[0].text.len(), TEXT_CHARS_MAX);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(utc(1_767_225_600_001), "2026-01-01T00:00:00.001Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }
}
