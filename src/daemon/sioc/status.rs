//! How a datastore does, for `ferry datastore list`; and what of it is worth an event.

use std::fmt;
use std::sync::MutexGuard;

use ferry_dataplane::qos::controller::{Decision, Event, HostReport};
use serde_json::{Value, json};

use super::exchange::Heard;
use super::{Datastore, lock};
use crate::events::{About, What};
use crate::qos::datastore::ms;

/// Latency below which congestion is over, as a part of the threshold.
const WELL_BELOW: f64 = 0.9;

/// Periods in a row that make it begin, or end: one may be a pause of the device.
const PERIODS: u32 = 2;

/// What was found of the last period.
#[derive(Debug, Default)]
pub struct Status {
    last: Option<Last>,
    /// Blocks of the statistics file that could not be used, since the start.
    pub ignored: u64,
}

#[derive(Debug)]
struct Last {
    decision: Decision,
    ios: u64,
    hosts: usize,
    trouble: Option<String>,
}

impl Status {
    /// Nothing happens there.
    pub fn rest(&mut self) {
        self.last = None;
    }

    /// A period was decided.
    pub fn decided(&mut self, own: &HostReport, decision: &Decision, heard: &Heard) {
        self.last = Some(Last {
            decision: *decision,
            ios: own.ios,
            hosts: 1 + heard.others.len(),
            trouble: heard.trouble.clone(),
        });
    }

    /// Puts it into a line of the list.
    pub fn add_to(&self, line: &mut Value) {
        line["ignored_blocks"] = self.ignored.into();
        let Some(last) = &self.last else {
            line["state"] = "idle".into();
            return;
        };
        let decision = &last.decision;
        let finite = |slots: f64| slots.is_finite().then_some(slots);
        let state = if decision.unmanaged {
            "unmanaged load"
        } else if decision.window_total.is_finite() {
            "congested"
        } else {
            "open"
        };
        line["state"] = state.into();
        line["latency_ms"] = json!(ms(decision.latency_ns));
        line["window"] = json!(finite(decision.window));
        line["window_total"] = json!(finite(decision.window_total));
        line["ios"] = last.ios.into();
        line["hosts"] = last.hosts.into();
        line["trouble"] = json!(last.trouble);
    }
}

/// What was told of a datastore, so that it is told once.
pub struct Told {
    threshold_ns: u64,
    congested: bool,
    /// Periods in a row that said otherwise.
    otherwise: u32,
}

/// What is worth an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum News {
    Congested { latency_ns: u64, threshold_ns: u64 },
    Relieved { latency_ns: u64 },
    UnmanagedFound { elasticity: f64 },
    UnmanagedGone,
}

impl Told {
    pub fn new(threshold_ns: u64) -> Told {
        Told {
            threshold_ns,
            congested: false,
            otherwise: 0,
        }
    }

    /// It is another from now on.
    pub fn set_threshold(&mut self, threshold_ns: u64) {
        self.threshold_ns = threshold_ns;
    }

    /// What has changed with this period.
    pub fn look(&mut self, own: &HostReport, decision: &Decision) -> Vec<News> {
        let mut news = Vec::new();
        match decision.event {
            Some(Event::UnmanagedFound { elasticity }) => {
                news.push(News::UnmanagedFound { elasticity });
            }
            Some(Event::UnmanagedGone) => news.push(News::UnmanagedGone),
            None => {}
        }
        let latency_ns = decision.latency_ns;
        let closed = decision.window_total.is_finite();
        let busy = own.ios > 0;
        #[expect(clippy::cast_precision_loss, reason = "digits, not magnitude")]
        let below = latency_ns as f64 <= WELL_BELOW * self.threshold_ns as f64;
        let otherwise = if self.congested {
            !closed && (below || !busy)
        } else {
            closed || (busy && latency_ns > self.threshold_ns)
        };
        self.otherwise = if otherwise { self.otherwise + 1 } else { 0 };
        if self.otherwise >= PERIODS {
            self.otherwise = 0;
            self.congested = !self.congested;
            news.push(if self.congested {
                News::Congested {
                    latency_ns,
                    threshold_ns: self.threshold_ns,
                }
            } else {
                News::Relieved { latency_ns }
            });
        }
        news
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            News::Congested {
                latency_ns,
                threshold_ns,
            } => write!(
                f,
                "it is congested: {:.2} ms, and {} ms are its threshold",
                ms(*latency_ns),
                ms(*threshold_ns)
            ),
            News::Relieved { latency_ns } => {
                write!(f, "it is congested no more: {:.2} ms", ms(*latency_ns))
            }
            News::UnmanagedFound { elasticity } => write!(
                f,
                "something that Ferry does not steer loads it: latency follows the window by {elasticity:.2} \
                 only; keep backups, scrubs and other hosts' machines off it, or give them disks of Ferry's"
            ),
            News::UnmanagedGone => write!(f, "the load that Ferry does not steer is gone"),
        }
    }
}

