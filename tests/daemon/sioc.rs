//! Storage I/O Control by its commands: what is set, what is kept of it, what is measured, and what is
//! warned of.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{Guest, Host, MIB, PATIENCE, Pair, eventually, ferry, image, text};

/// A daemon with disk `d` of a MiB.
struct Single {
    host: Host,
    dir: tempfile::TempDir,
}

impl Single {
    fn new(more: &[&str]) -> Single {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), "a");
        image(&host.image(), MIB);
        host.add(more).ok();
        Single { host, dir }
    }

    fn disk(&self) -> Value {
        self.host.disk("d").expect("the disk is here")
    }

    /// The datastore's line of `ferry datastore list`.
    fn datastore(&self) -> Value {
        line(&self.host, "datastore", "path", text(&self.root()))
    }

    /// Where the image is.
    fn root(&self) -> std::path::PathBuf {
        std::fs::canonicalize(self.dir.path()).unwrap().join("a")
    }
}

/// One line of a list, by a key.
fn line(host: &Host, what: &str, key: &str, value: &str) -> Value {
    let list = host.run(&[what, "list"]).ok();
    let lines = list[format!("{what}s")].as_array().expect("a list").clone();
    let found = lines.into_iter().find(|it| it[key] == value);
    found.unwrap_or_else(|| panic!("no {value} in {list}"))
}

/// How long so many reads one after the other take.
fn time_of(guest: &mut Guest, reads: u32) -> Duration {
    let began = Instant::now();
    for _ in 0..reads {
        guest.read(PATIENCE).expect("the disk is served");
    }
    began.elapsed()
}

#[test]
fn what_a_disk_is_to_get_is_set_while_it_is_served_and_kept() {
    let mut single = Single::new(&["--shares", "low", "--limit-iops", "40"]);
    assert_eq!(single.disk()["shares"], 500);
    let mut guest = single.host.guest();
    // A fortieth of a second for each but those of a burst.
    assert!(time_of(&mut guest, 12) > Duration::from_millis(200));
    let set = |words: &[&str]| single.host.run(&[&["disk", "set", "d"], words].concat());
    let line = set(&[
        "--shares",
        "2500",
        "--limit-iops",
        "none",
        "--limit-mbps",
        "100",
        "--reservation",
        "50",
    ])
    .ok();
    assert_eq!(line["lasting"], true, "{line}");
    let began = Instant::now();
    guest.check(); // what was booked before keeps its place
    assert!(began.elapsed() < Duration::from_millis(500));
    assert!(time_of(&mut guest, 100) < Duration::from_secs(1));
    for (words, complaint) in [
        (&["--limit-iops", "0"][..], "would serve nothing"),
        (&["--shares", "0"], "from 1 to 1000000"),
        (&["--limit-iops", "10"], "above limit_iops = 10"),
        (&[], "say what to set"),
    ] {
        let said = set(words);
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert!(said.err.contains(complaint), "{words:?}: {said:?}");
    }
    set(&["--group", "nowhere"]).refused(&["no group nowhere", "ferry group set nowhere"]);
    drop(guest);
    single.host.restart();
    let disk = single.disk();
    assert_eq!(disk["shares"], 2500, "{disk}");
    assert_eq!(disk["limit_iops"], Value::Null);
    assert_eq!(disk["limit_mbps"], 100);
    assert_eq!(disk["reservation"], 50);
}

#[test]
fn what_the_configuration_says_of_a_disk_counts_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let disk = "[[disk]]\nid = 'n'\npath = 'null:1M'\nlimit_iops = 100";
    let mut host = Host::with(dir.path(), "a", "", disk);
    let line = host.run(&["disk", "set", "n", "--limit-iops", "200"]).ok();
    assert_eq!(
        (&line["lasting"], &line["limit_iops"]),
        (&false.into(), &200.into())
    );
    host.restart();
    assert_eq!(host.disk("n").unwrap()["limit_iops"], 100);
}

