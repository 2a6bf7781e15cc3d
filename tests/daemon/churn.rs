//! Disks that come and go, and what they leave behind.

use std::path::PathBuf;
use std::time::Duration;

use ferry_bench::churn::{self, ChurnPlan, Report, Server};

use crate::rig::MIB;

/// Machines that one user deployed in a few days; with `tests/run --long`.
const CYCLES_LONG: u64 = 56_435;
const CYCLES: u64 = 1000;

fn plan(cycles: u64) -> ChurnPlan {
    ChurnPlan {
        server: Server::Start(env!("CARGO_BIN_EXE_ferry").into()),
        dir: None,
        cycles,
        warm_up: 100,
        parallel: 4,
        workers: 2,
        base_bytes: 16 * MIB,
        seed: 1,
        timeout: Duration::from_secs(30),
    }
}

#[track_caller]
fn ensure_whole(report: &Report, cycles: u64) {
    assert_eq!(report.leaks, Vec::<String>::new(), "{}", report.table());
    assert_eq!(report.cycles, cycles);
    assert!(report.p50_ms > 0.0 && report.p99_ms >= report.p50_ms);
}

/// Clones are added, used, removed and deleted by the thousand; the daemon is as it was.
#[test]
fn disks_that_come_and_go_leave_nothing_behind() {
    let long = std::env::var_os("FERRY_LONG").is_some();
    let cycles = if long { CYCLES_LONG } else { CYCLES };
    let report = churn::run(&plan(cycles), &mut |_| ()).unwrap();
    eprintln!("{}", report.table());
    ensure_whole(&report, cycles);
}

/// A daemon that runs already, found by its socket.
#[test]
fn a_running_daemon_is_churned_by_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let host = crate::rig::Host::new(dir.path(), "a");
    let control = host.dir.join("run/control.sock");
    let plan = ChurnPlan {
        server: Server::Running(control),
        warm_up: 20,
        ..plan(20)
    };
    let report = churn::run(&plan, &mut |_| ()).unwrap();
    ensure_whole(&report, 20);
    assert!(report.before.threads > 2 && report.before.descriptors > 2);
    // Its own daemon goes with the run, another's stays.
    assert_eq!(host.disk("none"), None);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_started() {
    let none = ChurnPlan {
        server: Server::Start(PathBuf::from("/nowhere/ferry")),
        ..plan(1)
    };
    let error = churn::run(&none, &mut |_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("--ferry"), "{error}");
    for wrong in [
        ChurnPlan {
            cycles: 0,
            ..none.clone()
        },
        ChurnPlan {
            parallel: 0,
            ..none.clone()
        },
        ChurnPlan {
            base_bytes: MIB + 512,
            ..none.clone()
        },
    ] {
        let error = churn::run(&wrong, &mut |_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}
