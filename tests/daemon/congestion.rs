//! Shares, limits of latency and outsiders on real rings: disks whose images are on one datastore, behind a
//! device of so many servers that daemons share (`delay:MSxN:`). What the simulator shows to the percent is
//! shown here to be so on real I/O.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_bench::blk::{self, BlkPlan, Pattern, Report, Watcher};
use serde_json::Value;

use crate::rig::{Host, MIB, eventually, image, text};

/// The device: sixteen requests at a time, 10 ms each, so 1600 a second.
const DEVICE: &str = "delay:10x16:";
const RATE: f64 = 1600.0;
/// The latency that it is kept at, with 64 requests under way.
const THRESHOLD_MS: f64 = 40.0;

struct Silent;

impl Watcher for Silent {
    fn at(&mut self, _: Duration, _: Duration) {}
    fn sweeping(&mut self, _: u64, _: u64) {}
}

/// Random reads of 4 KiB.
fn load(socket: PathBuf, depth: u16, seconds: f64) -> Report {
    let plan = BlkPlan {
        socket,
        pattern: Pattern {
            random: true,
            read_percent: 100,
        },
        block_bytes: 4096,
        depth,
        queues: 1,
        duration: Duration::from_secs_f64(seconds),
        verify: false,
        fresh: false,
        seed: 1,
        span_bytes: None,
        span_default: None,
        indirect: true,
        spin: Duration::ZERO,
        timeout: Duration::from_secs(30),
    };
    blk::run(&plan, &mut Silent).expect("the load")
}

/// A datastore that several hosts may be on.
struct Datastore {
    dir: tempfile::TempDir,
}

