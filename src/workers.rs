//! The process's workers: how they are started, and what they say of themselves.

use std::str::FromStr;

use ferry_dataplane::limits::SPIN_NS;
use ferry_dataplane::sys;
use ferry_dataplane::worker::{Worker, WorkerHandle, WorkerOptions};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Done, Failure};

/// Longest finite time to poll, in microseconds: a minute.
const SPIN_US_MAX: u64 = 60_000_000;

/// How long a queue without requests is polled: microseconds, or `max` for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Spin {
    ns: u64,
}

/// As a configuration has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Word(String),
}

impl Default for Spin {
    fn default() -> Spin {
        Spin { ns: SPIN_NS }
    }
}

impl FromStr for Spin {
    type Err = String;

    fn from_str(text: &str) -> Result<Spin, String> {
        match text.parse::<u64>() {
            Ok(us) if us <= SPIN_US_MAX => Ok(Spin { ns: us * 1000 }),
            _ if text == "max" => Ok(Spin { ns: u64::MAX }),
            _ => Err(format!(
                "use microseconds, 0 to {SPIN_US_MAX}, or max to poll always"
            )),
        }
    }
}

impl TryFrom<Written> for Spin {
    type Error = String;

    fn try_from(written: Written) -> Result<Spin, String> {
        match written {
            Written::Number(us) => us.to_string().parse(),
            Written::Word(word) => word.parse(),
        }
    }
}

/// Starts the polling threads, with as many open files as this process may have: every ring of every
/// disk takes some.
pub fn start(count: usize, spin: Spin) -> Done<Vec<Worker>> {
    if let Err(error) = sys::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let options = WorkerOptions { spin_ns: spin.ns };
    (0..count)
        .map(|n| Worker::start_with(&format!("ferry-worker-{n}"), &options))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| {
            Failure::Failed(format!(
                "cannot start a worker: {error}; Ferry needs io_uring (Linux 5.19 or newer, not \
                 disabled by kernel.io_uring_disabled)"
            ))
        })
}

/// What `ferry worker list` is made of: counters since the start.
pub fn lines(workers: &[WorkerHandle]) -> Value {
    let line = |(number, worker): (usize, &WorkerHandle)| {
        let totals = worker.totals();
        json!({
            "worker": number,
            "queues": totals.queues,
            "requests": totals.requests,
            "busy_ns": totals.busy_ns,
            "polling_ns": totals.polling_ns,
            "asleep_ns": totals.asleep_ns,
            "sleeps": totals.sleeps,
        })
    };
    let lines: Vec<Value> = workers.iter().enumerate().map(line).collect();
    json!({ "workers": lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_poll() {
        let ns = |text: &str| text.parse::<Spin>().map(|spin| spin.ns);
        assert_eq!(ns("0"), Ok(0));
        assert_eq!(ns("50"), Ok(50_000));
        assert_eq!(ns("max"), Ok(u64::MAX));
        for bad in ["", "-1", "60000001", "1.5", "50us"] {
            assert!(ns(bad).is_err(), "{bad}");
        }
    }
}
