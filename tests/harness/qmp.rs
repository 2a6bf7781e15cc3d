//! QEMU's monitor protocol: commands and what they return.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::failure::Context;
use super::wait::{secs, wait_for};
use super::{Check, Failure};
use crate::fail;

/// A QEMU that answers no command for so long is taken for hung: a back-end
/// that blocks its main loop is the fault this rig looks for.
const REPLY_LIMIT: Duration = secs(60);
const READ_SLICE: Duration = Duration::from_millis(50);

/// A connection to one monitor.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    partial: Vec<u8>,
    name: String,
}

impl Qmp {
    /// Connects, waiting for the socket to appear while `alive` has no
    /// objection, and leaves the greeting's mode.
    pub fn connect(name: &str, path: &Path, mut alive: impl FnMut() -> Check) -> Check<Self> {
        let what = format!("the monitor of {name}");
        let stream = wait_for(&what, secs(120), || {
            alive()?;
            Ok(UnixStream::connect(path).ok())
        })?;
        stream.set_read_timeout(Some(READ_SLICE))?;
        stream.set_write_timeout(Some(REPLY_LIMIT))?;
        let mut qmp = Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
            partial: Vec::new(),
            name: name.to_owned(),
        };
        qmp.message(REPLY_LIMIT)
            .context(|| format!("the greeting of {name}"))?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// The next message of any kind.
    fn message(&mut self, limit: Duration) -> Check<Value> {
        let start = Instant::now();
        loop {
            // On a timeout the bytes read so far stay in `partial`.
            match self.reader.read_until(b'\n', &mut self.partial) {
                Ok(0) => fail!("{} closed its monitor", self.name),
                Ok(_) => {
                    let line = std::mem::take(&mut self.partial);
                    return Ok(serde_json::from_slice(&line)?);
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => fail!("monitor of {}: {error}", self.name),
            }
            if start.elapsed() >= limit {
                fail!("{} said nothing on its monitor for {limit:?}", self.name);
            }
        }
    }

    /// Runs a command and returns what it returned.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Check<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.writer
            .write_all(format!("{request}\n").as_bytes())
            .context(|| format!("{command} to {}", self.name))?;
        let start = Instant::now();
        loop {
            let left = REPLY_LIMIT.saturating_sub(start.elapsed());
            let reply = self.message(left).context(|| command.to_owned())?;
            if let Some(value) = reply.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = reply.get("error") {
                fail!("{command} on {}: {}", self.name, error["desc"]);
            }
            // An event: states are asked for, not listened to.
        }
    }

    /// Runs a command that takes no arguments.
    pub fn run(&mut self, command: &str) -> Check<Value> {
        self.execute(command, &json!({}))
    }

    /// The run state: `running`, `paused`, `postmigrate`...
    pub fn status(&mut self) -> Check<String> {
        let reply = self.run("query-status")?;
        Ok(reply["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for a run state.
    pub fn wait_status(&mut self, wanted: &str, limit: Duration) -> Check {
        let mut last = String::new();
        wait_for(
            &format!("{} to be {wanted}", self.name.clone()),
            limit,
            || {
                last = self.status()?;
                Ok((last == wanted).then_some(()))
            },
        )
        .map_err(|Failure(words)| Failure(format!("{words}; it is {last}")))
    }

    /// What both ends of a migration must agree on: a stop before the
    /// switch-over, and the destination's word that it has all.
    pub fn prepare_migration(&mut self) -> Check {
        self.prepare(&[("pause-before-switchover", true), ("return-path", true)])
    }

    /// Without a stop before the switch-over.
    pub fn prepare_plain_migration(&mut self) -> Check {
        self.prepare(&[("pause-before-switchover", false)])
    }

    fn prepare(&mut self, capabilities: &[(&str, bool)]) -> Check {
        let capabilities: Vec<Value> = capabilities
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        self.execute(
            "migrate-set-capabilities",
            &json!({ "capabilities": capabilities }),
        )?;
        // A verifier dirties memory as fast as an emulated guest can: a short
        // downtime would never be reached on a busy machine.
        self.execute(
            "migrate-set-parameters",
            &json!({ "max-bandwidth": 10_000_000_000_u64, "downtime-limit": 2000 }),
        )?;
        Ok(())
    }

    /// Sets how many bytes a second a migration may send.
    pub fn limit_bandwidth(&mut self, bytes: u64) -> Check {
        self.execute("migrate-set-parameters", &json!({ "max-bandwidth": bytes }))?;
        Ok(())
    }

    /// The migration's state and all that QEMU tells of it.
    pub fn migration(&mut self) -> Check<Value> {
        self.run("query-migrate")
    }

    /// Waits until the migration is in a state; one that ends in another
    /// state is a failure at once.
    pub fn wait_migration(&mut self, wanted: &str, limit: Duration) -> Check<Value> {
        let mut last = Value::Null;
        let name = self.name.clone();
        wait_for(
            &format!("the migration of {name} to be {wanted}"),
            limit,
            || {
                last = self.migration()?;
                let state = last["status"].as_str().unwrap_or_default();
                if state == wanted {
                    return Ok(Some(last.clone()));
                }
                if matches!(state, "completed" | "failed" | "cancelled") {
                    fail!("the migration of {name} is {last}, not {wanted}");
                }
                Ok(None)
            },
        )
        .map_err(|Failure(words)| Failure(format!("{words}; it is {last}")))
    }

    /// Tells a migration at `pre-switchover` to go on.
    pub fn migrate_continue(&mut self) -> Check {
        self.execute("migrate-continue", &json!({ "state": "pre-switchover" }))?;
        Ok(())
    }
}
