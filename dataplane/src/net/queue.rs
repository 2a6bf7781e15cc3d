//! The seam between the engine and a NIC's virtqueues. It is crossed by frames, which are copied once.

use std::any::Any;
use std::os::fd::RawFd;

use super::features::Offloads;
use super::header::Header;
use crate::segments::Segments;

/// A frame that a guest sends, out of its queue and not given back.
#[derive(Debug, Default, Clone)]
pub struct Taken {
    /// Names it for [`TxQueue::done`].
    pub tag: u32,
    /// A copy of its header, not checked yet; none if it says nothing.
    pub header: Option<Header>,
    /// Bytes of the frame, the header not counted.
    pub len: usize,
}

/// What a look at a queue of frames to send found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// A frame, described in what was given for that.
    Frame,
    /// One without so much as a header, which was given back.
    Malformed,
    /// Nothing.
    Empty,
    /// The queue broke its rules and will give no more until it is started anew.
    Broken,
}

/// What both kinds of queue have. Called from the worker's thread, between submissions; none may block.
pub trait FrameQueue: Any + Send {
    /// Whether guest memory may be written now.
    fn may_complete(&self) -> bool;
    /// Shows the guest what was given back since the last call, and notifies it if it wants that.
    fn publish(&mut self);
    /// Whether a buffer waits. Takes nothing.
    fn has_work(&self) -> bool;
    /// Asks the guest for kicks, then looks once more: true when a buffer waits already.
    fn arm(&mut self) -> bool;
    /// Tells the guest that kicks are not needed.
    fn disarm(&mut self);
    /// The eventfd that the guest kicks; `None` for a front-end that wants to be polled.
    fn kick_fd(&self) -> Option<RawFd>;
    /// Clears the kick.
    fn drain_kick(&self);
    /// What the guest may send unfinished, or takes unfinished.
    fn offloads(&self) -> Offloads;
}

/// Frames that the guest sends.
pub trait TxQueue: FrameQueue {
    /// Takes the next frame, and puts what it is into `taken` and where its bytes are into `bytes`, which
    /// is empty. The memory stays mapped until `done` names the frame. Gives none while guest memory may
    /// not be written.
    fn take(&mut self, taken: &mut Taken, bytes: &mut Segments) -> Fetched;
    /// The frame that was taken last waits, to be taken again.
    fn put_back(&mut self, tag: u32);
    /// Gives a frame's buffers back. Not seen by the guest before `publish`.
    fn done(&mut self, tag: u32);
}

/// What became of a frame for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is in the guest's buffers, to be shown by `publish`.
    Done,
    /// The guest has no buffers for it. Nothing was taken.
    NoRoom,
    /// It does not fit the buffers that this guest makes, however many.
    TooLarge,
    /// The queue broke its rules.
    Broken,
}

/// Buffers for frames that the guest receives.
pub trait RxQueue: FrameQueue {
    /// Copies a frame of `len` bytes into the guest's buffers; one without a header is whole.
    fn put(&mut self, header: Option<&Header>, bytes: &Bytes<'_>, len: usize) -> Put;
}

/// Where a frame's bytes are.
pub enum Bytes<'a> {
    /// In another guest's memory, but for the first: those were looked at, in a copy, and what the guest
    /// makes of its own since is not.
    Guest {
        /// A copy of the first bytes.
        head: &'a [u8],
        /// All of them.
        all: &'a Segments,
    },
    /// In a buffer of the worker's.
    Own(&'a [u8]),
}

impl Bytes<'_> {
    /// Copies bytes `from..from + len` to bytes `at..` of guest memory; returns how many found room.
    pub fn copy_to(&self, from: usize, to: &Segments, at: usize, len: usize) -> usize {
        let own = |bytes: &[u8]| {
            let end = bytes.len().min(from + len);
            to.copy_in(at, bytes.get(from..end).unwrap_or_default())
        };
        match self {
            Bytes::Guest { head, all } => {
                let done = own(head);
                done + all.copy_across(from + done, to, at + done, len - done)
            }
            Bytes::Own(bytes) => own(bytes),
        }
    }

    /// Copies the first bytes into `buf`; returns how many there were.
    pub fn start(&self, buf: &mut [u8]) -> usize {
        let own = |bytes: &[u8], buf: &mut [u8]| {
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
            len
        };
        match self {
            Bytes::Guest { head, all } => {
                let done = own(head, buf);
                done + all.copy_out(done, &mut buf[done..])
            }
            Bytes::Own(bytes) => own(bytes, buf),
        }
    }
}
