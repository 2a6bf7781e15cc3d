//! What the command says of workers, and how they are told to poll.

use crate::rig::{Host, MIB, ferry, serving, text};

#[test]
fn workers_say_what_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), "a");
    let path = dir.path().join("d.raw");
    crate::rig::image(&path, MIB);
    host.add_as("d", &path, &["--num-queues", "1"]).ok();
    let _guest = host.guest();
    let list = host.run(&["worker", "list"]).ok();
    let worker = &list["workers"][0];
    assert_eq!(worker["queues"], 1, "{list}");
    assert!(worker["requests"].as_u64().unwrap() > 0, "{list}");
    assert!(worker["busy_ns"].as_u64().unwrap() > 0, "{list}");
    assert!(worker["busy_percent"].as_f64().unwrap() < 100.0, "{list}");
    let disk = host.disk("d").unwrap();
    assert_eq!(disk["placed"][0]["worker"], 0, "{disk}");
}

#[test]
fn times_to_poll_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("d.sock");
    for bad in ["-1", "60000001", "always"] {
        let word = format!("--spin-us={bad}");
        let words = ["serve", "null:1M", "--socket-path", text(&socket), &word];
        let said = ferry(&words);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains("--spin-us"), "{said:?}");
    }
    let config = dir.path().join("ferry.toml");
    for bad in ["-1", "\"always\"", "60000001"] {
        std::fs::write(&config, format!("spin_us = {bad}\n")).unwrap();
        let said = ferry(&["daemon", "--config", text(&config)]);
        assert_eq!(said.code, Some(2), "{said:?}");
    }
    for good in ["0", "200", "max"] {
        let words = [
            "serve",
            "null:1M",
            "--socket-path",
            text(&socket),
            "--spin-us",
            good,
        ];
        let (_server, _) = serving(&dir.path().join("log"), &words);
        let vmm = ferry_bench::frontend::Vmm::connect(&socket, Default::default());
        assert!(vmm.is_ok(), "{good}");
    }
}
