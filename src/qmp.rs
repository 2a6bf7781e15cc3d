//! QEMU's monitor: one JSON command a line, answered in order, with events in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Done, Failure};

/// How long an answer may take. QEMU answers from its main loop, which a stop of the VM holds up.
/// Less than what a peer waits for the answer that is passed on to it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Begins the error that says that there is no QEMU at all.
pub const GONE: &str = "cannot reach QEMU's monitor";

/// Longest line taken, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A connection to a monitor.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    socket: String,
    /// Tells a late answer from the present one.
    last_id: u64,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub fn connect(socket: &Path) -> Done<Qmp> {
        let name = socket.display().to_string();
        let stream = UnixStream::connect(socket).map_err(|error| {
            Failure::Failed(format!(
                "{GONE} at {name}: {error}; start QEMU with -qmp \
                 unix:{name},server=on,wait=off"
            ))
        })?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        stream.set_write_timeout(Some(ANSWER_PATIENCE))?;
        let mut qmp = Qmp {
            reader: BufReader::new(stream),
            socket: name,
            last_id: 0,
        };
        qmp.line()?; // the greeting
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; QEMU's own error text on failure.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Done<Value> {
        let mut request = json!({ "execute": command });
        if arguments.as_object().is_some_and(|map| !map.is_empty()) {
            request["arguments"] = arguments;
        }
        result_of(command, self.ask(request)?)
    }

    fn ask(&mut self, mut request: Value) -> Done<Value> {
        self.last_id += 1;
        let id = json!(self.last_id);
        request["id"] = id.clone();
        let stream = self.reader.get_mut();
        stream.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let answer = self.line()?;
            let answers = answer.get("return").is_some() || answer.get("error").is_some();
            if answers && answer["id"] == id {
                return Ok(answer);
            }
        }
    }

    fn line(&mut self) -> Done<Value> {
        let mut line = Vec::new();
        let mut limited = std::io::Read::take(&mut self.reader, LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line).map_err(|error| {
            Failure::Failed(format!(
                "QEMU's monitor at {} does not answer: {error}",
                self.socket
            ))
        })?;
        if read == 0 {
            return Err(Failure::Failed(format!(
                "QEMU's monitor at {} has closed",
                self.socket
            )));
        }
        serde_json::from_slice(&line).map_err(|error| {
            Failure::Failed(format!("{} does not speak QMP: {error}", self.socket))
        })
    }
}

/// The value in an answer, or the error in it.
pub fn result_of(command: &str, mut answer: Value) -> Done<Value> {
    match answer.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => {
            let why = answer["error"]["desc"]
                .as_str()
                .unwrap_or("no reason given");
            Err(Failure::Failed(format!("QEMU refused {command}: {why}")))
        }
    }
}

/// Runs one command as it stands, and gives the answer as it came.
pub fn raw(socket: &Path, command: &str) -> Done<String> {
    let command: Value = serde_json::from_str(command)?;
    Ok(Qmp::connect(socket)?.ask(command)?.to_string())
}