#[test]
fn disks_of_a_group_are_under_one_limit() {
    let mut single = Single::new(&[]);
    let host = &single.host;
    let line = host
        .run(&["group", "set", "vm1", "--limit-iops", "50"])
        .ok();
    assert_eq!(
        (&line["limit_iops"], &line["lasting"]),
        (&50.into(), &true.into())
    );
    host.run(&["disk", "set", "d", "--group", "vm1"]).ok();
    let other = host.dir.join("e.raw");
    image(&other, MIB);
    host.add_as("e", &other, &["--group", "vm1"]).ok();
    let mut guests = [host.guest(), Guest::at(&host.socket("e"))];
    let began = Instant::now();
    for _ in 0..8 {
        guests.iter_mut().for_each(|guest| guest.check());
    }
    // Sixteen of both together.
    assert!(began.elapsed() > Duration::from_millis(200));
    host.run(&["group", "set", "vm1", "--limit-iops", "none"])
        .ok();
    guests[0].check();
    assert!(time_of(&mut guests[0], 100) < Duration::from_secs(1));
    host.run(&["group", "remove", "vm1"])
        .refused(&["disk d is in group vm1", "--group none"]);
    host.run(&["disk", "remove", "e"]).ok();
    drop(guests);
    single.host.restart();
    let group = line_of_group(&single.host);
    assert_eq!(group["disks"], serde_json::json!(["d"]), "{group}");
    assert_eq!(group["limit_iops"], Value::Null);
    single
        .host
        .run(&["disk", "set", "d", "--group", "none"])
        .ok();
    single.host.run(&["group", "remove", "vm1"]).ok();
    single
        .host
        .run(&["group", "remove", "vm1"])
        .refused(&["no group vm1"]);
}

fn line_of_group(host: &Host) -> Value {
    line(host, "group", "name", "vm1")
}

#[test]
fn a_datastore_is_named_by_a_command_and_stays_so() {
    let mut single = Single::new(&[]);
    let before = single.datastore();
    assert_eq!(
        (&before["named"], &before["sioc"]),
        (&false.into(), &"off".into())
    );
    let root = single.root();
    let root = text(&root);
    let host = &single.host;
    let set = |words: &[&str]| host.run(&[&["datastore", "set", root], words].concat());
    let line = set(&["--sioc", "on", "--threshold-ms", "25"]).ok();
    assert_eq!(line["lasting"], true);
    assert_eq!(
        (&line["medium"], &line["medium_said"]),
        (&"ssd".into(), &false.into())
    );
    let found = &line["findings"][0];
    assert_eq!(found["check"], "threshold-out-of-range", "{line}");
    let line = set(&["--medium", "sas", "--stats-period-ms", "500"]).ok();
    assert_eq!(line["findings"], serde_json::json!([]), "{line}");
    assert_eq!(single.disk()["sioc"], "on");
    for (words, complaint) in [
        (&["--threshold-ms", "0"][..], "0.1 to 1000"),
        (&["--medium", "tape"], "fc, sas, sata, ssd or nvme"),
        (&["--stats-period-ms", "1"], "100 to 60000"),
        (&[], "say what to set"),
    ] {
        let said = set(words);
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert!(said.err.contains(complaint), "{words:?}: {said:?}");
    }
    host.run(&["datastore", "set", "/nowhere", "--sioc", "on"])
        .refused(&["/nowhere"]);
    single.host.restart();
    let line = single.datastore();
    assert_eq!(
        (&line["named"], &line["sioc"]),
        (&true.into(), &"on".into())
    );
    assert_eq!(
        (&line["medium"], &line["threshold_ms"]),
        (&"sas".into(), &25.0.into())
    );
    assert_eq!(line["stats_period_ms"], 500);
    assert_eq!(line["disks"], serde_json::json!(["d"]));
}

