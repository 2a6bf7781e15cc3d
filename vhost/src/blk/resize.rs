//! A disk that grows while its guest runs.
//!
//! The order: the backend grows, then the running queues take the larger size, then the front-end is
//! told that the configuration has changed, reads it, and tells its guest. A guest that asks for the
//! new range before it was told is served.
//!
//! The front-end's channel for what the back-end has to say (SET_BACKEND_REQ_FD) is written to
//! without waiting, and never read: the one message needs no reply. The vhost crate takes the
//! channel out of the message, cannot send that one on it, and does not give it away; so the
//! session looks at the message before the crate takes it ([`channel_ahead`]).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use ferry_dataplane::backend::grow::GrowError;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};

use super::device::{BlkDevice, Refusal, State};

const HEADER_BYTES: usize = 12;
/// Front-end to back-end: here is a channel.
const SET_BACKEND_REQ_FD: u32 = 21;
/// Back-end to front-end: the configuration space has changed.
const CONFIG_CHANGE_MSG: u32 = 2;
/// The protocol's version, and neither a reply nor in need of one.
const FLAGS: u32 = 1;

/// Why a disk keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The disk does not grow.
    #[error(transparent)]
    Grow(#[from] GrowError),
    /// It grew, and its queues serve the old size until they start again.
    #[error("the disk has grown, and its running queues were not told: {0}; restart the guest")]
    Queues(String),
}

impl From<Refusal> for ResizeError {
    fn from(refusal: Refusal) -> ResizeError {
        ResizeError::Queues(refusal.to_string())
    }
}

impl BlkDevice {
    /// Makes the disk larger. True when the front-end was told; otherwise the guest sees the new
    /// size when it starts next. May block.
    pub fn resize(&self, capacity_bytes: u64) -> Result<bool, ResizeError> {
        // Held, so that no ring starts with the old size.
        let state = self.state();
        self.disk.grow(capacity_bytes)?;
        self.each_running(&state, |_| {
            Box::new(move |queue| queue.set_capacity(capacity_bytes))
        })?;
        Ok(self.tell_config_changed(&state))
    }

    fn tell_config_changed(&self, state: &State) -> bool {
        let Some(channel) = &state.channel else {
            return false;
        };
        let mut message = [0; HEADER_BYTES];
        message[..4].copy_from_slice(&CONFIG_CHANGE_MSG.to_ne_bytes());
        message[4..8].copy_from_slice(&FLAGS.to_ne_bytes());
        let how = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(channel, &message, how) {
            Ok(HEADER_BYTES) => true,
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(device = %self.name, %error, "the front-end was not told of the new size");
                false
            }
        }
    }
}

/// The channel in the message that the front-end has sent next, if it is that message; the message
/// stays there. Waits for it as its reader would.
pub(crate) fn channel_ahead(stream: &UnixStream) -> Option<OwnedFd> {
    let mut header = [0; HEADER_BYTES];
    let (got, _) = recv(stream, &mut header[..], RecvFlags::PEEK).ok()?;
    let request = u32::from_ne_bytes(header[..4].try_into().ok()?);
    if got < HEADER_BYTES || request != SET_BACKEND_REQ_FD {
        return None;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let how = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut header)],
        &mut control,
        how,
    )
    .ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    })
}
