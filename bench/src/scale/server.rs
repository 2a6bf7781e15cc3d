//! A `ferry daemon` for one side of a comparison.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::host;
use crate::error::BenchError;
use crate::sys;

/// What a daemon is to serve.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape<'a> {
    pub workers: usize,
    pub disks: usize,
    /// As `ferry disk add --path` takes it.
    pub disk: &'a str,
    pub queues: u16,
    /// More of each disk's settings, a line each.
    pub each: &'a str,
    /// NICs of one switch.
    pub nics: usize,
    /// The core it runs on.
    pub core: Option<usize>,
    /// The core of this thread, to come back to.
    pub back: Option<usize>,
}

impl Shape<'_> {
    /// The address of a NIC.
    pub fn mac(nic: usize) -> [u8; 6] {
        let [.., high, low] = nic.to_be_bytes();
        [0x52, 0x54, 0, 0, high, low]
    }
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub anonymous_bytes: u64,
    pub descriptors: u64,
    pub threads: u64,
}

/// A running daemon; it ends when its standard input does, and so with this process.
pub(super) struct Server {
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    pub fn start(program: &Path, shape: &Shape<'_>) -> Result<Server, BenchError> {
        let dir = tempfile::tempdir().map_err(host("a directory"))?;
        let mut text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\nworkers = {}\n[migration]\nlisten = \"127.0.0.1:0\"\n",
            dir.path().join("state"),
            dir.path().join("run"),
            shape.workers
        );
        for at in 0..shape.disks {
            text += &format!(
                "[[disk]]\nid = \"d{at}\"\npath = {:?}\nnum_queues = {}\n{}",
                shape.disk, shape.queues, shape.each
            );
        }
        if shape.nics > 0 {
            text += "[[switch]]\nname = \"lan\"\n";
        }
        for at in 0..shape.nics {
            let mac = Shape::mac(at).map(|byte| format!("{byte:02x}")).join(":");
            text += &format!("[[nic]]\nid = \"n{at}\"\nswitch = \"lan\"\nmac = \"{mac}\"\n");
        }
        let config = dir.path().join("ferry.toml");
        fs::write(&config, text).map_err(host("a file"))?;
        let log = File::create(dir.path().join("log")).map_err(host("a file"))?;
        let mut command = Command::new(program);
        command
            .args(["daemon", "--until-eof", "--json", "--config"])
            .arg(&config)
            .env("FERRY_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        // A child runs where its parent did when it was started.
        let pinned = |core: Option<usize>| core.map_or(Ok(()), |core| sys::pin(&[core]));
        pinned(shape.core).map_err(host("to pin a process to a core"))?;
        let child = command.spawn();
        pinned(shape.back).map_err(host("to pin a thread to a core"))?;
        let child = child.map_err(|source| BenchError::Target {
            what: "start",
            path: program.to_owned(),
            source,
            mend: "name the ferry program with --server",
        })?;
        let mut server = Server { dir, child };
        server.await_ready()?;
        Ok(server)
    }

    fn await_ready(&mut self) -> Result<(), BenchError> {
        let out = self.child.stdout.take().expect("it was asked for");
        let mut line = String::new();
        BufReader::new(out)
            .read_line(&mut line)
            .map_err(host("the server's words"))?;
        if line.contains("\"ready\":true") {
            return Ok(());
        }
        let said = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        Err(BenchError::Host {
            what: "a server that serves",
            source: std::io::Error::other(said.trim().to_owned()),
        })
    }

    pub fn socket(&self, disk: usize) -> PathBuf {
        self.dir.path().join("run").join(format!("d{disk}.sock"))
    }

    pub fn nic_socket(&self, nic: usize) -> PathBuf {
        let name = format!("nic-n{nic}.sock");
        self.dir.path().join("run").join(name)
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join(name)
    }

    /// Time on a processor so far, in nanoseconds, of all its threads.
    pub fn cpu_ns(&self) -> Result<u64, BenchError> {
        let tasks = fs::read_dir(self.proc("task")).map_err(host("its threads"))?;
        let of = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Ok(tasks.flatten().filter_map(of).sum())
    }

    pub fn size(&self) -> Result<Size, BenchError> {
        let text = fs::read_to_string(self.proc("status")).map_err(host("its size"))?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let descriptors = fs::read_dir(self.proc("fd")).map_err(host("its descriptors"))?;
        Ok(Size {
            anonymous_bytes: field("RssAnon:").unwrap_or(0) << 10,
            descriptors: descriptors.count() as u64,
            threads: field("Threads:").unwrap_or(0),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
