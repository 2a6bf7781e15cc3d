//! The comparison runs and reports. What it reports is not judged here: a test
//! machine is busy with other tests.
#![allow(missing_docs)]

mod common;

use std::process::{Command, Output};

use common::{ferry, skip, text};

fn peers(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry-bench"))
        .arg("peers")
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn peers_quick_fills_every_cell_and_draws() {
    let Some(ferry) = ferry("peers_quick") else {
        return;
    };
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return skip("peers_quick", "two cores are needed");
    }
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("chart.svg");
    let output = peers(&[
        "--quick",
        "--patience",
        "0",
        "--json",
        "--seconds",
        "0.05",
        "--alternations",
        "2",
        "--size",
        "16M",
        "--ferry",
        ferry.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
    ]);
    let table: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(table["round_trip_ns"]["median"].as_f64().unwrap() > 1.0);
    assert_eq!(
        table["inflight"], true,
        "figures are taken with tracking on"
    );
    let cells = table["cells"].as_array().unwrap();
    assert!(cells.len() >= 6, "null, memory and more: {}", cells.len());
    for cell in cells {
        let peers = cell["peers"].as_array().unwrap();
        assert!(peers.len() >= 3, "{cell}");
        for peer in peers {
            assert!(peer["iops"]["median"].as_f64().unwrap() > 0.0, "{peer}");
            assert!(peer["runs"].as_array().unwrap().len() >= 2, "{peer}");
            assert_eq!(peer["errors"], 0);
            let is_ferry = peer["peer"] == "ferry";
            assert_eq!(peer["ratio"].is_null(), is_ferry, "{peer}");
        }
    }
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
    assert!(drawn.contains("null read 4k depth 32"));
}

#[test]
fn peers_tables_name_their_columns_and_who_is_left_out() {
    let Some(ferry) = ferry("peers_tables") else {
        return;
    };
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return skip("peers_tables", "two cores are needed");
    }
    let dir = tempfile::tempdir().unwrap();
    // Nothing but this program and ferry can be found.
    let output = Command::new(env!("CARGO_BIN_EXE_ferry-bench"))
        .env("PATH", dir.path())
        .args([
            "peers",
            "--quick",
            "--patience",
            "0",
            "--markdown",
            "--ferry",
        ])
        .arg(ferry)
        .args(["--backend", "null", "--depth", "8", "--seconds", "0.05"])
        .output()
        .unwrap();
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let left_out = "LEFT OUT: qemu-storage-daemon on null";
    assert!(text(&output.stderr).contains(left_out), "said at once");
    assert!(out.contains(left_out), "and again in the table: {out}");
    assert!(out.contains("ferry/peer |"), "{out}");
    assert!(out.contains("client alone"), "{out}");
}

#[test]
fn peers_wrong_usage_is_told() {
    let here = env!("CARGO_BIN_EXE_ferry-bench");
    for args in [
        &["--depth", "0"][..],
        &["--depth", "1000"],
        &["--block-size", "1000"],
        &["--size", "1M"],
        &["--alternations", "0"],
        &["--server-core", "0", "--client-core", "0"],
        &["--server-core", "100000"],
        &["--backend", "floppy"],
        &["--seconds", "0"],
        &["--patience", "-1"],
        &["--json", "--markdown"],
    ] {
        let output = peers(&[&["--ferry", here], args].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    }
    let output = peers(&["--ferry", "/nonexistent/ferry"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--ferry"));
}
