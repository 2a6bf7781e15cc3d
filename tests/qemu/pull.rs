//! Disks that follow their guest: QEMU migrates by itself, and nobody tells the daemons.

use libtest_mimic::Trial;
use std::time::Duration;

use crate::ensure;
use crate::harness::guest::{Machine, Qemu};
use crate::harness::pair::{DISK, Options, Pair};
use crate::harness::trial::with_qemu;
use crate::harness::verifier::Verifier;
use crate::harness::wait::{secs, wait_for};
use crate::harness::{Check, TestDir};

/// Long enough for the destination to have asked for the disk, more than once.
const A_WHILE: Duration = Duration::from_secs(4);

pub fn trials() -> Vec<Trial> {
    with_qemu(&[
        ("pull_plain_migration_there_and_back", there_and_back),
        ("pull_paused_guest_waits_for_commit", paused),
        ("pull_source_resumed_gets_no_disk", resumed),
        ("pull_fresh_guest_does_not_get_the_disk", stranger),
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

/// Another guest boots at the destination, on the socket where the disk is to arrive. It gets as
/// far as its firmware's read of the disk's first sector.
fn stranger(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    pair.stand_by()?;
    pair.copy()?;
    let mut stranger = pair.boot_stranger()?;
    destination_says(&mut pair, "the disk's rings are running")?;
    let asked = asks_in_vain(&mut stranger)?;
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "incoming")?;
    // Nor when the guest here stands still: now what its rings hold decides.
    pair.guest.qmp().run("stop")?;
    std::thread::sleep(A_WHILE);
    pair.ensure_phases("serving", "incoming")?;
    destination_says(&mut pair, "another VM is attached there")?;
    pair.ensure_phases("serving", "incoming")?;
    asks_in_vain(&mut stranger)?;
    pair.guest.qmp().run("cont")?;
    verifier.wait_progress(&mut pair.guest)?;
    pair.guest.ensure_no_disk_errors()?;
    // It leaves no trace: the copy is still equal, and its own guest gets it.
    stranger.process().kill()?;
    let mut arrival = pair.prepare()?;
    pair.switch_plainly(&mut arrival)?;
    arrival.qemu.qmp.run("cont")?;
    pair.arrived(arrival)?;
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "moved")?;
    let report = verifier.finish(&mut pair.guest)?;
    println!(
        "unanswered requests of the other guest: {asked}; {} operations, {} sectors read again",
        report.ops, report.sectors_checked
    );
    Ok(())
}

/// Waits until the destination has said why the rings there wait.
fn destination_says(pair: &mut Pair, why: &str) -> Check {
    let what = format!("the destination to say that {why}");
    wait_for(&what, secs(60), || {
        let log = pair.destination().log()?;
        let said = log.lines().any(|line| {
            line.contains("the source does not grant the disk: they wait") && line.contains(why)
        });
        Ok(said.then_some(()))
    })
}

/// Waits until a guest has asked something of its disk, and requires that nothing was answered.
/// Returns how many requests wait.
fn asks_in_vain(qemu: &mut Qemu) -> Check<u64> {
    wait_for("the other guest to use its disk", secs(60), || {
        let (mut asked, mut answered) = (0, 0);
        for queue in 0..Machine::default().queues {
            let (avail, used) = qemu.requests(queue)?;
            asked += avail;
            answered += used;
        }
        ensure!(answered == 0, "the other guest's disk has answered it");
        Ok((asked > 0).then_some(asked))
    })
}
