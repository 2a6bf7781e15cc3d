//! The control connection: lines of JSON.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Load, SideReport};

/// The longest line: a report on as many connections as there may be.
const LINE_BYTES_MAX: usize = 1 << 20;
const VERSION: u32 = 1;

/// The caller's first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) ferry_talk: u32,
    pub(super) session: u64,
    pub(super) load: Load,
}

impl Hello {
    pub(super) fn new(session: u64, load: Load) -> Self {
        Self {
            ferry_talk: VERSION,
            session,
            load,
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.ferry_talk == VERSION
    }
}

/// Its last.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stop {
    /// Datagrams that it has sent.
    pub(super) udp_sent: u64,
}

/// The server's first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) ready: bool,
}

/// And its last.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) found: SideReport,
}

/// One end of the connection.
pub(super) struct Control {
    pub(super) socket: TcpStream,
    read: Vec<u8>,
}

impl Control {
    /// Lines are awaited until [`Control::in_session`].
    pub(super) fn new(socket: TcpStream, patience: Duration) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        Ok(Self {
            socket,
            read: Vec::new(),
        })
    }

    /// From now on lines are taken when they have come.
    pub(super) fn in_session(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Sends a line, however long that takes within reason.
    pub(super) fn send(&mut self, line: &impl Serialize, patience: Duration) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let until = Instant::now() + patience;
        let mut left = &bytes[..];
        while !left.is_empty() {
            match self.socket.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= until {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next line: awaited before the session, `None` in it when none is there.
    pub(super) fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut piece = [0; 4096];
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.read.len() > LINE_BYTES_MAX {
                return Err(io::Error::other("a line that does not end"));
            }
            match self.socket.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.read.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next line, awaited.
    pub(super) fn expect<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        self.take()?.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}
