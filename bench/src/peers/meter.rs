//! What a server's process spends: time on a core, and cycles and instructions
//! where the machine counts them.

use std::fs;

use crate::sys::{Count, Counter};

/// Totals since some start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// Time on a core, of all threads.
    pub cpu_ns: u64,
    /// Cycles, where they are counted.
    pub cycles: Option<u64>,
    /// Instructions, where they are counted.
    pub instructions: Option<u64>,
}

impl Reading {
    /// What was spent since an earlier reading.
    pub fn since(&self, earlier: &Reading) -> Reading {
        let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_sub(b?));
        Reading {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            cycles: both(self.cycles, earlier.cycles),
            instructions: both(self.instructions, earlier.instructions),
        }
    }
}

/// Reads a process.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    cycles: Vec<Counter>,
    instructions: Vec<Counter>,
}

impl Meter {
    /// On all threads that the process has now, and those they start.
    pub fn new(pid: u32) -> Meter {
        let tids = threads(pid);
        // All or none: a part of the threads would be a wrong figure.
        let counters = |count| {
            let each = tids.iter().map(|tid| Counter::on_thread(*tid, count));
            each.collect::<Result<Vec<_>, _>>().unwrap_or_default()
        };
        Meter {
            pid,
            cycles: counters(Count::Cycles),
            instructions: counters(Count::Instructions),
        }
    }

    /// The totals now.
    pub fn read(&self) -> Reading {
        Reading {
            cpu_ns: cpu_ns(self.pid),
            cycles: sum(&self.cycles),
            instructions: sum(&self.instructions),
        }
    }
}

/// Whether this machine counts cycles and instructions, or why not.
pub fn counters_here() -> Result<(), std::io::Error> {
    Counter::on_thread(0, Count::Instructions).map(drop)
}

fn sum(counters: &[Counter]) -> Option<u64> {
    let values: Option<Vec<u64>> = counters.iter().map(|c| c.read().ok()).collect();
    values.filter(|v| !v.is_empty()).map(|v| v.iter().sum())
}

fn threads(pid: u32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|e| e.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

/// Time on a core of all threads of a process, the kernel's own workers for it
/// included, in nanoseconds.
pub fn cpu_ns(pid: u32) -> u64 {
    let of_thread = |tid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    threads(pid).iter().filter_map(of_thread).sum()
}

/// Time on a core of the calling thread, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen() {
        let meter = Meter::new(std::process::id());
        let before = meter.read();
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 40 {}
        let spent = meter.read().since(&before);
        assert!(spent.cpu_ns > 1_000_000, "{spent:?}");
    }
}
