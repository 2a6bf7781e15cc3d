//! Moves that are disturbed or broken off. Each time the guest runs on with its
//! disk where it was, no fault is seen in it, and the next move succeeds.

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::pair::{Options, Pair, UNLIMITED, ensure_running};
use crate::harness::trial::with_qemu;
use crate::harness::verifier::Verifier;
use crate::harness::wait::secs;
use crate::harness::{Check, TestDir, image};

pub fn trials() -> Vec<Trial> {
    with_qemu(&[
        ("cancelled_before_the_stop", cancelled_before_the_stop),
        ("cancelled_before_the_release", cancelled_before_the_release),
        ("cancelled_after_the_grant", cancelled_after_the_grant),
        (
            "destination_qemu_killed_after_continue",
            destination_qemu_killed,
        ),
        ("guest_reboots_during_the_copy", guest_reboots),
        ("guest_reset_during_the_copy", guest_reset),
        ("guest_stops_and_goes_on_during_the_copy", guest_stops),
        (
            "destination_daemon_killed_during_the_copy",
            destination_daemon_killed,
        ),
    ])
}

/// A copy that takes long enough to be disturbed; a link too slow for the
/// guest's own writes would end the mirror.
fn slow(mib_per_second: u64) -> Options {
    let link_bytes_per_second = mib_per_second * image::MIB;
    Options {
        bytes: 256 * image::MIB,
        full: true,
        link_bytes_per_second,
        ..Options::default()
    }
}

/// The guest still works here, and then moves after all.
fn runs_on_and_moves(pair: &mut Pair, verifier: Verifier) -> Check {
    verifier.wait_progress(&mut pair.guest)?;
    pair.guest.ensure_no_disk_errors()?;
    pair.move_guest()?;
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "moved")?;
    verifier.finish(&mut pair.guest)?;
    Ok(())
}

fn cancelled_before_the_stop(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let arrival = pair.prepare()?;
    pair.copy()?;
    // Slow enough that the memory of the guest is under way for a long time.
    pair.guest.qmp().prepare_migration()?;
    pair.guest.qmp().limit_bandwidth(4 << 20)?;
    pair.start_switch(&arrival)?;
    pair.guest.qmp().wait_migration("active", secs(30))?;
    ensure!(
        pair.guest.qmp().status()? == "running",
        "the guest stopped too early for this test"
    );
    pair.cancel_switch()?;
    drop(arrival);
    pair.cancel_copy()?;
    runs_on_and_moves(&mut pair, verifier)
}

fn cancelled_before_the_release(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let arrival = pair.prepare()?;
    pair.copy()?;
    pair.switch(&arrival)?;
    pair.cancel_switch()?;
    drop(arrival);
    // The same rings have started again: the mirror is still good, or given up.
    verifier.wait_progress(&mut pair.guest)?;
    pair.cancel_copy()?;
    runs_on_and_moves(&mut pair, verifier)
}

fn cancelled_after_the_grant(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let arrival = pair.prepare()?;
    pair.copy()?;
    pair.switch(&arrival)?;
    pair.release()?;
    pair.images_equal()?;
    // Nothing but the rings tells the source that the guest is back.
    pair.cancel_switch()?;
    drop(arrival);
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "returned")?;
    runs_on_and_moves(&mut pair, verifier)
}

fn destination_qemu_killed(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let mut arrival = pair.prepare()?;
    pair.copy()?;
    pair.switch(&arrival)?;
    pair.release()?;
    // Frozen first: it must not finish before it dies.
    arrival.qemu.process().signal("STOP")?;
    pair.guest.qmp().migrate_continue()?;
    arrival.qemu.process().kill()?;
    pair.guest.qmp().wait_migration("failed", secs(60))?;
    pair.guest.qmp().wait_status("running", secs(30))?;
    drop(arrival);
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "returned")?;
    runs_on_and_moves(&mut pair, verifier)
}

fn guest_reboots(dir: &TestDir) -> Check {
    boots_again(dir, |pair| {
        pair.guest.send("reboot -f")?;
        pair.guest.wait_boot()
    })
}

/// The hard way: the device is reset with whatever is in flight.
fn guest_reset(dir: &TestDir) -> Check {
    boots_again(dir, |pair| {
        pair.guest
            .spawn_bg("load", "dd if=/dev/vda of=/dev/null bs=64k iflag=direct")?;
        pair.guest.qmp().run("system_reset")?;
        pair.guest.wait_boot()
    })
}

fn boots_again(dir: &TestDir, boot: impl FnOnce(&mut Pair) -> Check) -> Check {
    let mut pair = Pair::start(dir, slow(16))?;
    pair.guest
        .expect("mkfs.ext4 -q -E nodiscard /dev/vda && mount /dev/vda /mnt")?;
    pair.guest
        .expect("dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null && sync")?;
    let before = pair.guest.expect("sha256sum /mnt/file")?;
    let arrival = pair.prepare()?;
    let mut copy = pair.copy_half_way()?;
    pair.guest
        .expect("dd if=/mnt/file of=/mnt/copy bs=1M conv=fsync 2>/dev/null")?;
    ensure_running(&mut copy)?;
    boot(&mut pair)?;
    pair.guest.expect("mount /dev/vda /mnt")?;
    pair.guest
        .expect("cmp /mnt/file /mnt/copy && echo here >/mnt/again && sync")?;
    pair.finish_copy(copy)?;
    pair.switch(&arrival)?;
    pair.release()?;
    pair.images_equal()?;
    pair.go_on(arrival)?;
    pair.guest
        .expect("echo 3 >/proc/sys/vm/drop_caches; cmp /mnt/file /mnt/copy")?;
    let after = pair.guest.expect("sha256sum /mnt/file")?;
    ensure!(before == after, "wrote {before:?}, found {after:?}");
    pair.guest.ensure_no_disk_errors()
}

fn guest_stops(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, slow(32))?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let arrival = pair.prepare()?;
    let mut copy = pair.copy_half_way()?;
    pair.guest.qmp().run("stop")?;
    pair.guest.qmp().wait_status("paused", secs(20))?;
    std::thread::sleep(secs(1));
    pair.guest.qmp().run("cont")?;
    ensure_running(&mut copy)?;
    verifier.wait_progress(&mut pair.guest)?;
    pair.link.set_rate(UNLIMITED);
    pair.finish_copy(copy)?;
    pair.switch(&arrival)?;
    pair.release()?;
    pair.images_equal()?;
    pair.go_on(arrival)?;
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "moved")?;
    verifier.finish(&mut pair.guest)?;
    Ok(())
}

fn destination_daemon_killed(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, slow(32))?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let arrival = pair.prepare()?;
    let mut copy = pair.copy_half_way()?;
    ensure_running(&mut copy)?;
    pair.destination().kill()?;
    let output = copy.finish(secs(60))?;
    ensure!(
        output.code == Some(1),
        "the copy to a dead daemon ended with {output:?}"
    );
    drop(arrival);
    verifier.wait_progress(&mut pair.guest)?;
    pair.destination().start()?;
    pair.link.set_rate(UNLIMITED);
    runs_on_and_moves(&mut pair, verifier)
}