#[test]
fn a_section_has_the_last_word_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let section = format!("[[datastore]]\npath = {root:?}\nsioc = 'stats'");
    let mut host = Host::with(dir.path(), "a", "", &section);
    let root = text(&root).to_owned();
    let set = |host: &Host, words: &[&str]| {
        let all = [&["datastore", "set", &root], words].concat();
        host.run(&all).ok()["lasting"].clone()
    };
    // It says nothing of the medium.
    assert_eq!(set(&host, &["--medium", "nvme"]), true);
    assert_eq!(set(&host, &["--sioc", "on"]), false);
    assert_eq!(line(&host, "datastore", "path", &root)["sioc"], "on");
    host.restart();
    let line = line(&host, "datastore", "path", &root);
    assert_eq!(
        (&line["sioc"], &line["medium"]),
        (&"stats".into(), &"nvme".into())
    );
}

/// One interval of `ferry iostat` while the guest reads.
fn watched(host: &Host, guest: &mut Guest) -> Value {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                guest.check();
            }
        });
        let said = host.run(&["iostat", "d", "--interval", "0.5", "--count", "1"]);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        reading.join().unwrap();
        said.ok()["disks"][0].clone()
    })
}

#[test]
fn iostat_tells_where_the_time_went() {
    let single = Single::new(&[]);
    let mut guest = single.host.guest();
    let free = watched(&single.host, &mut guest);
    let mean = |line: &Value, key: &str| line[key]["mean_ms"].as_f64().expect(key);
    assert!(free["iops"].as_f64() > Some(50.0), "{free}");
    assert!(
        mean(&free, "davg") > 0.0 && mean(&free, "qavg") < 0.1,
        "{free}"
    );
    assert_eq!(free["errors"], 0);
    // The guest has one under way at most.
    assert!(free["backlog"].as_u64() <= Some(1), "{free}");
    assert!(free["gavg"]["p99_ms"].as_f64() >= free["gavg"]["p50_ms"].as_f64());
    let set = ["disk", "set", "d", "--limit-iops", "100"];
    single.host.run(&set).ok();
    let held = watched(&single.host, &mut guest);
    let iops = held["iops"].as_f64().unwrap();
    assert!((85.0..=110.0).contains(&iops), "{held}");
    let parts = mean(&held, "qavg") + mean(&held, "davg");
    assert!(mean(&held, "qavg") > 5.0, "{held}");
    assert!(mean(&held, "gavg") >= parts * 0.95, "{held}");
    assert_eq!(held["limit_iops"], 100);
    let error = single.host.run(&["iostat", "x", "--count", "1"]);
    error.refused(&["no disk x"]);
    let error = single.host.run(&["iostat", "--interval", "0"]).error(2);
    assert!(error.contains("--interval"), "{error}");
}

fn config(dir: &Path, more: &str) -> std::path::PathBuf {
    let file = dir.join("doctor.toml");
    let text = format!(
        "state_dir = {:?}\nrun_dir = {:?}\n{more}",
        dir.join("state"),
        dir.join("run")
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn the_doctor_warns_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    std::fs::create_dir(root.join("in")).unwrap();
    let more = format!(
        "[[datastore]]\npath = {root:?}\nsioc = 'off'\n\
         [[datastore]]\npath = {:?}\nsioc = 'on'\nmedium = 'sata'\nthreshold_ms = 5\n\
         [[disk]]\nid = 'd'\npath = '{}/d.raw'\n",
        root.join("in"),
        root.display()
    );
    let file = config(&root, &more);
    let doctor = || ferry(&["doctor", "--json", "--config", text(&file)]);
    let said = doctor().ok();
    assert_eq!(said["errors"], 0, "{said}");
    let findings = said["findings"].as_array().unwrap().clone();
    let of = |check: &str| {
        let found = findings.iter().find(|it| it["check"] == check);
        found.unwrap_or_else(|| panic!("no {check} in {said}"))
    };
    assert_eq!(of("io-uring")["level"], "ok");
    for check in [
        "datastore-without-sioc",
        "threshold-out-of-range",
        "same-device",
    ] {
        let found = of(check);
        assert_eq!(found["level"], "warning", "{found}");
        assert!(found["mend"].as_str().is_some(), "{found}");
    }
    for check in ["open-files", "memlock", "group", "run-dir", "state-dir"] {
        of(check);
    }
    std::fs::write(&file, "workers = 0").unwrap();
    let said = doctor();
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("workers must be 1 to 256"), "{said:?}");
    assert!(said.err.contains("nothing can be served"), "{said:?}");
}

