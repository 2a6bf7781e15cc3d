//! SIGKILL under load: the guest sees a stall and nothing else.
//!
//! Each time the successor is started at once, while the dead process's last
//! requests are still on their way to the disk. Beside the stamped load two
//! plain ones keep the disk busy, which an emulated guest that stamps and
//! checks could not.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::guest::{Guest, Machine};
use crate::harness::serve::Serve;
use crate::harness::trial::{long, with_qemu};
use crate::harness::verifier::Asked;
use crate::harness::{Check, TestDir, image};

const QUEUES: u16 = 4;
/// Verified, and read and written beside it: 32, 64 and 64 MiB.
const DISK_BYTES: u64 = 160 * image::MIB;
const VERIFIED: &str = "--queues 4 --depth 64 --span 32M";
const READ: &str = "dd if=/dev/vda of=/dev/null bs=8M skip=4 count=8 iflag=direct";
const WRITTEN: &str = "dd if=/dev/zero of=/dev/vda bs=8M seek=12 count=8 oflag=direct";
/// Requests in the kernel at a kill, if the guest has so many there soon.
const DEPTH: u32 = 24;
/// Longest time from the guest's going on to the next kill.
const LIFE_MS: u64 = 60;

pub fn trials() -> Vec<Trial> {
    let mut trials = with_qemu(&[
        ("a_hundred_kills_with_the_front_ends_region", hundred),
        ("fifty_kills_with_a_region_of_its_own", fifty_own),
    ]);
    trials.extend(long(&[
        ("two_thousand_kills_with_the_front_ends_region", many),
        ("two_thousand_kills_with_a_region_of_its_own", many_own),
    ]));
    trials
}

fn hundred(dir: &TestDir) -> Check {
    kills(dir, 100, "auto")
}

fn fifty_own(dir: &TestDir) -> Check {
    kills(dir, 50, "own")
}

fn many(dir: &TestDir) -> Check {
    kills(dir, 2000, "auto")
}

fn many_own(dir: &TestDir) -> Check {
    kills(dir, 2000, "own")
}

fn kills(dir: &TestDir, count: u32, inflight: &str) -> Check {
    let began = Instant::now();
    let image = DiskImage::create()?;
    let mut serve = Serve::spawn(dir, &image.path, QUEUES, &["--inflight", inflight])?;
    let machine = Machine {
        queues: QUEUES,
        reconnect_ms: 10,
        second_port: true,
        ..Machine::default()
    };
    let mut guest = Guest::boot(dir, "a-0", &machine, &[serve.socket()])?;
    let mut verifier = Asked::start(&mut guest, VERIFIED)?;
    for (name, load) in [("read", READ), ("written", WRITTEN)] {
        guest.spawn_bg(
            name,
            &format!("while [ ! -e /tmp/stop ]; do {load} || exit 1; done"),
        )?;
    }
    let first = verifier.ask(&mut guest)?;
    verifier.wait_progress(&mut guest, &first)?;

    let (mut held, mut stalls_us) = (0, Vec::new());
    let first_kill = Instant::now();
    for number in 1..=count {
        // Not in step with anything.
        let life_ms = u64::from(number) * 37 % LIFE_MS;
        std::thread::sleep(Duration::from_millis(life_ms));
        serve.wait_depth(DEPTH)?;
        serve.ensure_alive()?;
        held += u32::from(serve.kill()?);
        serve.start()?;
        // What is in flight now was begun before the kill, or is nobody's yet: one more than that
        // is the successor's work.
        let dead = verifier.ask(&mut guest)?;
        let alive = verifier.wait_progress(&mut guest, &dead)?;
        stalls_us.push(alive.stall_us);
    }
    let killing = first_kill.elapsed();
    let report = verifier.finish(&mut guest)?;
    for load in ["read", "written"] {
        guest.finish_bg(load, Duration::from_secs(60))?;
    }
    ensure_image_is_what_the_guest_reads(&mut guest, &image)?;
    drop(guest);
    serve.end()?;

    stalls_us.sort_unstable();
    let at = |percent: usize| stalls_us[(stalls_us.len() - 1) * percent / 100] / 1000;
    println!(
        "{count} kills in {:.0} s, {held} with the image's lock still held after the process was \
         reaped; the guest's longest time without a completion around each: p50 {} ms, p99 {} ms, \
         max {} ms; {} verified operations, {} sectors read again; {:.0} s in all",
        killing.as_secs_f64(),
        at(50),
        at(99),
        at(100),
        report.ops,
        report.sectors_checked,
        began.elapsed().as_secs_f64(),
    );
    ensure!(
        held * 2 >= count,
        "after {held} of {count} kills only was the image's lock still held: the successor had \
         nothing to wait for, and this shows little. {} must be on a disk, not in memory",
        image.path.display()
    );
    Ok(())
}

/// An image on a real disk: in a folder for tests below cargo's target, as the
/// test's own may well be in memory.
struct DiskImage {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl DiskImage {
    fn create() -> Check<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let path = dir.path().join("disk.img");
        // Full: what reads a hole never sees the disk.
        image::create_full(&path, DISK_BYTES)?;
        Ok(Self { path, _dir: dir })
    }
}

fn ensure_image_is_what_the_guest_reads(guest: &mut Guest, image: &DiskImage) -> Check {
    let seen = guest.expect("sha256sum </dev/vda")?;
    let there = Command::new("sha256sum")
        .stdin(std::fs::File::open(&image.path)?)
        .output()?;
    let there = String::from_utf8_lossy(&there.stdout).into_owned();
    ensure!(
        seen.split_whitespace().next() == there.split_whitespace().next(),
        "the guest reads {seen:?} from its disk, and the image holds {there:?}"
    );
    Ok(())
}
