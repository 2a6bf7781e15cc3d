//! Daemons in processes of their own, commands, and a guest of one request at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{
    BlkQueue, GuestDevice, GuestMemory, Op, QueueOptions, Segment, Status, Vmm, VmmOptions,
};
use serde_json::Value;

/// How long anything may take before it counts as a hang.
pub const PATIENCE: Duration = Duration::from_secs(12);

pub const MIB: u64 = 1 << 20;

/// A process that is killed when this is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The last document on standard output of a command that succeeded.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        let last = self.out.lines().last().unwrap_or("null");
        serde_json::from_str(last).unwrap_or_else(|_| panic!("not JSON: {last}"))
    }

    /// The error of a command that ended with `code`.
    #[track_caller]
    pub fn error(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        let document = self.err.lines().find_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            line.get("error")?.as_str().map(str::to_owned)
        });
        document.unwrap_or_else(|| panic!("no error in {self:?}"))
    }

    /// The error of a command that failed, which says all of `words`.
    #[track_caller]
    pub fn refused(self, words: &[&str]) {
        let error = self.error(1);
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

/// Runs `ferry` to its end.
pub fn ferry(words: &[&str]) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("ferry {words:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut out).unwrap();
    child.stderr.unwrap().read_to_string(&mut err).unwrap();
    Said { code, out, err }
}

/// A `ferry` that was told to serve.
pub struct Starting {
    process: Process,
    told: mpsc::Receiver<String>,
    log: PathBuf,
}

impl Starting {
    /// Starts it; its log goes to the end of `log`.
    pub fn new(log: &Path, words: &[&str]) -> Starting {
        Starting::by(&[], log, words)
    }

    /// The same, by another program that becomes it.
    fn by(program: &[&str], log: &Path, words: &[&str]) -> Starting {
        let err = File::options().create(true).append(true).open(log).unwrap();
        let mut whole = program.to_vec();
        whole.push(env!("CARGO_BIN_EXE_ferry"));
        let mut child = Command::new(whole[0])
            .args(&whole[1..])
            .args(words)
            .arg("--json")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(err)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let process = Process(child);
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = tell.send(line);
        });
        Starting {
            process,
            told,
            log: log.to_owned(),
        }
    }

    /// Waits until it says that it serves.
    pub fn ready(self) -> (Process, Value) {
        let line = self.told.recv_timeout(PATIENCE).unwrap_or_default();
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!(
                "ferry did not start: {}",
                std::fs::read_to_string(&self.log).unwrap()
            )
        });
        (self.process, ready)
    }
}

/// Starts a `ferry` that serves, and waits until it says that it does.
pub fn serving(log: &Path, words: &[&str]) -> (Process, Value) {
    let _ = std::fs::remove_file(log);
    Starting::new(log, words).ready()
}

/// A daemon and its directory.
pub struct Host {
    pub dir: PathBuf,
    port: u16,
    process: Option<Process>,
    /// What the daemon is started by.
    program: &'static [&'static str],
}

/// Becomes a program that has a network of its own, and is root there.
const NETWORK: &[&str] = &["unshare", "--map-root-user", "--net", "--"];

/// Whether there may be such programs. If not the test is skipped, and says so; in CI it fails.
pub fn networks(test: &str) -> bool {
    let tried = Command::new(NETWORK[0])
        .args(&NETWORK[1..])
        .arg("true")
        .output();
    let may = tried.is_ok_and(|it| it.status.success()) && Path::new("/dev/net/tun").exists();
    assert!(
        may || std::env::var_os("CI").is_none(),
        "no networks of one's own here"
    );
    if !may {
        eprintln!(
            "SKIPPED {test}: unshare --map-root-user --net is not allowed, or there is no tun"
        );
    }
    may
}

impl Host {
    /// A daemon in a network of its own.
    pub fn in_network(dir: &Path, name: &str) -> Host {
        let mut host = Host::new(dir, name);
        host.kill();
        host.program = NETWORK;
        host.start();
        host
    }

