//! Two eyes on the connection: one sees the server leave, one sees it hang.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Tells whether the server has closed its end. Cheap enough to ask now and
/// then from a thread that waits for completions; each thread takes its own.
#[derive(Debug)]
pub struct PeerWatch {
    epoll: Epoll,
    /// Keeps the descriptor in the epoll set alive.
    _stream: UnixStream,
}

impl PeerWatch {
    pub(super) fn new(stream: &UnixStream) -> io::Result<Self> {
        let stream = stream.try_clone()?;
        let epoll = Epoll::new()?;
        let events = EventSet::READ_HANG_UP | EventSet::HANG_UP;
        epoll.ctl(
            ControlOperation::Add,
            stream.as_raw_fd(),
            EpollEvent::new(events, 0),
        )?;
        Ok(Self {
            epoll,
            _stream: stream,
        })
    }

    /// True from the moment that the server closed the connection, or that the
    /// [`Vmm`](super::Vmm) was dropped.
    pub fn gone(&self) -> bool {
        let mut events = [EpollEvent::default()];
        self.epoll.wait(0, &mut events).is_ok_and(|n| n > 0)
    }
}

#[derive(Debug, Default)]
struct State {
    deadline: Option<Instant>,
    fired: bool,
    quit: bool,
}

/// Cuts the connection when an answer takes too long.
///
/// The protocol crate reads without a limit and retries on EAGAIN, so a
/// receive timeout would not end its wait; a shutdown of the socket does.
#[derive(Debug)]
pub(super) struct Watchdog {
    shared: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn start(stream: UnixStream) -> io::Result<Self> {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("vmm-watchdog".into())
            .spawn(move || guard(&theirs.0, &theirs.1, &stream))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn arm(&self, limit: Duration) {
        self.set(|s| s.deadline = Some(Instant::now() + limit));
    }

    /// Says whether it had to cut the connection.
    pub(super) fn disarm(&self) -> bool {
        let mut fired = false;
        self.set(|s| {
            s.deadline = None;
            fired = s.fired;
        });
        fired
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.shared.0));
        self.shared.1.notify_one();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.set(|s| s.quit = true);
        if let Some(thread) = self.thread.take() {
            // It holds no lock while it could panic; nothing to learn from it.
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

fn guard(state: &Mutex<State>, changed: &Condvar, stream: &UnixStream) {
    let mut s = lock(state);
    while !s.quit {
        let Some(deadline) = s.deadline else {
            s = changed.wait(s).unwrap_or_else(|e| e.into_inner());
            continue;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            s.fired = true;
            s.deadline = None;
            // Failing means that it is down already, which is what we want.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        } else {
            s = changed
                .wait_timeout(s, left)
                .unwrap_or_else(|e| e.into_inner())
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_silent_peer_is_cut_off_and_a_closed_one_is_seen() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let watch = PeerWatch::new(&ours).unwrap();
        assert!(!watch.gone());
        let dog = Watchdog::start(ours.try_clone().unwrap()).unwrap();
        dog.arm(Duration::from_millis(20));
        assert_eq!(ours.read(&mut [0; 4]).unwrap(), 0, "woken by the cut");
        assert!(dog.disarm());
        drop(theirs);
        assert!(watch.gone());
    }
}
