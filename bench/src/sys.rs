//! The system calls that the standard library has no safe form for. Each takes plain values and
//! memory of this stack frame, so each is safe to call.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Puts the calling thread, and what it starts from now on, on these cores.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    // SAFETY: a set is plain bits, for which zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for core in cores {
        if *core >= 8 * size_of::<libc::cpu_set_t>() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the index is inside the set.
        unsafe { libc::CPU_SET(*core, &mut set) };
    }
    // SAFETY: the set lives through the call, which only reads it; 0 is this thread.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) })
}

/// The cores this thread may run on.
pub fn cores() -> io::Result<Vec<usize>> {
    // SAFETY: a set is plain bits, for which zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set lives through the call, which fills at most its size; 0 is this thread.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) })?;
    let bits = 0..8 * size_of::<libc::cpu_set_t>();
    // SAFETY: the index is inside the set.
    Ok(bits
        .filter(|core| unsafe { libc::CPU_ISSET(*core, &set) })
        .collect())
}

/// Raises this process's limit of open files as far as it may go.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one `rlimit`, which lives through it.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call reads one `rlimit`, which lives through it.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

/// Lets the kernel kill the child when the thread that starts it ends, however it ends.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let hook = || {
        // SAFETY: plain integers; prctl may be called between fork and exec.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
    };
    // SAFETY: the hook makes one system call and allocates nothing, as is required after a fork.
    unsafe { command.pre_exec(hook) }
}

/// Sends a signal to a child that was not waited for yet.
pub fn signal(child: &std::process::Child, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: plain integers; the child was not reaped, so the number is its own.
    check(unsafe { libc::kill(pid, signal) })
}

/// Whether a path is on tmpfs, where io_uring and O_DIRECT mean something else than on a disk.
pub fn is_tmpfs(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut out = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `out` lives through the call and has the size that it fills.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), out.as_mut_ptr()) })?;
    // SAFETY: filled by the call above, which succeeded.
    Ok(unsafe { out.assume_init() }.f_type == libc::TMPFS_MAGIC)
}

/// What a hardware counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Instructions retired.
    Instructions,
    /// Cycles.
    Cycles,
    /// Nanoseconds on a core, which every kernel counts.
    TaskClock,
}

/// A counter on one thread and those that it starts.
#[derive(Debug)]
pub struct Counter(File);

/// The first version of `perf_event_attr`, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct PerfAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    config1: u64,
}

impl Counter {
    /// Counts for a thread, kernel and user side. Fails where the machine has no such counter,
    /// as in most virtual machines, or where the kernel forbids it.
    pub fn on_thread(tid: i32, count: Count) -> io::Result<Counter> {
        const INHERIT: u64 = 1 << 1;
        const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
        let (kind, config) = match count {
            Count::Cycles => (0, 0),
            Count::Instructions => (0, 1),
            Count::TaskClock => (1, 1),
        };
        let size = u32::try_from(size_of::<PerfAttr>()).unwrap_or(0);
        let attr = PerfAttr {
            kind,
            size,
            config,
            flags: INHERIT,
            ..PerfAttr::default()
        };
        // SAFETY: `attr` lives through the call and tells its size; the rest are plain integers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attr,
                tid,
                -1,
                -1,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = i32::try_from(fd).unwrap_or(-1);
        check(fd)?;
        // SAFETY: the kernel just gave us this descriptor and nobody else owns it.
        Ok(Counter(unsafe { File::from_raw_fd(fd) }))
    }

    /// The count so far.
    pub fn read(&self) -> io::Result<u64> {
        let mut word = [0; 8];
        (&self.0).read_exact(&mut word)?;
        Ok(u64::from_ne_bytes(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_where_it_was_pinned() {
        let all = cores().unwrap();
        let last = *all.last().unwrap();
        std::thread::spawn(move || {
            pin(&[last]).unwrap();
            assert_eq!(cores().unwrap(), [last]);
        })
        .join()
        .unwrap();
        assert_eq!(cores().unwrap(), all);
        assert!(pin(&[1 << 20]).is_err());
    }

    #[test]
    fn a_counter_counts_where_the_kernel_allows_it() {
        let Ok(counter) = Counter::on_thread(0, Count::TaskClock) else {
            eprintln!("SKIPPED: a_counter_counts: perf_event_open is forbidden here");
            return;
        };
        let before = counter.read().unwrap();
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 5 {}
        assert!(counter.read().unwrap() - before > 1_000_000);
    }
}
