//! `ferry disk add` and `ferry serve`: what is refused, and how it is said.

use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::rig::{Guest, Host, MIB, Pair, eventually, ferry, image, serving, text};

#[test]
fn one_place_is_for_one_disk() {
    let Pair { dir, a, .. } = Pair::of(MIB);
    let link = dir.path().join("link.raw");
    symlink(a.image(), &link).unwrap();
    for path in [a.image(), link.clone(), a.dir.join("../a/d.raw")] {
        a.add_as("e", &path, &[])
            .refused(&["used by disk d", "ferry disk remove d"]);
    }
    let other = a.dir.join("e.raw");
    image(&other, MIB);
    let socket = a.socket("d");
    a.add_as("e", &other, &["--socket-path", text(&socket)])
        .refused(&["used by disk d"]);
    a.add_as("d", &other, &[])
        .refused(&["there is a disk d already"]);
    let error = a.add_as("control", &other, &[]).error(2);
    assert!(error.contains("the daemon's own"), "{error}");
    // Nothing of the refused stays taken.
    a.add_as("e", &other, &[]).ok();
    // By a link, image and record stay together.
    a.run(&["disk", "remove", "d"]).ok();
    let line = a.add_as("d", &link, &[]).ok();
    let real = std::fs::canonicalize(a.image()).unwrap();
    assert_eq!(line["path"], text(&real));
    assert!(!dir.path().join("link.raw.ferry").exists());
}

#[test]
fn two_at_once_do_not_share_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), "a");
    let add = |id: &str| host.add_as(id, &host.image(), &["--incoming", "--size", "1M"]);
    for _ in 0..5 {
        let codes = std::thread::scope(|scope| {
            let both = ["x", "y"].map(|id| scope.spawn(move || add(id).code));
            both.map(|one| one.join().unwrap())
        });
        assert!(
            codes.contains(&Some(0)) && codes.contains(&Some(1)),
            "{codes:?}"
        );
        let winner = if codes[0] == Some(0) { "x" } else { "y" };
        host.run(&["disk", "remove", winner]).ok();
    }
}

/// The record changes while the lock is awaited: what was read before does not count.
#[test]
fn the_record_counts_that_is_there_when_the_lock_is_held() {
    let Pair { dir, a, b } = Pair::new();
    a.move_to(&b);
    let moved = std::fs::read_to_string(a.dir.join("d.raw.ferry")).unwrap();
    let path = dir.path().join("d.raw");
    let record = dir.path().join("d.raw.ferry");
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    let second = [
        "serve",
        text(&path),
        "--socket-path",
        text(&second),
        "--json",
    ];
    let waits_in_vain = |what: &str, wait: &(dyn Fn() -> crate::rig::Said + Sync)| {
        let _ = std::fs::remove_file(&record);
        image(&path, MIB);
        let words = ["serve", text(&path), "--socket-path", text(&first)];
        let (holder, _) = serving(&dir.path().join("holder.log"), &words);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(wait);
            std::thread::sleep(Duration::from_millis(700));
            std::fs::write(&record, &moved).unwrap();
            holder.kill();
            let said = waiting.join().unwrap();
            assert_eq!(said.code, Some(1), "{what}: {said:?}");
            assert!(said.err.contains("moved"), "{what}: {said:?}");
        });
    };
    waits_in_vain("serve", &|| ferry(&second));
    waits_in_vain("disk add", &|| a.add_as("e", &path, &[]));
}

#[test]
fn the_configuration_wins_over_what_was_added() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.raw"), dir.path().join("two.raw"));
    image(&one, MIB);
    image(&two, 2 * MIB);
    let disks = format!("[[disk]]\nid = \"d\"\npath = {one:?}\n");
    let mut host = Host::with(dir.path(), "a", "", &disks);
    host.run(&["disk", "remove", "d"]).ok();
    host.add_as("d", &two, &[]).ok();
    host.add_as("e", &one, &["--read-only", "--num-queues", "2"])
        .ok();
    host.restart();
    assert_eq!(host.disk("d").unwrap()["bytes"], MIB);
    // Its place is the configured disk's now.
    assert!(host.disk("e").is_none());
    host.run(&["disk", "remove", "d"]).ok();
    host.add_as("e", &two, &["--read-only", "--num-queues", "2"])
        .ok();
    host.restart();
    let disk = host.disk("e").unwrap();
    assert_eq!(
        (&disk["read_only"], &disk["num_queues"]),
        (&true.into(), &2.into())
    );
}

