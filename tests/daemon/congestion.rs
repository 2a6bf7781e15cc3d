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

    /// A new disk of a host.
    fn busy<'a>(&self, host: &'a Host, shares: u32, depth: u16) -> Busy<'a> {
        let id = (0..)
            .map(|at| format!("d{}", shares + at))
            .find(|id| !self.root().join(format!("{id}.raw")).exists())
            .expect("some number");
        let path = self.root().join(format!("{id}.raw"));
        image(&path, MIB);
        let spec = format!("{DEVICE}{}", path.display());
        host.add_as(&id, Path::new(&spec), &["--shares", &shares.to_string()])
            .ok();
        Busy { host, id, depth }
    }

    fn busy_as<'a>(&self, host: &'a Host, id: &str, depth: u16) -> Busy<'a> {
        let id = id.to_owned();
        Busy { host, id, depth }
    }

    fn line(&self, host: &Host) -> Value {
        let root = std::fs::canonicalize(self.root()).unwrap();
        let list = host.run(&["datastore", "list"]).ok();
        let lines = list["datastores"].as_array().expect("a list").clone();
        let mine = lines.into_iter().find(|it| it["path"] == text(&root));
        mine.unwrap_or_else(|| panic!("not in {list}"))
    }
}

/// A disk under load.
struct Busy<'a> {
    host: &'a Host,
    id: String,
    depth: u16,
}

impl Busy<'_> {
    fn reads(&self) -> u64 {
        let line = self.host.disk(&self.id).expect("it is there");
        line["reads"].as_u64().expect("a number")
    }
}

/// How long things have to settle, and how long is counted; what is asked for lasts longer than that.
const SETTLES: Duration = Duration::from_millis(2000);
const COUNTED: Duration = Duration::from_millis(3000);
const LASTS_S: f64 = 5.5;

/// I/Os a second of each while all are under load.
fn rates(disks: &[Busy<'_>]) -> (Vec<f64>, Vec<Report>) {
    std::thread::scope(|scope| {
        let running: Vec<_> = disks
            .iter()
            .map(|it| (it.host.socket(&it.id), it.depth))
            .map(|(socket, depth)| scope.spawn(move || load(socket, depth, LASTS_S)))
            .collect();
        std::thread::sleep(SETTLES);
        let rates = counted(disks, COUNTED);
        (
            rates,
            running.into_iter().map(|it| it.join().unwrap()).collect(),
        )
    })
}

fn counted(disks: &[Busy<'_>], time: Duration) -> Vec<f64> {
    let look = || disks.iter().map(|it| (it.reads(), Instant::now()));
    let before: Vec<_> = look().collect();
    std::thread::sleep(time);
    let rate = |((before, then), (after, now)): ((u64, Instant), (u64, Instant))| {
        (after - before) as f64 / (now - then).as_secs_f64()
    };
    before.into_iter().zip(look()).map(rate).collect()
}

fn in_proportion(rates: &[f64], shares: &[u32]) {
    let sum: f64 = rates.iter().sum();
    let all: u32 = shares.iter().sum();
    assert!(sum > 0.9 * RATE && sum < 1.05 * RATE, "{rates:.0?}");
    for (rate, &shares) in rates.iter().zip(shares) {
        let wanted = sum * f64::from(shares) / f64::from(all);
        let error = rate / wanted - 1.0;
        assert!(error.abs() < 0.1, "{rates:.0?} of {shares}: {error:.2}");
    }
}

#[test]
fn two_disks_have_their_shares_of_a_congested_datastore() {
    let store = Datastore::new();
    let host = store.host("a", "");
    let shares = [1000, 4000];
    let disks = [1000, 4000].map(|shares| store.busy(&host, shares, 96));
    in_proportion(&rates(&disks).0, &shares);
    // Each alone has all of it, and is not held back once the datastore is not congested.
    std::thread::scope(|scope| {
        let alone = scope.spawn(|| load(host.socket(&disks[0].id), 32, 2.5));
        std::thread::sleep(Duration::from_millis(700));
        let rate = counted(&disks[..1], Duration::from_millis(1500))[0];
        assert!(rate > 0.9 * RATE, "{rate}");
        alone.join().unwrap();
    });
    eventually("the window is open", || {
        store.line(&host)["window"].is_null()
    });
}

#[test]
fn eight_disks_have_their_shares_of_a_congested_datastore() {
    let store = Datastore::new();
    let host = store.host("a", "");
    let shares = [500, 1000, 2000, 500, 1000, 2000, 1000, 2000];
    let disks = shares.map(|shares| store.busy(&host, shares, 32));
    in_proportion(&rates(&disks).0, &shares);
}

#[test]
fn daemons_on_one_datastore_share_it_without_a_word_to_each_other() {
    let store = Datastore::new();
    let [first, mut second] = ["a", "b"].map(|name| store.host(name, ""));
    let shares = [1000, 2000, 4000];
    {
        let disks = [
            store.busy(&first, 1000, 96),
            store.busy(&second, 2000, 96),
            store.busy(&second, 4000, 96),
        ];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(SETTLES + COUNTED / 2);
                assert_eq!(store.line(&first)["hosts"], 2, "{}", store.line(&first));
            });
            in_proportion(&rates(&disks).0, &shares);
        });
    }
    // One dies in the middle of its load: the other has all within three periods and a little.
    std::thread::scope(|scope| {
        let disk = store.busy_as(&first, "d1000", 96);
        let lasting = scope.spawn(|| load(first.socket("d1000"), 96, 3.0));
        std::thread::sleep(Duration::from_millis(300));
        second.kill();
        std::thread::sleep(Duration::from_millis(1200));
        let rate = counted(&[disk], Duration::from_millis(1000))[0];
        assert!(rate > 0.9 * RATE, "{rate}");
        lasting.join().unwrap();
    });
}

