//! A daemon's parts and a guest's, in one process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use ferry_bench::blk::{BlkPort, slot_sizes};
use ferry_bench::frontend::{
    BlkQueue, Completion, DESC_NEXT, DESC_WRITE, Desc, GuestDevice, GuestMemory, Op, QueueOptions,
    QueueParts, Segment, SplitRing, Status, Vmm, VmmError, VmmOptions, feature,
};
use ferry_bench::stamp::{Initial, Mix};
use ferry_bench::verify::{Verdict, Verifier, VerifyPlan};
use ferry_dataplane::backend::file::Image;
use ferry_dataplane::backend::memory::MemoryDisk;
use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::disk::{Disk, Service};
use ferry_dataplane::worker::{Worker, WorkerHandle};
use ferry_vhost::blk::device::{BlkDevice, BlkOptions};
use ferry_vhost::device::Tracking;
use ferry_vhost::session::{self, Listening};

/// How long anything may take before it counts as a hang.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const MIB: u64 = 1 << 20;

/// Workers and a folder; what they serve is dropped before them.
pub struct Host {
    workers: Vec<Worker>,
    dir: tempfile::TempDir,
}

/// A device that listens.
pub struct Served {
    listening: Option<Listening>,
    pub device: Arc<BlkDevice>,
    pub socket: PathBuf,
}

impl Host {
    pub fn new(workers: usize) -> Host {
        Host::named("w", workers)
    }

    /// Workers whose threads can be told from those of other tests.
    pub fn named(name: &str, workers: usize) -> Host {
        end_a_hang();
        Host {
            workers: (0..workers)
                .map(|n| Worker::start(&format!("{name}-{n}")).unwrap())
                .collect(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn handles(&self) -> Vec<WorkerHandle> {
        self.workers.iter().map(Worker::handle).collect()
    }

    pub fn serve(&self, backend: &Backend, queues: u16) -> Served {
        self.serve_as("disk", backend, queues, Service::Open)
    }

    pub fn serve_as(&self, name: &str, backend: &Backend, queues: u16, how: Service) -> Served {
        let disk = Disk::new(backend, &self.handles(), 0, queues.into(), how).unwrap();
        let options = BlkOptions {
            name: name.into(),
            num_queues: queues,
            serial: "ferry-test-disk".into(),
            tracking: Tracking {
                offered: true,
                own: None,
            },
        };
        let device = BlkDevice::new(Arc::new(disk), &options);
        let socket = self.dir().join(name);
        let listening = session::listen(device.clone(), &socket, 0o600).unwrap();
        Served {
            listening: Some(listening),
            device,
            socket,
        }
    }

    /// A fresh image of zeroes.
    pub fn image(&self, name: &str, bytes: u64) -> Backend {
        image_at(&self.dir().join(name), bytes)
    }
}

impl Served {
    pub fn vmm(&self) -> Vmm {
        Vmm::connect(&self.socket, options()).unwrap()
    }

    /// Bytes of the disk as the control side reads them.
    pub fn contents(&self) -> Vec<u8> {
        let len = self.device.disk().geometry().capacity_bytes;
        let mut whole = Vec::new();
        let mut buf = ferry_dataplane::buffer::AlignedBuf::new(1 << 20);
        let mut at = 0;
        while at < len {
            let piece = usize::try_from((len - at).min(1 << 20)).unwrap();
            self.device.disk().read_at(at, &mut buf, piece).unwrap();
            whole.extend_from_slice(&buf[..piece]);
            at += piece as u64;
        }
        whole
    }

    /// Requests of every kind that ended.
    pub fn requests(&self) -> u64 {
        let totals = self.device.disk().totals();
        totals.reads + totals.writes + totals.other
    }

    /// Fails unless a front-end that comes now is served.
    pub fn assert_serves(&self) {
        let mut guest = Guest::start(self, 1);
        guest.write(0, 0, &[0x5a; 512]);
        assert_eq!(guest.read(0, 0, 512), [0x5a; 512]);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What failed may have left a request that never ends; the end would wait for it.
            std::mem::forget(self.listening.take());
            std::mem::forget(self.device.clone());
        }
        drop(self.listening.take());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.workers.drain(..).for_each(std::mem::forget);
        }
    }
}

pub fn image_at(path: &Path, bytes: u64) -> Backend {
    Backend::new(
        Store::Image(Arc::new(Image::create(path, bytes).unwrap())),
        false,
    )
}

pub fn memory_disk(bytes: u64) -> Backend {
    Backend::new(
        Store::Memory(Arc::new(MemoryDisk::new(bytes).unwrap())),
        false,
    )
}

pub fn slow(backend: Backend, ms: u64) -> Backend {
    Backend {
        delay_ns: ms * 1_000_000,
        ..backend
    }
}

/// Front-end options of these tests: an answer that takes long is a failure.
pub fn options() -> VmmOptions {
    VmmOptions {
        reply_timeout: Duration::from_secs(5),
        ..VmmOptions::default()
    }
}

/// A guest whose rings run.
pub struct Guest {
    pub vmm: Vmm,
    pub memory: GuestMemory,
    pub device: GuestDevice,
    pub queues: Vec<BlkQueue>,
    scratch: Segment,
}

pub const SCRATCH: u32 = 1 << 20;

impl Guest {
    pub fn start(served: &Served, queues: u16) -> Guest {
        Guest::start_with(served, queues, options(), QueueOptions::default())
    }