#[test]
fn a_daemon_warns_of_its_configuration_in_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let more = format!(
        "[[datastore]]\npath = {root:?}\nsioc = 'on'\nmedium = 'nvme'\nthreshold_ms = 30\n"
    );
    let host = Host::with(dir.path(), "a", "", &more);
    let log = || std::fs::read_to_string(host.dir.join("log")).unwrap();
    eventually("it is warned of", || {
        log().contains("threshold-out-of-range")
    });
}

/// Steers the datastore of a daemon's disk, with short periods.
fn steered(host: &Host, root: &Path, more: &[&str]) {
    let words = ["datastore", "set", text(root), "--stats-period-ms", "100"];
    host.run(&[&words, more].concat()).ok();
}

/// Reads until it is told to end.
fn while_reading<T>(guest: &mut Guest, task: impl FnOnce() -> T) -> T {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                guest.check();
            }
        });
        let done = task();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        reading.join().unwrap();
        done
    })
}

fn events(host: &Host) -> Vec<(String, String)> {
    let list = host.run(&["events"]).ok();
    let events = list["events"].as_array().unwrap().iter();
    let words = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    events
        .map(|it| (words(it, "what"), words(it, "text")))
        .collect()
}

fn has_event(host: &Host, what: &str) -> bool {
    events(host).iter().any(|(it, _)| it == what)
}

#[test]
fn a_datastore_is_watched_while_it_is_used_and_costs_nothing_while_it_is_not() {
    let single = Single::new(&[]);
    let (host, root) = (&single.host, single.root());
    steered(host, &root, &["--sioc", "on"]);
    let mut guest = host.guest();
    while_reading(&mut guest, || {
        eventually("it is watched", || {
            let line = single.datastore();
            line["state"] == "open" && line["ios"].as_u64() > Some(0) && line["hosts"] == 1
        });
    });
    assert!(root.join(".ferry-sioc").exists());
    eventually("it is idle", || single.datastore()["state"] == "idle");
    let wakeups = || switches(host, "ferry-sioc") + switches(host, "ferry-stats");
    let mut before = 0;
    eventually("it falls asleep", || {
        std::thread::sleep(Duration::from_millis(100));
        std::mem::replace(&mut before, wakeups()) == before
    });
    assert!(before > 0, "no such threads");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(wakeups(), before, "it wakes up for nothing");
    while_reading(&mut guest, || {
        eventually("it is watched again", || {
            single.datastore()["state"] == "open"
        });
    });
}

/// How often the threads of a name have slept so far.
fn switches(host: &Host, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
    let status = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let field = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim().to_owned())
        };
        if field("Name:")? != name {
            return None;
        }
        field("voluntary_ctxt_switches:")?.parse::<u64>().ok()
    };
    tasks.flatten().filter_map(status).sum()
}

