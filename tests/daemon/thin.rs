//! Thin disks by their commands, killed under load, and moved.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{
    BlkQueue, GuestDevice, GuestMemory, Op, QueueOptions, Segment, Status, Token, Vmm, VmmOptions,
};
use ferry_dataplane::backend::thin::ThinImage;

use crate::rig::{Guest, Host, MIB, ferry, image, serving, text};

/// `qemu-img`, where it is installed.
fn qemu_img(words: &[&str]) -> Option<std::process::Output> {
    Command::new("qemu-img").args(words).output().ok()
}

fn clone(base: &Path, overlay: &Path) {
    let words = ["disk", "clone", text(base), text(overlay), "--json"];
    let made = ferry(&words).ok();
    assert_eq!(made["base_format"], "raw", "{made}");
}

#[test]
fn clones_and_images_are_made_by_command() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (base, overlay) = (at("base.raw"), at("o.qcow2"));
    image(base.as_ref(), MIB);
    let made = ferry(&["disk", "clone", &base, &overlay, "--size", "2M", "--json"]).ok();
    assert_eq!(made["bytes"], 2 * MIB, "{made}");
    // It is there already; a base is there; a size is no smaller; a format is not guessed.
    ferry(&["disk", "clone", &base, &overlay, "--json"]).refused(&["exists"]);
    ferry(&["disk", "clone", &at("no"), &at("p"), "--json"]).refused(&["cannot open"]);
    ferry(&["disk", "clone", &base, &at("p"), "--size", "512k", "--json"]).refused(&["less than"]);
    let error = ferry(&["disk", "clone", &overlay, &at("p"), "--json"]).error(2);
    assert!(error.contains("--base-format qcow2"), "{error}");
    let words = [
        "disk",
        "clone",
        &overlay,
        &at("p"),
        "--base-format",
        "vmdk",
        "--json",
    ];
    assert_eq!(ferry(&words).code, Some(2));
    let words = [
        "disk",
        "clone",
        &overlay,
        &at("p"),
        "--base-format",
        "qcow2",
        "--json",
    ];
    assert_eq!(ferry(&words).ok()["bytes"], 2 * MIB);
    ferry(&["disk", "create", &at("e.raw"), "--size", "1M", "--json"]).ok();
    let words = [
        "disk",
        "create",
        &at("e.qcow2"),
        "--size",
        "1G",
        "--format",
        "qcow2",
        "--json",
    ];
    ferry(&words).ok();
    assert!(std::fs::metadata(at("e.qcow2")).unwrap().len() < MIB);
    assert_eq!(
        ferry(&["disk", "create", &at("f"), "--size", "100", "--json"]).code,
        Some(2)
    );
    if let Some(out) = qemu_img(&["check", &at("e.qcow2")]) {
        assert!(out.status.success(), "{out:?}");
    }
    // Served as what it is said to be.
    let socket = at("s");
    let log = dir.path().join("log");
    let disk = format!("qcow2:{}", at("p"));
    let (server, ready) = serving(&log, &["serve", &disk, "--socket-path", &socket]);
    assert_eq!(ready["bytes"], 2 * MIB);
    Guest::at(socket.as_ref()).check();
    // The base of a live clone is not written.
    let other = at("t");
    ferry(&["serve", &base, "--socket-path", &other, "--json"]).refused(&["in use"]);
    server.kill();
}

/// A disk of which every block was written with numbers that count up.
struct Stamps {
    /// What a block may hold: the last number that was acknowledged, then those that may have been
    /// written since.
    may_hold: Vec<Vec<u64>>,
    next: u64,
    acknowledged: u64,
}

const BLOCK: u64 = 4096;

impl Stamps {
    fn new(bytes: u64) -> Stamps {
        Stamps {
            may_hold: vec![vec![0]; usize::try_from(bytes / BLOCK).unwrap()],
            next: 1,
            acknowledged: 0,
        }
    }

    /// Writes at depth until `ends`, or until nobody answers.
    fn load(&mut self, socket: &Path, seed: u64, kill: impl FnOnce() + Send, after: Duration) {
        let options = VmmOptions {
            reply_timeout: Duration::from_secs(5),
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::connect(socket, options).unwrap();
        let memory = GuestMemory::new(16 * MIB).unwrap();
        let device = GuestDevice::new(&memory, 1, 64).unwrap();
        let mut queue = device
            .blk_queue(0, vmm.features(), QueueOptions::default())
            .unwrap();
        let mut free: Vec<Segment> = (0..16)
            .map(|_| Segment {
                addr: memory.alloc(BLOCK, 4096).unwrap(),
                len: 4096,
            })
            .collect();
        vmm.start(&device).unwrap();
        let mut flying: HashMap<Token, (usize, u64, Segment)> = HashMap::new();
        let mut random = seed;
        let mut kill = Some(kill);
        let began = Instant::now();
        let mut killed = None;
        // What was answered before the end may be seen after it.
        while killed.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(20)) {
            if began.elapsed() >= after
                && let Some(kill) = kill.take()
            {
                kill();
                killed = Some(Instant::now());
            }
            while killed.is_none()
                && let Some(buffer) = free.pop()
            {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let block = usize::try_from(random >> 33).unwrap() % self.may_hold.len();
                if flying.values().any(|(other, ..)| *other == block) {
                    free.push(buffer);
                    break;
                }
                let (op, stamp) = if random >> 20 & 15 == 0 {
                    (
                        Op::WriteZeroes {
                            unmap: random >> 24 & 1 == 0,
                        },
                        0,
                    )
                } else {
                    self.next += 1;
                    (Op::Write, self.next)
                };
                self.may_hold[block].push(stamp);
                memory.write(buffer.addr, &contents(stamp)).unwrap();
                let data = Segment {
                    len: 4096,
                    ..buffer
                };
                let token = queue.submit(op, block as u64 * 8, &[data]).unwrap();
                flying.insert(token, (block, stamp, buffer));
            }
            queue.commit().unwrap();
            self.take(&mut queue, &mut flying, &mut free);
        }
    }

