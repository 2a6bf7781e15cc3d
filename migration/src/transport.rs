//! TCP: addresses, deadlines, and noticing that the other side is gone.
//!
//! Both ends of a mirror say something at least every [`HEARTBEAT`]; a side that hears nothing for
//! [`SILENCE`], or cannot write for as long, takes the link for lost.

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::codec::{CodecError, Message, read_frame, write_message};

/// How often an idle side speaks.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long silence is borne.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How long one frame may take, so that a peer that trickles bytes does not hold a thread.
pub const FRAME_PATIENCE: Duration = Duration::from_secs(20);
/// How long connecting may take.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer to a single question may take, the other side's fsyncs included.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(15);

/// Listens at `address` (`host:port`).
pub fn listen(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

/// Connects to `address` (`host:port`), trying each address the name has.
pub fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, CONNECT_PATIENCE) {
            Ok(stream) => {
                prepare(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sets what every stream of this protocol needs.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))
}

/// Asks one question on a connection of its own and reads the answer.
pub fn ask(address: &str, question: &Message) -> Result<Message, CodecError> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    write_message(&mut stream, question)?;
    let mut paced = Paced::new(&stream);
    loop {
        paced.begin_frame(ANSWER_PATIENCE);
        match read_frame(&mut paced)?.message {
            Message::Ping => {}
            other => return Ok(other),
        }
    }
}

/// A reader that gives one frame a deadline, however slowly its bytes trickle in.
#[derive(Debug)]
pub struct Paced<R> {
    inner: R,
    deadline: Instant,
}

impl<R: Read> Paced<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Paced<R> {
        Paced {
            inner,
            deadline: Instant::now() + FRAME_PATIENCE,
        }
    }

    /// The next frame may take this long.
    pub fn begin_frame(&mut self, patience: Duration) {
        self.deadline = Instant::now() + patience;
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a frame took too long",
            ));
        }
        self.inner.read(buf).map_err(|error| match error.kind() {
            // What a read timeout looks like on Linux.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::new(
                io::ErrorKind::TimedOut,
                "the other side fell silent; the link or its host is down",
            ),
            _ => error,
        })
    }
}
