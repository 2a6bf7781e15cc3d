//! The servers under comparison, as processes on a core of their own.
//!
//! One that is not having its turn is stopped (SIGSTOP), so that its polling
//! does not touch the others' figures. All die with this process.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cell::Backend;
use crate::error::BenchError;
use crate::frontend::{Vmm, VmmError, VmmOptions};
use crate::sys;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// What a server serves.
#[derive(Debug, Clone)]
pub struct Served {
    /// Kind of disk.
    pub backend: Backend,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Size of each disk that is no file.
    pub span_bytes: u64,
    /// Queues of each disk.
    pub queues: u16,
    /// Disks.
    pub disks: u16,
}

impl Served {
    /// `null:SIZE`, `memory:SIZE` or the path, as `ferry` and `stock` have it.
    fn spec(&self) -> String {
        match &self.file {
            Some(file) => file.display().to_string(),
            None => format!("{}:{}", self.backend.name(), self.span_bytes),
        }
    }

    fn sockets(&self, dir: &Path, name: &str) -> Vec<PathBuf> {
        (0..self.disks)
            .map(|i| dir.join(format!("{name}-{i}.sock")))
            .collect()
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// Where its disks listen.
    pub sockets: Vec<PathBuf>,
}

impl Server {
    /// `ferry serve`, or `ferry daemon` for several disks.
    pub fn ferry(program: &Path, served: &Served, dir: &Path) -> Result<Server, BenchError> {
        let sockets = served.sockets(dir, "ferry");
        let mut command = Command::new(program);
        if served.disks == 1 {
            command.args(["serve", &served.spec()]);
            command.arg("--socket-path").arg(&sockets[0]);
            command.args(["--num-queues", &served.queues.to_string()]);
            if served.backend == Backend::Cached {
                command.args(["--cache", "writeback"]);
            }
        } else {
            let config = daemon_config(served, dir, &sockets)?;
            command.args(["daemon", "--config"]).arg(config);
        }
        Self::start("ferry", command, sockets, dir)
    }

    /// qemu-storage-daemon with an I/O thread, which polls adaptively.
    pub fn qsd(served: &Served, dir: &Path) -> Result<Server, BenchError> {
        let sockets = served.sockets(dir, "qsd");
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", "iothread,id=io0"]);
        for (i, socket) in sockets.iter().enumerate() {
            let disk = match &served.file {
                None => format!("driver=null-co,size={}", served.span_bytes),
                Some(file) => format!(
                    "driver=file,filename={},cache.direct={},aio=io_uring,locking=off",
                    file.display(),
                    if served.backend == Backend::Disk {
                        "on"
                    } else {
                        "off"
                    },
                ),
            };
            command.args(["--blockdev", &format!("{disk},node-name=d{i}")]);
            command.arg("--export").arg(format!(
                "type=vhost-user-blk,id=e{i},node-name=d{i},addr.type=unix,addr.path={},\
                 writable=on,num-queues={},iothread=io0",
                socket.display(),
                served.queues
            ));
        }
        Self::start("qemu-storage-daemon", command, sockets, dir)
    }

    /// `ferry-bench stock`, which is this program.
    pub fn stock(served: &Served, dir: &Path) -> Result<Server, BenchError> {
        let program = std::env::current_exe().map_err(|source| BenchError::Host {
            what: "the path of this program",
            source,
        })?;
        let sockets = served.sockets(dir, "stock");
        let mut command = Command::new(program);
        command.args(["stock", "--disk", &served.spec()]);
        command.arg("--socket-path").arg(&sockets[0]);
        command.args(["--num-queues", &served.queues.to_string()]);
        if served.backend == Backend::Disk {
            command.arg("--direct");
        }
        Self::start("stock", command, sockets, dir)
    }

    /// Starts a server, which is there when all its sockets are.
    pub fn start(
        name: &'static str,
        mut command: Command,
        sockets: Vec<PathBuf>,
        dir: &Path,
    ) -> Result<Server, BenchError> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).map_err(|source| BenchError::Target {
            what: "create",
            path: log.clone(),
            source,
            mend: "choose another --dir",
        })?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            // Ctrl-C is for us; they go when we do.
            .process_group(0);
        let child = sys::die_with_parent(&mut command)
            .spawn()
            .map_err(|source| BenchError::Peer {
                peer: name.into(),
                said: source.to_string(),
            })?;
        let mut server = Server {
            name,
            child,
            log,
            sockets,
        };
        server.await_sockets()?;
        Ok(server)
    }

    fn await_sockets(&mut self) -> Result<(), BenchError> {
        let until = Instant::now() + START;
        while !self.sockets.iter().all(|s| s.exists()) {
            let gone = self.child.try_wait().ok().flatten();
            if gone.is_some() || Instant::now() > until {
                return Err(BenchError::Peer {
                    peer: self.name.into(),
                    said: self.last_words(),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        // No log is nothing said.
        let _ = File::open(&self.log).and_then(|mut f| f.read_to_string(&mut text));
        let from = text.len().saturating_sub(400);
        let tail = text.get(from..).unwrap_or(&text).trim();
        if tail.is_empty() {
            "it does not listen, and says nothing".into()
        } else {
            tail.into()
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its turn is over.
    pub fn pause(&self) -> Result<(), BenchError> {
        self.signal(libc::SIGSTOP)
    }

    /// Its turn begins.
    pub fn resume(&self) -> Result<(), BenchError> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&self, signal: libc::c_int) -> Result<(), BenchError> {
        sys::signal(&self.child, signal).map_err(|_| BenchError::Peer {
            peer: self.name.into(),
            said: self.last_words(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Attaches to a disk. A socket is there a moment before its server listens, and
/// refuses until then; between two front-ends some servers make it anew.
pub fn attach(socket: &Path) -> Result<Vmm, VmmError> {
    let until = Instant::now() + START;
    loop {
        match Vmm::connect(socket, VmmOptions::default()) {
            Err(VmmError::Connect { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                ) && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

fn daemon_config(served: &Served, dir: &Path, sockets: &[PathBuf]) -> Result<PathBuf, BenchError> {
    let path = dir.join("ferry.toml");
    let home = dir.join("daemon");
    let mut text = format!(
        "state_dir = {0:?}\nrun_dir = {0:?}\n[migration]\nlisten = \"127.0.0.1:0\"\n",
        home
    );
    for (i, socket) in sockets.iter().enumerate() {
        text += &format!(
            "[[disk]]\nid = \"d{i}\"\npath = \"{}\"\nsocket_path = {socket:?}\nnum_queues = {}\n",
            served.spec(),
            served.queues
        );
    }
    std::fs::create_dir_all(&home)
        .and_then(|()| std::fs::write(&path, text))
        .map_err(|source| BenchError::Target {
            what: "write",
            path: path.clone(),
            source,
            mend: "choose another --dir",
        })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_that_nobody_listens_to_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        // What a dead server leaves refuses, as one does that has not come to listen.
        drop(UnixListener::bind(&socket).unwrap());
        let path = socket.clone();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            // At no moment is there no socket.
            let next = path.with_extension("next");
            let listener = UnixListener::bind(&next).unwrap();
            std::fs::rename(&next, &path).unwrap();
            // Gone at once: attached, but no vhost-user server.
            drop(listener.accept().unwrap());
        });
        let error = attach(&socket).expect_err("nobody speaks vhost-user");
        assert!(
            !matches!(error, VmmError::Connect { ref source, .. }
            if source.kind() == io::ErrorKind::ConnectionRefused),
            "{error}"
        );
        late.join().unwrap();
    }
}