    pub fn start_with(
        served: &Served,
        queues: u16,
        options: VmmOptions,
        queue: QueueOptions,
    ) -> Guest {
        let memory = GuestMemory::new(32 * MIB).unwrap();
        let mut guest = Guest::ready(served, &memory, queues, options, queue);
        guest.vmm.start(&guest.device).unwrap();
        guest
    }

    /// Connected; its rings do not run yet.
    pub fn ready(
        served: &Served,
        memory: &GuestMemory,
        queues: u16,
        options: VmmOptions,
        queue: QueueOptions,
    ) -> Guest {
        let vmm = Vmm::connect(&served.socket, options).unwrap();
        let device = GuestDevice::new(memory, queues, 256).unwrap();
        let drivers = (0..usize::from(queues))
            .map(|at| device.blk_queue(at, vmm.features(), queue).unwrap())
            .collect();
        let scratch = Segment {
            addr: memory.alloc(SCRATCH.into(), 4096).unwrap(),
            len: SCRATCH,
        };
        Guest {
            vmm,
            memory: memory.clone(),
            device,
            queues: drivers,
            scratch,
        }
    }

    pub fn buffer(&self, bytes: u32) -> Segment {
        Segment {
            addr: self.memory.alloc(bytes.into(), 4096).unwrap(),
            len: bytes,
        }
    }

    pub fn bytes(&self, segment: Segment) -> Vec<u8> {
        let mut out = vec![0; segment.len as usize];
        self.memory.read(segment.addr, &mut out).unwrap();
        out
    }

    pub fn run(&mut self, queue: usize, op: Op, sector: u64, data: &[Segment]) -> Status {
        run(&mut self.queues[queue], op, sector, data)
    }

    pub fn write(&mut self, queue: usize, sector: u64, data: &[u8]) {
        let segment = self.part(data.len());
        self.memory.write(segment.addr, data).unwrap();
        assert_eq!(self.run(queue, Op::Write, sector, &[segment]), Status::Ok);
    }

    pub fn read(&mut self, queue: usize, sector: u64, len: usize) -> Vec<u8> {
        let segment = self.part(len);
        self.memory.write(segment.addr, &vec![0xee; len]).unwrap();
        assert_eq!(self.run(queue, Op::Read, sector, &[segment]), Status::Ok);
        self.bytes(segment)
    }

