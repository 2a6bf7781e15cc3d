//! What the host has: the kernel's part, limits, directories, groups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getegid, getgroups, getrlimit};

use crate::qos::lint::{Finding, Level};
use crate::workers::{self, Spin};

/// Descriptors of a daemon, and of a disk with one queue in use.
const FILES_BASE: u64 = 64;
const FILES_A_DISK: u64 = 10;

/// Disks for which there should be descriptors, whatever the configuration has.
const DISKS_MIN: u64 = 100;

/// Locked memory below which nobody's guest can be pinned.
const MEMLOCK_MIN: u64 = 64 << 20;

/// What a daemon would need here.
pub struct Wanted {
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
    /// Of the sockets; `kvm` unless set.
    pub group: Option<String>,
    pub disks: usize,
    pub pins_memory: bool,
    pub taps: bool,
}

/// Looks at everything.
pub fn look(wanted: &Wanted) -> Vec<Finding> {
    let mut found = vec![
        io_uring(),
        directory("run-dir", &wanted.run_dir),
        directory("state-dir", &wanted.state_dir),
        open_files(wanted),
        memlock(wanted),
        group(wanted),
        kvm(),
        hugepages(),
    ];
    if wanted.taps {
        found.push(tun());
    }
    found
}

fn ok(check: &'static str, about: &str, found: impl ToString) -> Finding {
    Finding::new(Level::Ok, check, about, found, None)
}

fn bad(
    level: Level,
    check: &'static str,
    about: &str,
    found: impl ToString,
    mend: &str,
) -> Finding {
    Finding::new(level, check, about, found, Some(mend))
}

fn first_line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

/// Tried as it is used: a worker is started.
fn io_uring() -> Finding {
    let kernel = first_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "?".into());
    let about = "io_uring";
    match workers::start(1, Spin::default()) {
        Ok(_) => ok(
            "io-uring",
            about,
            format!("a worker starts, on Linux {kernel}"),
        ),
        Err(error) => {
            let disabled = first_line("/proc/sys/kernel/io_uring_disabled");
            let mend = match disabled.as_deref() {
                Some("1" | "2") => {
                    "allow it: sysctl kernel.io_uring_disabled=0, or 1 and kernel.io_uring_group with \
                     this user in it"
                }
                _ => {
                    "use Linux 5.19 or newer; in a container, allow the calls io_uring_setup, \
                     io_uring_enter and io_uring_register (seccomp)"
                }
            };
            let found = format!("{error} (Linux {kernel})");
            bad(Level::Error, "io-uring", about, found, mend)
        }
    }
}

/// Whether something can be written there, or it can be made.
fn directory(check: &'static str, dir: &Path) -> Finding {
    let about = dir.display().to_string();
    let there = dir.ancestors().find(|it| it.exists()).unwrap_or(dir);
    let tried = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).map_err(io::Error::from);
    match tried {
        Ok(()) if there == dir => ok(check, &about, "it can be written"),
        Ok(()) => ok(check, &about, "it is not there, and can be made"),
        Err(error) => {
            let found = format!("{} cannot be written: {error}", there.display());
            let key = check.replace('-', "_");
            let mend = format!(
                "make it for this user (RuntimeDirectory= and StateDirectory= of a service), or set \
                 {key} in the configuration"
            );
            bad(Level::Error, check, &about, found, &mend)
        }
    }
}

fn open_files(wanted: &Wanted) -> Finding {
    let about = "open files";
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let disks = DISKS_MIN.max(wanted.disks as u64);
    let needed = FILES_BASE + FILES_A_DISK * disks;
    if limit >= needed {
        let room = limit.saturating_sub(FILES_BASE) / FILES_A_DISK;
        let found = format!("the limit of {limit} is enough for {room} disks of one queue");
        return ok("open-files", about, found);
    }
    let found = format!("the limit is {limit}, and {disks} disks of one queue take {needed}");
    let mend = "raise it: LimitNOFILE= of a service, ulimit -Hn of a shell";
    bad(Level::Warning, "open-files", about, found, mend)
}

