//! A guest whose disk is on a datastore that both hosts see.

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::pair::{DISK, Options, Pair};
use crate::harness::trial::with_qemu;
use crate::harness::verifier::Verifier;
use crate::harness::{Check, TestDir};

pub fn trials() -> Vec<Trial> {
    with_qemu(&[
        ("shared_guest_moves_without_a_copy", moves),
        ("shared_guest_boots_where_its_disk_was_taken_over", takeover),
    ])
}

fn shared(lease_ms: u64) -> Options {
    Options {
        shared_lease_ms: Some(lease_ms),
        ..Options::default()
    }
}

/// By an orchestrator's word, and by QEMU's migration alone.
fn moves(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, shared(10_000))?;
    let verifier = Verifier::start(&mut pair.guest)?;
    for number in 0..4 {
        let mut arrival = pair.prepare()?;
        pair.copy()?;
        verifier.wait_progress(&mut pair.guest)?;
        if number < 2 {
            pair.switch(&arrival)?;
            let report = pair.release()?;
            println!("move {number}: handover {} us", report["total_us"]);
            pair.go_on(arrival)?;
        } else {
            pair.switch_plainly(&mut arrival)?;
            arrival.qemu.qmp.run("cont")?;
            pair.arrived(arrival)?;
        }
        verifier.wait_progress(&mut pair.guest)?;
        pair.ensure_phases("serving", "moved")?;
        pair.guest.ensure_no_disk_errors()?;
        let status = pair.destination().expect(&["migrate", "status"])?;
        let sent = &status["disks"][0]["bytes_sent"];
        ensure!(*sent == 0, "{sent} bytes of a shared disk were sent");
    }
    verifier.finish_aloud(&mut pair.guest)
}

fn takeover(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, shared(2000))?;
    pair.stand_by()?;
    pair.guest
        .expect("mkfs.ext4 -q -E nodiscard /dev/vda && mount /dev/vda /mnt")?;
    pair.guest
        .expect("dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null && sync")?;
    let before = pair.guest.expect("sha256sum /mnt/file")?;
    // Boots before the lease is over, and waits for its disk.
    pair.boot_there()?;
    pair.guest.expect("mount /dev/vda /mnt")?;
    let after = pair.guest.expect("sha256sum /mnt/file")?;
    ensure!(before == after, "wrote {before:?}, found {after:?}");
    let disk = pair.source().disk(DISK)?.unwrap_or_default();
    ensure!(disk["phase"] == "serving" && disk["epoch"] == 2, "{disk}");
    pair.guest.ensure_no_disk_errors()
}
