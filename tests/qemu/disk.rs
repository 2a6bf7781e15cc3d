//! A disk as a guest sees it, without any move.

use std::process::Command;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::daemon::Daemon;
use crate::harness::guest::{Guest, Machine};
use crate::harness::trial::with_qemu;
use crate::harness::wait::{secs, wait_for};
use crate::harness::{Check, TestDir, image};

pub fn trials() -> Vec<Trial> {
    with_qemu(&[
        ("file_system_survives_a_reboot", file_system),
        ("discard_makes_the_image_smaller", discard),
        ("read_only_disk_refuses_writes", read_only),
        ("disk_grows_under_its_guest", grows),
        ("clone_grows_under_its_guest", clone_grows),
        ("ten_idle_disks_cost_no_processor_time", idle),
    ])
}

fn file_system(dir: &TestDir) -> Check {
    let path = dir.path("disk.img");
    image::create(&path, 128 * image::MIB)?;
    let daemon = Daemon::spawn(dir, "a", &[], "")?;
    let machine = Machine::default();
    let socket = daemon.add_disk("d0", &path.display().to_string(), machine.queues)?;
    let mut guest = Guest::boot(dir, "a-0", &machine, &[&socket])?;
    guest.expect("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")?;
    // More than one request, and a size that is no multiple of anything.
    guest.expect("dd if=/dev/urandom of=/mnt/file bs=77777 count=200 2>/dev/null")?;
    let before = guest.expect("sha256sum /mnt/file && sync")?;

    guest.send("reboot -f")?;
    guest.wait_boot()?;
    guest.expect("mount /dev/vda /mnt")?;
    let after = guest.expect("sha256sum /mnt/file")?;
    ensure!(
        before == after,
        "wrote {before:?}, found {after:?} after the reboot"
    );
    guest.ensure_no_disk_errors()
}

fn discard(dir: &TestDir) -> Check {
    let path = dir.path("disk.img");
    image::create(&path, 64 * image::MIB)?;
    let daemon = Daemon::spawn(dir, "a", &[], "")?;
    let machine = Machine::default();
    let socket = daemon.add_disk("d0", &path.display().to_string(), machine.queues)?;
    let mut guest = Guest::boot(dir, "a-0", &machine, &[&socket])?;
    guest.expect("dd if=/dev/urandom of=/dev/vda bs=1M count=32 conv=fsync 2>/dev/null")?;
    let full = image::allocated(&path)?;
    ensure!(
        full >= 32 * image::MIB,
        "wrote 32 MiB and the image takes {full} bytes"
    );
    guest.expect("blkdiscard -o 0 -l 16777216 /dev/vda && sync")?;
    let less = image::allocated(&path)?;
    ensure!(
        less <= full - 15 * image::MIB,
        "discarded 16 MiB; the image took {full} bytes and takes {less}"
    );
    guest.expect("cmp -n 16777216 /dev/vda /dev/zero")?;
    guest.ensure_no_disk_errors()
}

fn read_only(dir: &TestDir) -> Check {
    let path = dir.path("disk.img");
    image::create_full(&path, 16 * image::MIB)?;
    let before = std::fs::read(&path)?;
    let daemon = Daemon::spawn(dir, "a", &[], "")?;
    let machine = Machine::default();
    let socket = daemon.add_read_only("d0", &path.display().to_string(), machine.queues)?;
    let mut guest = Guest::boot(dir, "a-0", &machine, &[&socket])?;
    guest.expect("dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null")?;
    let flag = guest.expect("cat /sys/block/vda/ro")?;
    ensure!(flag.trim() == "1", "the guest takes the disk for writable");
    let (out, status) = guest.run("dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync 2>&1")?;
    ensure!(status != 0, "the guest wrote to a read-only disk: {out}");
    // The kernel checks its own flag first; the device must refuse as well.
    let (out, status) = guest.run(
        "blockdev --setrw /dev/vda && dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync 2>&1",
    )?;
    ensure!(
        status != 0,
        "the guest wrote to a read-only disk after --setrw: {out}"
    );
    ensure!(
        std::fs::read(&path)? == before,
        "the image of a read-only disk has changed"
    );
    Ok(())
}

fn grows(dir: &TestDir) -> Check {
    let path = dir.path("disk.img");
    image::create(&path, 64 * image::MIB)?;
    let daemon = Daemon::spawn(dir, "a", &[], "")?;
    let seen = grows_on(dir, &daemon, &path.display().to_string())?;
    let there = Command::new("sh")
        .args(["-c", "tail -c 4194304 \"$0\" | sha256sum"])
        .arg(&path)
        .output()?;
    let there = String::from_utf8_lossy(&there.stdout).into_owned();
    ensure!(
        seen.split_whitespace().next() == there.split_whitespace().next(),
        "the guest wrote {seen:?} and the image ends with {there:?}"
    );
    Ok(())
}

