//! A guest with a disk and a NIC moves while a hundred connections, numbered
//! datagrams both ways and an echo every 10 ms go on.

use libtest_mimic::Trial;
use serde_json::Value;

use crate::ensure;
use crate::harness::net_pair::{LONG_RING, NIC, NetPair, Options, TAP, Wiring};
use crate::harness::network::PEER;
use crate::harness::pair::Arrival;
use crate::harness::process::Running;
use crate::harness::talk::{ALL, Capture, lost_after};
use crate::harness::trial::{is_long, with_networks};
use crate::harness::wait::{secs, wait_for};
use crate::harness::{Check, TestDir};

pub fn trials() -> Vec<Trial> {
    with_networks(&[
        ("talking_guest_moves_with_its_tap", by_tap),
        ("talking_guest_moves_with_its_switch", by_switch),
        ("talking_guest_stays_when_its_move_is_cancelled", cancelled),
        ("talking_guest_stays_when_the_hosts_are_cut", cut),
        ("qemu_alone_carries_the_state_of_a_nic", by_qemu_alone),
    ])
}

/// How often there and back.
const ROUND_TRIPS: u32 = 3;
const ROUND_TRIPS_LONG: u32 = 10;
/// A machine's memory takes some seconds to cross.
const SLOWLY: u64 = 8 << 20;
const AT_ONCE: u64 = 10 << 30;
const COMMAND_LIMIT: std::time::Duration = secs(120);

fn start(dir: &TestDir, wiring: Wiring) -> Check<NetPair<'_>> {
    let options = Options {
        wiring,
        properties: LONG_RING.to_owned(),
    };
    NetPair::start(dir, options)
}

fn by_tap(dir: &TestDir) -> Check {
    there_and_back(dir, Wiring::Tap)
}

fn by_switch(dir: &TestDir) -> Check {
    there_and_back(dir, Wiring::Switch)
}

/// There and back: no connection breaks, no byte is another, and no datagram that
/// reached either host is lost or comes twice.
fn there_and_back(dir: &TestDir, wiring: Wiring) -> Check {
    let mut pair = start(dir, wiring)?;
    let captures = captures(dir, &pair)?;
    let round_trips = if is_long() {
        ROUND_TRIPS_LONG
    } else {
        ROUND_TRIPS
    };
    let mut moved = Vec::new();
    let report = pair.talk(ALL, |pair| {
        for _ in 0..2 * round_trips {
            std::thread::sleep(secs(1));
            moved.push(pair.move_guest()?);
        }
        std::thread::sleep(secs(2));
        Ok(())
    })?;
    tell(&report, &moved);
    nothing_lost(&pair, &report, captures)?;
    let passed_on = moved
        .iter()
        .map(|it| &it["nic_moves"][0]["frames_forwarded"]);
    let passed_on: u64 = passed_on.filter_map(Value::as_u64).sum();
    ensure!(
        passed_on > 0,
        "no frame reached a source while its rings stood still: {moved:?}"
    );
    pair.guest.ensure_no_disk_errors()
}

/// Nobody tells the daemons of the NIC: what the other one knows of it came
/// beside the machine (DEVICE_STATE). The guest goes on, there and back.
fn by_qemu_alone(dir: &TestDir) -> Check {
    let mut pair = start(dir, Wiring::Tap)?;
    for _ in 0..2 {
        echoes(&mut pair)?;
        let before = pair.nic()?;
        let report = pair.move_guest_untold()?;
        let moves = report["nic_moves"].as_array().map_or(0, Vec::len);
        ensure!(moves == 0, "the daemons were told: {report}");
        let after = pair.nic()?;
        for count in ["rx_frames", "tx_frames", "rx_bytes", "tx_bytes"] {
            ensure!(
                before[count].as_u64() > Some(40)
                    && after[count].as_u64() >= before[count].as_u64(),
                "{count} did not come with the NIC: {before}, {after}"
            );
        }
        ensure!(
            after["broken_queues"] == 0 && after["attached"] == true,
            "{after}"
        );
    }
    echoes(&mut pair)?;
    pair.guest.ensure_no_disk_errors()
}

/// The guest is heard, and hears, some dozens of times.
fn echoes(pair: &mut NetPair) -> Check {
    let command = format!(
        "n=0; while [ $n -lt 50 ]; do ping -c 1 -W 5 {PEER} >/dev/null || exit 1; n=$((n+1)); done"
    );
    pair.guest.expect(&format!("({command})"))?;
    Ok(())
}

