//! The seam between the engine and whatever makes requests: a virtqueue, in the main. It is
//! crossed by batches.

use std::any::Any;
use std::os::fd::RawFd;

use crate::request::Completion;
use crate::slots::Inbox;

/// What a poll of a queue found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// This many requests were taken or answered; 0 when the queue was empty.
    Some(usize),
    /// The queue broke its rules and will give no more requests until it is started anew.
    Broken,
}

/// A run of guest memory that a queue has mapped.
#[derive(Debug, Clone, Copy)]
pub struct MemoryRegion {
    /// Its name, never used again for another.
    pub id: u64,
    /// The first byte's address.
    pub start: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// A source of requests, owned by one worker while it runs and by its device otherwise.
///
/// The worker calls these between submissions, from its own thread, so none may block. A queue
/// must keep the memory of every request it gave out mapped until `complete` names it; the worker
/// gives a queue back only when all its requests are completed.
pub trait RequestQueue: Any + Send {
    /// Takes up to `budget` requests and puts them into `inbox` while that has room. Malformed ones
    /// are answered here.
    fn fetch(&mut self, inbox: &mut Inbox<'_>, budget: usize) -> Fetched;

    /// Ends one request. Not seen by the guest before `publish`.
    fn complete(&mut self, done: &Completion<'_>);

    /// Whether guest memory may be written now; while not, completions wait in their slots.
    fn may_complete(&self) -> bool;

    /// Shows the guest what was completed since the last call, and notifies it if it wants that.
    fn publish(&mut self);

    /// The guest memory that requests fetched from now on lie in.
    fn memory(&self) -> Vec<MemoryRegion> {
        Vec::new()
    }

    /// Whether a request waits. Takes nothing.
    fn has_work(&self) -> bool;

    /// Requests that the guest has made available and that were not taken yet.
    fn backlog(&self) -> u64 {
        0
    }

    /// Whether requests wait that a back-end before this one took and did not end. A queue is not
    /// given back with such in it while its disk is served: no index could say that they are owed.
    fn recovering(&self) -> bool {
        false
    }

    /// Asks the guest for kicks, then looks once more: true when a request waits already.
    fn arm(&mut self) -> bool;

    /// Tells the guest that kicks are not needed.
    fn disarm(&mut self);

    /// The eventfd that the guest kicks; `None` for a front-end that wants to be polled.
    fn kick_fd(&self) -> Option<RawFd>;

    /// Clears the kick.
    fn drain_kick(&self);
}
