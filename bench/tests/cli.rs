//! The command against qemu-storage-daemon, files, and nothing at all.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Peer, image, text};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry-bench"))
        .args(args)
        .output()
        .unwrap()
}

fn blk(socket: &Path, args: &[&str]) -> Output {
    let socket = socket.to_str().unwrap();
    bench(&[&["blk", "--socket-path", socket], args].concat())
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&output.stdout), text(&output.stderr)))
}

#[test]
fn plain_load_on_null() {
    let Some(peer) = Peer::null("plain_load_on_null", 2) else {
        return;
    };
    let args = [
        "--seconds",
        "0.5",
        "--queues",
        "2",
        "--depth",
        "16",
        "--json",
    ];
    for extra in [
        &[][..],
        &["--rw-mix-read", "70"],
        &["--rw", "write", "--block-size", "64k"],
    ] {
        let output = blk(&peer.socket, &[&args[..], extra].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report = json(&output);
        assert!(report["iops"].as_f64().unwrap() > 100.0, "{report}");
        assert!(report["mib_s"].as_f64().unwrap() > 0.1, "{report}");
        assert!(
            report["p99_us"].as_f64() >= report["p50_us"].as_f64(),
            "{report}"
        );
        assert_eq!(
            (&report["errors"], &report["mismatches"]),
            (&0.into(), &0.into())
        );
    }
}

#[test]
fn a_table_has_units() {
    let Some(peer) = Peer::null("a_table_has_units", 1) else {
        return;
    };
    let output = blk(
        &peer.socket,
        &["--seconds", "0.2", "--indirect", "--depth", "400"],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for word in ["IOPS", "MiB/s", "p99.9", "us", "errors"] {
        assert!(table.contains(word), "{word}: {table}");
    }
}

#[test]
fn a_file_passes_the_verified_load_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 64 << 20);
    let Some(peer) = Peer::file("a_file_passes", &path, 2) else {
        return;
    };
    let args = ["--verify", "--seconds", "1", "--queues", "2", "--json"];
    // The second run finds the stamps of the first, and must not mind.
    for extra in [&["--fresh"][..], &["--indirect", "--depth", "100"]] {
        let output = blk(&peer.socket, &[&args[..], extra].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report = json(&output);
        assert!(
            report["sectors_checked"].as_u64().unwrap() > 1000,
            "{report}"
        );
        assert_eq!(report["mismatches"], 0);
    }
    let output = blk(&peer.socket, &["--verify", "--fresh", "--seconds", "0.5"]);
    assert_eq!(output.status.code(), Some(1), "it is not fresh any more");
    assert!(
        text(&output.stderr).contains("mismatch: sector="),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_disk_that_forgets_is_found_out() {
    let Some(peer) = Peer::null("a_disk_that_forgets", 1) else {
        return;
    };
    let output = blk(&peer.socket, &["--verify", "--seconds", "0.3", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(json(&output)["mismatches"].as_u64().unwrap() > 0);
}

#[test]
fn a_server_that_dies_ends_the_run() {
    for verify in [false, true] {
        let Some(mut peer) = Peer::null("a_server_that_dies_ends", 1) else {
            return;
        };
        let socket = peer.socket.clone();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            peer.kill();
        });
        let args = if verify {
            &["--seconds", "20", "--verify"][..]
        } else {
            &["--seconds", "20"]
        };
        let output = blk(&socket, args);
        killer.join().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(
            error.contains("the server closed the connection"),
            "{error}"
        );
    }
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let gone = Path::new("/nonexistent/s");
    for args in [
        &["--block-size", "1000"][..],
        &["--block-size", "0"],
        &["--depth", "0"],
        &["--depth", "900"],
        &["--queues", "0"],
        &["--seconds", "0"],
        &["--seconds", "-1"],
        &["--rw", "sideways"],
        &["--rw-mix-read", "101"],
        &["--verify", "--rw", "read"],
    ] {
        let output = blk(gone, args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
    let output = blk(gone, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("start the server"));
}

#[test]
fn what_the_disk_cannot_hold_is_wrong_usage() {
    let Some(peer) = Peer::null("what_the_disk_cannot_hold", 1) else {
        return;
    };
    let output = blk(&peer.socket, &["--span", "2G"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let output = blk(&peer.socket, &["--queues", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("use 1 or fewer"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_device_verifier_reports_by_the_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 32 << 20);
    let path = path.to_str().unwrap();
    let output = bench(&[
        "device",
        path,
        "--seconds",
        "1.2",
        "--fresh",
        "--queues",
        "2",
    ]);
    let out = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{out} {}",
        text(&output.stderr)
    );
    let status = out
        .lines()
        .find(|l| l.starts_with("VERIFY t=1 ops="))
        .expect(&out);
    assert!(
        status.contains(" errors=0 mismatches=0 inflight="),
        "{status}"
    );
    let last = out.lines().last().unwrap();
    assert!(
        last.starts_with("VERIFY-DONE ops=") && last.contains("mismatches=0"),
        "{last}"
    );
    assert!(!last.ends_with("sectors_checked=0"), "{last}");
}

#[test]
fn the_device_verifier_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 8 << 20);
    let flag = dir.path().join("stop");
    std::fs::write(&flag, "").unwrap();
    let (path, flag) = (path.to_str().unwrap(), flag.to_str().unwrap());
    for stop in [&["--stop-file", flag][..], &["--until-stdin-eof"]] {
        let output = bench(&[&["device", path, "--json"], stop].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let out = text(&output.stdout);
        let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert_eq!(last["mismatches"], 0);
    }
}

/// The file is changed behind the verifier's back. Past the page cache, as the verifier's own
/// writes go: pages that are dirty when a direct write lands beside them cannot be dropped, and the
/// kernel reports that as EIO to whoever syncs the file.
#[test]
fn the_device_verifier_sees_a_planted_fault() {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 16 << 20);
    let other = path.clone();
    let vandal = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(900));
        let file = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(other)
            .unwrap();
        let buffer = vec![0xee; (8 << 20) + 4096];
        let start = buffer.as_ptr().align_offset(4096);
        file.write_all_at(&buffer[start..start + (8 << 20)], 4 << 20)
            .unwrap();
    });
    let output = bench(&[
        "device",
        path.to_str().unwrap(),
        "--seconds",
        "1.2",
        "--queues",
        "2",
    ]);
    vandal.join().unwrap();
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("VERIFY-MISMATCH sector="), "{out}");
}
