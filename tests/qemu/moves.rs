//! Moves that succeed, under a guest that never pauses.

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::pair::{Arrival, DISK, Options, Pair};
use crate::harness::trial::{long, with_qemu};
use crate::harness::verifier::Verifier;
use crate::harness::{Check, TestDir};

pub fn trials() -> Vec<Trial> {
    let mut trials = with_qemu(&[
        ("verified_guest_moves_ten_times", ten_moves),
        ("migrate_vm_moves_guest_and_disk", migrate_vm),
        ("migrate_vm_that_fails_is_undone", migrate_vm_fails),
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
    verifier.finish_aloud(&mut pair.guest)
}

/// The same in one command, which drives both QEMUs itself: the destination's
/// by way of its daemon.
fn migrate_vm(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    for _ in 0..2 {
        let arrival = pair.prepare_closed()?;
        let words = vm_words(&mut pair, &arrival, &arrival.uri);
        pair.source().expect(&borrowed(&words))?;
        pair.arrived(arrival)?;
        verifier.wait_progress(&mut pair.guest)?;
        pair.ensure_phases("serving", "moved")?;
    }
    verifier.finish(&mut pair.guest)?;
    Ok(())
}

/// QEMU cannot send the machine anywhere: it must run on here, with its disk, and a second try to
/// the right place must succeed.
fn migrate_vm_fails(dir: &TestDir) -> Check {
    let mut pair = Pair::start(dir, Options::default())?;
    let verifier = Verifier::start(&mut pair.guest)?;
    let arrival = pair.prepare_closed()?;
    // A port that was free a moment ago: nobody listens there.
    let words = vm_words(&mut pair, &arrival, "tcp:127.0.0.1:9");
    let output = pair.source().run(&borrowed(&words))?;
    ensure!(
        output.code == Some(1) && output.err.contains("undone"),
        "a move to nowhere ended with {:?}: {}{}",
        output.code,
        output.out,
        output.err
    );
    verifier.wait_progress(&mut pair.guest)?;
    let there = pair.source().disk(DISK)?;
    ensure!(
        there.is_some_and(|disk| disk["phase"] == "serving"),
        "the disk is not served at the source"
    );
    drop(arrival);
    let arrival = pair.prepare_closed()?;
    let words = vm_words(&mut pair, &arrival, &arrival.uri);
    pair.source().expect(&borrowed(&words))?;
    pair.arrived(arrival)?;
    verifier.wait_progress(&mut pair.guest)?;
    pair.ensure_phases("serving", "moved")?;
    verifier.finish(&mut pair.guest)?;
    Ok(())
}

/// `ferry migrate vm` to the arrival, with QEMU sending to `uri`.
fn vm_words(pair: &mut Pair, arrival: &Arrival, uri: &str) -> Vec<String> {
    let to = pair.destination().address();
    let qmp = pair.guest.qemu().ferry_qmp.display().to_string();
    let dest_qmp = arrival.qemu.ferry_qmp.display().to_string();
    let pairs = [
        ("--disk", DISK),
        ("--to", &to),
        ("--qmp", &qmp),
        ("--dest-qmp", &dest_qmp),
        ("--migrate-uri", uri),
        ("--incoming-uri", &arrival.uri),
    ];
    let words = pairs.iter().flat_map(|&(flag, value)| [flag, value]);
    ["migrate", "vm"]
        .into_iter()
        .chain(words)
        .map(str::to_owned)
        .collect()
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