impl News {
    fn what(&self) -> What {
        match self {
            News::Congested { .. } => What::CongestionBegun,
            News::Relieved { .. } => What::CongestionEnded,
            News::UnmanagedFound { .. } => What::UnmanagedFound,
            News::UnmanagedGone => What::UnmanagedGone,
        }
    }
}

impl Datastore {
    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        lock(&self.status)
    }

    /// Raises events.
    pub(super) fn tell(&self, news: Vec<News>) {
        for news in news {
            self.note(news.what(), news);
        }
    }

    /// Raises one.
    pub(super) fn note(&self, what: What, text: impl fmt::Display) {
        if let Some(daemon) = self.daemon.upgrade() {
            let text = format!("datastore {}: {text}", self.path.display());
            daemon.events.note(what, About::default(), text);
        }
    }

    /// Says it when blocks cannot be used; then again only when there are more of them.
    pub(super) fn note_ignored(&self, heard: &Heard) {
        let mut status = self.status();
        if heard.ignored <= status.ignored {
            return;
        }
        let new = heard.ignored - status.ignored;
        let first = status.ignored == 0;
        status.ignored = heard.ignored;
        drop(status);
        if first {
            let text = format!(
                "{new} block(s) of its statistics file are not used ({}); the list counts them from now \
                 on",
                heard.why_ignored
            );
            self.note(What::StatisticsIgnored, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn decision(latency_ms: u64, window_total: f64) -> Decision {
        Decision {
            window: window_total,
            window_total,
            latency_ns: latency_ms * MS,
            level: f64::INFINITY,
            unmanaged: false,
            event: None,
        }
    }

    #[test]
    fn congestion_is_told_once_when_it_begins_and_when_it_ends() {
        let own = HostReport {
            ios: 1000,
            ..HostReport::default()
        };
        let mut told = Told::new(10 * MS);
        let open = f64::INFINITY;
        let mut look = |latency_ms, window| told.look(&own, &decision(latency_ms, window));
        assert_eq!(look(20, open), []);
        assert_eq!(look(5, open), []);
        assert_eq!(look(20, open), []);
        let begun = look(12, 30.0);
        assert!(matches!(begun[..], [News::Congested { .. }]), "{begun:?}");
        // The window keeps it at the threshold: that is no end.
        for latency_ms in [10, 9, 8, 11] {
            assert_eq!(look(latency_ms, 30.0), []);
        }
        assert_eq!(look(9, open), []);
        let over = look(5, open);
        assert!(matches!(over[..], [News::Relieved { .. }]), "{over:?}");
    }

    #[test]
    fn what_the_controller_finds_is_passed_on() {
        let mut told = Told::new(10 * MS);
        let found = Decision {
            event: Some(Event::UnmanagedFound { elasticity: 0.1 }),
            ..decision(5, f64::INFINITY)
        };
        let news = told.look(&HostReport::default(), &found);
        assert_eq!(news, [News::UnmanagedFound { elasticity: 0.1 }]);
        assert!(news[0].to_string().contains("follows the window by 0.10"));
    }
}
