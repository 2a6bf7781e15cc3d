//! What is compared: the cells of the table.

use serde::Serialize;

/// Where the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Nowhere: the path alone.
    Null,
    /// The server's own memory: a copy.
    Memory,
    /// A file on tmpfs.
    Tmpfs,
    /// A file in the page cache.
    Cached,
    /// A file on a disk, with O_DIRECT.
    Disk,
}

impl Backend {
    /// In the table's order.
    pub const ALL: [Backend; 5] = [
        Backend::Null,
        Backend::Memory,
        Backend::Tmpfs,
        Backend::Cached,
        Backend::Disk,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Null => "null",
            Backend::Memory => "memory",
            Backend::Tmpfs => "tmpfs",
            Backend::Cached => "cached",
            Backend::Disk => "disk",
        }
    }

    /// Whether a file is behind it.
    pub fn is_file(self) -> bool {
        !matches!(self, Backend::Null | Backend::Memory)
    }
}

/// Reads, writes, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mix {
    /// Reads alone.
    Read,
    /// Writes alone.
    Write,
    /// 70 reads to 30 writes.
    Mixed,
}

impl Mix {
    /// In the table's order.
    pub const ALL: [Mix; 3] = [Mix::Read, Mix::Write, Mix::Mixed];

    /// Share of reads.
    pub fn read_percent(self) -> u64 {
        match self {
            Mix::Read => 100,
            Mix::Write => 0,
            Mix::Mixed => 70,
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mix::Read => "read",
            Mix::Write => "write",
            Mix::Mixed => "mixed",
        }
    }
}

/// One row of the table, for each peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Cell {
    /// Where the bytes go.
    pub backend: Backend,
    /// What is done; blocks are drawn at random.
    pub mix: Mix,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Requests in flight, per queue.
    pub depth: u16,
    /// Queues of each disk.
    pub queues: u16,
    /// Disks.
    pub disks: u16,
}

impl Cell {
    /// Whether it is one of the rows on growth, and not of the table proper.
    pub fn is_growth(&self) -> bool {
        self.queues > 1 || self.disks > 1
    }
}
