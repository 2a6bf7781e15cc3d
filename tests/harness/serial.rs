//! The guest's ports, seen from outside: virtio serial ports, since the emulated
//! UART loses bytes under load. One is for commands; a second one, where a test
//! wants it, belongs to a program in the guest.
//!
//! What the guest sends goes to a file, what it receives comes from a FIFO. Not
//! a socket: the file is the log as well, and is never full.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::failure::Context;
use super::{Check, Failure};
use crate::ensure;

const POLL: Duration = Duration::from_millis(5);

/// One end of a port.
pub struct Serial {
    name: &'static str,
    fifo: File,
    fifo_path: PathBuf,
    log: PathBuf,
    reader: File,
    heard: String,
}

impl Serial {
    /// Makes a port; what is heard is in the file `log`.
    pub fn new(name: &'static str, fifo_path: &Path, log: &Path) -> Check<Self> {
        let made = Command::new("mkfifo").arg(fifo_path).status()?;
        ensure!(made.success(), "cannot make {}", fifo_path.display());
        // For reading too: opening does not wait for QEMU then, and QEMU never
        // sees the end of its input.
        let fifo = File::options().read(true).write(true).open(fifo_path)?;
        File::create(log)?;
        let reader = File::open(log)?;
        let (fifo_path, log) = (fifo_path.to_owned(), log.to_owned());
        Ok(Self {
            name,
            fifo,
            fifo_path,
            log,
            reader,
            heard: String::new(),
        })
    }

    /// QEMU's arguments for its end; the machine has a virtio-serial device.
    pub fn arguments(&self) -> Vec<String> {
        let (name, out, input) = (self.name, self.log.display(), self.fifo_path.display());
        [
            "-chardev",
            &format!("file,id={name},path={out},append=on,input-path={input}"),
            "-device",
            &format!("virtserialport,chardev={name},name={name}"),
        ]
        .map(ToOwned::to_owned)
        .into()
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) -> Check {
        self.fifo
            .write_all(format!("{line}\n").as_bytes())
            .context(|| format!("sending {line:?}"))
    }

    /// All that was heard so far.
    fn listen(&mut self) -> Check<&str> {
        let mut new = Vec::new();
        self.reader.read_to_end(&mut new)?;
        self.heard.push_str(&String::from_utf8_lossy(&new));
        Ok(&self.heard)
    }

    /// Waits until `find` finds what it wants in all that was heard, while
    /// `alive` has no objection.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut alive: impl FnMut() -> Check,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Check<T> {
        let start = Instant::now();
        loop {
            alive()?;
            let late = start.elapsed() >= limit;
            let text = self.listen()?;
            if let Some(found) = find(text) {
                return Ok(found);
            }
            if late {
                return Err(Failure(format!("waited {limit:?} in vain for {what}")));
            }
            sleep(POLL);
        }
    }
}
