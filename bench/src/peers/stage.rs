//! What the servers serve, and who can serve it here.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::cell::{Backend, Cell, Mix};
use super::copy::CopyLoop;
use super::runs::{Contestant, Course, Peer, on_core};
use super::server::{Served, Server};
use super::{LeftOut, Plan, fio};
use crate::error::BenchError;
use crate::rng::Rng;
use crate::sys;

/// Folders, files, and what is missing. The folders go when it does.
pub struct Stage {
    plan: Plan,
    dir: TempDir,
    tmpfs_dir: Option<TempDir>,
    missing: HashSet<(Peer, Backend)>,
    /// In words.
    pub left_out: Vec<LeftOut>,
}

impl Stage {
    /// Looks at what is installed and where files can be made.
    pub fn new(plan: &Plan) -> Result<Self, BenchError> {
        let mut stage = Self {
            dir: folder(&plan.dir)?,
            tmpfs_dir: None,
            plan: plan.clone(),
            missing: HashSet::new(),
            left_out: Vec::new(),
        };
        stage.look_for_programs();
        stage.look_for_folders()?;
        Ok(stage)
    }

    /// Where servers make what they need.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn look_for_programs(&mut self) {
        let files = Backend::ALL.into_iter().filter(|b| b.is_file());
        if !fio::installed() {
            self.leave_out(Peer::Native, files, "fio is not installed");
        }
        if !answers(Path::new("qemu-storage-daemon"), &["--version"]).is_some_and(|_| true) {
            self.leave_out(
                Peer::Qsd,
                Backend::ALL.into_iter().filter(|b| *b != Backend::Memory),
                "qemu-storage-daemon is not installed",
            );
        }
        let help = answers(&self.plan.ferry.clone(), &["serve", "--help"]);
        if !help.is_some_and(|text| text.contains("--cache")) {
            self.leave_out(
                Peer::Ferry,
                [Backend::Cached],
                "this ferry has no --cache writeback",
            );
        }
    }

    fn look_for_folders(&mut self) -> Result<(), BenchError> {
        let wants = |stage: &Self, backend| stage.plan.backends.contains(&backend);
        if wants(self, Backend::Tmpfs) {
            if is_tmpfs(&self.plan.tmpfs_dir) {
                self.tmpfs_dir = Some(folder(&self.plan.tmpfs_dir)?);
            } else {
                let why = format!(
                    "{} is not on tmpfs; name a folder with --tmpfs-dir",
                    self.plan.tmpfs_dir.display()
                );
                self.leave_out(Peer::Ferry, [Backend::Tmpfs], &why);
            }
        }
        if is_tmpfs(&self.plan.dir) {
            let why = format!(
                "{} is on tmpfs; name a folder on a disk with --dir",
                self.plan.dir.display()
            );
            self.leave_out(Peer::Ferry, [Backend::Cached, Backend::Disk], &why);
        }
        Ok(())
    }

    fn leave_out(&mut self, peer: Peer, backends: impl IntoIterator<Item = Backend>, why: &str) {
        let wanted = |b: &Backend| self.plan.backends.contains(b);
        let backends: Vec<_> = backends.into_iter().filter(wanted).collect();
        if backends.is_empty() {
            return;
        }
        self.missing.extend(backends.iter().map(|b| (peer, *b)));
        self.left_out.push(LeftOut {
            peer,
            backends,
            why: why.into(),
        });
    }

    /// Who runs on a cell: those that know its kind of disk and are here. None
    /// if Ferry is not.
    pub fn peers(&self, cell: &Cell) -> Vec<Peer> {
        let backend = cell.backend;
        let mut peers = vec![Peer::Ferry];
        if backend != Backend::Memory {
            peers.push(Peer::Qsd);
        }
        if cell.disks == 1 {
            peers.push(Peer::Stock);
        }
        if backend.is_file() {
            peers.push(Peer::Native);
        }
        if backend == Backend::Memory {
            peers.push(Peer::Copy);
        }
        if backend == Backend::Null {
            peers.push(Peer::Ceiling);
        }
        if self.missing.contains(&(Peer::Ferry, backend)) {
            return Vec::new();
        }
        peers.retain(|peer| !self.missing.contains(&(*peer, backend)));
        peers
    }

    /// Starts everyone for the cells that share this one's disks and queues.
    pub fn open(&mut self, cell: &Cell, course: &Course) -> Result<Vec<Contestant>, BenchError> {
        let peers = self.peers(cell);
        if peers.is_empty() {
            return Ok(Vec::new());
        }
        let served = Served {
            backend: cell.backend,
            file: self.file(cell.backend)?,
            span_bytes: self.plan.span_bytes,
            queues: cell.queues,
            disks: cell.disks,
        };
        peers
            .into_iter()
            .map(|peer| self.start(peer, &served, cell, course))
            .collect()
    }

    fn start(
        &self,
        peer: Peer,
        served: &Served,
        cell: &Cell,
        course: &Course,
    ) -> Result<Contestant, BenchError> {
        let dir = self.dir.path();
        let server = |start: &dyn Fn() -> Result<Server, BenchError>| -> Result<_, BenchError> {
            let server = on_core(course.cores.server, course.cores.client, start)?;
            server.pause()?;
            Ok(Contestant::Server(peer, server))
        };
        let contestant = match peer {
            Peer::Ferry => server(&|| Server::ferry(&self.plan.ferry, served, dir))?,
            Peer::Qsd => server(&|| Server::qsd(served, dir))?,
            Peer::Stock => server(&|| Server::stock(served, dir))?,
            Peer::Native => Contestant::Native(served.file.clone().unwrap_or_default()),
            Peer::Copy => Contestant::Copy(CopyLoop::new(course.span_bytes)?),
            Peer::Ceiling => Contestant::Ceiling,
        };
        if cell.backend == Backend::Memory {
            contestant.fill(cell, course)?;
        }
        Ok(contestant)
    }

    /// The file of a kind of disk, made and written in full.
    fn file(&self, backend: Backend) -> Result<Option<PathBuf>, BenchError> {
        let dir = match (backend, &self.tmpfs_dir) {
            (Backend::Null | Backend::Memory, _) => return Ok(None),
            (Backend::Tmpfs, Some(dir)) => dir.path(),
            _ => self.dir.path(),
        };
        let path = dir.join(format!("{}.raw", backend.name()));
        write_random(&path, self.plan.span_bytes).map_err(|source| BenchError::Target {
            what: "write",
            path: path.clone(),
            source,
            mend: "free some space, or use a smaller --size or another --dir",
        })?;
        Ok(Some(path))
    }

    /// Lets what a cell wrote reach the disk before the next one starts.
    pub fn settle(&self, cell: &Cell) -> Result<(), BenchError> {
        if cell.mix == Mix::Read || !matches!(cell.backend, Backend::Cached | Backend::Disk) {
            return Ok(());
        }
        let path = self.dir.path().join(format!("{}.raw", cell.backend.name()));
        let synced = File::open(&path).and_then(|f| f.sync_all());
        synced.map_err(|source| BenchError::Target {
            what: "sync",
            path,
            source,
            mend: "look whether the disk is sound",
        })
    }
}

fn folder(parent: &Path) -> Result<TempDir, BenchError> {
    let made = tempfile::Builder::new()
        .prefix("ferry-peers-")
        .tempdir_in(parent);
    made.map_err(|source| BenchError::Target {
        what: "make a folder in",
        path: parent.to_owned(),
        source,
        mend: "name another with --dir or --tmpfs-dir",
    })
}

fn is_tmpfs(path: &Path) -> bool {
    sys::is_tmpfs(path).unwrap_or(false)
}

/// What a program prints, if it is there.
fn answers(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// No holes, nothing to compress, and all of it in the page cache and on the disk.
fn write_random(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut rng = Rng::new(bytes);
    let mut chunk = vec![0; 1 << 20];
    for _ in 0..bytes / chunk.len() as u64 {
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        file.write_all(&chunk)?;
    }
    file.sync_all()
}