#[test]
fn a_disk_does_not_arrive_on_a_device() {
    let devices = std::fs::read_dir("/dev").unwrap().flatten();
    let device = devices
        .map(|entry| entry.path())
        .find(|path| std::fs::metadata(path).is_ok_and(|it| it.file_type().is_block_device()));
    let Some(device) = device else {
        println!("no block device here");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), "a");
    let link: PathBuf = dir.path().join("link");
    symlink(&device, &link).unwrap();
    for path in [&device, &link] {
        host.add_as("d", path, &["--incoming", "--size", "1M"])
            .refused(&["block device", "cannot arrive"]);
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), "a");
    let wrong: [&[&str]; 4] = [
        &["--incoming", "--size", "1M", "--read-only"],
        &["--num-queues", "0"],
        &["--num-queues", "129"],
        &["--incoming", "--size", "100"],
    ];
    for more in wrong {
        let error = host.add(more).error(2);
        assert!(error.starts_with("disk d:"), "{error}");
    }
    let unparsed: [&[&str]; 4] = [&["--incoming"], &["--size", "x"], &["--frobnicate"], &[]];
    for more in unparsed {
        let mut words = vec!["disk", "add", ".hidden", "--path", "/x"];
        words.extend(more);
        assert_eq!(host.run(&words).code, Some(2), "{more:?}");
    }
    let config = dir.path().join("bad.toml");
    std::fs::write(&config, "workers = 0\n").unwrap();
    let daemon = ["daemon", "--json", "--config", text(&config)];
    assert!(ferry(&daemon).error(2).contains("workers"));
    std::fs::remove_file(&config).unwrap();
    assert!(ferry(&daemon).error(1).contains("cannot read"));
    host.run(&["disk", "remove", "d"])
        .refused(&["no disk d", "ferry disk list"]);
}

#[test]
fn json_shapes() {
    let Pair { dir: _dir, a, b } = Pair::new();
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let disk = a.disk("d").unwrap();
    let expected = [
        "attached",
        "block_bytes",
        "bytes",
        "cache",
        "datastore",
        "epoch",
        "errors",
        "group",
        "id",
        "lapsed",
        "limit_iops",
        "limit_mbps",
        "num_queues",
        "path",
        "phase",
        "pin_guest_memory",
        "placed",
        "read_bytes",
        "read_only",
        "reads",
        "reservation",
        "shared",
        "shares",
        "sioc",
        "socket",
        "writes",
        "written_bytes",
    ];
    assert_eq!(keys(&disk), expected);
    assert_eq!((&disk["bytes"], &disk["epoch"]), (&MIB.into(), &1.into()));
    let guest = Guest::at(&a.socket("d"));
    eventually("the front-end is seen", || {
        a.disk("d").unwrap()["attached"] == true
    });
    drop(guest);
    a.hand_over(&b);
    let status = a.run(&["migrate", "status"]).ok();
    let line = &status["disks"][0];
    assert_eq!((&line["id"], &line["to"]), (&"d".into(), &b.peer().into()));
    assert_eq!(line["phase"], "granted");
    assert_eq!(status["machines"], Value::Array(Vec::new()));
    b.run(&["disk", "remove", "d"]).ok();
    assert_eq!(
        b.run(&["disk", "list"]).ok(),
        serde_json::json!({ "disks": [] })
    );
}

