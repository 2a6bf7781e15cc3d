//! A delay with a number of servers: the disks of a directory share what those can do, whichever
//! process serves them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ferry_bench::frontend::{GuestDevice, GuestMemory, Op, QueueOptions, Segment, Status, Vmm};
use ferry_dataplane::backend::Backend;
use ferry_dataplane::backend::delay::Bottleneck;
use ferry_dataplane::disk::Service;

use crate::rig::{Host, MIB, eventually, finish, image_at, options};

/// Eight servers of 4 ms.
const SPEC: &str = "delay:4x8";
const RATE: f64 = 2000.0;

/// Many more than there are servers, so that a core that is late does not leave one idle.
const DEPTH: u16 = 64;

const TIME: Duration = Duration::from_secs(1);

fn narrow(path: &Path) -> Backend {
    let dir = path.parent().unwrap();
    Backend {
        delay_ns: 4_000_000,
        bottleneck: Some(Arc::new(Bottleneck::open(dir, 8).unwrap())),
        ..image_at(path, 16 * MIB)
    }
}

/// What a closed loop of reads gets at each disk, in requests a second, all of them at once.
fn rates(sockets: &[&Path], bytes: u32) -> Vec<f64> {
    let ready = Barrier::new(sockets.len());
    std::thread::scope(|scope| {
        let loads: Vec<_> = sockets
            .iter()
            .map(|socket| scope.spawn(|| rate(socket, bytes, &ready)))
            .collect();
        loads.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

fn rate(socket: &Path, bytes: u32, ready: &Barrier) -> f64 {
    let memory = GuestMemory::new(4 * MIB).unwrap();
    let mut vmm = Vmm::connect(socket, options()).unwrap();
    let device = GuestDevice::new(&memory, 1, 256).unwrap();
    let queue = QueueOptions {
        depth: DEPTH,
        ..QueueOptions::default()
    };
    let mut queue = device.blk_queue(0, vmm.features(), queue).unwrap();
    vmm.start(&device).unwrap();
    let addr = memory.alloc(bytes.into(), 4096).unwrap();
    let buffer = Segment { addr, len: bytes };
    ready.wait();
    for _ in 0..DEPTH {
        queue.submit(Op::Read, 0, &[buffer]).unwrap();
    }
    queue.commit().unwrap();
    let from = Instant::now() + TIME / 5;
    let mut ended = 0;
    loop {
        assert_eq!(finish(&mut queue).status, Status::Ok);
        let now = Instant::now();
        if now >= from + TIME {
            break;
        }
        ended += u32::from(now >= from);
        queue.submit(Op::Read, 0, &[buffer]).unwrap();
        queue.commit().unwrap();
    }
    for _ in 1..DEPTH {
        finish(&mut queue);
    }
    f64::from(ended) / TIME.as_secs_f64()
}

#[track_caller]
fn assert_near(measured: f64, expected: f64) {
    let part = measured / expected;
    assert!((0.95..1.03).contains(&part), "{measured} for {expected}");
}

#[test]
fn two_disks_of_a_directory_share_its_servers() {
    let host = Host::new(2);
    let [one, two] = ["one", "two"].map(|name| {
        let backend = narrow(&host.dir().join(format!("{name}.raw")));
        host.serve_as(name, &backend, 1, Service::Open)
    });
    assert_near(rates(&[&one.socket], 4096)[0], RATE);
    let both = rates(&[&one.socket, &two.socket], 4096);
    assert_near(both[0] + both[1], RATE);
    assert!((0.9..1.1).contains(&(both[0] / both[1])), "{both:?}");
    // Twice as large, half as many.
    assert_near(rates(&[&two.socket], 64 << 10)[0], RATE / 2.0);
}

/// A `ferry serve`, killed at the end.
struct Serve(Child);

impl Serve {
    fn start(spec: &str, socket: &Path) -> Serve {
        let mut command = ferry(&["serve", spec, "--socket-path"]);
        let child = command.arg(socket).stdout(Stdio::null()).spawn().unwrap();
        let serve = Serve(child);
        eventually("a socket", || socket.exists());
        serve
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ferry(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
    command.args(words);
    command
}

#[test]
fn two_processes_share_the_servers_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let spec = |image: &str| {
        let path = dir.path().join(image);
        drop(image_at(&path, 16 * MIB));
        format!("{SPEC}:{}", path.display())
    };
    let sockets: [PathBuf; 2] = ["one.sock", "two.sock"].map(|name| dir.path().join(name));
    let one = Serve::start(&spec("one.raw"), &sockets[0]);
    let _two = Serve::start(&spec("two.raw"), &sockets[1]);
    let both = rates(&[&sockets[0], &sockets[1]], 4096);
    assert_near(both[0] + both[1], RATE);
    assert!((0.9..1.1).contains(&(both[0] / both[1])), "{both:?}");
    drop(one);
    assert_near(rates(&[&sockets[1]], 4096)[0], RATE);
}

#[test]
fn specs_that_make_no_sense_are_wrong_usage() {
    for (spec, why) in [
        ("delay:2x0:/a", "1 to 256"),
        ("delay:2xmany:/a", "\"many\" is not a number of servers"),
        ("delay:0x4:/a", "0.001 to 1000 milliseconds"),
        ("delay:x4:/a", "\"\" is not a number"),
        ("delay:2x4", "delay:MILLISECONDSxSERVERS:DISK"),
        ("delay:2x4:null:1M", "use delay:MILLISECONDS:null:1M"),
    ] {
        let said = ferry(&["serve", spec, "--socket-path", "/nowhere/a"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(2), "{spec}: {text}");
        assert!(text.contains(why), "{spec}: {text}");
    }
}

#[test]
fn a_file_of_another_kind_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.raw");
    drop(image_at(&image, MIB));
    std::fs::write(dir.path().join(".ferry-delay"), "mine").unwrap();
    let spec = format!("delay:2x4:{}", image.display());
    let said = ferry(&["serve", &spec, "--socket-path", "/nowhere/a"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("not what Ferry keeps there"), "{text}");
}
