//! A guest, and the QEMU it runs in at the moment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;

use super::process::{Process, find_program};
use super::qmp::Qmp;
use super::serial::Serial;
use super::wait::{secs, wait_for};
use super::{Check, Failure, TestDir};
use crate::{ensure, fail};

/// Four seconds are usual under emulation. The first boot on a fresh machine
/// reads QEMU, its libraries and the kernel from a cold disk: 74 s were seen on
/// one, and more than 90 on another.
const BOOT_LIMIT: Duration = secs(300);
const COMMAND_LIMIT: Duration = secs(120);

/// What the guest's machine looks like; both ends of a move need the same.
#[derive(Clone)]
pub struct Machine {
    /// Queues of each disk, and processors.
    pub queues: u16,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// How often QEMU tries to reach a disk's server that went away.
    pub reconnect_ms: u32,
    /// Whether it has a second port, for a program in the guest.
    pub second_port: bool,
    /// Its NICs.
    pub nics: Vec<Nic>,
    /// What QEMU is started by, to be in a network of its own.
    pub by: Vec<String>,
}

/// A NIC of a machine.
#[derive(Clone)]
pub struct Nic {
    /// Where it is served.
    pub socket: PathBuf,
    /// Its address.
    pub mac: String,
    /// More of QEMU's properties of the device, each with a comma before it.
    pub properties: String,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            queues: 4,
            memory_mib: 256,
            reconnect_ms: 200,
            second_port: false,
            nics: Vec::new(),
            by: Vec::new(),
        }
    }
}

/// One QEMU process.
pub struct Qemu {
    process: Process,
    /// The monitor of the harness.
    pub qmp: Qmp,
    serial: Serial,
    second_port: Option<Serial>,
    /// A second monitor, for Ferry: one monitor serves one client at a time.
    pub ferry_qmp: PathBuf,
}

/// Whether a QEMU waits for a guest to arrive, or boots one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Boot,
    Incoming,
}

impl Qemu {
    /// Starts a QEMU that waits, stopped, for a guest to be moved into it.
    pub fn incoming(dir: &TestDir, name: &str, machine: &Machine, disks: &[&Path]) -> Check<Self> {
        Self::spawn(dir, name, machine, disks, Start::Incoming)
    }

    /// Starts a QEMU that boots a guest, and does not wait for it.
    pub fn boot(dir: &TestDir, name: &str, machine: &Machine, disks: &[&Path]) -> Check<Self> {
        Self::spawn(dir, name, machine, disks, Start::Boot)
    }

    fn spawn(
        dir: &TestDir,
        name: &str,
        machine: &Machine,
        disks: &[&Path],
        start: Start,
    ) -> Check<Self> {
        let program = find_program("qemu-system-x86_64")
            .ok_or_else(|| Failure("qemu-system-x86_64 is missing".to_owned()))?;
        let qmp_socket = dir.path(format!("{name}.qmp"));
        let ferry_qmp = ferry_qmp(dir, name);
        let log = dir.path(format!("{name}-commands.log"));
        let console = dir.path(format!("{name}-console.log"));
        let serial = Serial::new("commands", &dir.path(format!("{name}.fifo")), &log)?;
        let mut arguments = machine_arguments(machine)?;
        arguments.extend(disk_arguments(machine, disks));
        arguments.extend(nic_arguments(machine));
        arguments.extend(["-device".into(), "virtio-serial-pci".into()]);
        arguments.extend(serial.arguments());
        let mut second_port = None;
        if machine.second_port {
            let fifo = dir.path(format!("{name}-second.fifo"));
            let port = Serial::new("second", &fifo, &dir.path(format!("{name}-second.log")))?;
            arguments.extend(port.arguments());
            second_port = Some(port);
        }
        arguments.extend(["-serial".into(), format!("file:{}", console.display())]);
        for socket in [&qmp_socket, &ferry_qmp] {
            arguments.extend([
                "-qmp".into(),
                format!("unix:{},server=on,wait=off", socket.display()),
            ]);
        }
        if start == Start::Incoming {
            arguments.extend(["-incoming".into(), "defer".into(), "-S".into()]);
        }
        let mut process = Process::spawn_by(&machine.by, dir, name, &program, &arguments)?;
        let qmp = Qmp::connect(name, &qmp_socket, || process.ensure_alive())?;
        process.ensure_alive()?;
        Ok(Self {
            process,
            qmp,
            serial,
            second_port,
            ferry_qmp,
        })
    }

