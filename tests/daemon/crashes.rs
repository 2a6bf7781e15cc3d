//! SIGKILL of the server under a verified load, again and again, and a successor each time.
//!
//! The successor is started before the kill: it stands at the image's lock when its predecessor
//! dies, and serves as soon as that process's last request has landed. So nothing but the lock keeps
//! it from running into those requests.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_bench::blk::{BlkPort, slot_sizes};
use ferry_bench::frontend::{
    GuestDevice, GuestMemory, InflightRegion, Op, QueueOptions, Segment, Vmm, VmmOptions, feature,
};
use ferry_bench::stamp::{Initial, Mix};
use ferry_bench::verify::{Verifier, VerifyPlan};
use ferry_dataplane::sys;

use crate::rig::{MIB, PATIENCE, Process, Starting, eventually, text};

const QUEUES: u16 = 4;
const DEPTH: u16 = 64;
const DISK_BYTES: u64 = 64 * MIB;
const KILLS: u32 = 50;

/// How a front-end and its server share what is in flight.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    ByTheFrontEnd,
    ByFerry,
}

/// An image on a disk, and the servers that it has had.
struct Servers {
    /// On a disk, unlike perhaps the one for temporary files.
    _disk: tempfile::TempDir,
    image: PathBuf,
    /// Sockets and the log; own regions too.
    dir: tempfile::TempDir,
    kept: Kept,
    count: u32,
    serving: Option<Process>,
}

impl Servers {
    fn new(kept: Kept) -> Servers {
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = disk.path().join("disk.raw");
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        let mut servers = Servers {
            _disk: disk,
            image,
            dir: tempfile::tempdir().unwrap(),
            kept,
            count: 0,
            serving: None,
        };
        let first = servers.next();
        servers.serving = Some(first.ready().0);
        servers
    }

    /// Regions of Ferry's own are known by the socket; else each server has one of its own, for a
    /// server may listen as soon as it has the lock, and no sooner.
    fn socket(&self) -> PathBuf {
        let number = match self.kept {
            Kept::ByTheFrontEnd => self.count % 2,
            Kept::ByFerry => 0,
        };
        self.dir.path().join(format!("s{number}"))
    }

    /// Starts the next one, which waits for the lock while another holds it.
    fn next(&mut self) -> Starting {
        self.count += 1;
        let inflight = match self.kept {
            Kept::ByTheFrontEnd => "auto",
            Kept::ByFerry => "own",
        };
        let (socket, queues) = (self.socket(), QUEUES.to_string());
        let words = [
            "serve",
            text(&self.image),
            "--socket-path",
            text(&socket),
            "--num-queues",
            &queues,
            "--inflight",
            inflight,
        ];
        Starting::new(&self.dir.path().join("log"), &words)
    }

    /// Whether requests in the kernel, or a process, hold the image's lock.
    fn is_locked(&self) -> bool {
        let image = File::options().read(true).write(true).open(&self.image);
        !sys::lock_description(&image.unwrap(), false).unwrap()
    }

    /// Kills the one that serves; the next one serves when this returns.
    fn kill(&mut self) {
        let next = self.next();
        self.serving.take().unwrap().kill();
        self.serving = Some(next.ready().0);
    }

    /// As `kill`, without a successor at the lock, so that it is this function that finds it held.
    fn kill_and_look(&mut self) -> bool {
        self.serving.take().unwrap().kill();
        let held = self.is_locked();
        self.serving = Some(self.next().ready().0);
        held
    }
}

/// A guest whose driver never hears of a crash.
struct Driver {
    memory: GuestMemory,
    device: GuestDevice,
    features: u64,
    vmm: Option<Vmm>,
}

impl Driver {
    fn connect(socket: &Path, features: u64) -> Vmm {
        let options = VmmOptions {
            features,
            required: features & (feature::EVENT_IDX | feature::INDIRECT),
            reply_timeout: PATIENCE,
            ..VmmOptions::default()
        };
        Vmm::connect(socket, options).unwrap()
    }

    fn start(servers: &Servers, features: u64) -> Driver {
        let memory = GuestMemory::new(64 * MIB).unwrap();
        let device = GuestDevice::new(&memory, QUEUES, 256).unwrap();
        let mut vmm = Driver::connect(&servers.socket(), features);
        vmm.start(&device).unwrap();
        Driver {
            memory,
            device,
            features,
            vmm: Some(vmm),
        }
    }

    fn vmm(&mut self) -> &mut Vmm {
        self.vmm.as_mut().unwrap()
    }

