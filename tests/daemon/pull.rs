//! A disk follows its VM without an orchestrator: the destination asks when rings start there.

use std::time::Duration;

use crate::rig::{Guest, Pair};

/// Long enough for the destination to have asked, more than once.
const A_WHILE: Duration = Duration::from_millis(2500);

#[test]
fn a_vm_that_arrives_gets_its_disk() {
    let pair = Pair::new();
    let mut guest = pair.a.guest();
    pair.a.copy_to(&pair.b);
    guest.check();
    let mut guest = guest.goes_on_at(&pair.b.socket("d"));
    guest.check();
    assert_eq!(pair.b.phase(), "serving");
    pair.a.wait_phase("moved");
    // And back, the same way.
    pair.b.copy_to(&pair.a);
    let mut guest = guest.goes_on_at(&pair.a.socket("d"));
    guest.check();
    assert_eq!(pair.a.phase(), "serving");
}

#[test]
fn a_vm_that_arrives_before_the_copy_is_equal_waits() {
    let pair = Pair::of(64 << 20);
    pair.b.add_incoming(64 << 20);
    let guest = pair.a.guest();
    let to = pair.b.peer();
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| pair.a.run(&["migrate", "disk", "d", "--to", &to]));
        pair.b.wait_phase("incoming");
        let mut guest = guest.goes_on_at(&pair.b.socket("d"));
        guest.check();
        let line = copy.join().unwrap().ok();
        assert_ne!(line["phase"], "failed", "{line}");
    });
    assert_eq!(pair.b.phase(), "serving");
}

#[test]
fn a_vm_that_boots_there_does_not_get_the_disk() {
    let pair = Pair::new();
    let mut guest = pair.a.guest();
    pair.a.copy_to(&pair.b);
    let mut fresh = Guest::at(&pair.b.socket("d"));
    assert!(fresh.read(A_WHILE).is_none(), "two hosts serve");
    guest.check();
    // Nor when the VM here stands still.
    let bases = guest.stop();
    assert!(fresh.read(A_WHILE).is_none(), "another VM got the disk");
    assert_eq!(pair.a.phase(), "serving");
    assert_eq!(pair.b.phase(), "incoming");
    guest.resume(&bases);
    guest.check();
}

#[test]
fn rings_that_were_never_used_prove_nothing() {
    let pair = Pair::new();
    pair.a.copy_to(&pair.b);
    let mut fresh = Guest::at(&pair.b.socket("d"));
    assert!(fresh.read(A_WHILE).is_none(), "granted without a proof");
    assert_eq!(pair.a.phase(), "serving");
    // It takes a word.
    pair.a.run(&["migrate", "commit", "d"]).ok();
    fresh.check();
    pair.a.wait_phase("moved");
}

#[test]
fn after_a_hand_back_the_disk_follows_from_where_the_vm_is_then() {
    let pair = Pair::new();
    let mut guest = pair.a.guest();
    pair.a.copy_to(&pair.b);
    let bases = guest.stop();
    pair.a.run(&["migrate", "release", "d"]).ok();
    assert_eq!(pair.b.phase(), "granted");
    // What the destination was told of its rings is void with the copy.
    guest.resume(&bases);
    guest.check();
    guest.check();
    pair.a.copy_to(&pair.b);
    let mut guest = guest.goes_on_at(&pair.b.socket("d"));
    guest.check();
    assert_eq!(pair.b.phase(), "serving");
}

#[test]
fn a_disk_whose_vmm_is_gone_goes_by_a_persons_word() {
    for (boots, forgotten) in [(false, false), (true, false), (false, true)] {
        let mut pair = Pair::new();
        let guest = pair.a.guest();
        let (guest, bases) = guest.departs();
        if forgotten {
            // Where the rings stopped is in no record.
            pair.a.restart();
        }
        pair.a.copy_to(&pair.b);
        pair.a.run(&["migrate", "commit", "d"]).ok();
        // Paused, it went on its way; or it is shut down, and another boots.
        let mut guest = if boots {
            Guest::at(&pair.b.socket("d"))
        } else {
            guest.arrives_at(&pair.b.socket("d"), &bases)
        };
        guest.check();
        assert_eq!(pair.b.phase(), "serving");
    }
}
