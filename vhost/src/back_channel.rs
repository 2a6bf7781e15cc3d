//! The front-end's channel for what the back-end has to say (SET_BACKEND_REQ_FD).
//!
//! It is written to without waiting, and never read: the one message needs no reply. The vhost crate
//! takes the channel out of the message, cannot send that one on it, and does not give it away; so
//! the session looks at the message before the crate takes it ([`channel_ahead`]).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};

const HEADER_BYTES: usize = 12;
/// Front-end to back-end: here is a channel.
const SET_BACKEND_REQ_FD: u32 = 21;
/// Back-end to front-end: the configuration space has changed.
const CONFIG_CHANGE_MSG: u32 = 2;
/// The protocol's version, and neither a reply nor in need of one.
const FLAGS: u32 = 1;

/// Says that the configuration space has changed. False when the message went out in part, and is
/// none. Does not wait: a channel that is full is an error.
pub(crate) fn say_config_changed(channel: &OwnedFd) -> io::Result<bool> {
    let mut message = [0; HEADER_BYTES];
    message[..4].copy_from_slice(&CONFIG_CHANGE_MSG.to_ne_bytes());
    message[4..8].copy_from_slice(&FLAGS.to_ne_bytes());
    let how = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(send(channel, &message, how)? == HEADER_BYTES)
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