fn clone_grows(dir: &TestDir) -> Check {
    let (base, overlay) = (dir.path("base.img"), dir.path("disk.qcow2"));
    image::create(&base, 64 * image::MIB)?;
    let daemon = Daemon::spawn(dir, "a", &[], "")?;
    let (base, overlay) = (base.display().to_string(), overlay.display().to_string());
    daemon.expect(&["disk", "clone", &base, &overlay])?;
    grows_on(dir, &daemon, &format!("qcow2:{overlay}"))?;
    Ok(())
}

/// Grows a disk of 64 MiB under a guest; what stands in its last 4 MiB then, as a hash.
fn grows_on(dir: &TestDir, daemon: &Daemon, disk: &str) -> Check<String> {
    let machine = Machine::default();
    let socket = daemon.add_disk("d0", disk, machine.queues)?;
    let mut guest = Guest::boot(dir, "a-0", &machine, &[&socket])?;
    guest.expect("mkfs.ext4 -q /dev/vda 32M && mount /dev/vda /mnt")?;
    guest.spawn_bg(
        "load",
        "while dd if=/dev/urandom of=/mnt/f bs=64k count=64 conv=fsync 2>/dev/null; do :; done",
    )?;
    let size = guest.expect("cat /sys/block/vda/size")?;
    ensure!(size.trim() == "131072", "{size} sectors at first");

    let line = daemon.expect(&["disk", "resize", "d0", "128M"])?;
    ensure!(line["told"] == true, "QEMU gave no channel: {line}");
    wait_for("the guest sees the new size", secs(20), || {
        let size = guest.expect("cat /sys/block/vda/size")?;
        Ok((size.trim() == "262144").then_some(()))
    })?;
    // Across the old end, and up to the new one.
    guest.expect("dd if=/dev/urandom of=/tmp/new bs=1M count=4 2>/dev/null")?;
    for at in [62, 124] {
        guest.expect(&format!(
            "dd if=/tmp/new of=/dev/vda bs=1M seek={at} conv=fsync 2>/dev/null && \
             echo 3 >/proc/sys/vm/drop_caches && \
             dd if=/dev/vda bs=1M skip={at} count=4 2>/dev/null | cmp - /tmp/new"
        ))?;
    }
    let seen = guest.expect("sha256sum </tmp/new")?;
    let shrunk = daemon.run(&["disk", "resize", "d0", "64M"])?;
    ensure!(shrunk.code == Some(1), "the disk was made smaller");
    ensure!(
        guest.bg_status("load")?.is_none(),
        "the load on the file system ended"
    );
    guest.ensure_no_disk_errors()?;
    Ok(seen)
}

fn idle(dir: &TestDir) -> Check {
    const DISKS: usize = 10;
    const WATCHED: Duration = Duration::from_secs(10);
    let mut daemon = Daemon::spawn(dir, "a", &[], "")?;
    let machine = Machine {
        queues: 2,
        ..Machine::default()
    };
    let mut sockets = Vec::new();
    for index in 0..DISKS {
        let path = dir.path(format!("disk{index}.img"));
        image::create(&path, 16 * image::MIB)?;
        let id = format!("d{index}");
        sockets.push(daemon.add_disk(&id, &path.display().to_string(), machine.queues)?);
    }
    let disks: Vec<_> = sockets.iter().map(AsRef::as_ref).collect();
    let mut guest = Guest::boot(dir, "a-0", &machine, &disks)?;
    // Each has been busy: a worker that never sleeps again shows only then.
    guest
        .expect("for d in /dev/vd?; do dd if=$d of=/dev/null bs=1M 2>/dev/null || exit 1; done")?;
    let found = guest.expect("ls /dev/vd? | wc -l")?;
    ensure!(
        found.trim() == DISKS.to_string(),
        "the guest sees {found} disks"
    );
    std::thread::sleep(Duration::from_secs(2));

    let before = daemon.process()?.cpu_time()?;
    std::thread::sleep(WATCHED);
    let used = daemon.process()?.cpu_time()? - before;
    println!("ten idle disks used {used:?} of processor time in {WATCHED:?}");
    ensure!(
        used <= WATCHED / 100,
        "ten idle disks used {used:?} in {WATCHED:?}, more than 1 %"
    );
    Ok(())
}