    fn part(&self, len: usize) -> Segment {
        Segment {
            addr: self.scratch.addr,
            len: u32::try_from(len).unwrap(),
        }
    }
}

pub fn run(queue: &mut BlkQueue, op: Op, sector: u64, data: &[Segment]) -> Status {
    let token = queue.submit(op, sector, data).unwrap();
    queue.commit().unwrap();
    let done = finish(queue);
    assert_eq!(done.token, token);
    done.status
}

/// The next completion, within the patience.
pub fn finish(queue: &mut BlkQueue) -> Completion {
    poll_for(queue, PATIENCE).expect("no completion in time")
}

/// The next completion that comes within `time`.
pub fn poll_for(queue: &mut BlkQueue, time: Duration) -> Option<Completion> {
    let until = Instant::now() + time;
    loop {
        if let Some(done) = queue.pop().unwrap() {
            return Some(done);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        queue.wait(left.min(Duration::from_millis(100))).unwrap();
    }
}

/// Waits for something that is not announced.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A ring driven by hand: any descriptors, any index.
pub struct RawRing {
    pub memory: GuestMemory,
    pub ring: SplitRing,
    pub parts: QueueParts,
    pub avail: u16,
    pub used: u16,
}

impl RawRing {
    pub fn new(device: &GuestDevice, queue: usize) -> RawRing {
        let ring = device.ring(queue).unwrap();
        RawRing {
            memory: device.memory().clone(),
            parts: device.queues()[queue].clone(),
            avail: ring.avail_index(),
            used: ring.used_index(),
            ring,
        }
    }

    /// Makes a chain of the descriptors from index 0 on, each linked to the next.
    pub fn chain(&self, descs: &[Desc]) {
        for (at, desc) in (0u16..).zip(descs) {
            let last = usize::from(at) + 1 == descs.len();
            let flags = desc.flags | if last { 0 } else { DESC_NEXT };
            self.ring.write_desc(
                at,
                Desc {
                    flags,
                    next: at + 1,
                    ..*desc
                },
            );
        }
    }

    pub fn offer(&mut self, head: u16) {
        self.ring.set_avail(self.avail, head);
        self.avail = self.avail.wrapping_add(1);
        self.ring.publish(self.avail);
        self.kick();
    }

    pub fn kick(&self) {
        self.parts.kick.write(1).unwrap();
    }

    /// The next used entry that comes within `time`.
    pub fn next_used(&mut self, time: Duration) -> Option<(u32, u32)> {
        let until = Instant::now() + time;
        while self.ring.used_index() == self.used {
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let entry = self.ring.used(self.used);
        self.used = self.used.wrapping_add(1);
        Some(entry)
    }

    /// Sends a chain and returns the bytes that the device says it wrote.
    pub fn ask(&mut self, descs: &[Desc]) -> u32 {
        self.chain(descs);
        self.offer(0);
        let (head, written) = self.next_used(PATIENCE).expect("no answer in time");
        assert_eq!(head, 0);
        written
    }

    pub fn byte(&self, addr: u64) -> u8 {
        let mut byte = [0];
        self.memory.read(addr, &mut byte).unwrap();
        byte[0]
    }
}

/// A buffer that the device reads.
pub fn readable(addr: u64, len: u32) -> Desc {
    Desc {
        addr,
        len,
        ..Desc::default()
    }
}

/// A buffer that the device writes.
pub fn writable(addr: u64, len: u32) -> Desc {
    Desc {
        addr,
        len,
        flags: DESC_WRITE,
        next: 0,
    }
}

pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// The stamped load over every queue of a started device.
pub fn load(guest: &Guest, depth: u16, indirect: bool, plan: &VerifyPlan) -> Verifier<BlkPort> {
    let features = guest.vmm.features();
    let options = QueueOptions {
        depth,
        segments_max: 6,
        indirect,
    };
    let ports = (0..guest.device.queues().len())
        .map(|at| {
            let queue = guest.device.blk_queue(at, features, options).unwrap();
            let sizes = slot_sizes(depth.into(), 512 << 10);
            BlkPort::new(
                queue,
                &guest.memory,
                &sizes,
                features,
                guest.vmm.config(),
                at as u64,
            )
            .unwrap()
            .with_timeout(PATIENCE)
        })
        .collect();
    Verifier::start(ports, plan).unwrap()
}

pub fn plan(bytes: u64, seed: u64) -> VerifyPlan {
    VerifyPlan {
        sectors: bytes / 512,
        align: 1,
        sectors_max: 1024,
        initial: Initial::Zero,
        mix: Mix {
            discard: 6,
            write_zeroes: 8,
            ..Mix::default()
        },
        seed,
        run: seed + 1,
    }
}

/// Ends a load and fails unless it ran and all was as it must be.
pub fn assert_clean(load: Verifier<BlkPort>) -> Verdict {
    let verdict = load.finish(|_, _| {}).unwrap();
    assert!(verdict.progress.ops > 0, "nothing ran");
    assert!(
        verdict.is_clean(),
        "{:?}: {:#?}",
        verdict.progress,
        verdict.findings
    );
    verdict
}

/// How a message was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    Refused,
    /// The connection was closed.
    Gone,
}

const NEED_REPLY: u32 = 8;

/// Sends any message and says how it was taken.
pub fn say(vmm: &mut Vmm, code: u32, body: &[u8], fds: &[i32]) -> Answer {
    match vmm.raw_request(code, NEED_REPLY, body, fds, true) {
        Ok(Some(reply)) if reply.body.iter().all(|byte| *byte == 0) => Answer::Done,
        Ok(_) => Answer::Refused,
        Err(VmmError::Silent { .. }) => panic!("message {code} was not answered"),
        Err(_) => Answer::Gone,
    }
}

/// The message numbers used here.
pub mod code {
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// A message's body: a ring index and a number.
pub fn ring_state(index: u32, number: u32) -> Vec<u8> {
    [index.to_ne_bytes(), number.to_ne_bytes()].concat()
}

/// Features without indirect tables and event indexes.
pub fn plain_features() -> u64 {
    options().features & !(feature::INDIRECT | feature::EVENT_IDX)
}

pub fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|out| out.stdout.starts_with(b"0\n"))
}

/// Says loudly that a test could not run here; under CI that is a failure.
pub fn skip(test: &str, why: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test}: {why}, and CI=true forbids skipping"
    );
    eprintln!("SKIPPED: {test}: {why}");
}

/// A worker that hangs would hang the drop of its test; better a failure that says so.
fn end_a_hang() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(150));
            eprintln!("the device tests hang: 150 s are over");
            std::process::exit(101);
        });
    });
}