impl Datastore {
    fn new() -> Datastore {
        Datastore {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        let root = self.dir.path().join("store");
        std::fs::create_dir_all(&root).unwrap();
        root
    }

    /// A daemon on it; `more` is of its section.
    fn host(&self, name: &str, more: &str) -> Host {
        let section = format!(
            "[[datastore]]\npath = {:?}\nsioc = \"on\"\nmedium = \"sata\"\nthreshold_ms = {THRESHOLD_MS}\n\
             stats_period_ms = 250\n{more}\n",
            self.root()
        );
        Host::with(self.dir.path(), name, "", &section)
    }

    fn add(&self, host: &Host, id: &str, shares: u32) -> PathBuf {
        let path = self.root().join(format!("{id}.raw"));
        image(&path, MIB);
        let spec = format!("{DEVICE}{}", path.display());
        host.add_as(id, Path::new(&spec), &["--shares", &shares.to_string()])
            .ok();
        host.socket(id)
    }

    fn line(&self, host: &Host) -> Value {
        let root = std::fs::canonicalize(self.root()).unwrap();
        let list = host.run(&["datastore", "list"]).ok();
        let lines = list["datastores"].as_array().expect("a list").clone();
        let mine = lines.into_iter().find(|it| it["path"] == text(&root));
        mine.unwrap_or_else(|| panic!("not in {list}"))
    }
}

/// Loads all of them at once, of a depth each; their I/Os a second once things have settled.
fn rates(loads: &[(PathBuf, u16)], seconds: f64) -> Vec<Report> {
    std::thread::scope(|scope| {
        let running: Vec<_> = loads
            .iter()
            .map(|(socket, depth)| {
                scope.spawn(|| {
                    // Without a pause between, so that nobody's window is another's meanwhile.
                    load(socket.clone(), *depth, 2.0);
                    load(socket.clone(), *depth, seconds)
                })
            })
            .collect();
        running.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

fn in_proportion(reports: &[Report], shares: &[u32]) {
    let sum: f64 = reports.iter().map(|it| it.iops).sum();
    let all: u32 = shares.iter().sum();
    let got: Vec<_> = reports.iter().map(|it| it.iops.round()).collect();
    assert!(sum > 0.9 * RATE && sum < 1.05 * RATE, "{got:?}");
    for (report, &shares) in reports.iter().zip(shares) {
        let wanted = sum * f64::from(shares) / f64::from(all);
        let error = report.iops / wanted - 1.0;
        assert!(error.abs() < 0.1, "{got:?} of {shares}: {error:.2}");
        assert_eq!(report.errors, 0);
    }
}

#[test]
fn two_disks_have_their_shares_of_a_congested_datastore() {
    let store = Datastore::new();
    let host = store.host("a", "");
    let shares = [1000, 4000];
    let loads = [("d1", 1000), ("d2", 4000)].map(|(id, shares)| (store.add(&host, id, shares), 96));
    let reports = rates(&loads, 3.0);
    in_proportion(&reports, &shares);
    // Each alone has all of it, and is not held back once the datastore is not congested.
    let alone = load(loads[0].0.clone(), 32, 1.5);
    assert!(alone.iops > 0.9 * RATE, "{}", alone.iops);
    eventually("the window is open", || store.line(&host)["window"].is_null());
}

#[test]
fn eight_disks_have_their_shares_of_a_congested_datastore() {
    let store = Datastore::new();
    let host = store.host("a", "");
    let shares = [500, 1000, 2000, 500, 1000, 2000, 1000, 2000];
    let loads: Vec<_> = (0..)
        .zip(shares)
        .map(|(at, shares)| (store.add(&host, &format!("d{at}"), shares), 32))
        .collect();
    in_proportion(&rates(&loads, 4.0), &shares);
}

#[test]
fn daemons_on_one_datastore_share_it_without_a_word_to_each_other() {
    let store = Datastore::new();
    let hosts = ["a", "b"].map(|name| store.host(name, ""));
    let shares = [1000, 2000, 4000];
    let loads = [
        (store.add(&hosts[0], "d1", 1000), 96),
        (store.add(&hosts[1], "d2", 2000), 96),
        (store.add(&hosts[1], "d3", 4000), 96),
    ];
    in_proportion(&rates(&loads, 4.0), &shares);
    assert_eq!(store.line(&hosts[0])["hosts"], 2, "{}", store.line(&hosts[0]));
    // One dies in the middle of its load: the other has all within three periods and a little.
    let [first, second] = hosts;
    let mut second = second;
    std::thread::scope(|scope| {
        let lasting = scope.spawn(|| load(loads[0].0.clone(), 96, 3.0));
        std::thread::sleep(Duration::from_millis(300));
        second.kill();
        std::thread::sleep(Duration::from_millis(1200));
        let began = Instant::now();
        let done = || first.disk("d1").unwrap()["reads"].as_u64().unwrap();
        let before = done();
        std::thread::sleep(Duration::from_millis(1000));
        let rate = (done() - before) as f64 / began.elapsed().as_secs_f64();
        assert!(rate > 0.9 * RATE, "{rate}");
        lasting.join().unwrap();
    });
}

#[test]
fn a_favoured_disk_is_not_slowed_by_a_deep_neighbour() {
    let store = Datastore::new();
    let host = store.host("a", "");
    let loads = [
        (store.add(&host, "quick", 4000), 4),
        (store.add(&host, "deep", 1000), 255),
    ];
    let reports = rates(&loads, 4.0);
    let p99_ms = reports[0].p99_us / 1000.0;
    assert!(p99_ms < 1.5 * THRESHOLD_MS, "{p99_ms} ms");
    // What it leaves is its neighbour's.
    let sum: f64 = reports.iter().map(|it| it.iops).sum();
    assert!(sum > 0.9 * RATE, "{sum}");
}

/// Somebody outside: another daemon whose disks are on the device, and who says nothing of it.
fn beside_an_outsider(policy: &str) -> (Datastore, Host, Vec<Report>) {
    let store = Datastore::new();
    let host = store.host("a", &format!("unmanaged = {policy:?}"));
    let outside = format!("[[datastore]]\npath = {:?}\nsioc = \"off\"\n", store.root());
    let other = Host::with(store.dir.path(), "outside", "", &outside);
    let loads = [
        (store.add(&host, "d1", 1000), 48),
        (store.add(&host, "d2", 3000), 48),
        (store.add(&other, "d3", 1000), 255),
    ];
    let reports = std::thread::scope(|scope| {
        let running: Vec<_> = loads[..2]
            .iter()
            .map(|(socket, depth)| scope.spawn(|| load(socket.clone(), *depth, 6.0)))
            .collect();
        // It comes when the others have settled.
        std::thread::sleep(Duration::from_millis(2500));
        load(loads[2].0.clone(), loads[2].1, 3.0);
        running.into_iter().map(|it| it.join().unwrap()).collect()
    });
    (store, host, reports)
}

fn outsider_was_told_of(host: &Host) {
    let events = host.run(&["events"]).ok();
    let told = events["events"].as_array().into_iter().flatten();
    let mut told = told.filter(|it| it.to_string().contains("unmanaged"));
    assert!(told.next().is_some(), "{events}");
}

#[test]
fn an_outsider_is_told_of_and_the_window_opens() {
    let (_store, host, _) = beside_an_outsider("stop");
    outsider_was_told_of(&host);
}

#[test]
fn an_outsider_is_told_of_and_the_shares_are_kept() {
    let (_store, host, reports) = beside_an_outsider("keep");
    outsider_was_told_of(&host);
    let ratio = reports[1].iops / reports[0].iops;
    assert!((2.6..3.4).contains(&ratio), "{ratio}");
}
