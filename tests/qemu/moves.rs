//! Moves that succeed, under a guest that never pauses.

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::guest::ferry_qmp;
use crate::harness::pair::{DISK, Options, Pair};
use crate::harness::trial::{long, with_qemu};
use crate::harness::verifier::Verifier;
use crate::harness::{Check, TestDir};

pub fn trials() -> Vec<Trial> {
    let mut trials = with_qemu(&[
        ("verified_guest_moves_ten_times", ten_moves),
        ("migrate_vm_moves_guest_and_disk", migrate_vm),
    ]);
    trials.extend(long(&[("verified_guest_moves_fifty_times", fifty_moves)]));
    trials
}

fn ten_moves(dir: &TestDir) -> Check {
    moves(dir, 10)
}

fn fifty_moves(dir: &TestDir) -> Check {
    moves(dir, 50)
}

/// There and back again, the images compared each time while both are at rest.
fn moves(dir: &TestDir, count: u32) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    for number in 1..=count {
        let before = verifier.report(&mut pair.guest)?;
        ensure!(
            before.inflight > 0,
            "no write was in flight before move {number}"
        );
        let handover = pair.move_guest()?;
        let after = verifier.wait_progress(&mut pair.guest)?;
        println!(
            "move {number}: {} operations so far, {} in flight; handover {} us",
            after.ops, after.inflight, handover["total_us"]
        );
        pair.ensure_phases("serving", "moved")?;
        pair.guest.ensure_no_disk_errors()?;
    }
    let report = verifier.finish(&mut pair.guest)?;
    println!(
        "{} operations, {} sectors read again",
        report.ops, report.sectors_checked
    );
    Ok(())
}

/// The same in one command, which drives both QEMUs itself: the destination's
/// by way of its daemon.
fn migrate_vm(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    for _ in 0..2 {
        let arrival = pair.prepare_closed()?;
        let to = pair.destination().address();
        let (from_qmp, to_qmp) = (
            pair.guest.qemu().ferry_qmp.clone(),
            arrival.qemu.ferry_qmp.clone(),
        );
        ensure!(
            to_qmp == ferry_qmp(dir, pair.destination_name()),
            "not the monitor configured"
        );
        let (from_qmp, to_qmp) = (from_qmp.display().to_string(), to_qmp.display().to_string());
        let words = [
            "migrate",
            "vm",
            "--disk",
            DISK,
            "--to",
            &to,
            "--qmp",
            &from_qmp,
            "--dest-qmp",
            &to_qmp,
            "--migrate-uri",
            &arrival.uri,
        ];
        pair.source().expect(&words)?;
        pair.arrived(arrival)?;
        verifier.wait_progress(&mut pair.guest)?;
        pair.ensure_phases("serving", "moved")?;
    }
    verifier.finish(&mut pair.guest)?;
    Ok(())
}
