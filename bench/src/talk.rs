//! Traffic through the sockets of two kernels, all of it verified: is what stands between them
//! a network that keeps its promises, also while it is moved?
//!
//! ```text
//!   call                                        serve
//!    |---- control: what to do ------------------>|   a line of JSON
//!    |==== N connections ========================>|   each says which one it is
//!    |<--- control: ready ------------------------|
//!    |     a third sends, a third receives,       |   [`stream`]
//!    |     a third asks and answers               |
//!    |<--- datagrams both ways, numbered -------->|   [`datagrams`]
//!    |---- echo requests ------------------------>|   [`ping`], to the kernel
//!    |---- control: stop, so many were sent ----->|
//!    |<--- both send to the end and hang up ----->|
//!    |<--- control: what was received ------------|
//! ```
//!
//! Every byte of a stream depends on its session, connection, direction and offset
//! ([`pattern`]), and both ends compare how much was sent with how much came, so nothing can be
//! lost, changed, doubled or mixed up unseen. Datagrams may be lost by right: the receiver says
//! exactly which ones were.
//!
//! One thread and one [`session`] loop on each side, rates bounded, so that a guest under
//! emulation keeps up.

mod call;
mod control;
mod datagrams;
mod pattern;
mod ping;
mod report;
mod serve;
mod session;
mod stream;
mod track;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use call::call;
pub use report::{ConnectionReport, Numbers, PingReport, Report, SideReport};
pub use serve::Server;
pub use stream::Kind;

use crate::error::BenchError;

/// Most connections of a session.
pub const CONNECTIONS_MAX: u16 = 1000;
/// Shortest and longest datagram, in bytes; the longest fits an Ethernet frame.
pub const DATAGRAM_BYTES: std::ops::RangeInclusive<u16> = 32..=1400;

/// How long the last datagrams and echoes may be late.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// What the caller wants.
#[derive(Debug, Clone)]
pub struct TalkPlan {
    /// Where `serve` listens.
    pub to: SocketAddr,
    /// What both sides do.
    pub load: Load,
    /// Echo requests a second; zero for none.
    pub ping_pps: u32,
    /// How long connections may take to be made, and to end.
    pub patience: Duration,
    /// A lost datagram or echo is a failure.
    pub lossless: bool,
    /// It is over as well when each connection that sends or receives has carried so many bytes.
    pub until_bytes: Option<u64>,
}

/// What both sides do; the caller tells the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// TCP connections: a third each of [`Kind`].
    pub tcp: u16,
    /// Bytes a second of each connection that sends.
    pub bulk_bytes_per_second: u64,
    /// Milliseconds between an answer and the next question.
    pub chat_ms: u64,
    /// Datagrams a second and direction; zero for none.
    pub udp_pps: u32,
    /// Bytes of a datagram.
    pub udp_bytes: u16,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            tcp: 100,
            bulk_bytes_per_second: 32 << 10,
            chat_ms: 100,
            udp_pps: 100,
            udp_bytes: 200,
        }
    }
}

impl TalkPlan {
    /// Refuses what makes no sense.
    pub fn check(&self) -> Result<(), BenchError> {
        self.load.check()?;
        if self.ping_pps > 0 && !self.to.is_ipv4() {
            return usage("--ping is for IPv4; leave it out".to_owned());
        }
        if self.ping_pps > PPS_MAX {
            return usage(format!("--ping is at most {PPS_MAX} a second"));
        }
        Ok(())
    }
}

/// Most datagrams, and most echo requests, a second: the loop's turns are this fine.
const PPS_MAX: u32 = 10_000;
/// Most bytes a second of a connection.
const BULK_MAX: u64 = 10 << 30;

impl Load {
    fn check(&self) -> Result<(), BenchError> {
        if self.tcp > CONNECTIONS_MAX {
            return usage(format!("--tcp is at most {CONNECTIONS_MAX}"));
        }
        if !DATAGRAM_BYTES.contains(&self.udp_bytes) {
            let (least, most) = DATAGRAM_BYTES.into_inner();
            return usage(format!("--udp-size is {least} to {most} bytes"));
        }
        if self.udp_pps > PPS_MAX {
            return usage(format!("--udp is at most {PPS_MAX} a second"));
        }
        if self.bulk_bytes_per_second > BULK_MAX {
            return usage("--bulk-kib is at most 10 GiB a second".to_owned());
        }
        Ok(())
    }
}

fn usage<T>(words: String) -> Result<T, BenchError> {
    Err(BenchError::Usage(words))
}
