//! Frames through a loop-back server that spoils them as it is told: the judgment
//! finds exactly that.
#![allow(missing_docs)]

#[path = "net/loopback.rs"]
mod loopback;

use std::process::{Command, Output};

use ferry_bench::frontend::net::feature;
use loopback::{Done, Knobs, Loopback};
use serde_json::Value;

const ALL: u64 = feature::MRG_RXBUF
    | feature::INDIRECT
    | feature::EVENT_IDX
    | feature::MAC
    | feature::MQ
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::HOST_TSO4
    | feature::GUEST_TSO4;
/// Slow enough for this server on a busy machine, and enough frames to spoil some.
const PACED: [&str; 4] = ["--seconds", "0.5", "--rate", "20000"];

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry-bench"))
        .arg("net")
        .args(args)
        .output()
        .unwrap()
}

fn through(server: &Loopback, args: &[&str]) -> (Option<i32>, Value) {
    let [tx, rx] = server.sockets.each_ref().map(|s| s.to_str().unwrap());
    let output = bench(&[&["--tx", tx, "--rx", rx, "--json"], args].concat());
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

fn count(report: &Value, direction: usize, name: &str) -> u64 {
    report["directions"][direction][name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name}: {report}"))
}

fn faults(report: &Value) -> [u64; 4] {
    ["lost", "duplicated", "out_of_order", "corrupted"].map(|name| count(report, 0, name))
}

/// All frames come through, in both directions if asked.
fn clean(pairs: usize, offered: u64, args: &[&str]) -> (Loopback, Value) {
    let server = Loopback::start(pairs, offered, Knobs::default());
    let (code, report) = through(&server, &[&["--lossless"], args].concat());
    assert_eq!(code, Some(0), "{args:?}: {report}");
    assert_eq!(faults(&report), [0; 4], "{report}");
    assert!(count(&report, 0, "rx_frames") > 100, "{report}");
    (server, report)
}

#[test]
fn what_is_sent_arrives() {
    let (server, report) = clean(1, ALL, &["--seconds", "0.3"]);
    let frames = count(&report, 0, "tx_frames");
    assert_eq!(count(&report, 0, "rx_frames"), frames);
    assert_eq!(server.done().passed, frames);
    assert_eq!(report["ports"][0]["mac"], "02:00:00:00:00:10", "as told");
    assert!(report["directions"][0]["latency_us"]["p50"].as_f64() > Some(0.0));
    assert_eq!(report["directions"].as_array().unwrap().len(), 1);
}

#[test]
fn every_size_arrives_whole_however_the_rings_are_driven() {
    for size in ["64", "1500", "1518", "2048", "4097", "9000"] {
        clean(
            1,
            ALL,
            &[&PACED[..], &["--size", size, "--every-byte"]].concat(),
        );
    }
    for extra in [
        &["--no-mrg-rxbuf"][..],
        &["--no-indirect"],
        &["--no-event-idx"],
        &["--no-mrg-rxbuf", "--no-indirect", "--no-event-idx"],
        &["--queue-size", "64", "--burst", "1"],
        &["--vlan", "100"],
    ] {
        let args = [&PACED[..], &["--size", "5000", "--every-byte"], extra].concat();
        clean(1, ALL, &args);
    }
}

#[test]
fn a_server_that_offers_nothing_serves_too() {
    let (_, report) = clean(1, 0, &[&PACED[..], &["--size", "9000"]].concat());
    assert_eq!(report["ports"][0]["event_idx"], false);
    let mac = report["ports"][0]["mac"].as_str().unwrap();
    assert!(mac.starts_with("02:fe:"), "{mac} is our own");
}

#[test]
fn both_ways_on_one_thread_and_on_two() {
    for threads in ["1", "2"] {
        let args = ["--bidirectional", "--threads", threads];
        let (_, report) = clean(1, ALL, &[&PACED[..], &args].concat());
        assert_eq!(count(&report, 1, "lost"), 0, "{report}");
        assert!(count(&report, 1, "rx_frames") > 100, "{report}");
    }
}

#[test]
fn each_pair_of_queues_has_its_flow() {
    let args = ["--queue-pairs", "3", "--bidirectional"];
    clean(3, ALL, &[&PACED[..], &args].concat());
    let server = Loopback::start(1, ALL, Knobs::default());
    let [tx, rx] = server.sockets.each_ref().map(|s| s.to_str().unwrap());
    let output = bench(&["--tx", tx, "--rx", rx, "--queue-pairs", "3"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("--queue-pairs 3") && said.contains("has 1"),
        "{said}"
    );
}

#[test]
fn a_rate_is_kept() {
    let (_, report) = clean(1, ALL, &["--seconds", "0.5", "--rate", "1000"]);
    let frames = count(&report, 0, "tx_frames");
    assert!((450..=500).contains(&frames), "{report}");
}

#[test]
fn large_tcp_frames_arrive_whole() {
    for extra in [&[][..], &["--no-mrg-rxbuf"], &["--no-indirect"]] {
        let load = [
            "--tso",
            "--size",
            "65535",
            "--seconds",
            "0.3",
            "--rate",
            "1000",
        ];
        let args = [&load[..], &["--every-byte"], extra].concat();
        let (server, report) = clean(1, ALL, &args);
        assert_eq!(server.done().cut, 0);
        assert_eq!(report["ports"][1]["guest_tso4"], true);
    }
}

#[test]
fn large_tcp_frames_arrive_cut() {
    let offered = ALL & !feature::GUEST_TSO4;
    let load = [
        "--tso",
        "--size",
        "20000",
        "--seconds",
        "0.3",
        "--rate",
        "1000",
    ];
    let (server, report) = clean(1, offered, &[&load[..], &["--every-byte"]].concat());
    let frames = count(&report, 0, "tx_frames");
    assert!(server.done().cut >= frames);
    assert_eq!(count(&report, 0, "rx_frames"), frames * 14, "{report}");
    assert_eq!(server.features()[1] & feature::GUEST_TSO4, 0);
}

#[test]
fn a_server_that_cannot_cut_is_named() {
    let server = Loopback::start(1, feature::MRG_RXBUF, Knobs::default());
    let [tx, rx] = server.sockets.each_ref().map(|s| s.to_str().unwrap());
    let output = bench(&["--tx", tx, "--rx", rx, "--tso", "--size", "9000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("HOST_TSO4"));
}

fn spoilt(knobs: Knobs, args: &[&str]) -> (Option<i32>, Value, Done) {
    let server = Loopback::start(1, ALL, knobs);
    let (code, report) = through(&server, &[&PACED[..], args].concat());
    let done = server.done();
    assert!(done.passed > 1000, "{done:?}");
    (code, report, done)
}

#[test]
fn loss_is_found_and_is_a_failure_where_it_matters() {
    let knobs = Knobs {
        drop: 97,
        ..Knobs::default()
    };
    for (args, wanted) in [(&[][..], 0), (&["--lossless"], 1)] {
        let (code, report, done) = spoilt(knobs, args);
        assert_eq!(faults(&report), [done.dropped, 0, 0, 0], "{report}");
        assert_eq!(code, Some(wanted), "{report}");
        assert!(done.dropped > 10);
    }
}

#[test]
fn duplicates_are_found() {
    let knobs = Knobs {
        duplicate: 101,
        ..Knobs::default()
    };
    let (code, report, done) = spoilt(knobs, &[]);
    assert_eq!(faults(&report), [0, done.duplicated, 0, 0], "{report}");
    assert_eq!(code, Some(1));
    assert!(done.duplicated > 10);
}

#[test]
fn another_order_is_found() {
    let knobs = Knobs {
        reorder: 103,
        ..Knobs::default()
    };
    let (code, report, done) = spoilt(knobs, &[]);
    let [lost, duplicated, late, corrupted] = faults(&report);
    // The last may be held back for a successor that never comes.
    assert_eq!(late + lost, done.reordered, "{report}");
    assert!(lost <= 1 && late > 10, "{report}");
    assert_eq!((duplicated, corrupted), (0, 0), "{report}");
    assert_eq!(code, Some(1));
}

#[test]
fn corruption_is_found() {
    // A MAC, an address, a port, the stamp.
    for corrupt_at in [3, 29, 34, 42, 45, 50, 59] {
        let knobs = Knobs {
            corrupt: 107,
            corrupt_at,
            ..Knobs::default()
        };
        let (code, report, done) = spoilt(knobs, &[]);
        assert_eq!(faults(&report), [0, 0, 0, done.corrupted], "{report}");
        assert_eq!(code, Some(1));
        assert!(done.corrupted > 10);
    }
}

#[test]
fn corruption_behind_the_stamp_is_found_where_it_is_looked_for() {
    let knobs = Knobs {
        corrupt: 107,
        corrupt_at: 1499,
        ..Knobs::default()
    };
    let (code, report, _) = spoilt(knobs, &["--size", "1500"]);
    assert_eq!((code, faults(&report)), (Some(0), [0; 4]), "{report}");
    let (code, report, done) = spoilt(knobs, &["--size", "1500", "--every-byte"]);
    assert_eq!(faults(&report), [0, 0, 0, done.corrupted], "{report}");
    assert_eq!(code, Some(1));
}

#[test]
fn all_at_once_is_told_apart() {
    let knobs = Knobs {
        drop: 97,
        duplicate: 101,
        corrupt: 107,
        corrupt_at: 47,
        ..Knobs::default()
    };
    let (_, report, done) = spoilt(knobs, &[]);
    let wanted = [done.dropped, done.duplicated, 0, done.corrupted];
    assert_eq!(faults(&report), wanted, "{report}");
}

#[test]
fn without_a_port_to_receive_at_frames_are_counted() {
    let server = Loopback::start(1, ALL, Knobs::default());
    let tx = server.sockets[0].to_str().unwrap();
    let args = [&["--tx", tx, "--json"], &PACED[..]].concat();
    let output = bench(&args);
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(count(&report, 0, "tx_frames"), server.done().passed);
    assert!(
        report["directions"][0].get("rx_frames").is_none(),
        "{report}"
    );
}

#[test]
fn a_server_that_forwards_nothing_is_told() {
    let knobs = Knobs::default();
    let (one, other) = (
        Loopback::start(1, ALL, knobs),
        Loopback::start(1, ALL, knobs),
    );
    let tx = one.sockets[0].to_str().unwrap();
    let rx = other.sockets[0].to_str().unwrap();
    let output = bench(&["--tx", tx, "--rx", rx, "--wait", "0.2"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no frame came through"), "{said}");
}

#[test]
fn wrong_usage_is_named() {
    for args in [
        &["--size", "63"][..],
        &["--size", "9001"],
        &["--tso", "--size", "1000"],
        &["--queue-size", "100"],
        &["--queue-pairs", "0"],
        &["--burst", "0"],
        &["--vlan", "4095"],
        &["--rate", "0"],
        &["--rx", "/nonexistent/a"],
        &["--bidirectional"],
        &["--seconds", "0"],
    ] {
        let output = bench(&[&["--tx", "/nonexistent/a"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let output = bench(&["--tx", "/nonexistent/a"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("start the server"));
}
