//! The control queue's ring, on a thread of its own.
//!
//! Commands are rare and may wait, and what they do is done by workers; so no worker serves them. The
//! thread sleeps until the guest kicks. What it does in a while is bounded, as each command may have a
//! worker do something: a guest that sends more waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_dataplane::limits::{CONTROL_COMMANDS, CONTROL_DATA_BYTES, CONTROL_WINDOW};
use ferry_dataplane::segments::Segments;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::Ack;
use super::standing::{Command, Standing};
use crate::vring::{Chain, Vring, copy_bytes, length, push_bytes};

/// How often a queue is looked at that its guest cannot kick.
const UNKICKED: Duration = Duration::from_millis(10);
/// Class and command.
const HEADER_BYTES: usize = 2;

/// A control queue that runs. Dropping it stops it.
#[derive(Debug)]
pub(in crate::net) struct ControlRing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Option<Vring>>,
    stopping: AtomicBool,
    /// Written to when something has changed that the thread waits for.
    wake: OwnedFd,
}

/// What the thread has.
struct Server {
    name: Arc<str>,
    shared: Arc<Shared>,
    standing: Arc<Standing>,
    kick: Option<OwnedFd>,
    chain: Chain,
    data: Vec<u8>,
    broken: bool,
}

/// What a look at the ring found.
enum Found {
    /// So many commands.
    Commands(u32),
    /// Nothing can be done before something is changed.
    Standstill,
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Option<Vring>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full is as good: it wakes as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl ControlRing {
    /// Serves `ring` from now on; `name` is for messages.
    pub fn start(name: Arc<str>, ring: Vring, standing: Arc<Standing>) -> io::Result<ControlRing> {
        let kick = ring.kick_copy()?;
        let shared = Arc::new(Shared {
            ring: Mutex::new(Some(ring)),
            stopping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let mut server = Server {
            name,
            shared: shared.clone(),
            standing,
            kick,
            chain: Chain::new(),
            data: Vec::new(),
            broken: false,
        };
        let thread = std::thread::Builder::new()
            .name("ferry-net-ctl".into())
            .spawn(move || server.serve())?;
        Ok(ControlRing {
            shared,
            thread: Some(thread),
        })
    }

    /// Changes the ring between two looks at it.
    pub fn with(&self, task: impl FnOnce(&mut Vring)) {
        if let Some(ring) = &mut *self.shared.ring() {
            task(ring);
        }
        self.shared.wake();
    }

    /// Stops it; nobody touches the guest's memory for it any more.
    pub fn stop(mut self) -> Option<Vring> {
        self.end();
        self.shared.ring().take()
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ControlRing {
    fn drop(&mut self) {
        self.end();
    }
}

impl Server {
    fn serve(&mut self) {
        let (mut began, mut done) = (Instant::now(), 0);
        while !self.shared.stopping.load(Ordering::Acquire) {
            if began.elapsed() >= CONTROL_WINDOW {
                (began, done) = (Instant::now(), 0);
            }
            match self.look(CONTROL_COMMANDS - done) {
                Found::Standstill => self.wait(false, None),
                Found::Commands(found) => {
                    // A kick without a command counts too: nothing bounds those otherwise.
                    done += found.max(1);
                    if done >= CONTROL_COMMANDS {
                        self.wait(false, Some(CONTROL_WINDOW.saturating_sub(began.elapsed())));
                    } else if found == 0 {
                        let now_and_then = self.kick.is_none().then_some(UNKICKED);
                        self.wait(true, now_and_then);
                    }
                }
            }
        }
    }

    /// Sleeps until woken, or until the guest kicks.
    fn wait(&self, for_kicks: bool, at_most: Option<Duration>) {
        let wake = self.shared.wake.as_fd();
        let kick = self.kick.as_ref().filter(|_| for_kicks).map(AsFd::as_fd);
        let at_most = at_most.and_then(|it| Timespec::try_from(it).ok());
        // An error is a signal, or a shortage; either way the ring is looked at again.
        let _ = match kick {
            Some(kick) => poll(&mut [readable(wake), readable(kick)], at_most.as_ref()),
            None => poll(&mut [readable(wake)], at_most.as_ref()),
        };
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }

    /// Carries out what waits, at most so much.
    fn look(&mut self, most: u32) -> Found {
        let shared = self.shared.clone();
        let mut ring = shared.ring();
        let Some(ring) = ring
            .as_mut()
            .filter(|ring| ring.may_write() && !self.broken)
        else {
            return Found::Standstill;
        };
        ring.drain_kick();
        // Armed before the look, so that nothing is missed between it and the sleep.
        ring.arm();
        let standing = self.standing.clone();
        let result = standing.command(|apply| self.carry_out(ring, most, apply));
        // Shown after the effect is there.
        ring.publish();
        match result {
            Ok(found) if !self.broken => Found::Commands(found),
            Ok(_) => Found::Standstill,
            Err(error) => {
                tracing::error!(queue = %self.name, %error, "what the control queue has set is not in force");
                self.broken = true;
                Found::Standstill
            }
        }
    }

    fn carry_out(
        &mut self,
        ring: &mut Vring,
        most: u32,
        apply: &mut dyn FnMut(Option<Command<'_>>) -> Ack,
    ) -> u32 {
        for found in 0..most {
            let next = ring
                .waiting()
                .and_then(|waiting| (waiting > 0).then(|| ring.head()).transpose());
            match next {
                Ok(None) => return found,
                Ok(Some(head)) => {
                    ring.take(head);
                    let written = self.command(ring, head, apply);
                    ring.push_used(head, written);
                }
                Err(why) => {
                    tracing::warn!(queue = %self.name, why, "the driver broke the virtqueue; it is not served any more");
                    self.broken = true;
                    let _ = apply(None);
                    ring.report_broken();
                    return found;
                }
            }
        }
        most
    }

    /// Carries out the command at `head`; the bytes written to the guest. Without a place for the answer
    /// it is none.
    fn command(
        &mut self,
        ring: &mut Vring,
        head: u16,
        apply: &mut dyn FnMut(Option<Command<'_>>) -> Ack,
    ) -> u32 {
        let sound = ring.copy_chain(head, &mut self.chain).is_ok();
        let mut answer = Segments::new();
        if !sound || !push_bytes(self.chain.writable(), 0, 1, ring.map(), &mut answer) {
            let _ = apply(None);
            return 0;
        }
        let ack = match self.read(ring) {
            Some([class, command]) => apply(Some(Command {
                class,
                command,
                data: &self.data,
            })),
            None => apply(None),
        };
        answer.copy_in(0, &[ack.status()]);
        ring.mark_new(&answer);
        1
    }

    /// Copies the command: its header is returned, its data kept.
    fn read(&mut self, ring: &Vring) -> Option<[u8; HEADER_BYTES]> {
        let readable = self.chain.readable();
        let len = length(readable).checked_sub(HEADER_BYTES as u64)?;
        let len = usize::try_from(len)
            .ok()
            .filter(|&it| it <= CONTROL_DATA_BYTES)?;
        let mut header = [0; HEADER_BYTES];
        self.data.clear();
        self.data.resize(len, 0);
        let map = ring.map();
        let whole = copy_bytes(readable, 0, &mut header, map)
            && copy_bytes(readable, HEADER_BYTES as u64, &mut self.data, map);
        whole.then_some(header)
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}
