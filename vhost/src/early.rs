//! SET_VRING_ENABLE, which QEMU sends for a NIC before it sets any feature.
//!
//! The document allows the message once VHOST_USER_F_PROTOCOL_FEATURES is negotiated, and QEMU counts that
//! from the features that the back-end offers. The vhost crate counts from those that the front-end has
//! set, and ends the connection. So the session takes this message itself.

use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use vhost::vhost_user::VhostUserBackendReqHandler;

const HEADER_BYTES: usize = 12;
/// An index and a number, 32 bits each.
const BODY: u32 = 8;
const BODY_BYTES: usize = BODY as usize;
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

fn word(message: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(message[at..at + 4].try_into().expect("four bytes"))
}

/// Takes and answers the next message if it is SET_VRING_ENABLE; whether it was. Waits for a message as
/// its reader would.
pub(crate) fn enable_ahead(stream: &UnixStream, handler: &impl VhostUserBackendReqHandler) -> bool {
    let mut message = [0; HEADER_BYTES + BODY_BYTES];
    let peeked = recv(stream, &mut message[..], RecvFlags::PEEK);
    let whole = matches!(peeked, Ok((got, _)) if got == message.len());
    if !whole || word(&message, 0) != SET_VRING_ENABLE || word(&message, 8) != BODY {
        return false; // the crate has a word for each thing that may be wrong with it
    }
    let mut taken = [MaybeUninit::uninit(); HEADER_BYTES + BODY_BYTES];
    if recv(stream, &mut taken[..], RecvFlags::WAITALL).is_err() {
        return false;
    }
    let (index, enable) = (word(&message, 12), word(&message, 16));
    let done = handler.set_vring_enable(index, enable != 0);
    if let Err(error) = &done {
        tracing::warn!(%error, index, "a ring is not enabled, or disabled");
    }
    if word(&message, 4) & NEED_REPLY != 0 {
        message[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
        message[12..].copy_from_slice(&u64::from(done.is_err()).to_ne_bytes());
        let _ = send(stream, &message, SendFlags::NOSIGNAL);
    }
    true
}