#[test]
fn daemons_on_one_datastore_hear_of_each_other() {
    let single = Single::new(&[]);
    let (host, root) = (&single.host, single.root());
    let other = Host::new(single.dir.path(), "b");
    let image_there = root.join("e.raw");
    image(&image_there, MIB);
    other.add_as("e", &image_there, &[]).ok();
    for host in [host, &other] {
        steered(host, &root, &["--sioc", "on"]);
    }
    let (mut here, mut there) = (host.guest(), Guest::at(&other.socket("e")));
    let hosts = |host: &Host| line(host, "datastore", "path", text(&root))["hosts"].clone();
    while_reading(&mut here, || {
        while_reading(&mut there, || {
            eventually("they know of each other", || {
                hosts(host) == 2 && hosts(&other) == 2
            });
        });
        eventually("the other has taken leave", || hosts(host) == 1);
    });
    let file = root.join(".ferry-sioc");
    std::fs::write(&file, vec![0x5a; 8 * 4096]).unwrap();
    while_reading(&mut here, || {
        eventually("what is no block is told of", || {
            has_event(host, "statistics_ignored")
        });
    });
    assert!(single.datastore()["ignored_blocks"].as_u64() > Some(0));
}

#[test]
fn congestion_is_an_event_and_a_window() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), "a");
    let root = std::fs::canonicalize(&host.dir).unwrap();
    // One at a time, 2 ms each, for both disks together.
    for id in ["d", "e"] {
        let path = root.join(format!("{id}.raw"));
        image(&path, MIB);
        let slow = format!("delay:2x1:{}", path.display());
        host.add_as(id, Path::new(&slow), &[]).ok();
    }
    steered(&host, &root, &["--sioc", "stats", "--threshold-ms", "3"]);
    let (mut one, mut other) = (host.guest(), Guest::at(&host.socket("e")));
    let state = || line(&host, "datastore", "path", text(&root));
    while_reading(&mut one, || {
        while_reading(&mut other, || {
            eventually("it is told of", || has_event(&host, "congestion_begun"));
            let line = state();
            assert_eq!(line["window"], Value::Null, "only measured: {line}");
            assert!(line["latency_ms"].as_f64() > Some(3.0), "{line}");
            steered(&host, &root, &["--sioc", "on"]);
            eventually("there is a window", || {
                let line = state();
                line["state"] == "congested" && line["window"].as_f64().is_some()
            });
            // What a disk is to get is changed under way: the window stays.
            host.run(&["disk", "set", "d", "--shares", "high"]).ok();
            let line = state();
            assert!(line["window"].as_f64().is_some(), "{line}");
            let said = host.run(&["iostat", "--interval", "0.2"]).ok();
            assert!(said["disks"][0]["window"].as_f64().is_some(), "{said}");
        });
        eventually("it is over", || has_event(&host, "congestion_ended"));
    });
    eventually("it is idle", || state()["state"] == "idle");
}

#[test]
fn a_threshold_is_found_while_nobody_uses_the_datastore() {
    let mut single = Single::new(&[]);
    let large = single.root().join("large.raw");
    image(&large, 16 * MIB);
    single.host.add_as("large", &large, &[]).ok();
    let root = single.root();
    steered(
        &single.host,
        &root,
        &["--sioc", "on", "--threshold-ms", "auto", "--medium", "sata"],
    );
    let now = |single: &Single| single.datastore()["threshold_ms_now"].as_f64();
    assert_eq!(now(&single), Some(50.0));
    eventually("it is found", || has_event(&single.host, "threshold_found"));
    let found = now(&single);
    assert!(found < Some(50.0), "{found:?}");
    single.host.restart();
    assert_eq!(now(&single), found);
    assert_eq!(single.datastore()["threshold_ms"], "auto");
}

#[test]
fn what_a_disk_is_to_get_goes_with_it() {
    let pair = Pair::new();
    let words = ["--shares", "high", "--limit-iops", "5000"];
    let set = [&["disk", "set", "d"], &words[..]].concat();
    pair.a.run(&set).ok();
    pair.a.guest();
    pair.a.move_to(&pair.b);
    let mut b = pair.b;
    let disk = b.disk("d").unwrap();
    assert_eq!(
        (&disk["shares"], &disk["limit_iops"]),
        (&2000.into(), &5000.into())
    );
    b.restart();
    let disk = b.disk("d").unwrap();
    assert_eq!(
        (&disk["shares"], &disk["limit_iops"]),
        (&2000.into(), &5000.into())
    );
}
