//! A ring that completes by itself: what the client can do at most.
//!
//! A thread on the server's core takes whatever is available and gives it back
//! at once, in one batch, without a look at the request. It does nothing that a
//! server can do without, so no server is faster; where one comes near, the
//! client is the limit and the row says nothing of the server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use crate::error::BenchError;
use crate::frontend::{GuestDevice, MemoryError, View};
use crate::sys;

/// The device's side of one ring.
struct Mirror {
    avail: View,
    used: View,
    mask: u16,
    next: u16,
}

impl Mirror {
    fn new(device: &GuestDevice, queue: usize) -> Result<Self, MemoryError> {
        let layout = device.queues()[queue].layout;
        let n = u64::from(layout.size);
        let used = device.memory().view(layout.used, 6 + 8 * n)?;
        // No kicks, with EVENT_IDX or without.
        used.u16_at(0).store(1u16.to_le(), Ordering::Relaxed);
        Ok(Self {
            avail: device.memory().view(layout.avail, 6 + 2 * n)?,
            used,
            mask: layout.size - 1,
            next: 0,
        })
    }

    fn turn(&mut self) -> bool {
        let until = u16::from_le(self.avail.u16_at(2).load(Ordering::Acquire));
        if until == self.next {
            return false;
        }
        while self.next != until {
            let at = usize::from(self.next & self.mask);
            let head = u16::from_le(self.avail.u16_at(4 + 2 * at).load(Ordering::Relaxed));
            let element = u64::from(head).to_le_bytes();
            self.used.write(4 + 8 * at, &element);
            self.next = self.next.wrapping_add(1);
        }
        self.used.u16_at(2).store(until.to_le(), Ordering::Release);
        true
    }
}

/// The thread; ends when dropped.
pub struct SelfCompleting {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SelfCompleting {
    /// Serves all rings of devices whose drivers have not started, without
    /// EVENT_IDX.
    pub fn start(devices: &[GuestDevice], core: usize) -> Result<Self, BenchError> {
        let rings = |device: &GuestDevice| {
            let device = device.clone();
            (0..device.queues().len()).map(move |queue| Mirror::new(&device, queue))
        };
        let mut mirrors = devices
            .iter()
            .flat_map(rings)
            .collect::<Result<Vec<_>, _>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let ready = Arc::new(Barrier::new(2));
        let there = ready.clone();
        let body = move || {
            // Unpinned it still completes, only slower.
            let _ = sys::pin(&[core]);
            there.wait();
            while !told.load(Ordering::Relaxed) {
                for mirror in &mut mirrors {
                    if !mirror.turn() {
                        std::hint::spin_loop();
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("ceiling".into())
            .spawn(body)
            .map_err(|source| BenchError::Host {
                what: "a thread",
                source,
            })?;
        ready.wait();
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for SelfCompleting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nothing to learn from a panic of a loop that cannot fail.
            let _ = thread.join();
        }
    }
}
