//! Disks that follow their guest: QEMU migrates by itself, and nobody tells the daemons.

use libtest_mimic::Trial;
use std::time::Duration;

use crate::ensure;
use crate::harness::pair::{DISK, Options, Pair};
use crate::harness::trial::with_qemu;
use crate::harness::verifier::Verifier;
use crate::harness::{Check, TestDir};

/// Long enough for the destination to have asked for the disk, more than once.
const A_WHILE: Duration = Duration::from_secs(4);

pub fn trials() -> Vec<Trial> {
    with_qemu(&[
        ("pull_plain_migration_there_and_back", there_and_back),
        ("pull_paused_guest_waits_for_commit", paused),
        ("pull_source_resumed_gets_no_disk", resumed),
    ])
}

fn there_and_back(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    for _ in 0..2 {
        let mut arrival = pair.prepare()?;
        pair.copy()?;
        verifier.wait_progress(&mut pair.guest)?;
        pair.switch_plainly(&mut arrival)?;
        arrival.qemu.qmp.run("cont")?;
        pair.arrived(arrival)?;
        verifier.wait_progress(&mut pair.guest)?;
        pair.ensure_phases("serving", "moved")?;
        pair.guest.ensure_no_disk_errors()?;
    }
    verifier.finish_aloud(&mut pair.guest)
}

/// A guest that arrives paused starts no ring, so nothing says that it has arrived.
fn paused(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let mut arrival = pair.prepare()?;
    pair.copy()?;
    pair.switch_plainly(&mut arrival)?;
    std::thread::sleep(A_WHILE);
    pair.ensure_phases("serving", "incoming")?;
    pair.source().expect(&["migrate", "commit", DISK])?;
    pair.ensure_phases("handed", "granted")?;
    pair.images_equal()?;
    arrival.qemu.qmp.run("cont")?;
    pair.arrived(arrival)?;
    verifier.wait_progress(&mut pair.guest)?;
    verifier.finish(&mut pair.guest)?;
    Ok(())
}

/// The guest ran at the destination; the QEMU it came from is let go on.
fn resumed(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let mut arrival = pair.prepare()?;
    pair.copy()?;
    pair.switch_plainly(&mut arrival)?;
    arrival.qemu.qmp.run("cont")?;
    let mut old = pair.arrived_from(arrival);
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "moved")?;
    old.qmp.run("cont")?;
    std::thread::sleep(A_WHILE);
    pair.ensure_phases("serving", "moved")?;
    let log = pair.destination().log()?;
    ensure!(
        log.contains("they stay unserved"),
        "the old side does not say why it does not serve: {log}"
    );
    verifier.finish(&mut pair.guest)?;
    Ok(())
}
