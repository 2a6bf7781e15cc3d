//! The verified load on a block device or file.
//!
//! Made to run inside a guest, on the disk that is being moved under it: direct
//! I/O, so that every request reaches the device, one thread and one io_uring
//! per queue, each thread on a processor of its own, so that every virtqueue of
//! the device is used.

mod port;
mod ring;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::blk::{run_id, slot_sizes};
use crate::error::BenchError;
use crate::stamp::{Initial, Mix};
use crate::verify::{Verifier, VerifyPlan};

pub use port::RingPort;

/// A run of `ferry-bench device`.
#[derive(Debug, Clone)]
pub struct DevicePlan {
    /// The device or file. Its contents are destroyed.
    pub path: PathBuf,
    /// Threads.
    pub queues: u16,
    /// Requests in flight per thread.
    pub depth: u16,
    /// Bytes to use, from the start.
    pub span_bytes: u64,
    /// Longest request.
    pub largest_bytes: u32,
    /// The disk is known to be all zero at the start.
    pub fresh: bool,
    /// Draws the load.
    pub seed: u64,
}

impl DevicePlan {
    /// What can be judged without the device.
    pub fn check(&self) -> Result<(), BenchError> {
        let fail = |message: String| Err(BenchError::Usage(message));
        if self.queues == 0 || self.queues > 256 {
            return fail(format!("--queues {} is not in 1 to 256", self.queues));
        }
        if self.depth == 0 || self.depth > 1024 {
            return fail(format!("--depth {} is not in 1 to 1024", self.depth));
        }
        let largest = self.largest_bytes;
        if !largest.is_multiple_of(4096) || !(32 << 10..=16 << 20).contains(&largest) {
            return fail("--max-size is not a multiple of 4k in 32k to 16M".into());
        }
        Ok(())
    }
}

/// Starts the load.
pub fn start(plan: &DevicePlan) -> Result<Verifier<RingPort>, BenchError> {
    let mut target = Target::open(&plan.path)?;
    let bytes = target.size()?.min(plan.span_bytes);
    let align = target.align()?;
    let sectors = bytes / align * align / 512;
    if sectors == 0 {
        return Err(BenchError::Usage(format!(
            "{} has no room for one block of {align} bytes; use a larger disk or --span",
            plan.path.display()
        )));
    }
    let sizes = slot_sizes(usize::from(plan.depth), plan.largest_bytes as usize);
    let ports = (0..plan.queues)
        .map(|_| RingPort::new(target.reopen()?, target.is_block, &sizes))
        .collect::<Result<Vec<_>, BenchError>>()?;
    let load = VerifyPlan {
        sectors,
        align: align / 512,
        sectors_max: u64::from(plan.largest_bytes) / 512,
        initial: if plan.fresh {
            Initial::Zero
        } else {
            Initial::Unknown
        },
        mix: Mix {
            discard: 1,
            ..Mix::default()
        },
        seed: plan.seed,
        run: run_id(plan.seed),
    };
    Verifier::start_with(ports, &load, ring::pin)
}

struct Target {
    path: PathBuf,
    file: File,
    is_block: bool,
}

impl Target {
    fn open(path: &Path) -> Result<Self, BenchError> {
        let file = open_direct(path)?;
        let kind = file
            .metadata()
            .map_err(refused("look at", path, "check the path"))?
            .file_type();
        if !kind.is_block_device() && !kind.is_file() {
            let text = format!("{} is neither a block device nor a file", path.display());
            return Err(BenchError::Usage(text));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            is_block: kind.is_block_device(),
        })
    }

    /// A description of its own for every thread: file positions aside, the
    /// kernel then shares nothing between them.
    fn reopen(&self) -> Result<File, BenchError> {
        open_direct(&self.path)
    }

    fn size(&mut self) -> Result<u64, BenchError> {
        self.file
            .seek(SeekFrom::End(0))
            .map_err(refused("size up", &self.path, "check the path"))
    }

    /// The smallest grid on which direct I/O works, found by trying.
    fn align(&self) -> Result<u64, BenchError> {
        let mut buffer = ring::Buffer::new(4096);
        let mut last = io::Error::from(io::ErrorKind::InvalidInput);
        for align in [512, 4096] {
            match self.file.read_at(&mut buffer.bytes_mut()[..align], 0) {
                Ok(n) if n == align => return Ok(align as u64),
                Ok(_) => last = io::ErrorKind::UnexpectedEof.into(),
                Err(e) => last = e,
            }
        }
        Err(refused(
            "read",
            &self.path,
            "it must hold at least 4096 bytes and take direct I/O",
        )(last))
    }
}

fn open_direct(path: &Path) -> Result<File, BenchError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| {
            let mend = match source.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::PermissionDenied => "run as a user who may write it",
                io::ErrorKind::InvalidInput => "its filesystem takes no direct I/O; use another",
                _ => "check that nothing else holds it",
            };
            refused("open", path, mend)(source)
        })
}

fn refused(
    what: &'static str,
    path: &Path,
    mend: &'static str,
) -> impl FnOnce(io::Error) -> BenchError {
    let path = path.to_owned();
    move |source| BenchError::Target {
        what,
        path,
        source,
        mend,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn plan(path: &Path) -> DevicePlan {
        DevicePlan {
            path: path.to_owned(),
            queues: 2,
            depth: 8,
            span_bytes: 4 << 20,
            largest_bytes: 1 << 20,
            fresh: true,
            seed: 3,
        }
    }

    #[test]
    fn a_file_keeps_what_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        let verifier = start(&plan(&path)).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let verdict = verifier.finish(|_, _| {}).unwrap();
        assert!(verdict.is_clean(), "{verdict:?}");
        assert!(verdict.sectors_checked > 0 && verdict.progress.ops > 0);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(matches!(
            start(&plan(Path::new("/nonexistent"))),
            Err(BenchError::Target { .. })
        ));
        assert!(start(&plan(Path::new("/dev/null"))).is_err());
    }
}
