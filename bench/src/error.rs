//! What can go wrong in a run.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ferry_dataplane::backend::thin::ThinError;

use crate::frontend::{MemoryError, QueueError, Status, VmmError};

/// A run that could not be done, with the cause and the mend.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The command line asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The control side failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// A queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Guest memory ran out.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The server went away under load.
    #[error("the server closed the connection with {in_flight} requests in flight; see its log")]
    Gone {
        /// What it left undone on this queue.
        in_flight: usize,
    },
    /// The server stopped completing.
    #[error(
        "no completion for {} s with {in_flight} requests in flight; the server hangs: see its log, \
         or raise --timeout", after.as_secs()
    )]
    Stuck {
        /// How long nothing came.
        after: Duration,
        /// What is waiting on this queue.
        in_flight: usize,
    },
    /// No frame came through.
    #[error(
        "no frame came through within {} s; check that the server forwards between the two sockets, \
         or raise --wait", after.as_secs_f64()
    )]
    Unheard {
        /// How long we waited.
        after: Duration,
    },
    /// A program that is measured did not do what it should.
    #[error("{peer} cannot be measured: {said}; look whether it runs by itself, or leave it out")]
    Peer {
        /// Which one.
        peer: String,
        /// What it said last.
        said: String,
    },
    /// The other end of a talk cannot be reached, or was lost while it was set up.
    #[error("cannot talk to {to}: {source}; does ferry-bench talk serve run there?")]
    Unreachable {
        /// Where it should be.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// An address cannot be listened at.
    #[error(
        "cannot listen at {at}: {source}; choose an address of this host and a port nobody has"
    )]
    Bind {
        /// The address.
        at: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The disk is read-only and the load writes.
    #[error("the disk is read-only; use --rw read or --rw randread")]
    ReadOnly,
    /// A file or device cannot be used.
    #[error("cannot {what} {}: {source}; {mend}", path.display())]
    Target {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        mend: &'static str,
    },
    /// A daemon refused what it was asked.
    #[error("the daemon refused {method}: {message}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// Its reason.
        message: String,
    },
    /// A daemon cannot be talked to.
    #[error("no answer from the daemon at {}: {source}; see {log}", control.display())]
    Silent {
        /// Its control socket.
        control: PathBuf,
        /// What the socket said.
        source: io::Error,
        /// Where it tells more.
        log: String,
    },
    /// A clone could not be made.
    #[error(transparent)]
    Clone(#[from] ThinError),
    /// A request of a cycle failed.
    #[error(
        "disk {disk}: a request at sector {sector} ended with {status:?}; see the daemon's log"
    )]
    Request {
        /// The disk.
        disk: String,
        /// Where.
        sector: u64,
        /// How.
        status: Status,
    },
    /// A disk of a cycle does not hold what it must.
    #[error("disk {disk}: sector {sector} holds {found}, not {expected}: its data is wrong")]
    Mismatch {
        /// The disk.
        disk: String,
        /// Where.
        sector: u64,
        /// What was read.
        found: String,
        /// What had to be there.
        expected: String,
    },
    /// The host refused something else.
    #[error("the host refused {what}: {source}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BenchError {
    /// The exit code of a command that ends like this.
    pub fn exit_code(&self) -> u8 {
        match self {
            BenchError::Usage(_) => 2,
            _ => 1,
        }
    }
}
