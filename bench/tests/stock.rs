//! The stock server keeps what it is given: a peer that cheats would be no peer.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Stock {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Stock {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let child = bench()
            .args(["stock", "--socket-path", socket.to_str().unwrap()])
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let stock = Self {
            child,
            socket,
            _dir: dir,
        };
        let until = Instant::now() + Duration::from_secs(20);
        while !stock.socket.exists() {
            assert!(Instant::now() < until, "stock does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        stock
    }

    fn blk(&self, args: &[&str]) -> Output {
        let socket = self.socket.to_str().unwrap();
        bench()
            .args(["blk", "--socket-path", socket, "--json"])
            .args(args)
            .output()
            .unwrap()
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ferry-bench"))
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk.raw");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    path
}

/// Twice: the second run finds what the first one left, on a connection of its own.
fn verify(stock: &Stock) {
    for extra in [&["--fresh"][..], &["--indirect", "--depth", "100"]] {
        let args = ["--verify", "--seconds", "1", "--queues", "2"];
        let output = stock.blk(&[&args[..], extra].concat());
        let report = json(&output);
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert!(
            report["sectors_checked"].as_u64().unwrap() > 1000,
            "{report}"
        );
    }
}

#[test]
fn stock_keeps_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let path = path.to_str().unwrap();
    verify(&Stock::start(&["--disk", path, "--num-queues", "2"]));
}

#[test]
fn stock_keeps_a_file_past_the_page_cache() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let path = path.to_str().unwrap();
    let args = ["--disk", path, "--direct", "--num-queues", "2"];
    verify(&Stock::start(&args));
}

#[test]
fn stock_keeps_memory() {
    verify(&Stock::start(&[
        "--disk",
        "memory:64M",
        "--num-queues",
        "2",
    ]));
}

#[test]
fn stock_null_answers_and_forgets() {
    let stock = Stock::start(&["--disk", "null:64M"]);
    let output = stock.blk(&["--seconds", "0.3"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert!(report["iops"].as_f64().unwrap() > 100.0, "{report}");
    let output = stock.blk(&["--verify", "--seconds", "0.3"]);
    assert_eq!(output.status.code(), Some(1), "null keeps nothing");
}

#[test]
fn stock_says_what_it_cannot_serve() {
    for args in [
        &["--disk", "memory:100"][..],
        &["--disk", "null:1M", "--direct"],
        &["--disk", "null:1M", "--num-queues", "0"],
    ] {
        let output = bench()
            .args(["stock", "--socket-path", "/nonexistent/s"])
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let output = bench()
        .args([
            "stock",
            "--socket-path",
            "/nonexistent/s",
            "--disk",
            "/nonexistent/d",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}