    /// Runs `ip` in the daemon's network.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        let pid = self.pid().to_string();
        let enter = [
            "-t",
            &pid,
            "--user",
            "--net",
            "--preserve-credentials",
            "ip",
        ];
        let done = Command::new("nsenter")
            .args(enter)
            .args(words.split(' '))
            .output()
            .unwrap();
        assert!(done.status.success(), "ip {words}: {done:?}");
    }

    pub fn new(dir: &Path, name: &str) -> Host {
        Host::with(dir, name, "", "")
    }

    /// `migration` is more of that section, `disks` comes after it.
    pub fn with(dir: &Path, name: &str, migration: &str, disks: &str) -> Host {
        let dir = dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        // Its own after a restart as well, so it cannot be left to the system.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\n[migration]\nlisten = \"127.0.0.1:{port}\"\n\
             {migration}\n{disks}\n",
            dir.join("state"),
            dir.join("run")
        );
        std::fs::write(dir.join("ferry.toml"), text).unwrap();
        let mut host = Host {
            dir,
            port,
            process: None,
            program: &[],
        };
        host.start();
        host
    }

    pub fn start(&mut self) {
        let config = self.dir.join("ferry.toml");
        let words = ["daemon", "--until-eof", "--config", text(&config)];
        let log = self.dir.join("log");
        let _ = std::fs::remove_file(&log);
        self.process = Some(Starting::by(self.program, &log, &words).ready().0);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").0.id()
    }

    /// Sends a signal by its name, such as STOP.
    pub fn signal(&self, name: &str) {
        let words = [format!("-{name}"), self.pid().to_string()];
        let sent = Command::new("kill").args(words).status().unwrap();
        assert!(sent.success());
    }

    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    pub fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join("d.raw")
    }

    pub fn socket(&self, id: &str) -> PathBuf {
        self.dir.join("run").join(format!("{id}.sock"))
    }

    pub fn run(&self, words: &[&str]) -> Said {
        let control = self.dir.join("run/control.sock");
        let mut words = words.to_vec();
        words.extend(["--json", "--control", text(&control)]);
        ferry(&words)
    }

    /// `ferry disk add d --path IMAGE`, and more words.
    pub fn add(&self, more: &[&str]) -> Said {
        self.add_as("d", &self.image(), more)
    }

    pub fn add_as(&self, id: &str, path: &Path, more: &[&str]) -> Said {
        let mut words = vec!["disk", "add", id, "--path", text(path)];
        words.extend(more);
        self.run(&words)
    }

    pub fn add_incoming(&self, bytes: u64) {
        self.add(&["--incoming", "--size", &bytes.to_string()]).ok();
    }

    /// The disk's line of `ferry disk list`.
    pub fn disk(&self, id: &str) -> Option<Value> {
        let list = self.run(&["disk", "list"]).ok();
        let disks = list["disks"].as_array().expect("a list").clone();
        disks.into_iter().find(|disk| disk["id"] == id)
    }

    /// The phase of disk `d`; empty when there is none.
    pub fn phase(&self) -> String {
        let disk = self.disk("d");
        disk.map_or(String::new(), |disk| {
            disk["phase"].as_str().unwrap().to_owned()
        })
    }

    #[track_caller]
    pub fn wait_phase(&self, phase: &str) {
        eventually(&format!("{} is {phase}", self.dir.display()), || {
            self.phase() == phase
        });
    }

    /// A guest of disk `d`, which it has found to be served.
    #[track_caller]
    pub fn guest(&self) -> Guest {
        let mut guest = Guest::at(&self.socket("d"));
        guest.check();
        guest
    }

    /// Copies disk `d` and keeps the copy equal.
    #[track_caller]
    pub fn copy_to(&self, other: &Host) {
        let to = other.peer();
        let line = self.run(&["migrate", "disk", "d", "--to", &to]).ok();
        assert_eq!(line["in_sync"], true, "{line}");
    }

    /// Copies disk `d` and hands it over; nobody has used it at `other` then.
    pub fn hand_over(&self, other: &Host) {
        self.copy_to(other);
        self.run(&["migrate", "release", "d"]).ok();
    }

    /// Moves disk `d` and uses it there, so that there is no way back.
    pub fn move_to(&self, other: &Host) {
        self.hand_over(other);
        Guest::at(&other.socket("d")).check();
        self.wait_phase("moved");
        eventually("the moved image is set aside", || !self.image().exists());
    }

    /// What was set aside here, by epoch.
    pub fn set_aside(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(&self.dir).unwrap().flatten();
        let mut epochs: Vec<u64> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                name.strip_prefix("d.raw.moved.")?.parse().ok()
            })
            .collect();
        epochs.sort_unstable();
        epochs
    }
}

/// Two daemons, disk `d` of a MiB served by the first and awaited by the second.
pub struct Pair {
    pub a: Host,
    pub b: Host,
    pub dir: tempfile::TempDir,
}

impl Pair {
    pub fn new() -> Pair {
        let pair = Pair::of(MIB);
        pair.b.add_incoming(MIB);
        pair
    }

    pub fn of(bytes: u64) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Host::new(dir.path(), "a"), Host::new(dir.path(), "b"));
        image(&a.image(), bytes);
        a.add(&[]).ok();
        Pair { a, b, dir }
    }
}

/// An image without holes; its first sector is what [`Guest::check`] looks for.
pub fn image(path: &Path, bytes: u64) {
    std::fs::write(path, vec![0x5a; usize::try_from(bytes).unwrap()]).unwrap();
}