    /// Waits for something on the command port while the process lives.
    fn wait_serial<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> Check<T> {
        let process = &mut self.process;
        self.serial
            .wait_for(what, limit, || process.ensure_alive(), find)
    }

    /// The second port, and the process that must live meanwhile.
    fn second_port(&mut self) -> Check<(&mut Serial, &mut Process)> {
        let port = self.second_port.as_mut();
        let port = port.ok_or_else(|| Failure("this machine has one port".to_owned()))?;
        Ok((port, &mut self.process))
    }

    /// How many requests the guest has put into a queue of its first disk, and
    /// how many of them were answered; none while the queue is not set up.
    pub fn requests(&mut self, queue: u16) -> Check<(u64, u64)> {
        let path = "/machine/peripheral/blk0/virtio-backend";
        let asked = self.qmp.execute(
            "x-query-virtio-queue-element",
            &json!({ "path": path, "queue": queue }),
        );
        let rings = match asked {
            Err(error) if error.0.contains("not initialized") => return Ok((0, 0)),
            rings => rings?,
        };
        let index = |ring: &str| rings[ring]["idx"].as_u64();
        index("avail")
            .zip(index("used"))
            .ok_or_else(|| Failure(format!("no indexes in {rings}")))
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Opens it for a guest to arrive by `uri`.
    pub fn listen(&mut self, uri: &str) -> Check {
        self.qmp.prepare_migration()?;
        self.qmp
            .execute("migrate-incoming", &json!({ "uri": uri }))?;
        Ok(())
    }
}

/// The monitor for Ferry of the QEMUs of one side. Their names are `SIDE-N`,
/// and the path is the side's: a daemon's configuration names it once.
pub fn ferry_qmp(dir: &TestDir, name: &str) -> PathBuf {
    let side = name.split('-').next().unwrap_or(name);
    dir.path(format!("{side}.ferry.qmp"))
}

fn machine_arguments(machine: &Machine) -> Check<Vec<String>> {
    let guest = guest_folder()?;
    let memory = machine.memory_mib;
    let words = [
        // Two cores and no KVM is what a CI machine has.
        "-accel",
        "tcg,thread=multi",
        "-machine",
        "pc,memory-backend=mem",
        "-cpu",
        "max",
        "-smp",
        &machine.queues.to_string(),
        "-m",
        &memory.to_string(),
        "-object",
        &format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
        "-kernel",
        &guest.join("vmlinuz").display().to_string(),
        "-initrd",
        &guest.join("initrd").display().to_string(),
        "-append",
        "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
        "-display",
        "none",
        "-nodefaults",
    ];
    Ok(words.iter().map(ToString::to_string).collect())
}

fn nic_arguments(machine: &Machine) -> Vec<String> {
    let nics = machine.nics.iter().enumerate();
    nics.flat_map(|(at, nic)| {
        let socket = nic.socket.display();
        [
            "-chardev".to_owned(),
            format!(
                "socket,id=nic{at},path={socket},reconnect-ms={}",
                machine.reconnect_ms
            ),
            "-netdev".to_owned(),
            format!("vhost-user,id=net{at},chardev=nic{at}"),
            "-device".to_owned(),
            format!(
                "virtio-net-pci,netdev=net{at},mac={}{}",
                nic.mac, nic.properties
            ),
        ]
    })
    .collect()
}

fn disk_arguments(machine: &Machine, disks: &[&Path]) -> Vec<String> {
    let mut arguments = Vec::new();
    for (index, socket) in disks.iter().enumerate() {
        arguments.push("-chardev".to_owned());
        arguments.push(format!(
            "socket,id=disk{index},path={},reconnect-ms={}",
            socket.display(),
            machine.reconnect_ms
        ));
        arguments.push("-device".to_owned());
        arguments.push(format!(
            "vhost-user-blk-pci,id=blk{index},chardev=disk{index},num-queues={}",
            machine.queues
        ));
    }
    arguments
}

/// The folder with the guest's kernel and initramfs, built when it is not.
pub fn guest_folder() -> Check<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("FERRY_GUEST").filter(|folder| !folder.is_empty()) {
            return Ok(PathBuf::from(folder));
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
        let output = Command::new(script)
            .arg("--quiet")
            .output()
            .map_err(|error| format!("tests/guest/build: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ))
    });
    folder.as_deref().map_err(|words| Failure(words.clone()))
}

/// A guest. It outlives the QEMU it was booted in: after a move, [`Guest::arrive`]
/// puts it into the other one.
pub struct Guest {
    qemu: Qemu,
    commands_sent: u64,
    boots_seen: usize,
}

impl Guest {
    /// Starts a QEMU and waits until the guest listens to its command port.
    pub fn boot(dir: &TestDir, name: &str, machine: &Machine, disks: &[&Path]) -> Check<Self> {
        let qemu = Qemu::boot(dir, name, machine, disks)?;
        let mut guest = Self {
            qemu,
            commands_sent: 0,
            boots_seen: 0,
        };
        guest.wait_boot()?;
        Ok(guest)
    }

