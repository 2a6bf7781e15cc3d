//! What idle disks and waking up cost is measured and reported. The figures are not judged here: a
//! test machine is busy with other tests.
#![allow(missing_docs)]

mod common;

use std::process::{Command, Output};

use common::{ferry, text};

fn scale(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry-bench"))
        .arg("scale")
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn scale_measures_idle_disks_waking_up_and_workers() {
    let Some(ferry) = ferry("scale_measures") else {
        return;
    };
    let ferry = ferry.to_str().unwrap();
    let parts = [
        "--part", "idle", "--part", "wake", "--part", "workers", "--json",
    ];
    let size = ["--disks", "20", "--rounds", "2", "--seconds", "0.05"];
    let output = scale(&[&["--server", ferry][..], &parts, &size].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let idle = &report["idle"];
    assert_eq!(idle["disks"], 20);
    assert!(idle["beside_iops"]["median"].as_f64().unwrap() > 0.0);
    assert!(idle["cost_percent"]["median"].as_f64().unwrap() < 100.0);
    // A front-end's socket and its ring's two eventfds at least.
    assert!(idle["descriptors_per_disk"].as_f64().unwrap() >= 3.0);
    let wake = report["wake"].as_array().unwrap();
    assert_eq!(wake.len(), 2, "two pauses");
    for pause in wake {
        assert!(pause["machine_us"]["min"].as_f64().unwrap() > 0.0);
    }
    assert!(report["workers"]["ratio"]["median"].as_f64().unwrap() > 0.0);
    assert!(report["quiet"].is_null(), "it was not asked for");
}

#[test]
fn scale_measures_a_busy_pair_of_nics_among_idle_ones() {
    let Some(ferry) = ferry("scale_measures_a_busy_pair") else {
        return;
    };
    let server = ["--server", ferry.to_str().unwrap()];
    let size = ["--nics", "12", "--rounds", "2", "--seconds", "0.05"];
    let output = scale(&[&server[..], &["--part", "nics", "--json"], &size].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nics = &report["nics"];
    assert_eq!(nics["nics"], 12);
    assert!(nics["alone_pps"]["min"].as_f64().unwrap() > 0.0);
    assert!(nics["among_pps"]["min"].as_f64().unwrap() > 0.0);
    assert!(nics["cost_percent"]["median"].as_f64().unwrap() < 100.0);
    assert!(nics["idle_core_percent"].as_f64().is_some());
    assert!(nics["descriptors_per_nic"].as_f64().unwrap() >= 3.0);
}

#[test]
fn scale_wrong_usage_is_told() {
    for args in [
        &["--disks", "0"][..],
        &["--nics", "2"],
        &["--disks", "100000"],
        &["--rounds", "0"],
        &["--seconds", "0"],
        &["--part", "sleep"],
    ] {
        let output = scale(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let output = scale(&["--server", "/nonexistent/ferry", "--part", "wake"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--server"));
}
