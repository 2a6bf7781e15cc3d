//! The guest's serial line, seen from outside.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::failure::Context;
use super::wait::wait_for;
use super::{Check, Failure};

/// All that came over the line so far.
#[derive(Default)]
struct Heard {
    text: Mutex<String>,
    more: Condvar,
}

/// One end of a serial line. The harness listens and QEMU connects, so that no
/// byte is lost before somebody reads.
pub struct Serial {
    listener: UnixListener,
    writer: Option<UnixStream>,
    heard: Arc<Heard>,
    log: std::path::PathBuf,
}

impl Serial {
    /// Listens at `socket`; what is heard also goes to the file `log`.
    pub fn listen(socket: &Path, log: &Path) -> Check<Self> {
        let listener = UnixListener::bind(socket)
            .context(|| format!("serial line at {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let heard = Arc::new(Heard::default());
        Ok(Self {
            listener,
            writer: None,
            heard,
            log: log.to_owned(),
        })
    }

    /// Waits for QEMU to connect, and listens from then on.
    pub fn accept(&mut self, limit: Duration) -> Check {
        let listener = &self.listener;
        let stream = wait_for("QEMU to open the serial line", limit, || {
            Ok(listener.accept().ok().map(|(stream, _)| stream))
        })?;
        stream.set_nonblocking(false)?;
        // A QEMU that hangs must not hang the test.
        stream.set_write_timeout(Some(limit))?;
        let reader = stream.try_clone()?;
        let log = File::create(&self.log)?;
        let heard = Arc::clone(&self.heard);
        // Ends when QEMU closes the line.
        thread::spawn(move || listen_on(reader, log, &heard));
        self.writer = Some(stream);
        Ok(())
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) -> Check {
        let Some(writer) = &mut self.writer else {
            return Err(Failure("the serial line is not open".to_owned()));
        };
        writer
            .write_all(format!("{line}\n").as_bytes())
            .context(|| format!("sending {line:?}"))
    }

    /// Waits until `find` finds what it wants in all that was heard.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Check<T> {
        let start = Instant::now();
        let mut text = self
            .heard
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&text) {
                return Ok(found);
            }
            if let Some(at) = text.find("Kernel panic") {
                let end = text.len().min(at + 400);
                return Err(Failure(format!(
                    "the guest's kernel panicked: {}",
                    &text[at..end]
                )));
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Failure(format!("waited {limit:?} in vain for {what}")));
            }
            let slept = self.heard.more.wait_timeout(text, left);
            text = slept.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn listen_on(mut reader: UnixStream, mut log: File, heard: &Heard) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        // The log is for people: losing it must not stop the test.
        let _ = log.write_all(&buffer[..count]);
        let mut text = heard.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        heard.more.notify_all();
    }
}
