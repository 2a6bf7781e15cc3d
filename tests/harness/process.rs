//! Child processes that die with the harness.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::failure::Context;
use super::wait::wait_for;
use super::{Check, Failure, TestDir};
use crate::fail;

/// The unit of the times in /proc, fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running program, killed when this is dropped.
///
/// Where `setpriv` is at hand the kernel kills it as well when the harness
/// itself is killed. That signal follows the *thread* that spawned the child,
/// so children are spawned from the test's own thread and no other.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it prints goes to `NAME.log` in the folder.
    pub fn spawn<I, S>(dir: &TestDir, name: &str, program: &Path, args: I) -> Check<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Self::spawn_by(&[], dir, name, program, args)
    }

    /// The same by another program, with its words, that becomes it.
    pub fn spawn_by<I, S>(
        by: &[String],
        dir: &TestDir,
        name: &str,
        program: &Path,
        args: I,
    ) -> Check<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let log = dir.path(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        let err = out.try_clone()?;
        let child = command(by, program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .context(|| format!("starting {}", program.display()))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Check<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails with the program's last words if it has ended.
    pub fn ensure_alive(&mut self) -> Check {
        match self.ended()? {
            None => Ok(()),
            Some(status) => fail!("{} ended with {status}: {}", self.name, self.last_words()),
        }
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Check<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for(&what, limit, || Ok(self.child.try_wait()?))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Check {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal by its name, `STOP` for instance.
    pub fn signal(&self, signal: &str) -> Check {
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{signal} {}", self.pid())])
            .status()?;
        if !status.success() {
            fail!("could not send {signal} to {}", self.name);
        }
        Ok(())
    }

    /// The processor time used so far, in user and kernel mode, all threads.
    pub fn cpu_time(&self) -> Check<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The second field is the name in brackets, and may hold anything.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|field| field.parse::<f64>().ok())
        };
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => {
                Ok(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
            }
            _ => fail!("cannot read {stat:?}"),
        }
    }

    /// The last lines it printed.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself: nothing to say then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command whose process dies with the harness where that can be had.
fn command(by: &[String], program: &Path) -> Command {
    let mut words: Vec<&OsStr> = by.iter().map(OsStr::new).collect();
    let setpriv = find_program("setpriv");
    if let Some(setpriv) = &setpriv {
        // The last before the program: whoever changes what it may loses the signal.
        words.push(setpriv.as_os_str());
        words.extend(["--pdeathsig", "KILL", "--"].map(OsStr::new));
    }
    words.push(program.as_os_str());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Finds a program on the path, or where only root looks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// What a command printed on its standard output, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// A command that runs beside the test and whose output is wanted.
pub struct Running {
    process: Process,
    out: PathBuf,
    err: PathBuf,
    started: Instant,
}

impl Running {
    /// Starts it; its output is kept in files named after `name`.
    pub fn spawn<I, S>(dir: &TestDir, name: &str, program: &Path, args: I) -> Check<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Self::spawn_by(&[], dir, name, program, args)
    }

    /// The same by another program, with its words, that becomes it.
    pub fn spawn_by<I, S>(
        by: &[String],
        dir: &TestDir,
        name: &str,
        program: &Path,
        args: I,
    ) -> Check<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let out = dir.path(format!("{name}.out"));
        let err = dir.path(format!("{name}.err"));
        let child = command(by, program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()
            .context(|| format!("starting {}", program.display()))?;
        let process = Process {
            child,
            name: name.to_owned(),
            log: err.clone(),
        };
        Ok(Self {
            process,
            out,
            err,
            started: Instant::now(),
        })
    }

    /// Sends a signal by its name.
    pub fn signal(&self, signal: &str) -> Check {
        self.process.signal(signal)
    }

    /// What it has printed so far on its standard output.
    pub fn so_far(&self) -> Check<String> {
        Ok(fs::read_to_string(&self.out)?)
    }

    /// The output, if it has ended.
    pub fn ended(&mut self) -> Check<Option<Output>> {
        let Some(status) = self.process.ended()? else {
            return Ok(None);
        };
        Ok(Some(Output {
            code: status.code(),
            out: fs::read_to_string(&self.out)?,
            err: fs::read_to_string(&self.err)?,
        }))
    }

    /// Waits for the end, at most until `limit` after the start.
    pub fn finish(mut self, limit: Duration) -> Check<Output> {
        let left = limit.saturating_sub(self.started.elapsed());
        match self.process.wait(left) {
            Ok(_) => {}
            Err(Failure(words)) => fail!("{words}; it printed: {}", self.process.last_words()),
        }
        match self.ended()? {
            Some(output) => Ok(output),
            None => fail!("it ended and did not end"),
        }
    }
}
