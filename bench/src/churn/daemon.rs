//! The daemon under test: started for the run, or one that runs; and a client of it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ChurnPlan, Server};
use crate::error::BenchError;

/// How long a daemon may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon that answers.
#[derive(Debug)]
pub(super) struct Daemon {
    pub pid: u32,
    pub control: PathBuf,
    /// Where its sockets are, and for one that was started all else that it keeps.
    pub dirs: Vec<PathBuf>,
    /// Where it tells more.
    log: String,
    timeout: Duration,
    child: Option<Child>,
}

impl Daemon {
    /// The daemon of the plan; a started one keeps its files in `dir`.
    pub fn new(plan: &ChurnPlan, dir: &Path) -> Result<Daemon, BenchError> {
        match &plan.server {
            Server::Start(program) => Self::start(plan, program, dir),
            Server::Running(control) => Self::running(plan, control),
        }
    }

    fn running(plan: &ChurnPlan, control: &Path) -> Result<Daemon, BenchError> {
        let mut daemon = Daemon {
            pid: 0,
            control: control.to_owned(),
            dirs: control.parent().map(Path::to_owned).into_iter().collect(),
            log: "its log".into(),
            timeout: plan.timeout,
            child: None,
        };
        let stream = UnixStream::connect(control).map_err(|error| daemon.silent(error))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)
            .map_err(|error| daemon.silent(error.into()))?;
        daemon.pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
        Ok(daemon)
    }

    fn start(plan: &ChurnPlan, program: &Path, dir: &Path) -> Result<Daemon, BenchError> {
        let (state, run) = (dir.join("state"), dir.join("run"));
        let (config, log) = (dir.join("ferry.toml"), dir.join("log"));
        let text = format!(
            "state_dir = {state:?}\nrun_dir = {run:?}\nworkers = {}\n\
             [migration]\nlisten = \"127.0.0.1:0\"\n",
            plan.workers
        );
        let host = |what| move |source| BenchError::Host { what, source };
        std::fs::write(&config, text).map_err(host("the daemon's configuration"))?;
        let log_file = File::create(&log).map_err(host("the daemon's log"))?;
        let mut command = Command::new(program);
        // Each disk that comes or goes is a line of the log otherwise.
        if std::env::var_os("FERRY_LOG").is_none() {
            command.env("FERRY_LOG", "warn");
        }
        let child = command
            .args(["daemon", "--until-eof", "--config"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(|source| BenchError::Target {
                what: "start",
                path: program.to_owned(),
                source,
                mend: "name the daemon's program with --ferry, or a running daemon with --control",
            })?;
        let mut daemon = Daemon {
            pid: child.id(),
            control: run.join("control.sock"),
            dirs: vec![state, run],
            log: log.display().to_string(),
            timeout: plan.timeout,
            child: Some(child),
        };
        daemon.wait_for_start()?;
        Ok(daemon)
    }

    fn wait_for_start(&mut self) -> Result<(), BenchError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let error = match UnixStream::connect(&self.control) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = self.child.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(_))) = ended {
                return Err(self.silent(io::Error::other("it ended at once")));
            }
            if Instant::now() >= until {
                return Err(self.silent(error));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn connect(&self) -> Result<Client<'_>, BenchError> {
        let connect = || {
            let stream = UnixStream::connect(&self.control)?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            Ok(stream)
        };
        let stream = connect().map_err(|error| self.silent(error))?;
        Ok(Client {
            reader: BufReader::new(stream),
            daemon: self,
        })
    }

    /// The log of a daemon that was started goes with its folder, so its end is told.
    fn silent(&self, source: io::Error) -> BenchError {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        let log = if lines.is_empty() {
            "its log".to_owned()
        } else {
            let told: Vec<&str> = lines.into_iter().rev().collect();
            format!("the end of its log:\n{}", told.join("\n"))
        };
        BenchError::Silent {
            control: self.control.clone(),
            source,
            log,
        }
    }

    /// Ends a daemon that was started; how it ended, if that was not well.
    pub fn stop(mut self) -> Result<Option<String>, BenchError> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        drop(child.stdin.take());
        let until = Instant::now() + PATIENCE;
        loop {
            let ended = child.try_wait().map_err(|source| BenchError::Host {
                what: "the daemon's end",
                source,
            })?;
            match ended {
                Some(status) if status.success() => return Ok(None),
                Some(status) => return Ok(Some(format!("the daemon ended with {status}"))),
                None if Instant::now() >= until => {
                    self.child = Some(child);
                    let after = PATIENCE.as_secs();
                    return Ok(Some(format!("the daemon did not end within {after} s")));
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A connection to a daemon's control socket.
pub(super) struct Client<'d> {
    reader: BufReader<UnixStream>,
    daemon: &'d Daemon,
}

impl Client<'_> {
    /// Calls a method and waits for its answer.
    pub fn call(&mut self, method: &'static str, params: &Value) -> Result<Value, BenchError> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut answer = self
            .exchange(&request)
            .map_err(|error| self.daemon.silent(error))?;
        match answer.get("error") {
            None => Ok(answer["result"].take()),
            Some(error) => Err(BenchError::Refused {
                method,
                message: error["message"].as_str().unwrap_or("no reason").to_owned(),
            }),
        }
    }

    fn exchange(&mut self, request: &Value) -> io::Result<Value> {
        // One write, so that the daemon wakes once.
        let mut line = request.to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())?;
        line.clear();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