    fn load(&self, indirect: bool, seed: u64) -> Verifier<BlkPort> {
        let vmm = self.vmm.as_ref().unwrap();
        let options = QueueOptions {
            depth: DEPTH,
            segments_max: 6,
            indirect,
        };
        let port = |at| {
            let queue = self.device.blk_queue(at, vmm.features(), options).unwrap();
            let sizes = slot_sizes(DEPTH.into(), 512 << 10);
            let (features, config) = (vmm.features(), vmm.config());
            BlkPort::new(queue, &self.memory, &sizes, features, config, at as u64)
                .unwrap()
                .with_timeout(PATIENCE)
        };
        let ports = (0..usize::from(QUEUES)).map(port).collect();
        let plan = VerifyPlan {
            sectors: DISK_BYTES / 512,
            align: 1,
            sectors_max: 1024,
            initial: Initial::Zero,
            mix: Mix::default(),
            seed,
            run: seed + 1,
        };
        Verifier::start(ports, &plan).unwrap()
    }

    fn used(&self) -> Vec<u16> {
        let ring = |at| self.device.ring(at).unwrap().used_index();
        (0..usize::from(QUEUES)).map(ring).collect()
    }

    /// The region of the server that died, for one that keeps it.
    fn left(&mut self) -> Option<InflightRegion> {
        self.vmm().inflight().cloned()
    }

    /// Goes on at another server, as QEMU does: from the used indexes.
    fn reconnect(&mut self, servers: &Servers) {
        let left = self.left();
        assert_eq!(left.is_some(), servers.kept == Kept::ByTheFrontEnd);
        self.vmm = None;
        let mut vmm = Driver::connect(&servers.socket(), self.features);
        let (device, bases) = (&self.device, self.used());
        match left {
            Some(region) => vmm.recover(device, &bases, region).unwrap(),
            None => vmm.start_at(device, &bases).unwrap(),
        }
        self.vmm = Some(vmm);
    }

    /// Goes on at another server after a stop, with a fresh region.
    fn move_to_the_next(&mut self, servers: &mut Servers) {
        eventually("every ring has moved on", || {
            self.used().iter().all(|&used| used != 0)
        });
        let bases = self.vmm().stop().unwrap();
        assert_eq!(bases, self.used());
        servers.kill();
        self.vmm = None;
        let mut vmm = Driver::connect(&servers.socket(), self.features);
        vmm.start_at(&self.device, &bases).unwrap();
        self.vmm = Some(vmm);
    }
}

