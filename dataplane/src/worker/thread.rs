//! The control side of a worker: its thread, and the way to send it commands.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use super::Core;
use super::command::{Command, Wake};
use crate::limits::{COMMAND_QUEUE, SPIN_NS};
use crate::metrics::{WorkerLoad, WorkerTotals};
use crate::ring::Ring;

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// How long a queue without requests is polled before the worker goes back to kicks, in
    /// nanoseconds; 0 to wait for kicks at once, `u64::MAX` to poll always.
    pub spin_ns: u64,
}

impl Default for WorkerOptions {
    fn default() -> WorkerOptions {
        WorkerOptions { spin_ns: SPIN_NS }
    }
}

/// The control side of a worker.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    wake: Arc<Wake>,
    load: Arc<WorkerLoad>,
}

/// Owns the worker's thread: dropping it drains the worker and joins.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker with the default options.
    pub fn start(name: &str) -> io::Result<Worker> {
        Worker::start_with(name, &WorkerOptions::default())
    }

    /// Starts a worker. Fails when the kernel has no io_uring or the process has no descriptors
    /// left.
    pub fn start_with(name: &str, options: &WorkerOptions) -> io::Result<Worker> {
        let (commands, receiver) = bounded(COMMAND_QUEUE);
        let wake = Arc::new(Wake::new()?);
        let load = Arc::new(WorkerLoad::default());
        let handle = WorkerHandle {
            commands,
            wake: wake.clone(),
            load: load.clone(),
        };
        let options = options.clone();
        let (ready, started) = bounded(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // The ring is made here: its only user is the thread that makes it.
                crate::sys::set_exact_timers();
                match Ring::new() {
                    Ok(ring) => {
                        let _ = ready.send(Ok(()));
                        Core::new(ring, wake, load, &options).run(&receiver);
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })?;
        started
            .recv()
            .map_err(|_| io::Error::other("the worker died at start"))??;
        Ok(Worker {
            handle,
            thread: Some(thread),
        })
    }

    /// The way to send it commands.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl WorkerHandle {
    /// Sends a command; false when the worker has ended.
    pub(crate) fn send(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.wake.wake();
        sent
    }

    /// Has it look at what was changed, if it sleeps.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// What the worker did with its time so far.
    pub fn totals(&self) -> WorkerTotals {
        self.load.totals()
    }
}