/// A guest with one ring.
pub struct Guest {
    queue: BlkQueue,
    buffer: Segment,
    memory: GuestMemory,
    device: GuestDevice,
    /// Until it ends.
    vmm: Option<Vmm>,
}

fn vmm(socket: &Path) -> Vmm {
    let options = VmmOptions {
        reply_timeout: Duration::from_secs(5),
        ..VmmOptions::default()
    };
    Vmm::connect(socket, options).unwrap()
}

impl Guest {
    pub fn at(socket: &Path) -> Guest {
        let mut vmm = vmm(socket);
        let memory = GuestMemory::new(16 * MIB).unwrap();
        let device = GuestDevice::new(&memory, 1, 64).unwrap();
        let queue = device
            .blk_queue(0, vmm.features(), QueueOptions::default())
            .unwrap();
        let addr = memory.alloc(4096, 4096).unwrap();
        vmm.start(&device).unwrap();
        Guest {
            queue,
            buffer: Segment { addr, len: 512 },
            memory,
            device,
            vmm: Some(vmm),
        }
    }

    /// Stops, and goes on behind another socket, as a VM does that is migrated.
    pub fn goes_on_at(mut self, socket: &Path) -> Guest {
        let bases = self.stop();
        self.arrives_at(socket, &bases)
    }

    /// Stops, and its VMM ends.
    pub fn departs(mut self) -> (Guest, Vec<u16>) {
        let bases = self.stop();
        self.vmm = None;
        (self, bases)
    }

    /// Goes on elsewhere.
    pub fn arrives_at(mut self, socket: &Path, bases: &[u16]) -> Guest {
        self.attach(socket, bases);
        self
    }

    /// Goes on behind another socket, or one that was closed.
    pub fn attach(&mut self, socket: &Path, bases: &[u16]) {
        self.vmm = None;
        let mut vmm = vmm(socket);
        vmm.start_at(&self.device, bases).unwrap();
        self.vmm = Some(vmm);
    }

    /// Waits for what was asked before and not answered; if there is no such thing, asks.
    pub fn wait_any(&mut self) {
        if self.queue.in_flight() == 0 {
            return self.check();
        }
        let until = Instant::now() + PATIENCE;
        while self.queue.pop().unwrap().is_none() {
            assert!(Instant::now() < until, "the disk is not served");
            self.queue.wait(Duration::from_millis(20)).unwrap();
        }
    }

    /// How far its ring is, as far as it was answered.
    pub fn used(&self) -> u16 {
        self.queue.ring().used_index()
    }

    /// Stops, and stays.
    pub fn stop(&mut self) -> Vec<u16> {
        self.driver().stop().unwrap()
    }

    /// Goes on where it was.
    pub fn resume(&mut self, bases: &[u16]) {
        let device = self.device.clone();
        self.driver().start_at(&device, bases).unwrap();
    }

    fn driver(&mut self) -> &mut Vmm {
        self.vmm.as_mut().expect("its VMM runs")
    }

    /// Reads the first sector, if that is served within `time`.
    pub fn read(&mut self, time: Duration) -> Option<Vec<u8>> {
        self.read_sector(0, time)
    }

    /// Reads a sector, if that is served within `time`.
    pub fn read_sector(&mut self, sector: u64, time: Duration) -> Option<Vec<u8>> {
        self.ask(Op::Read, sector, time)?;
        let mut bytes = vec![0; 512];
        self.memory.read(self.buffer.addr, &mut bytes).unwrap();
        Some(bytes)
    }

    /// Writes a sector; whether that is served within `time`.
    pub fn write_sector(&mut self, sector: u64, bytes: &[u8; 512], time: Duration) -> bool {
        self.memory.write(self.buffer.addr, bytes).unwrap();
        self.ask(Op::Write, sector, time).is_some()
    }

    fn ask(&mut self, op: Op, sector: u64, time: Duration) -> Option<()> {
        self.queue.submit(op, sector, &[self.buffer]).unwrap();
        self.queue.commit().unwrap();
        let until = Instant::now() + time;
        while Instant::now() < until {
            if let Some(done) = self.queue.pop().unwrap() {
                assert_eq!(done.status, Status::Ok);
                return Some(());
            }
            self.queue.wait(Duration::from_millis(20)).unwrap();
        }
        None
    }

    /// As [`Guest::check`], for a disk that takes its time.
    #[track_caller]
    pub fn wait_served(&mut self, time: Duration) {
        let read = self.read(time).expect("the disk is not served");
        assert_eq!(read, [0x5a; 512]);
    }

    /// The disk is served, and is the one that [`image`] made.
    #[track_caller]
    pub fn check(&mut self) {
        let read = self.read(PATIENCE).expect("the disk is not served");
        assert_eq!(read, [0x5a; 512]);
    }
}

#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
