//! Moves there and back, and what stays behind.

use std::time::Duration;

use crate::rig::{Guest, Host, MIB, Pair, eventually, text};

#[test]
fn there_and_back_and_there() {
    let Pair { dir: _dir, a, b } = Pair::new();
    a.move_to(&b);
    b.move_to(&a);
    assert_eq!((a.set_aside(), b.set_aside()), (vec![2], vec![3]));
    Guest::at(&a.socket("d")).check();
    a.move_to(&b);
    // Of several the newest stays.
    eventually("the older image goes", || a.set_aside() == [4]);
    Guest::at(&b.socket("d")).check();
}

#[test]
fn what_is_not_the_disk_is_not_set_aside() {
    let Pair {
        dir: _dir,
        mut a,
        b,
    } = Pair::new();
    a.move_to(&b);
    std::fs::write(a.image(), b"something else").unwrap();
    let to = a.peer();
    let error = b.run(&["migrate", "disk", "d", "--to", &to]).error(1);
    assert!(error.contains("remove one"), "{error}");
    assert_eq!(std::fs::read(a.image()).unwrap(), b"something else");
    std::fs::remove_file(a.image()).unwrap();
    // After a restart the disk has to be announced again.
    a.restart();
    a.add_incoming(MIB);
    b.move_to(&a);
}

#[test]
fn a_granted_disk_can_be_removed_and_added_again() {
    let Pair {
        dir: _dir,
        mut a,
        b,
    } = Pair::new();
    a.hand_over(&b);
    // The conversation that brought the disk has the image too, as long as it lasts.
    a.kill();
    b.run(&["disk", "remove", "d"]).ok();
    assert!(b.image().exists(), "the disk itself was removed");
    // Not "in use": nothing holds the image any more.
    b.add(&[]).ok();
    assert_eq!(b.phase(), "granted");
    Guest::at(&b.socket("d")).check();
    assert_eq!(b.phase(), "serving");
    a.start();
    a.wait_phase("moved");
}

#[test]
fn a_failed_addition_of_a_disk_in_doubt_lets_go_of_it() {
    let Pair {
        dir: _dir,
        mut a,
        b,
    } = Pair::new();
    a.hand_over(&b);
    a.kill();
    std::fs::remove_file(a.dir.join("state/disks/d.json")).unwrap();
    a.start();
    assert_eq!(a.phase(), "");
    a.add(&["--socket-path", "/nowhere/d.sock"]).error(1);
    a.add(&[]).ok();
    Guest::at(&a.socket("d")).check();
}

#[test]
fn a_copied_record_is_not_adopted() {
    let Pair { dir, mut a, mut b } = Pair::new();
    let c = Host::new(dir.path(), "c");
    let carry = |from: &Host| {
        for name in ["d.raw", "d.raw.ferry"] {
            std::fs::copy(from.dir.join(name), c.dir.join(name)).unwrap();
        }
    };
    a.kill();
    carry(&a);
    c.add(&[])
        .refused(&["serving by another daemon", "remove", "d.raw.ferry"]);
    a.start();
    a.hand_over(&b);
    b.kill();
    carry(&b);
    c.add(&[]).refused(&["granted by another daemon"]);
    a.kill();
    carry(&a);
    c.add(&[]).refused(&["by another daemon"]);
    assert!(c.disk("d").is_none());
    // The real ones go on.
    b.start();
    a.start();
    Guest::at(&b.socket("d")).check();
}

#[test]
fn a_disk_in_doubt_is_resolved_by_a_persons_word() {
    let Pair {
        dir: _dir,
        a,
        mut b,
    } = Pair::new();
    let mut guest = a.guest();
    a.copy_to(&b);
    let word = |fenced: &str| a.run(&["migrate", "resolve", "d", "--fenced", fenced]);
    let nobody = "00000000-0000-0000-0000-000000000000";
    word(nobody).refused(&["not given up"]);
    let bases = guest.stop();
    a.run(&["migrate", "release", "d"]).ok();
    b.kill();
    guest.resume(&bases);
    assert!(
        guest.read(Duration::from_millis(500)).is_none(),
        "two owners"
    );
    word(nobody).refused(&["make sure that that one is off"]);
    let status = a.run(&["migrate", "status"]).ok();
    let owner = status["disks"][0]["given_to"].as_str().unwrap();
    word(owner).ok();
    guest.wait_any();
    assert_eq!(a.phase(), "serving");
    word(owner).error(1);
}

#[test]
fn the_source_is_kept_or_not() {
    let Pair { dir: _dir, a, b } = Pair::new();
    let words = [
        "migrate",
        "disk",
        "d",
        "--keep-source=no",
        "--to",
        &b.peer(),
    ];
    a.run(&words).ok();
    a.run(&["migrate", "release", "d"]).ok();
    Guest::at(&b.socket("d")).check();
    a.wait_phase("moved");
    eventually("the image is gone", || {
        !a.image().exists() && a.set_aside().is_empty()
    });
    let (image, socket) = (a.image(), a.dir.join("serve.sock"));
    let serve = [
        "serve",
        text(&image),
        "--socket-path",
        text(&socket),
        "--json",
    ];
    crate::rig::ferry(&serve).refused(&["moved", &b.peer()]);
}
