//! A `ferry serve` that is killed again and again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_dataplane::sys;

use super::daemon::ferry;
use super::process::Process;
use super::wait::secs;
use super::{Check, Failure, TestDir};

/// How long the moment for a kill is waited for.
const DEPTH_LIMIT: Duration = Duration::from_millis(500);

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

    /// Waits until the kernel has so many of its requests, for some time at
    /// most: under emulation a guest is slow, and its disk often has nothing
    /// to do. Where the kernel does not tell, now is as good as later.
    pub fn wait_depth(&mut self, requests: u32) -> Check {
        let fds = PathBuf::from(format!("/proc/{}/fd", self.process()?.pid()));
        let rings: Vec<PathBuf> = fs::read_dir(&fds)?
            .flatten()
            .filter(|fd| {
                fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("anon_inode:[io_uring]"))
            })
            .map(|fd| fds.with_file_name("fdinfo").join(fd.file_name()))
            .collect();
        let began = Instant::now();
        while began.elapsed() < DEPTH_LIMIT {
            let told: Vec<u32> = rings.iter().filter_map(|ring| in_kernel(ring)).collect();
            if told.is_empty() || told.iter().sum::<u32>() >= requests {
                break;
            }
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn end(&mut self) -> Check {
        let process = self.process()?;
        process.signal("TERM")?;
        process.wait(secs(20))?;
        self.process = None;
        Ok(())
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

/// Requests that an io_uring has taken and not completed.
fn in_kernel(fdinfo: &Path) -> Option<u32> {
    let text = fs::read_to_string(fdinfo).ok()?;
    let field = |name: &str| -> Option<u32> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some(field("SqHead:")?.wrapping_sub(field("CqTail:")?))
}