    /// Waits for the next time the guest has come up.
    pub fn wait_boot(&mut self) -> Check {
        let wanted = self.boots_seen + 1;
        self.qemu
            .wait_serial("the guest to boot", BOOT_LIMIT, |text| {
                (text.matches(">>> up ").count() >= wanted).then_some(())
            })?;
        self.boots_seen = wanted;
        Ok(())
    }

    /// The QEMU it runs in.
    pub fn qemu(&mut self) -> &mut Qemu {
        &mut self.qemu
    }

    /// The monitor of the QEMU it runs in.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qemu.qmp
    }

    /// Says that the guest has moved into `qemu`; returns the one it left.
    pub fn arrive(&mut self, qemu: Qemu) -> Qemu {
        self.boots_seen = 0;
        std::mem::replace(&mut self.qemu, qemu)
    }

    /// Runs a shell command and returns what it printed and its exit status.
    pub fn run(&mut self, command: &str) -> Check<(String, i32)> {
        let id = self.send(command)?;
        let begin = format!(">>> begin {id}\n");
        let end = format!("\n>>> end {id} ");
        self.qemu
            .wait_serial(&format!("{command:?}"), COMMAND_LIMIT, |text| {
                let from = text.find(&begin)? + begin.len();
                let to = from + text[from..].find(&end)?;
                let rest = &text[to + end.len()..];
                let status = rest[..rest.find('\n')?].trim().parse().ok()?;
                Some((text[from..to].to_owned(), status))
            })
    }

    /// Sends a command without waiting: one that ends the guest's run.
    pub fn send(&mut self, command: &str) -> Check<u64> {
        self.commands_sent += 1;
        let id = self.commands_sent;
        self.qemu.serial.send(&format!("{id} {command}"))?;
        Ok(id)
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn expect(&mut self, command: &str) -> Check<String> {
        let (out, status) = self.run(command)?;
        ensure!(
            status == 0,
            "in the guest, {command:?} ended with {status}: {out}"
        );
        Ok(out)
    }

    /// Sends a line to the program at the second port.
    pub fn tell_second_port(&mut self, line: &str) -> Check {
        self.qemu.second_port()?.0.send(line)
    }

    /// Waits for something on the second port.
    pub fn wait_second_port<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> Check<T> {
        let (port, process) = self.qemu.second_port()?;
        port.wait_for(what, limit, || process.ensure_alive(), find)
    }

    /// Starts a command beside the others; see `bg` in tests/guest/init.
    pub fn spawn_bg(&mut self, name: &str, command: &str) -> Check {
        self.expect(&format!("bg {name} '{command}'"))?;
        Ok(())
    }

    /// The last lines of a background command's output.
    pub fn bg_log(&mut self, name: &str, lines: u32) -> Check<String> {
        self.expect(&format!("tail -n {lines} /tmp/{name}.log"))
    }

    /// A background command's exit status, once it has ended.
    pub fn bg_status(&mut self, name: &str) -> Check<Option<i32>> {
        let (out, status) = self.run(&format!("cat /tmp/{name}.status 2>/dev/null"))?;
        if status != 0 {
            return Ok(None);
        }
        Ok(Some(out.trim().parse()?))
    }

    /// Waits for the end of a background command that must succeed.
    pub fn finish_bg(&mut self, name: &str, limit: Duration) -> Check {
        let status = wait_for(&format!("{name} in the guest"), limit, || {
            self.bg_status(name)
        })?;
        if status != 0 {
            let log = self.bg_log(name, 20)?;
            fail!("in the guest, {name} ended with {status}: {log}");
        }
        Ok(())
    }

    /// Fails if the guest's kernel has complained about a disk.
    pub fn ensure_no_disk_errors(&mut self) -> Check {
        let errors = self.expect("disk_errors")?;
        ensure!(
            errors.trim().is_empty(),
            "the guest's kernel says: {errors}"
        );
        Ok(())
    }
}