    fn take(
        &mut self,
        queue: &mut BlkQueue,
        flying: &mut HashMap<Token, (usize, u64, Segment)>,
        free: &mut Vec<Segment>,
    ) {
        while let Some(done) = queue.pop().unwrap() {
            assert_eq!(done.status, Status::Ok);
            let (block, stamp, buffer) = flying.remove(&done.token).unwrap();
            self.may_hold[block] = vec![stamp];
            self.acknowledged += 1;
            free.push(buffer);
        }
    }

    /// Fails unless every block holds what it may; what it holds counts from now on.
    fn check(&mut self, overlay: &Path) {
        let image = ThinImage::open(overlay, true).unwrap();
        for (block, may) in self.may_hold.iter_mut().enumerate() {
            let mut bytes = vec![0; 4096];
            image.read(block as u64 * BLOCK, &mut bytes).unwrap();
            let found = may.iter().find(|stamp| contents(**stamp) == bytes);
            let found = *found.unwrap_or_else(|| {
                panic!(
                    "block {block} may hold {may:?}, and begins {:?}",
                    &bytes[..16]
                )
            });
            *may = vec![found];
        }
    }
}

/// A block of a stamp; of 0, zeroes.
fn contents(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(512)
}

/// SIGKILL under load, again and again: what was acknowledged is there, and the image has no error
/// but space that is counted and not used.
#[test]
fn killed_under_load_a_clone_keeps_what_it_acknowledged() {
    let long = std::env::var_os("FERRY_LONG").is_some();
    let rounds = if long { 400 } else { 24 };
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    let bytes = 64 * MIB;
    std::fs::File::create(&base)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    let mut state: Option<(PathBuf, Stamps)> = None;
    let (mut acknowledged, mut leaked) = (0, 0);
    for round in 0..rounds {
        // A fresh clone every few rounds: most of its writes need a cluster.
        if round % 4 == 0 {
            let overlay = dir.path().join(format!("{round}.qcow2"));
            // Small clusters fill second tables and blocks of counts, and so write pointers.
            let small = [
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "cluster_size=4096",
                "-F",
                "raw",
                "-b",
                text(&base),
                text(&overlay),
            ];
            if round % 8 == 0 || qemu_img(&small).is_none_or(|out| !out.status.success()) {
                clone(&base, &overlay);
            }
            state = Some((overlay, Stamps::new(bytes)));
        }
        let (overlay, stamps) = state.as_mut().expect("made in the first round");
        let socket = dir.path().join("s");
        let disk = format!("qcow2:{}", overlay.display());
        let words = ["serve", &disk, "--socket-path", text(&socket)];
        let (server, _) = serving(&dir.path().join("log"), &words);
        let after = Duration::from_millis(10 + round * 37 % 90);
        stamps.load(&socket, round + 1, move || server.kill(), after);
        acknowledged += std::mem::take(&mut stamps.acknowledged);
        if let Some(out) = qemu_img(&["check", text(overlay)]) {
            // 3 is leaks alone.
            assert!(
                matches!(out.status.code(), Some(0 | 3)),
                "round {round}: {out:?}"
            );
            leaked += u64::from(out.status.code() == Some(3));
        }
        stamps.check(overlay);
    }
    assert!(
        acknowledged > rounds * 10,
        "only {acknowledged} acknowledged"
    );
    eprintln!("{rounds} kills, {acknowledged} changes acknowledged, leaks after {leaked}");
}

/// A clone is moved like any disk, and arrives whole.
#[test]
fn a_moved_clone_is_a_raw_image() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    image(&base, 4 * MIB);
    let (a, b) = (Host::new(dir.path(), "a"), Host::new(dir.path(), "b"));
    let overlay = a.dir.join("d.qcow2");
    clone(&base, &overlay);
    let disk = format!("qcow2:{}", overlay.display());
    a.add_as("d", disk.as_ref(), &[]).ok();
    {
        let socket = a.socket("d");
        let mut stamps = Stamps::new(4 * MIB);
        stamps.load(&socket, 7, || (), Duration::from_millis(150));
        assert!(stamps.acknowledged > 10);
    }
    let expected = {
        a.run(&["disk", "remove", "d"]).ok();
        let image = ThinImage::open(&overlay, true).unwrap();
        let mut bytes = vec![0; usize::try_from(4 * MIB).unwrap()];
        image.read(0, &mut bytes).unwrap();
        bytes
    };
    a.add_as("d", disk.as_ref(), &[]).ok();
    // Not to a thin disk: there is no base to rest on.
    let thin = format!("qcow2:{}", b.image().display());
    let error = b
        .add_as("d", thin.as_ref(), &["--incoming", "--size", "4M"])
        .error(2);
    assert!(error.contains("without qcow2:"), "{error}");
    b.add_incoming(4 * MIB);
    a.hand_over(&b);
    assert!(
        Guest::at(&b.socket("d"))
            .read(Duration::from_secs(5))
            .is_some()
    );
    a.wait_phase("moved");
    assert!(
        std::fs::read(b.image()).unwrap() == expected,
        "the copy differs"
    );
    // The overlay is set aside like any image that was moved, and its base is free.
    crate::rig::eventually("the overlay is set aside", || !overlay.exists());
    crate::rig::eventually("the base is free", || {
        ferry_dataplane::backend::file::Image::open(&base, false).is_ok()
    });
}
