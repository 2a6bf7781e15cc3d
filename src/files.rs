//! Open files that go over the control socket, beside a line.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most files beside one line: the queues of a tap. The kernel closes what is more.
pub const FILES_MAX: usize = 64;

/// Reads a socket, and keeps the files that come.
pub struct Receiver<'a> {
    stream: &'a UnixStream,
    files: RefCell<Vec<OwnedFd>>,
}

impl<'a> Receiver<'a> {
    /// Of a socket.
    pub fn new(stream: &'a UnixStream) -> Receiver<'a> {
        Receiver {
            stream,
            files: RefCell::default(),
        }
    }

    /// The files that came since the last call.
    pub fn take(&self) -> Vec<OwnedFd> {
        self.files.take()
    }
}

impl Read for Receiver<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            self.stream,
            &mut [IoSliceMut::new(into)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let files = self.files.get_mut();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                // More than a line may have, and nobody has taken them: they are closed.
                files.extend(came.take(FILES_MAX.saturating_sub(files.len())));
            }
        }
        Ok(got.bytes)
    }
}

/// Sends bytes, and files beside the first of them.
pub fn send(mut stream: &UnixStream, bytes: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other(format!("more than {FILES_MAX} files")));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(&bytes[sent..])
}
