//! Messages sent byte by byte, past the protocol crate.
//!
//! For two callers: tests that send what no sane VMM sends, and SET_LOG_BASE,
//! whose reply is 8 bytes from QEMU's library and 16 from the crate's; the crate
//! waits for 16 and would wait for ever.

use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const VERSION: u32 = 1;
const BODY_MAX: usize = 64 << 10;

/// A reply with nothing checked but its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawReply {
    /// The request it says it answers.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// Body.
    pub body: Vec<u8>,
}

pub(super) fn send(
    stream: &UnixStream,
    request: u32,
    flags: u32,
    body: &[u8],
    fds: &[RawFd],
) -> io::Result<()> {
    let size = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::with_capacity(12 + body.len());
    for word in [request, flags | VERSION, size] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(body);
    send_bytes(stream, &message, fds)
}

/// Sends bytes as they are, header and all.
pub(super) fn send_bytes(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let sent = stream
        .send_with_fds(&[bytes], fds)
        .map_err(io::Error::from)?;
    if sent < bytes.len() {
        return io::Write::write_all(&mut &*stream, &bytes[sent..]);
    }
    Ok(())
}

pub(super) fn receive(mut stream: &UnixStream) -> io::Result<RawReply> {
    let mut header = [0; 12];
    stream.read_exact(&mut header)?;
    let word =
        |i: usize| u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
    let size = usize::try_from(word(8)).unwrap_or(usize::MAX);
    if size > BODY_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "reply larger than 64 KiB",
        ));
    }
    let mut body = vec![0; size];
    stream.read_exact(&mut body)?;
    Ok(RawReply {
        request: word(0),
        flags: word(4),
        body,
    })
}
