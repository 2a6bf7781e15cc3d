//! A copy that was cut: what arrived of it is not sent again, and nothing of it is believed unseen.

use std::os::unix::fs::FileExt;

use crate::rig::{Guest, Host, MIB, Pair, eventually};

const BYTES: u64 = 48 * MIB;

/// Copies, and says how many bytes were sent for it.
fn copy(from: &Host, to: &Host) -> u64 {
    let to = to.peer();
    from.run(&["migrate", "disk", "d", "--to", &to]).ok();
    let status = from.run(&["migrate", "status"]).ok();
    status["disks"][0]["bytes_sent"].as_u64().unwrap()
}

fn pair() -> Pair {
    let pair = Pair::of(BYTES);
    pair.b.add_incoming(BYTES);
    pair
}

fn cut(a: &Host, b: &mut Host) {
    b.restart();
    eventually("the cut is noticed", || {
        let status = a.run(&["migrate", "status"]).ok();
        status["disks"][0]["phase"] == "failed"
    });
}

#[test]
fn what_arrived_is_not_sent_again() {
    let Pair { a, mut b, dir } = pair();
    let mut guest = Guest::at(&a.socket("d"));
    assert!(copy(&a, &b) >= BYTES);
    cut(&a, &mut b);
    // The guest goes on meanwhile.
    let written = [0xa7; 512];
    for sector in [0, 4711, BYTES / 512 - 1] {
        assert!(guest.write_sector(sector, &written, crate::rig::PATIENCE));
    }
    let sent = copy(&a, &b);
    assert!(sent < BYTES / 50, "{sent} bytes were sent again");
    let mut guest = guest.goes_on_at(&b.socket("d"));
    let mut read = |sector| guest.read_sector(sector, crate::rig::PATIENCE).unwrap();
    for sector in [0, 4711, BYTES / 512 - 1] {
        assert_eq!(read(sector), written);
    }
    assert_eq!(read(1), [0x5a; 512]);
    assert_eq!(b.phase(), "serving");
    drop(dir);
}

#[test]
fn what_was_kept_is_not_believed() {
    let Pair { a, mut b, dir } = pair();
    copy(&a, &b);
    b.kill();
    // The disk under it has lost its mind, or its cache.
    let kept = std::fs::File::options()
        .write(true)
        .open(b.image())
        .unwrap();
    for at in [0, 17 * MIB + 512, BYTES - 512] {
        kept.write_all_at(&[0xee; 512], at).unwrap();
    }
    drop(kept);
    b.start();
    eventually("the cut is noticed", || {
        let status = a.run(&["migrate", "status"]).ok();
        status["disks"][0]["phase"] == "failed"
    });
    let sent = copy(&a, &b);
    assert!(sent > 0 && sent < BYTES / 20, "{sent} bytes were sent");
    a.run(&["migrate", "release", "d"]).ok();
    let (here, there) = (std::fs::read(a.image()), std::fs::read(b.image()));
    assert!(here.unwrap() == there.unwrap(), "the copies differ");
    drop(dir);
}

#[test]
fn a_copy_that_was_cancelled_is_gone() {
    let Pair { a, b, dir } = pair();
    copy(&a, &b);
    a.run(&["migrate", "cancel", "d"]).ok();
    eventually("the copy is gone", || !b.image().exists());
    assert!(copy(&a, &b) >= BYTES);
    // One of another disk, or of another size, is not kept.
    a.run(&["migrate", "cancel", "d"]).ok();
    eventually("the copy is gone", || !b.image().exists());
    let uuid = "00000000-0000-0000-0000-000000000001";
    std::fs::write(b.image(), vec![0; usize::try_from(BYTES).unwrap()]).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(b.image(), "user.ferry.copy", uuid.as_bytes(), flags).unwrap();
    assert!(copy(&a, &b) >= BYTES);
    drop(dir);
}
