//! A NIC's state by way of its VMM (SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE): a file that one side
//! writes and the other reads to its end, each by a thread, as the VMM waits for the message's answer. A VMM
//! that stops in the middle, or keeps the other end as well, ends its own transfer and delays nobody.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use ferry_migration::envelope::ENVELOPE_BYTES_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2, read, write};

use crate::device::Refusal;

/// For the VMM to take what it asked for, or to give what it announced.
const PATIENCE: Duration = Duration::from_secs(20);
/// For the thread to end when the VMM says that all is done.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Where the file is now: a pipe has no other place.
const HERE: u64 = u64::MAX;

/// A transfer under way: a state that is loaded, if it is from the VMM.
pub(super) struct Transfer {
    thread: JoinHandle<()>,
    ended: Receiver<io::Result<Option<Vec<u8>>>>,
}

impl Transfer {
    /// Writes `state` to the file.
    pub fn save(state: Vec<u8>, file: File) -> Result<Transfer, Refusal> {
        Transfer::start(move || write_all(&file, &state).map(|()| None))
    }

    /// Reads a state from it.
    pub fn load(file: File) -> Result<Transfer, Refusal> {
        Transfer::start(move || read_all(&file).map(Some))
    }

    fn start(
        task: impl FnOnce() -> io::Result<Option<Vec<u8>>> + Send + 'static,
    ) -> Result<Transfer, Refusal> {
        let (end, ended) = bounded(1);
        let thread = thread::Builder::new()
            .name("ferry-state".into())
            .spawn(move || {
                let _ = end.send(task());
            })
            .map_err(Refusal::invalid)?;
        Ok(Transfer { thread, ended })
    }

    /// Whether its thread still runs.
    pub fn is_busy(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Its end, which the VMM says has come; a state that was loaded.
    pub fn end(self) -> Result<Option<Vec<u8>>, Refusal> {
        let why = match self.ended.recv_timeout(END_PATIENCE) {
            Ok(Ok(state)) => return Ok(state),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the VMM has not done its part".into(),
        };
        Err(Refusal::invalid(format_args!(
            "the device's state was not carried over: {why}"
        )))
    }
}

/// Waits until the file is ready for `flags`, or its other end is gone.
fn ready(file: &File, flags: PollFlags, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut polled = [PollFd::from_borrowed_fd(file.as_fd(), flags)];
    match poll(&mut polled, Some(&left)) {
        Ok(0) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the VMM did nothing for {} s", PATIENCE.as_secs()),
        )),
        Ok(_) => Ok(()),
        Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Does it without waiting, once the file is ready: whoever has the other end may be quicker, and then it
/// waits again. Where pipes cannot do so, as before Linux 6.5, it is done `plainly`.
fn when_ready<T>(
    (file, flags, until): (&File, PollFlags, Instant),
    bytes: &mut T,
    without_waiting: impl Fn(&mut T) -> Result<usize, Errno>,
    plainly: impl Fn(&mut T) -> Result<usize, Errno>,
) -> io::Result<usize> {
    loop {
        ready(file, flags, until)?;
        let done = match without_waiting(bytes) {
            Err(Errno::OPNOTSUPP) => plainly(bytes),
            done => done,
        };
        match done {
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < until => {}
            done => return done.map_err(Into::into),
        }
    }
}

fn write_all(file: &File, mut state: &[u8]) -> io::Result<()> {
    /// What a pipe that is ready takes at once (PIPE_BUF).
    const PIECE_BYTES: usize = 4096;
    let until = Instant::now() + PATIENCE;
    while !state.is_empty() {
        let mut piece = &state[..state.len().min(PIECE_BYTES)];
        let written = when_ready(
            (file, PollFlags::OUT, until),
            &mut piece,
            |piece| pwritev2(file, &[IoSlice::new(piece)], HERE, ReadWriteFlags::NOWAIT),
            |piece| write(file, piece),
        )?;
        state = &state[written..];
    }
    Ok(())
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut state = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let len = when_ready(
            (file, PollFlags::IN, until),
            &mut piece,
            |piece| {
                let mut pieces = [IoSliceMut::new(piece)];
                preadv2(file, &mut pieces, HERE, ReadWriteFlags::NOWAIT)
            },
            |piece| read(file, piece),
        )?;
        if len == 0 {
            return Ok(state);
        }
        state.extend_from_slice(&piece[..len]);
        if state.len() > ENVELOPE_BYTES_MAX {
            return Err(io::Error::other(format!(
                "it is longer than {ENVELOPE_BYTES_MAX} bytes, so it is no Ferry's"
            )));
        }
    }
}
