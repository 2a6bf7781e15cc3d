//! What this end says: answers, news, and every second that it lives.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::codec::{Answer, CodecError, Message, write_message};
use crate::sync::lock;
use crate::transport::HEARTBEAT;

/// The half of the connection that speaks: the session answers, and a thread of its own says that
/// this side lives, so that a slow disk is not taken for a dead link.
pub(in crate::destination) struct Voice {
    stream: Mutex<TcpStream>,
    activated: AtomicBool,
    /// The disk may be asked for: its grant has not come.
    pub(super) receiving: AtomicBool,
    /// Rings were started since the source was last asked for the disk.
    pulls: AtomicBool,
    over: Mutex<bool>,
    wake: Condvar,
}

impl Voice {
    pub(super) fn new(stream: TcpStream) -> Arc<Voice> {
        Arc::new(Voice {
            stream: Mutex::new(stream),
            activated: AtomicBool::new(false),
            receiving: AtomicBool::new(true),
            pulls: AtomicBool::new(false),
            over: Mutex::new(false),
            wake: Condvar::new(),
        })
    }

    pub(super) fn say(&self, message: &Message) -> Result<(), CodecError> {
        write_message(&mut *lock(&self.stream), message)
    }

    /// Has the notice sent by the heartbeat's thread. Never blocks on the network.
    pub fn notice_activation(&self) {
        self.activated.store(true, Ordering::Release);
        let _over = lock(&self.over);
        self.wake.notify_all();
    }

    /// Has the source asked for the disk, by the heartbeat's thread.
    pub(super) fn notice_rings(&self) {
        self.pulls.store(true, Ordering::Release);
        let _over = lock(&self.over);
        self.wake.notify_all();
    }

    pub(super) fn end(&self) {
        *lock(&self.over) = true;
        self.wake.notify_all();
    }

    /// Speaks every second until the session is over. `pull` is what there is to ask for.
    pub(super) fn beat(&self, activated: &Answer, pull: impl Fn() -> Option<Message>) {
        let mut told = false;
        let mut last = Instant::now();
        loop {
            {
                let over = lock(&self.over);
                let news = self.activated.load(Ordering::Acquire) && !told;
                let pulls = self.pulls.swap(false, Ordering::AcqRel);
                let left = HEARTBEAT.saturating_sub(last.elapsed());
                if !*over && !news && !pulls && !left.is_zero() {
                    drop(
                        self.wake
                            .wait_timeout(over, left)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                    continue;
                }
                if *over {
                    return;
                }
            }
            let news = self.activated.load(Ordering::Acquire) && !told;
            let message = if news {
                Message::Activated(activated.clone())
            } else if self.receiving.load(Ordering::Acquire) {
                pull().unwrap_or(Message::Ping)
            } else {
                Message::Ping
            };
            if self.say(&message).is_err() {
                let _ = lock(&self.stream).shutdown(Shutdown::Both);
                return;
            }
            told |= news;
            last = Instant::now();
        }
    }
}