/// By command, and only where the disk is served.
#[test]
fn a_disk_is_resized_where_it_is_served_and_nowhere_else() {
    let pair = Pair::new();
    let line = pair.a.run(&["disk", "resize", "d", "2M"]).ok();
    assert_eq!(
        (&line["bytes"], &line["told"]),
        (&(2 * MIB).into(), &false.into())
    );
    assert_eq!(pair.a.disk("d").unwrap()["bytes"], 2 * MIB);
    assert_eq!(std::fs::metadata(pair.a.image()).unwrap().len(), 2 * MIB);
    pair.a
        .run(&["disk", "resize", "d", "1M"])
        .refused(&["disk d", "never made smaller"]);
    pair.b
        .run(&["disk", "resize", "d", "4M"])
        .refused(&["disk d", "where it is served"]);
    pair.a
        .run(&["disk", "resize", "none", "4M"])
        .refused(&["there is no disk"]);
    // The other side waits for a disk of another size now, and is told so.
    let peer = pair.b.peer();
    assert_eq!(
        pair.a.run(&["migrate", "disk", "d", "--to", &peer]).code,
        Some(1)
    );
    pair.b.run(&["disk", "remove", "d"]).ok();
    pair.b.add_incoming(2 * MIB);
    let line = pair.a.run(&["migrate", "disk", "d", "--to", &peer]).ok();
    assert_eq!(line["in_sync"], true, "{line}");
    pair.a
        .run(&["disk", "resize", "d", "4M"])
        .refused(&["disk d", "being moved"]);
    pair.a.run(&["migrate", "release", "d"]).ok();
    pair.a
        .run(&["disk", "resize", "d", "4M"])
        .refused(&["disk d"]);
}

#[test]
fn an_image_is_known_under_whatever_name() {
    let dir = tempfile::tempdir().unwrap();
    let a = Host::new(dir.path(), "a");
    image(&a.image(), MIB);
    a.add(&[]).ok();
    // The attribute goes with the image, and into a copy that keeps attributes.
    let copy = a.dir.join("copy.raw");
    let copied = std::process::Command::new("cp")
        .args(["--preserve=xattr", text(&a.image()), text(&copy)])
        .status()
        .unwrap();
    assert!(copied.success());
    a.add_as("copy", &copy, &[])
        .refused(&["copy.raw.ferry", "is not there", "--new-identity"]);
    let socket = dir.path().join("s");
    let serve = [
        "serve",
        text(&copy),
        "--socket-path",
        text(&socket),
        "--json",
    ];
    ferry(&serve).refused(&["is the image of disk", "--new-identity"]);
    a.add_as("copy", &copy, &["--new-identity"]).ok();
    Guest::at(&a.socket("copy")).check();
    // One of its own: the two records do not fit each other's images.
    a.run(&["disk", "remove", "copy"]).ok();
    a.run(&["disk", "remove", "d"]).ok();
    std::fs::copy(a.dir.join("d.raw.ferry"), a.dir.join("copy.raw.ferry")).unwrap();
    a.add_as("copy", &copy, &[])
        .refused(&["that of disk", "bring the right one back"]);
    a.add(&[]).ok();
    Guest::at(&a.socket("d")).check();
}

#[test]
fn qemu_is_refused_a_live_image() {
    let dir = tempfile::tempdir().unwrap();
    let a = Host::new(dir.path(), "a");
    image(&a.image(), MIB);
    let copy = dir.path().join("copy.raw");
    let look = || {
        std::process::Command::new("qemu-img")
            .args(["convert", "-O", "raw", text(&a.image()), text(&copy)])
            .output()
    };
    let Ok(before) = look() else {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "qemu_is_refused_a_live_image: qemu-img is not installed, and CI=true forbids skipping"
        );
        eprintln!("SKIPPED: qemu_is_refused_a_live_image: qemu-img is not installed");
        return;
    };
    assert!(before.status.success());
    a.add(&[]).ok();
    let said = look().unwrap();
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && error.contains("lock"), "{error}");
    a.run(&["disk", "remove", "d"]).ok();
    assert!(look().unwrap().status.success());
}
