//! A `ferry serve` that is killed again and again.

use std::fs::File;
use std::path::{Path, PathBuf};

use ferry_dataplane::sys;

use super::daemon::ferry;
use super::process::Process;
use super::{Check, Failure, TestDir};

/// A server of one image.
pub struct Serve<'d> {
    dir: &'d TestDir,
    image: PathBuf,
    socket: PathBuf,
    words: Vec<String>,
    process: Option<Process>,
}

impl<'d> Serve<'d> {
    /// Starts one. `more` are more of its flags.
    pub fn spawn(dir: &'d TestDir, image: &Path, queues: u16, more: &[&str]) -> Check<Self> {
        let socket = dir.path("disk.sock");
        let queues = queues.to_string();
        let (path, at) = (image.display().to_string(), socket.display().to_string());
        let words = [
            "serve",
            &path,
            "--socket-path",
            &at,
            "--num-queues",
            &queues,
        ];
        let words = words.iter().chain(more).map(ToString::to_string).collect();
        let mut serve = Self {
            dir,
            image: image.to_owned(),
            socket,
            words,
            process: None,
        };
        serve.start()?;
        Ok(serve)
    }

    /// Where it listens, as soon as it does.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts it (again), and does not wait until it serves.
    pub fn start(&mut self) -> Check {
        self.process = Some(Process::spawn(self.dir, "serve", ferry(), &self.words)?);
        Ok(())
    }

    /// Fails if it has ended.
    pub fn ensure_alive(&mut self) -> Check {
        self.process()?.ensure_alive()
    }

    /// SIGKILL. Returns, when the process is reaped, whether requests that it
    /// left in the kernel still hold the image's lock.
    pub fn kill(&mut self) -> Check<bool> {
        self.process()?.kill()?;
        self.process = None;
        self.is_locked()
    }

    /// Whether anybody holds the image's lock.
    pub fn is_locked(&self) -> Check<bool> {
        // A description of its own, as a successor's: the lock is given back at
        // once by closing it.
        let image = File::options().read(true).write(true).open(&self.image)?;
        Ok(!sys::lock_description(&image, false)?)
    }

    fn process(&mut self) -> Check<&mut Process> {
        let process = self.process.as_mut();
        process.ok_or_else(|| Failure("ferry serve is not running".to_owned()))
    }
}