/// Waits until a request that was begun after now is done.
#[track_caller]
fn wait_progress(load: &Verifier<BlkPort>) {
    let before = load.progress();
    let until = Instant::now() + PATIENCE;
    while load.progress().ops <= before.ops + before.in_flight {
        assert!(
            !load.has_failed(),
            "the load has ended: {:?}",
            load.progress()
        );
        assert!(Instant::now() < until, "no progress: {:?}", load.progress());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn assert_clean(load: Verifier<BlkPort>, what: &str) {
    let verdict = load.finish(|_, _| {}).unwrap();
    assert!(
        verdict.is_clean() && verdict.sectors_checked > 0,
        "{:?}: {:#?}",
        verdict.progress,
        verdict.findings
    );
    println!(
        "{what}: {} operations, longest gap {:?}",
        verdict.progress.ops, verdict.progress.gap_max
    );
}

fn all_features() -> u64 {
    VmmOptions::default().features
}

fn crashes(kept: Kept, features: u64, indirect: bool, seed: u64) {
    let mut servers = Servers::new(kept);
    let mut driver = Driver::start(&servers, features);
    let load = driver.load(indirect, seed);
    wait_progress(&load);
    for round in 0..KILLS {
        // Not in step with anything.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 7 % 20));
        servers.kill();
        driver.reconnect(&servers);
        wait_progress(&load);
    }
    assert_clean(load, &format!("{KILLS} kills"));
}

#[test]
fn a_load_goes_on_through_crashes_with_the_front_ends_region() {
    crashes(Kept::ByTheFrontEnd, all_features(), true, 31);
}

#[test]
fn a_load_goes_on_through_crashes_with_a_region_of_ferrys_own() {
    crashes(Kept::ByFerry, all_features(), true, 32);
}

#[test]
fn a_load_goes_on_through_crashes_on_plain_rings() {
    let plain = all_features() & !(feature::EVENT_IDX | feature::INDIRECT);
    crashes(Kept::ByTheFrontEnd, plain, false, 33);
}

/// The premise of all this: the kernel goes on with a dead process's requests.
#[test]
fn the_lock_is_held_after_most_kills() {
    const ROUNDS: u32 = 30;
    let mut servers = Servers::new(Kept::ByTheFrontEnd);
    let mut driver = Driver::start(&servers, all_features());
    let load = driver.load(true, 34);
    let mut held = 0;
    for _ in 0..ROUNDS {
        wait_progress(&load);
        held += u32::from(servers.kill_and_look());
        driver.reconnect(&servers);
    }
    wait_progress(&load);
    assert_clean(
        load,
        &format!("{ROUNDS} kills, {held} with the lock held after the reaping"),
    );
    assert!(
        held * 2 >= ROUNDS,
        "held after {held} of {ROUNDS} kills: is the target on a disk?"
    );
}

/// Once a successor serves, nothing of a dead process lands any more, in guest memory least of all:
/// the guest may have been told that the read is over, and use the memory for something else.
#[test]
fn nothing_lands_once_a_successor_serves() {
    const BUFFER: u32 = 128 << 10;
    const UNTOUCHED: u8 = 0xa5;
    let mut servers = Servers::new(Kept::ByTheFrontEnd);
    // What reads a hole never sees the disk.
    std::fs::write(&servers.image, vec![0x11; 64 << 20]).unwrap();
    File::open(&servers.image).unwrap().sync_all().unwrap();
    let mut driver = Driver::start(&servers, all_features());
    let options = QueueOptions {
        depth: DEPTH,
        segments_max: 1,
        indirect: true,
    };
    let features = driver.vmm().features();
    let mut queues: Vec<_> = (0..usize::from(QUEUES))
        .map(|at| driver.device.blk_queue(at, features, options).unwrap())
        .collect();
    let buffers: Vec<u64> = (0..QUEUES * DEPTH)
        .map(|_| driver.memory.alloc(BUFFER.into(), 4096).unwrap())
        .collect();
    let memory = driver.memory.clone();
    let landed = |buffers: &[u64]| -> Vec<bool> {
        let pages = buffers
            .iter()
            .flat_map(|&at| (at..at + u64::from(BUFFER)).step_by(4096));
        let touched = |page| {
            let mut first = [0];
            memory.read(page, &mut first).unwrap();
            first[0] != UNTOUCHED
        };
        pages.map(touched).collect()
    };
    let mut open = 0;
    for round in 0..12 {
        for (at, &buffer) in buffers.iter().enumerate() {
            memory
                .write(buffer, &vec![UNTOUCHED; BUFFER as usize])
                .unwrap();
            let queue = &mut queues[at % usize::from(QUEUES)];
            let segment = Segment {
                addr: buffer,
                len: BUFFER,
            };
            queue
                .submit(Op::Read, at as u64 * u64::from(BUFFER / 512), &[segment])
                .unwrap();
        }
        for queue in &mut queues {
            queue.commit().unwrap();
        }
        let began = Instant::now();
        while !queues.iter().any(|queue| queue.has_completion()) {
            assert!(began.elapsed() < PATIENCE, "nothing is served");
        }
        servers.kill();
        let at_first = landed(&buffers);
        open += u32::from(at_first.contains(&false));
        std::thread::sleep(Duration::from_millis(200));
        assert!(
            at_first == landed(&buffers),
            "round {round}: a dead process's read landed"
        );
        driver.reconnect(&servers);
        let began = Instant::now();
        while queues.iter().any(|queue| queue.in_flight() > 0) {
            assert!(began.elapsed() < PATIENCE, "a request was lost");
            for queue in &mut queues {
                while queue.pop().unwrap().is_some() {}
            }
        }
        assert!(
            !landed(&buffers).contains(&false),
            "round {round}: a read that read nothing"
        );
    }
    // Else the kills came when all had been read, and show nothing.
    assert!(open > 0, "no read was left unserved at any kill");
}

/// A destination starts where the source's rings stopped, and knows of no request in flight.
#[test]
fn a_fresh_region_in_the_middle_of_a_rings_life() {
    let mut servers = Servers::new(Kept::ByTheFrontEnd);
    let mut driver = Driver::start(&servers, all_features());
    let load = driver.load(true, 35);
    for round in 0..12 {
        wait_progress(&load);
        driver.move_to_the_next(&mut servers);
        // At once, and after a while.
        if round % 2 == 0 {
            wait_progress(&load);
        }
        servers.kill();
        driver.reconnect(&servers);
    }
    wait_progress(&load);
    assert_clean(load, "12 moves and kills");
}
