//! A NIC's state by way of its VMM (SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE): a file that one side
//! writes and the other reads to its end, each by a thread, as the VMM waits for the message's answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ferry_migration::envelope::ENVELOPE_BYTES_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::device::Refusal;

/// For the VMM to take what it asked for, or to give what it announced.
const PATIENCE: Duration = Duration::from_secs(20);

/// A transfer under way.
pub(super) enum Transfer {
    /// To the VMM.
    Save(JoinHandle<io::Result<()>>),
    /// From it.
    Load(JoinHandle<io::Result<Vec<u8>>>),
}

impl Transfer {
    /// Writes `state` to the file.
    pub fn save(state: Vec<u8>, file: File) -> Result<Transfer, Refusal> {
        let write = move || write_all(&file, &state);
        let thread = thread::Builder::new().name("ferry-state".into());
        Ok(Transfer::Save(
            thread.spawn(write).map_err(Refusal::invalid)?,
        ))
    }

    /// Reads a state from it.
    pub fn load(file: File) -> Result<Transfer, Refusal> {
        let read = move || read_all(&file);
        let thread = thread::Builder::new().name("ferry-state".into());
        Ok(Transfer::Load(
            thread.spawn(read).map_err(Refusal::invalid)?,
        ))
    }

    /// Whether its thread still runs.
    pub fn is_busy(&self) -> bool {
        match self {
            Transfer::Save(thread) => !thread.is_finished(),
            Transfer::Load(thread) => !thread.is_finished(),
        }
    }

    /// Waits for its end, within [`PATIENCE`]; a state that was loaded.
    pub fn end(self) -> Result<Option<Vec<u8>>, Refusal> {
        let ended = match self {
            Transfer::Save(thread) => thread.join().map(|done| done.map(|()| None)),
            Transfer::Load(thread) => thread.join().map(|done| done.map(Some)),
        };
        match ended {
            Ok(Ok(state)) => Ok(state),
            Ok(Err(error)) => Err(Refusal::invalid(format_args!(
                "the device's state was not carried over: {error}"
            ))),
            Err(_) => Err(Refusal::invalid("the device's state was not carried over")),
        }
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
        Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn write_all(mut file: &File, state: &[u8]) -> io::Result<()> {
    /// What a pipe that is ready takes without waiting (PIPE_BUF).
    const PIECE_BYTES: usize = 4096;
    let until = Instant::now() + PATIENCE;
    for piece in state.chunks(PIECE_BYTES) {
        ready(file, PollFlags::OUT, until)?;
        file.write_all(piece)?;
    }
    Ok(())
}

fn read_all(mut file: &File) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut state = Vec::new();
    let mut piece = [0; 4096];
    loop {
        ready(file, PollFlags::IN, until)?;
        match file.read(&mut piece)? {
            0 => return Ok(state),
            len => state.extend_from_slice(&piece[..len]),
        }
        if state.len() > ENVELOPE_BYTES_MAX {
            return Err(io::Error::other(format!(
                "it is longer than {ENVELOPE_BYTES_MAX} bytes, so it is no Ferry's"
            )));
        }
    }
}
