//! A device that works on so many requests at a time, and lets the others queue: what shares, limits
//! and a latency threshold are tried on.
//!
//! Its servers are numbers, one for each: when it will be free. A request takes the one that is free
//! first, for its service time, and its due time is the end of that; so requests begin in the order
//! in which they came, and no more of them are in work than there are servers. The numbers only grow,
//! so whoever changes one from the value it saw took the one that was free first still, and no lock
//! is needed.
//!
//! The numbers are in a file of the directory that the images are in ([`FILE`]), mapped by every
//! process that serves one with a bottleneck; they are times of a clock that is the host's. It starts
//! anew when the host does: what is further ahead than [`AHEAD_NS_MAX`] counts as free, so that an
//! old file costs a minute at most, and a queue that became as long is forgotten.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::words::{WORDS, Words};
use crate::clock;
use crate::qos::{COST_ONE, CostModel};
use crate::request::Op;

/// Name of the file in the images' directory.
pub const FILE: &str = ".ferry-delay";

/// Most requests that are worked on at a time.
pub const SERVERS_MAX: u16 = 256;

/// How far ahead of now a server may be busy.
pub const AHEAD_NS_MAX: u64 = 60_000_000_000;

/// Where the servers are among the file's numbers.
const FIRST: usize = WORDS - SERVERS_MAX as usize;

/// The bottleneck of a directory. Disks of it should say the same of it; one that has fewer servers
/// uses the first of them.
#[derive(Debug)]
pub struct Bottleneck {
    words: Words,
    servers: u16,
    /// From this process's clock to the host's.
    clock_offset_ns: u64,
}

impl Bottleneck {
    /// That of the images in `dir`, of `servers` servers, 1 to [`SERVERS_MAX`]. Blocks.
    pub fn open(dir: &Path, servers: u16) -> io::Result<Bottleneck> {
        assert!((1..=SERVERS_MAX).contains(&servers), "checked when parsed");
        let path = dir.join(FILE);
        let words = Words::open(&path).map_err(|error| at(&path, &error))?;
        Ok(Bottleneck {
            words,
            servers,
            clock_offset_ns: clock::host_offset_ns(),
        })
    }

    /// A request reaches the device. Returns when the device is done with it, if each unit of 32 KiB
    /// takes `service_ns` of a server.
    pub fn serve(&self, now_ns: u64, service_ns: u64, op: Op, len_bytes: u64) -> u64 {
        let units = CostModel::Size.cost(op, len_bytes) / COST_ONE;
        let work_ns = service_ns.saturating_mul(units.into());
        let servers = &self.words.all()[FIRST..FIRST + usize::from(self.servers)];
        let due_ns = serve(servers, now_ns + self.clock_offset_ns, work_ns);
        due_ns.saturating_sub(self.clock_offset_ns)
    }
}

/// Takes the server that is free first, and says when it is done.
fn serve(free_ns: &[AtomicU64], now_ns: u64, work_ns: u64) -> u64 {
    loop {
        let mut first: Option<(&AtomicU64, u64, u64)> = None;
        for server in free_ns {
            let seen_ns = server.load(Ordering::Relaxed);
            let start_ns = start_ns(seen_ns, now_ns);
            if first.is_none_or(|(_, _, earliest_ns)| start_ns < earliest_ns) {
                first = Some((server, seen_ns, start_ns));
            }
            if start_ns == now_ns {
                break; // none can be free earlier
            }
        }
        let Some((server, seen_ns, start_ns)) = first else {
            return now_ns; // no servers: nothing to wait for
        };
        let due_ns = start_ns.saturating_add(work_ns);
        let taken = server.compare_exchange_weak(
            seen_ns,
            due_ns,
            Ordering::Relaxed,
            // The numbers stand for nothing but themselves.
            Ordering::Relaxed,
        );
        if taken.is_ok() {
            return due_ns;
        }
    }
}

/// When a server can begin that is free from `free_ns` on.
fn start_ns(free_ns: u64, now_ns: u64) -> u64 {
    if free_ns > now_ns.saturating_add(AHEAD_NS_MAX) {
        return now_ns;
    }
    free_ns.max(now_ns)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