/// Rings have not counted against it since Linux 5.12; registered memory does.
fn memlock(wanted: &Wanted) -> Finding {
    let about = "locked memory";
    let limit = getrlimit(Resource::Memlock).current;
    let enough =
        limit.is_none_or(|limit| limit >= MEMLOCK_MIN) || rustix::process::geteuid().is_root();
    if enough {
        let found = match limit {
            Some(limit) => format!("the limit is {}", crate::output::bytes(limit)),
            None => "there is no limit".into(),
        };
        return ok("memlock", about, found);
    }
    let found = format!(
        "the limit is {}: buffers are not registered, which costs some speed, and no guest can be \
         pinned",
        crate::output::bytes(limit.unwrap_or(0))
    );
    let mend = "raise it above the sum of the pinned guests' memory: LimitMEMLOCK= of a service, \
                ulimit -l of a shell";
    let level = if wanted.pins_memory {
        Level::Warning
    } else {
        Level::Note
    };
    bad(level, "memlock", about, found, mend)
}

/// A VMM of another user reaches the sockets by their group.
fn group(wanted: &Wanted) -> Finding {
    let name = wanted.group.as_deref().unwrap_or("kvm");
    let about = format!("group {name}");
    let Some(gid) = crate::daemon::group_id(name) else {
        let level = match wanted.group {
            Some(_) => Level::Warning,
            None => Level::Note,
        };
        let found = "there is no such group: sockets keep this user's, and VMMs of other users cannot \
                     use them";
        let mend = "make it (groupadd), or set group in the configuration to one that VMMs are in";
        return bad(level, "group", &about, found, mend);
    };
    let groups = getgroups().unwrap_or_default();
    let member = getegid().as_raw() == gid || groups.iter().any(|it| it.as_raw() == gid);
    if member || rustix::process::geteuid().is_root() {
        return ok("group", &about, "sockets can be given to it");
    }
    let found = "this user is not in it: sockets keep this user's group";
    let mend = format!("put the user into it: usermod -aG {name} USER");
    bad(Level::Warning, "group", &about, found, &mend)
}

/// Ferry does without; its guests' VMMs should not.
fn kvm() -> Finding {
    let path = Path::new("/dev/kvm");
    let about = "/dev/kvm";
    if !path.exists() {
        let found = "there is none: virtual machines run slowly here, by emulation";
        let mend = "turn virtualisation on in the firmware, and load kvm_intel or kvm_amd";
        return bad(Level::Note, "kvm", about, found, mend);
    }
    ok("kvm", about, "it is there")
}

/// Guest memory on huge pages saves the VMM and Ferry page faults and entries.
fn hugepages() -> Finding {
    let about = "huge pages";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| {
        let count = line.strip_prefix("HugePages_Total:")?;
        count.trim().parse::<u64>().ok()
    });
    match total {
        Some(count) if count > 0 => ok("hugepages", about, format!("{count} are reserved")),
        _ => {
            let found = "none are reserved; they are an option for large guests";
            let mend = "sysctl vm.nr_hugepages=N, and hugetlb=on of QEMU's memory-backend-memfd";
            bad(Level::Note, "hugepages", about, found, mend)
        }
    }
}

fn tun() -> Finding {
    let about = "/dev/net/tun";
    let tried = fs::OpenOptions::new().read(true).write(true).open(about);
    match tried {
        Ok(_) => ok("tun", about, "it can be opened"),
        Err(error) => {
            let found = format!("it cannot be opened: {error}: NICs have no taps");
            let mend = "load the module (modprobe tun), and let this user open it; or hand taps over \
                        with ferry nic add --tap-fd";
            bad(Level::Warning, "tun", about, found, mend)
        }
    }
}
