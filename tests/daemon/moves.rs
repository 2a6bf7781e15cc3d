//! Moves there and back, and what stays behind.

use crate::rig::{Guest, Host, MIB, Pair, eventually};

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
