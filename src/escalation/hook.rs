//! One run of a hook: a program of the operator's, without a shell, in a process group of its own,
//! for a bounded time. What it says goes to the log, so much of it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Access;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Done, Failure};

/// Of what a hook says so many lines are logged, and so many bytes of a line.
const LINES_MAX: usize = 100;
const LINE_BYTES_MAX: u64 = 500;

/// How often it is looked for the end of a hook.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What is run, and how.
pub struct Run {
    pub program: PathBuf,
    pub environment: Vec<(&'static str, OsString)>,
    pub timeout: Duration,
    /// For the log.
    pub about: String,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    Exited(ExitStatus),
    /// It took too long.
    Killed,
    NotStarted(std::io::Error),
}

/// A hook that cannot be run must not be found out about when it is needed.
pub fn check(program: &Path) -> Done {
    let refused = |why: String| {
        Err(Failure::Failed(format!(
            "hook {} cannot be run: {why}",
            program.display()
        )))
    };
    match std::fs::metadata(program) {
        Err(error) => refused(format!("{error}; put it there, or set another hook")),
        Ok(there) if !there.is_file() => refused("it is no file; name a program".into()),
        Ok(_) => match rustix::fs::access(program, Access::EXEC_OK) {
            Ok(()) => Ok(()),
            Err(error) => refused(format!(
                "{error}; make it executable: chmod +x {}",
                program.display()
            )),
        },
    }
}

impl Run {
    /// Runs it to its end, or to the end of its time.
    pub fn run(&self) -> Ended {
        match self.start() {
            Ok(child) => self.wait(child),
            Err(error) => Ended::NotStarted(error),
        }
    }

    fn start(&self) -> std::io::Result<Child> {
        let (output, said) = std::io::pipe()?;
        let about = self.about.clone();
        std::thread::Builder::new()
            .name("ferry-hook-says".into())
            .spawn(move || log(output, &about))?;
        Command::new(&self.program)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .process_group(0)
            .spawn()
    }

    fn wait(&self, mut child: Child) -> Ended {
        let began = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ended::Exited(status),
                Ok(None) if began.elapsed() < self.timeout => std::thread::sleep(LOOK_INTERVAL),
                _ => break,
            }
        }
        // Not reaped yet, so the number is still its own, and the group's.
        if let Err(error) = kill_process_group(Pid::from_child(&child), Signal::KILL) {
            tracing::error!(about = self.about, %error, "a hook could not be killed");
        }
        let _ = child.wait();
        Ended::Killed
    }
}

/// Logs what a hook says. It is read to its end, which may be that of something it has left running:
/// that would die of a pipe that nobody reads.
fn log(output: PipeReader, about: &str) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    for count in 0.. {
        line.clear();
        match output
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if count < LINES_MAX {
            tracing::info!(hook = about, says = ?text);
        } else if count == LINES_MAX {
            tracing::warn!(hook = about, "the hook says more; that is not logged");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str, timeout_ms: u64) -> Ended {
        let run = Run {
            program: program.into(),
            environment: Vec::new(),
            timeout: Duration::from_millis(timeout_ms),
            about: "test".into(),
        };
        run.run()
    }

    #[test]
    fn the_end_is_told() {
        let code = |ended| match ended {
            Ended::Exited(status) => status.code(),
            other => panic!("{other:?}"),
        };
        assert_eq!(code(run("/bin/true", 10_000)), Some(0));
        assert_eq!(code(run("/bin/false", 10_000)), Some(1));
        assert!(matches!(run("/nowhere/hook", 10_000), Ended::NotStarted(_)));
    }

    #[test]
    fn one_that_cannot_be_run_is_refused() {
        check(Path::new("/bin/sh")).unwrap();
        let said = |path: &Path| check(path).unwrap_err().to_string();
        let dir = tempfile::tempdir().unwrap();
        assert!(said(dir.path()).contains("no file"));
        let path = dir.path().join("hook");
        assert!(said(&path).contains("put it there"));
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        // Root may execute what anybody may, and no more.
        assert!(said(&path).contains("chmod +x"));
    }
}
