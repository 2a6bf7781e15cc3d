//! SIGKILL under load: the guest sees a stall and nothing else.
//!
//! Each time the successor is started at once, while the dead process's last
//! requests are still on their way to the disk.

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
const DISK_BYTES: u64 = 64 * image::MIB;
/// Enough in flight that the disk is at it for a while after each kill.
const LOAD: &str = "--queues 4 --depth 64 --span 64M --fresh";
/// Longest time that a server lives after the guest's requests go on.
const LIFE_MS: u64 = 120;

pub fn trials() -> Vec<Trial> {
    let mut trials = with_qemu(&[
        ("killed_a_hundred_times_with_the_front_ends_region", hundred),
        ("killed_fifty_times_with_a_region_of_its_own", fifty_own),
    ]);
    trials.extend(long(&[
        ("killed_two_thousand_times_with_the_front_ends_region", many),
        (
            "killed_two_thousand_times_with_a_region_of_its_own",
            many_own,
        ),
    ]));
    trials
}

fn hundred(dir: &TestDir) -> Check {
    kills(dir, 100, &[])
}

fn fifty_own(dir: &TestDir) -> Check {
    kills(dir, 50, &["--inflight", "own"])
}

fn many(dir: &TestDir) -> Check {
    kills(dir, 2000, &[])
}

fn many_own(dir: &TestDir) -> Check {
    kills(dir, 2000, &["--inflight", "own"])
}

fn kills(dir: &TestDir, count: u32, flags: &[&str]) -> Check {
    let began = Instant::now();
    let image = DiskImage::create()?;
    let mut serve = Serve::spawn(dir, &image.path, QUEUES, flags)?;
    let machine = Machine {
        queues: QUEUES,
        reconnect_ms: 20,
        second_port: true,
        ..Machine::default()
    };
    let mut guest = Guest::boot(dir, "a-0", &machine, &[serve.socket()])?;
    let mut verifier = Asked::start(&mut guest, LOAD)?;
    let first = verifier.ask(&mut guest)?;
    verifier.wait_progress(&mut guest, &first)?;

    let (mut held, mut stalls_us) = (0, Vec::new());
    for number in 1..=count {
        // Not in step with anything.
        let life_ms = u64::from(number) * 37 % LIFE_MS;
        std::thread::sleep(Duration::from_millis(life_ms));
        serve.ensure_alive()?;
        held += u32::from(serve.kill()?);
        serve.start()?;
        let at_the_kill = verifier.ask(&mut guest)?;
        let after = verifier.wait_progress(&mut guest, &at_the_kill)?;
        stalls_us.push(after.stall_us);
    }
    let killing = began.elapsed();
    let report = verifier.finish(&mut guest)?;
    ensure_image_is_what_the_guest_reads(&mut guest, &image)?;

    stalls_us.sort_unstable();
    let at = |percent: usize| stalls_us[(stalls_us.len() - 1) * percent / 100] / 1000;
    println!(
        "{count} kills, {held} with the image's lock still held after the process was reaped; \
         longest time without a completion around each, seen in the guest: p50 {} ms, p99 {} ms, \
         max {} ms; {} operations, {} sectors read again; {:.0} s, {:.0} s of it to the last kill",
        at(50),
        at(99),
        at(100),
        report.ops,
        report.sectors_checked,
        began.elapsed().as_secs_f64(),
        killing.as_secs_f64(),
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
        image::create(&path, DISK_BYTES)?;
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
