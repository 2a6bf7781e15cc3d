//! SIGKILL in each phase of the record, and what the next daemon makes of it.

use std::time::Duration;

use crate::rig::{Guest, Host, MIB, Pair, eventually, image, text};

#[test]
fn killed_while_serving() {
    let Pair {
        dir: _dir, mut a, ..
    } = Pair::of(MIB);
    a.restart();
    assert_eq!(a.phase(), "serving");
    Guest::at(&a.socket("d")).check();
    // Forgotten on demand only.
    a.run(&["disk", "remove", "d"]).ok();
    a.restart();
    assert_eq!(a.phase(), "");
}

#[test]
fn killed_in_the_middle_of_a_copy() {
    let bytes = 96 * MIB;
    let Pair { dir, a, mut b } = Pair::of(bytes);
    b.add_incoming(bytes);
    let to = b.peer();
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| a.run(&["migrate", "disk", "d", "--to", &to]));
        let record = dir.path().join("b/d.raw.ferry");
        eventually("the copy arrives", || {
            std::fs::read_to_string(&record).is_ok_and(|text| text.contains("incoming"))
        });
        b.kill();
        copy.join().unwrap().error(1);
    });
    assert_eq!(a.phase(), "serving");
    b.start();
    assert_eq!(b.phase(), "returned");
    // The void copy makes room.
    a.move_to(&b);
    assert_eq!(b.phase(), "serving");
}

#[test]
fn killed_while_granted() {
    let Pair {
        dir: _dir,
        a,
        mut b,
    } = Pair::new();
    a.hand_over(&b);
    b.restart();
    assert_eq!(b.phase(), "granted");
    Guest::at(&b.socket("d")).check();
    assert_eq!(b.phase(), "serving");
    // It was added with --incoming, and has arrived.
    b.restart();
    assert_eq!(b.phase(), "serving");
    Guest::at(&b.socket("d")).check();
}

#[test]
fn killed_while_handed() {
    let Pair {
        dir: _dir,
        mut a,
        b,
    } = Pair::new();
    a.hand_over(&b);
    a.restart();
    assert!(matches!(a.phase().as_str(), "handed" | "released"));
    Guest::at(&b.socket("d")).check();
    a.wait_phase("moved");
    eventually("the image is set aside", || a.set_aside() == [2]);
}

#[test]
fn killed_while_handed_and_wanted_back() {
    let Pair {
        dir: _dir,
        mut a,
        b,
    } = Pair::new();
    a.hand_over(&b);
    a.restart();
    // The guest goes on here: the disk is asked back.
    Guest::at(&a.socket("d")).check();
    assert_eq!(a.phase(), "serving");
    b.wait_phase("returned");
    // What is left there is void, and kept for another attempt.
    assert!(b.image().exists(), "the copy was removed");
    assert!(
        Guest::at(&b.socket("d"))
            .read(Duration::from_millis(200))
            .is_none(),
        "two hosts serve"
    );
}

#[test]
fn killed_after_the_move() {
    let Pair { dir, mut a, b } = Pair::new();
    a.move_to(&b);
    assert_eq!(a.set_aside(), [2]);
    a.restart();
    let to = b.peer();
    a.add(&[]).refused(&["moved to", &to, "--incoming"]);
    let old = a.dir.join("d.raw.moved.2");
    a.add_as("old", &old, &[])
        .refused(&["is the image of disk", "--new-identity"]);
    // Nor is a copy of the old image served, under whatever name.
    std::fs::copy(a.dir.join("d.raw.moved.2"), a.image()).unwrap();
    let link = dir.path().join("link.raw");
    std::os::unix::fs::symlink(a.image(), &link).unwrap();
    let socket = dir.path().join("s");
    for path in [&a.image(), &link] {
        a.add_as("other", path, &[]).refused(&["moved to", &to]);
        crate::rig::ferry(&[
            "serve",
            text(path),
            "--socket-path",
            text(&socket),
            "--json",
        ])
        .refused(&["moved", &to, "d.raw.ferry"]);
    }
    // The next start does not try for ever, if it is told so.
    assert!(a.dir.join("state/disks/d.json").exists());
    a.run(&["disk", "remove", "d"]).ok();
    assert!(!a.dir.join("state/disks/d.json").exists());
    a.run(&["disk", "remove", "d"]).refused(&["no disk d"]);
}

#[test]
fn an_unannounced_disk_comes_back_and_a_discarded_one_goes() {
    let dir = tempfile::tempdir().unwrap();
    let incoming = dir.path().join("incoming");
    std::fs::create_dir(&incoming).unwrap();
    let a = Host::new(dir.path(), "a");
    let extra = format!("incoming_dir = {incoming:?}");
    let mut b = Host::with(dir.path(), "b", &extra, "");
    image(&a.image(), MIB);
    a.add(&[]).ok();
    let to = b.peer();
    a.run(&["migrate", "disk", "d", "--to", &to]).ok();
    assert_eq!(b.phase(), "incoming");
    a.run(&["migrate", "cancel", "d"]).ok();
    eventually("the unannounced disk goes", || b.phase().is_empty());
    assert!(!incoming.join("d.raw").exists());
    assert!(!b.dir.join("state/disks/d.json").exists());
    a.move_to(&b);
    b.restart();
    assert_eq!(b.phase(), "serving");
    Guest::at(&b.socket("d")).check();
}
