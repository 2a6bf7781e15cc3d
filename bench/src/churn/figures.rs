//! What a daemon holds: memory, descriptors, threads, mappings, disks, files.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::daemon::Daemon;
use crate::error::BenchError;

/// How long a daemon may take to come to rest: threads end after their work, and those that the
/// kernel keeps for its io_uring stay for 5 s without any.
const REST_MAX: Duration = Duration::from_secs(10);
/// How long nothing may change before a daemon is at rest.
const REST: Duration = Duration::from_millis(300);
/// Growth that is no leak: what the allocator holds back, and its arenas.
const RSS_SLACK_KIB: u64 = 8 << 10;
/// Mappings that are no leak: the allocator's, and stacks kept for the next thread.
const MAPPINGS_SLACK: u64 = 64;
/// Files named in a report.
const NAMED_MAX: usize = 5;

/// A look at a daemon that nobody is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Resident memory, in KiB.
    pub rss_kib: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Mappings of memory.
    pub mappings: u64,
    /// Disks that the daemon knows.
    pub disks: u64,
    /// Files in its folders, and beside the base.
    #[serde(serialize_with = "count")]
    pub files: BTreeSet<PathBuf>,
}

fn count<S: serde::Serializer>(files: &BTreeSet<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(files.len() as u64)
}

impl Figures {
    /// The figures once nothing changes any more.
    pub(super) fn at_rest(daemon: &Daemon, dir: &Path) -> Result<Figures, BenchError> {
        // Asked first: what serves this connection is to end as well.
        let list = daemon.connect()?.call("disk.list", &json!({}))?;
        let disks = list["disks"].as_array().map_or(0, Vec::len) as u64;
        let until = Instant::now() + REST_MAX;
        let mut last = Self::now(daemon, dir, disks)?;
        let mut since = Instant::now();
        while since.elapsed() < REST && Instant::now() < until {
            std::thread::sleep(REST / 10);
            let now = Self::now(daemon, dir, disks)?;
            if !now.same_counts(&last) {
                since = Instant::now();
            }
            last = now;
        }
        Ok(last)
    }

    /// The figures once they are back at `before`, or will not be.
    pub(super) fn back_at(
        before: &Figures,
        daemon: &Daemon,
        dir: &Path,
    ) -> Result<Figures, BenchError> {
        let until = Instant::now() + REST_MAX;
        loop {
            let now = Self::at_rest(daemon, dir)?;
            if before.leaks(&now).is_empty() || Instant::now() >= until {
                return Ok(now);
            }
        }
    }

    fn same_counts(&self, other: &Figures) -> bool {
        (self.descriptors, self.threads, &self.files)
            == (other.descriptors, other.threads, &other.files)
    }

    fn now(daemon: &Daemon, dir: &Path, disks: u64) -> Result<Figures, BenchError> {
        let proc = PathBuf::from(format!("/proc/{}", daemon.pid));
        let look = || -> io::Result<Figures> {
            let status = std::fs::read_to_string(proc.join("status"))?;
            let maps = std::fs::read_to_string(proc.join("maps"))?;
            let mut files = BTreeSet::new();
            for dir in daemon.dirs.iter().map(PathBuf::as_path).chain([dir]) {
                collect(dir, &mut files)?;
            }
            Ok(Figures {
                rss_kib: field(&status, "VmRSS:"),
                descriptors: std::fs::read_dir(proc.join("fd"))?.count() as u64,
                threads: field(&status, "Threads:"),
                mappings: maps.lines().count() as u64,
                disks,
                files,
            })
        };
        look().map_err(|source| BenchError::Target {
            what: "look at the daemon in",
            path: proc.clone(),
            source,
            mend: "run as the daemon's user, where its process is seen",
        })
    }

    /// What is in `after` and should not be, each with its figures.
    pub(super) fn leaks(&self, after: &Figures) -> Vec<String> {
        let mut leaks = Vec::new();
        for (what, before, after, slack) in [
            ("resident KiB", self.rss_kib, after.rss_kib, RSS_SLACK_KIB),
            ("open descriptors", self.descriptors, after.descriptors, 0),
            ("threads", self.threads, after.threads, 0),
            ("mappings", self.mappings, after.mappings, MAPPINGS_SLACK),
            ("disks", self.disks, after.disks, 0),
        ] {
            if after > before + slack {
                leaks.push(format!("{what}: {before} before, {after} after"));
            }
        }
        let left: Vec<String> = after
            .files
            .difference(&self.files)
            .map(|path| path.display().to_string())
            .collect();
        if !left.is_empty() {
            let named = left[..left.len().min(NAMED_MAX)].join(", ");
            leaks.push(format!("{} files left, such as {named}", left.len()));
        }
        leaks
    }
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// All paths below `dir`.
fn collect(dir: &Path, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // What goes meanwhile is gone.
        let is_dir = entry.file_type().is_ok_and(|it| it.is_dir());
        if !files.insert(path.clone()) || !is_dir {
            continue;
        }
        match collect(&path, files) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            rss_kib: 10_000,
            descriptors: 20,
            threads: 5,
            mappings: 100,
            disks: 1,
            files: ["/run/a".into()].into(),
        }
    }

    #[test]
    fn what_is_back_at_the_baseline_or_below_is_no_leak() {
        let before = figures();
        assert!(before.leaks(&before).is_empty());
        let after = Figures {
            rss_kib: before.rss_kib + RSS_SLACK_KIB,
            descriptors: 19,
            threads: 4,
            mappings: before.mappings + MAPPINGS_SLACK,
            disks: 0,
            files: BTreeSet::new(),
        };
        assert!(before.leaks(&after).is_empty());
    }

    #[test]
    fn every_figure_is_a_leak_of_its_own() {
        let before = figures();
        let with = |change: &dyn Fn(&mut Figures)| {
            let mut after = figures();
            change(&mut after);
            before.leaks(&after)
        };
        for leaks in [
            with(&|after| after.rss_kib += RSS_SLACK_KIB + 1),
            with(&|after| after.descriptors += 1),
            with(&|after| after.threads += 1),
            with(&|after| after.mappings += MAPPINGS_SLACK + 1),
            with(&|after| after.disks += 1),
            with(&|after| after.files = ["/run/a".into(), "/run/b".into()].into()),
        ] {
            assert_eq!(leaks.len(), 1, "{leaks:?}");
        }
        let leaks = with(&|after| after.files = ["/run/b".into()].into());
        assert!(
            leaks[0].contains("1 files left, such as /run/b"),
            "{leaks:?}"
        );
    }

    #[test]
    fn a_figure_of_proc() {
        let status = "Name:\tferry\nVmRSS:\t   1234 kB\nThreads:\t7\n";
        assert_eq!(field(status, "VmRSS:"), 1234);
        assert_eq!(field(status, "Threads:"), 7);
        assert_eq!(field(status, "None:"), 0);
    }
}