#[test]
fn a_favoured_disk_is_not_slowed_by_a_deep_neighbour() {
    let store = Datastore::new();
    let host = store.host("a", "");
    let (quick, deep) = (store.busy(&host, 4000, 4), store.busy(&host, 1000, 255));
    std::thread::scope(|scope| {
        let (socket, depth) = (host.socket(&deep.id), deep.depth);
        let neighbour = scope.spawn(move || load(socket, depth, 6.0));
        std::thread::sleep(Duration::from_millis(1500));
        let report = load(host.socket(&quick.id), quick.depth, 3.0);
        let p99_ms = report.p99_us / 1000.0;
        assert!(p99_ms < 1.5 * THRESHOLD_MS, "{p99_ms} ms");
        // What it leaves is its neighbour's.
        let sum = counted(&[deep, quick], Duration::from_millis(500))
            .iter()
            .sum::<f64>();
        assert!(sum > 0.9 * RATE, "{sum}");
        neighbour.join().unwrap();
    });
}

/// Somebody outside: another daemon whose disk is on the device, and who says nothing of it. The rates
/// while it is there.
fn beside_an_outsider(policy: &str) -> Vec<f64> {
    let store = Datastore::new();
    let host = store.host("a", &format!("unmanaged = {policy:?}"));
    let outside = format!("[[datastore]]\npath = {:?}\nsioc = \"off\"\n", store.root());
    let other = Host::with(store.dir.path(), "outside", "", &outside);
    let disks = [1000, 3000].map(|shares| store.busy(&host, shares, 48));
    let stranger = store.busy(&other, 1001, 255);
    let rates = std::thread::scope(|scope| {
        let running = disks.each_ref().map(|it| {
            let socket = host.socket(&it.id);
            scope.spawn(|| load(socket, 48, 7.0))
        });
        // It comes when the others have settled.
        std::thread::sleep(Duration::from_millis(2000));
        let strange = scope.spawn(|| load(other.socket(&stranger.id), stranger.depth, 4.5));
        std::thread::sleep(Duration::from_millis(1500));
        let rates = counted(&disks, Duration::from_millis(2500));
        strange.join().unwrap();
        running.into_iter().for_each(|it| drop(it.join().unwrap()));
        rates
    });
    let events = host.run(&["events"]).ok();
    let told = events["events"].as_array().into_iter().flatten();
    let mut told = told.filter(|it| it.to_string().contains("unmanaged"));
    assert!(told.next().is_some(), "{events}");
    rates
}

#[test]
fn an_outsider_is_told_of_and_the_window_opens() {
    let rates = beside_an_outsider("stop");
    // Nothing is held back any more: two of the same depth have the same.
    assert!((0.8..1.6).contains(&(rates[1] / rates[0])), "{rates:?}");
}

#[test]
fn an_outsider_is_told_of_and_the_shares_are_kept() {
    let rates = beside_an_outsider("keep");
    assert!((2.6..3.4).contains(&(rates[1] / rates[0])), "{rates:?}");
}
