//! What can go wrong on the control side.

use std::io;
use std::path::PathBuf;

use vhost::vhost_user::Error as Protocol;

/// A failure of the connection to a server, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// Nobody answers at the socket.
    #[error("cannot connect to {}: {source}; {}", path.display(), connect_mend(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server does not offer what this front-end cannot do without.
    #[error("the server does not offer {what}; use a server that does, or ask for less")]
    Missing {
        /// The feature.
        what: &'static str,
    },
    /// The server serves fewer queues than asked for.
    #[error("the server has {has} queues and {wanted} were asked for; use {has} or fewer")]
    Queues {
        /// What it has.
        has: u16,
        /// What was asked for.
        wanted: u16,
    },
    /// The server went away.
    #[error("the server closed the connection during {during}; see its log for why")]
    Gone {
        /// The message under way.
        during: &'static str,
    },
    /// The server did not answer in time.
    #[error("the server did not answer {during} within {seconds} s; it hangs or is overloaded")]
    Silent {
        /// The message under way.
        during: &'static str,
        /// How long we waited.
        seconds: u64,
    },
    /// The server answered that it failed.
    #[error("the server refused {during}; see its log for why")]
    Refused {
        /// The message under way.
        during: &'static str,
    },
    /// The server broke the protocol.
    #[error("{during}: {source}; the server may not speak vhost-user as this front-end does")]
    Protocol {
        /// The message under way.
        during: &'static str,
        /// What the protocol crate said.
        source: vhost::Error,
    },
    /// The caller's order of calls is wrong.
    #[error("{0}")]
    Misuse(&'static str),
    /// The host would not give a descriptor or memory.
    #[error("the host refused {what}: {source}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] super::memory::MemoryError),
    /// A queue.
    #[error(transparent)]
    Queue(#[from] super::queue::QueueError),
}

fn connect_mend(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "start the server, or correct the path",
        io::ErrorKind::ConnectionRefused => {
            "the server that made this socket is gone, or it serves another client; start it again"
        }
        io::ErrorKind::PermissionDenied => {
            "ask for access to the socket (its group, commonly kvm), or run as its owner"
        }
        _ => "check that it is the server's Unix socket",
    }
}

/// Sorts the protocol crate's errors by what the user can do about them.
pub(super) fn sort(during: &'static str, timeout_s: Option<u64>, source: vhost::Error) -> VmmError {
    if let Some(seconds) = timeout_s {
        return VmmError::Silent { during, seconds };
    }
    match source {
        vhost::Error::VhostUserProtocol(
            Protocol::Disconnected
            | Protocol::PartialMessage
            | Protocol::SocketBroken(_)
            | Protocol::SocketError(_),
        ) => VmmError::Gone { during },
        vhost::Error::VhostUserProtocol(Protocol::BackendInternalError) => {
            VmmError::Refused { during }
        }
        source => VmmError::Protocol { during, source },
    }
}
