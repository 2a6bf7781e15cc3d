//! The statistics file of a datastore: what each host does on it, for the others to read.
//!
//! One file in the datastore's directory, one block for each process. A process writes only its own block
//! and reads all of them, both in the moment for which it has the file open: a file held open would keep
//! the datastore from being unmounted. Nobody locks anything and nobody waits for anybody.
//!
//! - A **block** is believed if its checksum is right and its counter has grown ([`Peers`]); one that was
//!   torn by a write at the same time is left out until the next time.
//! - A **place** is taken by writing to it. Two processes that take the same at once see it when they read
//!   the next time: the file names one of them, and the other takes another place.
//! - **Clocks** of hosts are not compared. Who has not been heard of for three periods, by the reader's own
//!   clock, is dead.
//!
//! It is not synced to the medium. Closing a file hands its bytes to a network file system's server, a
//! cluster file system keeps its caches in step, and after a crash the figures are worth nothing. A sync
//! every period would be one more flush on a datastore that is congested already.
//!
//! Without the file (no right to write, no space, all places taken) a host goes on with what it can read;
//! its own disks then have what the others leave.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::controller::HostReport;

mod block;
mod peers;

pub use block::{BLOCK_BYTES, Block, Fault, Id, decode, encode};
pub use peers::{Ignored, Peers};

/// Its name in the datastore's directory.
pub const FILE_NAME: &str = ".ferry-sioc";

/// Blocks that it may have.
pub const BLOCKS_MAX: usize = 128;

/// One process at one datastore's file.
#[derive(Debug)]
pub struct StatsFile {
    path: PathBuf,
    id: Id,
    counter: u64,
    place: Option<usize>,
    peers: Peers,
}

impl StatsFile {
    /// For a datastore's directory. `id` is this process's alone: draw it anew at every start.
    pub fn new(directory: &Path, id: Id, period_ns: u64) -> StatsFile {
        StatsFile {
            path: directory.join(FILE_NAME),
            id,
            counter: 0,
            place: None,
            peers: Peers::new(id, period_ns),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The block that this process has written last. None before that, or if all are taken.
    pub fn place(&self) -> Option<usize> {
        self.place
    }

    /// What was not believed so far.
    pub fn ignored(&self) -> Ignored {
        self.peers.ignored()
    }

    /// Changes the length of a period.
    pub fn set_period(&mut self, period_ns: u64) {
        self.peers.set_period(period_ns);
    }

    /// Reads what the others say and writes what this process has to say. Gives the reports of those that
    /// are alive. After an error, [`StatsFile::others`] still knows who was, until they are too old.
    pub fn exchange(&mut self, now_ns: u64, own: &HostReport) -> io::Result<Vec<HostReport>> {
        let file = open(&self.path)?;
        let blocks = read(&file)?;
        self.peers.observe(now_ns, &blocks);
        self.place = self.peers.choose(now_ns, self.place);
        if let Some(place) = self.place {
            self.counter += 1;
            let block = self.block(own.clone(), false);
            file.write_all_at(&encode(&block), offset(place))?;
        }
        Ok(self.others(now_ns))
    }

    /// The last reports of those that are alive.
    pub fn others(&self, now_ns: u64) -> Vec<HostReport> {
        self.peers.alive(now_ns)
    }

    /// Says that this process has left, so that the others do not have to wait until it is dead.
    pub fn withdraw(&mut self) -> io::Result<()> {
        let Some(place) = self.place.take() else {
            return Ok(());
        };
        let file = open(&self.path)?;
        let mut bytes = [0; BLOCK_BYTES];
        file.read_exact_at(&mut bytes, offset(place))?;
        if matches!(decode(&bytes), Ok(Some(block)) if block.id == self.id) {
            self.counter += 1;
            let idle = HostReport {
                window_total: f64::INFINITY,
                ..HostReport::default()
            };
            file.write_all_at(&encode(&self.block(idle, true)), offset(place))?;
        }
        Ok(())
    }

    fn block(&self, report: HostReport, left: bool) -> Block {
        Block {
            id: self.id,
            counter: self.counter,
            left,
            report,
        }
    }
}

/// A name that somebody has made a link or a pipe of is not followed, and not waited for.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o660)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        let what = format!("{} is no regular file; remove it", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(file)
}

/// All of its blocks. What is less than a block at the end is a torn one.
fn read(file: &File) -> io::Result<Vec<[u8; BLOCK_BYTES]>> {
    let mut bytes = vec![0; BLOCKS_MAX * BLOCK_BYTES];
    let mut length = 0;
    while length < bytes.len() {
        let at = u64::try_from(length).unwrap_or(u64::MAX);
        match file.read_at(&mut bytes[length..], at) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length.next_multiple_of(BLOCK_BYTES));
    let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
    Ok(blocks.to_vec())
}

fn offset(place: usize) -> u64 {
    u64::try_from(place * BLOCK_BYTES).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
