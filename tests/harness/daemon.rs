//! A `ferry daemon`, and the `ferry` command that drives it.

use std::cell::Cell;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::failure::Context;
use super::process::{Output, Process, Running};
use super::wait::{secs, wait_for};
use super::{Check, Failure, TestDir};
use crate::{ensure, fail};

/// Long enough for any command but a copy.
const COMMAND_LIMIT: Duration = secs(60);

/// The program under test.
pub fn ferry() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ferry"))
}

/// A daemon with folders of its own, that may be killed and started again.
pub struct Daemon<'d> {
    dir: &'d TestDir,
    name: String,
    config: PathBuf,
    run_dir: PathBuf,
    address: String,
    /// What it is started by.
    by: Vec<String>,
    process: Option<Process>,
    commands: Cell<u32>,
}

impl<'d> Daemon<'d> {
    /// Writes a configuration and starts a daemon on it. `qmp` are the
    /// monitors a peer may drive, `extra` is more configuration.
    pub fn spawn(dir: &'d TestDir, name: &str, qmp: &[PathBuf], extra: &str) -> Check<Self> {
        // Freed before the daemon takes it: a race in theory, and the only way
        // to know a port that nobody uses.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        Self::spawn_at(&address, &[], dir, name, qmp, extra)
    }

    /// One that listens for its peers at `address`, in the network that `by`
    /// enters.
    pub fn spawn_at(
        address: &str,
        by: &[String],
        dir: &'d TestDir,
        name: &str,
        qmp: &[PathBuf],
        extra: &str,
    ) -> Check<Self> {
        let run_dir = dir.path(format!("{name}.run"));
        let state_dir = dir.path(format!("{name}.state"));
        fs::create_dir_all(&run_dir)?;
        fs::create_dir_all(&state_dir)?;
        let config = dir.path(format!("{name}.toml"));
        let text = format!(
            "state_dir = {state_dir:?}\nrun_dir = {run_dir:?}\nworkers = 1\n\n\
             [migration]\nlisten = {address:?}\nqmp = {qmp:?}\n\n{extra}\n",
        );
        fs::write(&config, text)?;
        let mut daemon = Self {
            dir,
            name: name.to_owned(),
            config,
            run_dir,
            address: address.to_owned(),
            by: by.to_vec(),
            process: None,
            commands: Cell::new(0),
        };
        daemon.start()?;
        Ok(daemon)
    }

    /// Starts it again after [`Daemon::kill`].
    pub fn start(&mut self) -> Check {
        let config = self.config.display().to_string();
        let arguments = ["daemon", "--config", &config];
        let mut process = Process::spawn_by(&self.by, self.dir, &self.name, ferry(), arguments)?;
        let control = self.control();
        wait_for(
            &format!("the control socket of {}", self.name),
            secs(60),
            || {
                process.ensure_alive()?;
                // A socket file may be left of a killed predecessor.
                Ok(std::os::unix::net::UnixStream::connect(&control).ok())
            },
        )?;
        self.process = Some(process);
        Ok(())
    }

    fn control(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// Where its peers reach it.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// The process; fails when it is not running.
    pub fn process(&mut self) -> Check<&mut Process> {
        let name = &self.name;
        self.process
            .as_mut()
            .ok_or_else(|| Failure(format!("{name} is not running")))
    }

    /// What it has printed, from its first start on.
    pub fn log(&self) -> Check<String> {
        let path = self.dir.path(format!("{}.log", self.name));
        fs::read_to_string(&path).context(|| path.display().to_string())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Check {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Starts a `ferry` command against this daemon.
    pub fn start_command(&self, arguments: &[&str]) -> Check<Running> {
        let number = self.commands.get() + 1;
        self.commands.set(number);
        let control = self.control().display().to_string();
        let mut words = arguments.to_vec();
        words.extend(["--control", &control, "--json"]);
        Running::spawn(
            self.dir,
            &format!("{}-command-{number}", self.name),
            ferry(),
            words,
        )
    }

    /// Runs a `ferry` command to its end, whatever that is.
    pub fn run(&self, arguments: &[&str]) -> Check<Output> {
        self.start_command(arguments)?
            .finish(COMMAND_LIMIT)
            .context(|| format!("ferry {} at {}", arguments.join(" "), self.name))
    }

    /// Runs a `ferry` command that must succeed; returns the last of the JSON
    /// documents it printed, one a line.
    pub fn expect(&self, arguments: &[&str]) -> Check<Value> {
        let output = self.run(arguments)?;
        self.succeeded(arguments, &output)
    }

    /// Requires that a command has succeeded.
    pub fn succeeded(&self, arguments: &[&str], output: &Output) -> Check<Value> {
        let command = arguments.join(" ");
        ensure!(
            output.code == Some(0),
            "ferry {command} at {} ended with {:?}: {}{}",
            self.name,
            output.code,
            output.out,
            output.err
        );
        last_document(&output.out).context(|| format!("ferry {command} at {}", self.name))
    }

    /// Adds a disk that this daemon serves at once.
    pub fn add_disk(&self, id: &str, path: &str, queues: u16) -> Check<PathBuf> {
        self.add(id, path, queues, &[])
    }

    /// Adds a disk that is to arrive from another daemon.
    pub fn add_incoming(&self, id: &str, path: &str, queues: u16, bytes: u64) -> Check<PathBuf> {
        self.add(
            id,
            path,
            queues,
            &["--incoming", "--size", &bytes.to_string()],
        )
    }

    /// Adds a disk on a datastore that the other daemon has too; `incoming` when it is there.
    pub fn add_shared(&self, id: &str, path: &str, queues: u16, incoming: bool) -> Check<PathBuf> {
        let words = ["--shared", "--incoming"];
        self.add(id, path, queues, &words[..1 + usize::from(incoming)])
    }

    /// Adds a disk that the guest may only read.
    pub fn add_read_only(&self, id: &str, path: &str, queues: u16) -> Check<PathBuf> {
        self.add(id, path, queues, &["--read-only"])
    }

    /// Where a disk's device listens.
    pub fn socket(&self, id: &str) -> PathBuf {
        self.dir.path(format!("{}-{id}.sock", self.name))
    }

    fn add(&self, id: &str, path: &str, queues: u16, more: &[&str]) -> Check<PathBuf> {
        let socket = self.socket(id);
        let socket_text = socket.display().to_string();
        let queues = queues.to_string();
        let mut words = vec![
            "disk",
            "add",
            id,
            "--path",
            path,
            "--socket-path",
            &socket_text,
        ];
        words.extend(["--num-queues", &queues]);
        words.extend(more);
        self.expect(&words)?;
        Ok(socket)
    }

    /// The disk's line of `ferry disk list`, if there is one.
    pub fn disk(&self, id: &str) -> Check<Option<Value>> {
        let list = self.expect(&["disk", "list"])?;
        let disks = list.get("disks").unwrap_or(&list);
        let Some(disks) = disks.as_array() else {
            fail!("ferry disk list printed {list}")
        };
        Ok(disks.iter().find(|disk| disk["id"] == id).cloned())
    }
}

fn last_document(text: &str) -> Check<Value> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => Ok(serde_json::from_str(line).context(|| format!("not JSON: {line:?}"))?),
        None => Ok(Value::Null),
    }
}