/// A move that is cancelled half way is not noticed, and the next one succeeds.
fn cancelled(dir: &TestDir) -> Check {
    let mut pair = start(dir, Wiring::Tap)?;
    let captures = captures(dir, &pair)?;
    let report = pair.talk(ALL, |pair| {
        let arrival = pair.prepare_closed()?;
        let moving = begin(pair, &arrival)?;
        pair.source().expect(&["migrate", "cancel", "--nic", NIC])?;
        is_undone(moving)?;
        drop(arrival);
        pair.guest.qmp().limit_bandwidth(AT_ONCE)?;
        std::thread::sleep(secs(1));
        pair.move_guest()?;
        std::thread::sleep(secs(2));
        Ok(())
    })?;
    nothing_lost(&pair, &report, captures)
}

/// As when the link between the hosts is cut while the memory is copied.
fn cut(dir: &TestDir) -> Check {
    let mut pair = start(dir, Wiring::Tap)?;
    let captures = captures(dir, &pair)?;
    let report = pair.talk(ALL, |pair| {
        let arrival = pair.prepare_closed()?;
        let moving = begin(pair, &arrival)?;
        pair.segment.cut()?;
        is_undone(moving)?;
        drop(arrival);
        pair.segment.mend()?;
        pair.guest.qmp().limit_bandwidth(AT_ONCE)?;
        pair.move_guest()?;
        std::thread::sleep(secs(2));
        Ok(())
    })?;
    nothing_lost(&pair, &report, captures)
}

/// Begins a move, and returns when its memory is under way.
fn begin(pair: &mut NetPair, arrival: &Arrival) -> Check<Running> {
    pair.guest.qmp().limit_bandwidth(SLOWLY)?;
    let words = pair.vm_words(arrival);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let moving = pair.source().start_command(&words)?;
    wait_for("the memory to be under way", secs(60), || {
        let migration = pair.guest.qmp().migration()?;
        let sent = migration["ram"]["transferred"].as_u64();
        Ok((migration["status"] == "active" && sent > Some(SLOWLY)).then_some(()))
    })?;
    Ok(moving)
}

/// It failed, and the machine is where it was.
fn is_undone(moving: Running) -> Check {
    let output = moving.finish(COMMAND_LIMIT)?;
    ensure!(
        output.code == Some(1) && output.err.contains("undone"),
        "it ended with {:?}: {}{}",
        output.code,
        output.out,
        output.err
    );
    Ok(())
}

fn captures(dir: &TestDir, pair: &NetPair) -> Check<Vec<Option<Capture>>> {
    let hosts = pair.segment.hosts.iter().zip(["at-a", "at-b"]);
    let captures = hosts.map(|(host, name)| Capture::of_datagrams(dir, name, host, TAP));
    captures.collect()
}

/// No datagram that passed a tap was lost. (That none came twice the report says already.)
fn nothing_lost(pair: &NetPair, report: &Value, captures: Vec<Option<Capture>>) -> Check {
    for (capture, host) in captures.into_iter().zip(["a", "b"]) {
        let Some(capture) = capture else { continue };
        let passed = capture.numbers()?;
        let lost = lost_after(report, &passed);
        ensure!(
            lost.is_empty(),
            "{} of {} datagrams that passed the tap of host {host} were lost: {lost:?}; {}",
            lost.len(),
            passed.len(),
            pair.nic()?
        );
    }
    Ok(())
}

/// What a user would notice, beside what QEMU says of it.
fn tell(report: &Value, moved: &[Value]) {
    let gap = |row: &Value| row["longest_gap_ms"].as_f64().unwrap_or_default();
    let (there, here) = (&report["there"]["udp"], &report["here"]["udp"]);
    let silence = report["tcp_longest_silence_ms"].as_f64();
    println!(
        "longest gaps in ms: datagrams to the guest {:.0}, from it {:.0}, echoes {:.0}, TCP {:.0}; \
         lost: {} echoes, {} datagrams",
        gap(&there["received"]),
        gap(&here["received"]),
        gap(&report["ping"]),
        silence.unwrap_or_default(),
        report["ping"]["lost"],
        there["received"]["lost"],
    );
    for it in moved {
        let nic = &it["nic_moves"][0];
        println!(
            "QEMU's downtime {} ms, the NIC's blackout {} us, {} frames passed on",
            it["downtime_ms"], nic["blackout_us"], nic["frames_forwarded"]
        );
    }
}
