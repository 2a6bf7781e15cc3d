//! Moves that fail: whatever dies before the release, the source serves on and a later move
//! succeeds; in doubt neither side serves until they can talk.

mod support;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use ferry_migration::lease::{LeaseError, Record, RecordStore};
use ferry_migration::phase::Phase;
use ferry_migration::source::{SourceError, SourcePhase};
use support::{MIB, Rng, World, is_doubt, wait_for};

const LONG: Duration = Duration::from_secs(30);

/// A store that notes what it is given and can be told to fail.
#[derive(Clone, Default)]
struct Watched {
    record: Arc<Mutex<Option<Record>>>,
    stores: Arc<Mutex<Vec<Phase>>>,
    fail_in: Arc<AtomicI64>,
    /// The record gets there all the same, as when only the last fsync failed.
    lands: Arc<AtomicBool>,
}

impl RecordStore for Watched {
    fn load(&self) -> Result<Option<Record>, LeaseError> {
        Ok(self.record.lock().unwrap().clone())
    }

    fn store(&mut self, record: &Record) -> Result<(), LeaseError> {
        let fails = self.fail_in.load(Ordering::SeqCst) > 0
            && self.fail_in.fetch_sub(1, Ordering::SeqCst) == 1;
        if !fails || self.lands.load(Ordering::SeqCst) {
            *self.record.lock().unwrap() = Some(record.clone());
        }
        if fails {
            return Err(LeaseError::Store("input/output error".into()));
        }
        self.stores.lock().unwrap().push(record.state.phase);
        Ok(())
    }
}

fn second_move_succeeds(world: &World) {
    world.net.heal();
    world.disk.start_rings();
    world.assert_source_serves();
    let handle = world.move_all();
    assert!(world.host.device().first_descriptor());
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Moved);
}

#[test]
fn a_link_cut_anywhere_in_the_copy_costs_the_guest_nothing() {
    let mut rng = Rng(42);
    for round in 0..12 {
        let world = World::new(8 * MIB);
        let load = world.disk.load(3, round);
        if round % 3 == 2 {
            world
                .net
                .cut_back_after(i64::try_from(rng.below(2_000)).unwrap());
        } else {
            let limit = if round % 2 == 0 { 8 * MIB } else { 1_000 };
            world
                .net
                .cut_forward_after(i64::try_from(rng.below(limit)).unwrap());
        }
        let handle = world.start();
        // Writes go on until the limit is met, in the copy or after it.
        let end = handle.wait_end(LONG).unwrap();
        assert_eq!(end.phase, SourcePhase::Failed, "round {round}: {end:?}");
        let before = world.disk.completed.load(Ordering::SeqCst);
        wait_for("guest writes", || {
            world.disk.completed.load(Ordering::SeqCst) > before + 20
        });
        drop(load);
        drop(handle);
        second_move_succeeds(&world);
        let longest = world.disk.longest_us.load(Ordering::SeqCst);
        println!(
            "round {round}: longest guest write {longest} us; {}",
            end.reason.unwrap()
        );
        assert!(longest < 1_500_000);
    }
}

#[test]
fn a_destination_that_falls_silent_holds_the_guest_a_second_at_most() {
    let world = World::new(4 * MIB);
    let load = world.disk.load(2, 3);
    let handle = world.in_sync();
    world.net.go_dark();
    let end = handle.wait_end(LONG).unwrap();
    assert_eq!(end.phase, SourcePhase::Failed);
    drop(load);
    let longest = world.disk.longest_us.load(Ordering::SeqCst);
    println!("longest guest write {longest} us; {}", end.reason.unwrap());
    assert!((900_000..2_000_000).contains(&longest), "{longest}");
    world.net.cut();
    second_move_succeeds(&world);
}

#[test]
fn silence_with_no_writes_is_noticed_too() {
    let world = World::new(MIB);
    let handle = world.in_sync();
    let began = Instant::now();
    world.net.go_dark();
    let end = handle.wait_end(LONG).unwrap();
    assert_eq!(end.phase, SourcePhase::Failed);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    world.net.cut();
    second_move_succeeds(&world);
}

#[test]
fn cancel_works_in_every_phase_before_the_release() {
    for delay_us in [0, 300, 1_000, 3_000, 6_000, 12_000, 40_000, 300_000] {
        let world = World::new(16 * MIB);
        let load = world.disk.load(2, delay_us);
        let handle = world.start();
        std::thread::sleep(Duration::from_micros(delay_us));
        let phase = handle.status().phase;
        let began = Instant::now();
        handle.cancel().unwrap();
        println!("cancelled in {phase:?} within {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(2));
        assert_eq!(handle.status().phase, SourcePhase::Cancelled);
        handle.cancel().unwrap();
        assert_eq!(handle.release(LONG), Err(SourceError::Cancelled));
        drop(load);
        second_move_succeeds(&world);
    }
}

#[test]
fn a_cancel_and_a_release_that_meet_have_one_winner() {
    let mut cancelled = 0;
    for round in 0..15 {
        let world = World::new(MIB);
        let handle = world.in_sync();
        world.disk.stop_rings();
        let (released, cancel) = std::thread::scope(|scope| {
            let release = scope.spawn(|| handle.release(LONG));
            std::thread::sleep(Duration::from_micros(round * 150));
            let cancel = handle.cancel();
            (release.join().unwrap(), cancel)
        });
        assert!(
            released.is_ok() != cancel.is_ok(),
            "round {round}: {released:?} {cancel:?}"
        );
        if cancel.is_ok() {
            cancelled += 1;
            second_move_succeeds(&world);
        } else {
            assert!(world.host.device().first_descriptor());
        }
    }
    println!("cancelled {cancelled} of 15");
}

#[test]
fn a_tap_that_fails_ends_the_migration_only() {
    let world = World::new(4 * MIB);
    let handle = world.in_sync();
    world.disk.fail_tap("the mirror is too slow");
    let end = handle.wait_end(LONG).unwrap();
    assert_eq!(end.phase, SourcePhase::Failed);
    assert!(end.reason.unwrap().contains("too slow"));
    second_move_succeeds(&world);
}

#[test]
fn a_damaged_frame_is_refused() {
    // Early in the data, so that it hits a data frame's bytes and not a header.
    for at in [3_000, 100_000, 700_001] {
        let world = World::new(4 * MIB);
        world.net.corrupt_in(at);
        let handle = world.start();
        let end = handle.wait_end(LONG).unwrap();
        assert_eq!(end.phase, SourcePhase::Failed);
        let reason = end.reason.unwrap();
        assert!(
            reason.contains("damaged") || reason.contains("link"),
            "{reason}"
        );
        println!("{reason}");
        second_move_succeeds(&world);
    }
}

#[test]
fn refusals_of_the_destination_reach_the_operator() {
    let world = World::new(MIB);
    world.host.refuse_prepare.store(true, Ordering::SeqCst);
    let end = world.start().wait_end(LONG).unwrap();
    assert!(end.reason.unwrap().contains("no room"));
    world.host.refuse_prepare.store(false, Ordering::SeqCst);

    // At the grant the source has released already, and gets the disk back.
    world.host.refuse_install.store(true, Ordering::SeqCst);
    let handle = world.in_sync();
    world.disk.stop_rings();
    let error = handle.release(LONG).unwrap_err();
    assert!(error.to_string().contains("other queues"), "{error}");
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Returned);
    world.host.refuse_install.store(false, Ordering::SeqCst);
    second_move_succeeds(&world);
}

#[test]
fn a_source_disk_that_cannot_be_read_ends_the_migration() {
    let world = World::new(4 * MIB);
    world.disk.broken.store(true, Ordering::SeqCst);
    let end = world.start().wait_end(LONG).unwrap();
    assert!(end.reason.unwrap().contains("medium error"));
    world.disk.broken.store(false, Ordering::SeqCst);
    second_move_succeeds(&world);
}

#[test]
fn nobody_there_is_a_clear_error() {
    let world = World::new(MIB);
    world.net.cut();
    let end = world.start().wait_end(LONG).unwrap();
    assert_eq!(end.phase, SourcePhase::Failed);
    second_move_succeeds(&world);
}

#[test]
fn a_cut_around_the_grant_is_resolved_and_never_serves_twice() {
    let mut rng = Rng(11);
    let (mut moved, mut back, mut doubts) = (0, 0, 0);
    for round in 0..24 {
        let world = World::new(MIB);
        let handle = world.in_sync();
        world.disk.stop_rings();
        // A flush frame is some 20 bytes, the grant some 200, the answers some 60.
        if round % 2 == 0 {
            world
                .net
                .cut_forward_after(i64::try_from(rng.below(300)).unwrap());
        } else {
            world
                .net
                .cut_back_after(i64::try_from(rng.below(120)).unwrap());
        }
        let result = handle.release(Duration::from_millis(400));
        let released = matches!(world.ownership.phase(), Phase::Released { .. });
        if released {
            assert!(is_doubt(result.as_ref().unwrap_err()), "{result:?}");
            doubts += 1;
            // In doubt nobody serves here, whatever the guest does.
            assert!(!world.disk.write(0, &[1; 512]));
            if round % 3 == 0 {
                world.disk.start_rings();
                assert!(!world.disk.write(0, &[1; 512]));
            }
        }
        world.net.heal();
        if matches!(handle.status().phase, SourcePhase::Failed) {
            second_move_succeeds(&world);
            back += 1;
            continue;
        }
        wait_for("an answer", || {
            matches!(
                handle.status().phase,
                SourcePhase::Granted | SourcePhase::Returned
            )
        });
        std::thread::sleep(Duration::from_millis(if round % 3 == 0 { 50 } else { 0 }));
        if handle.status().phase == SourcePhase::Granted {
            let there = world.host.device().first_descriptor();
            let end = handle.wait_end(LONG).unwrap().phase;
            assert_eq!(
                end,
                if there {
                    SourcePhase::Moved
                } else {
                    SourcePhase::Returned
                }
            );
            assert!(world.ownership.may_serve() != there);
            moved += 1;
        } else {
            assert!(world.ownership.may_serve());
            back += 1;
            drop(handle);
            second_move_succeeds(&world);
        }
    }
    println!("moved {moved}, came back {back}, were in doubt {doubts}");
    assert!(doubts > 0 && back > 0);
}

#[test]
fn a_release_that_cannot_be_recorded_is_no_release() {
    for lands in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = Watched::default();
        store.lands.store(lands, Ordering::SeqCst);
        let world = World::with_store(MIB, dir, Box::new(store.clone()));
        let handle = world.in_sync();
        world.disk.stop_rings();
        store.fail_in.store(1, Ordering::SeqCst);
        let error = handle.release(LONG).unwrap_err();
        assert!(error.to_string().contains("input/output"), "{error}");
        // What stands on the disk is what is true again.
        let stored = store.record.lock().unwrap().clone().unwrap().state.phase;
        assert!(
            matches!(stored, Phase::Serving { epoch: 1, .. }),
            "{stored:?}"
        );
        drop(handle);
        second_move_succeeds(&world);
        let stores = store.stores.lock().unwrap().clone();
        println!("{stores:?}");
    }
}

#[test]
fn a_return_that_cannot_be_recorded_is_not_served_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let store = Watched::default();
    let world = World::with_store(MIB, dir, Box::new(store.clone()));
    let handle = world.move_all();
    store.fail_in.store(1, Ordering::SeqCst);
    world.disk.start_rings();
    wait_for("the first try", || {
        store.fail_in.load(Ordering::SeqCst) == 0
    });
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Returned);
    world.assert_source_serves();
}

#[test]
fn a_grant_that_cannot_be_recorded_leaves_the_source_in_doubt_until_it_can() {
    let world = World::new(MIB);
    let handle = world.in_sync();
    world.disk.stop_rings();
    world.host.stores_fail.store(true, Ordering::SeqCst);
    let error = handle.release(Duration::from_millis(500)).unwrap_err();
    assert!(is_doubt(&error), "{error}");
    assert!(!world.disk.write(0, &[1; 512]));
    world.host.stores_fail.store(false, Ordering::SeqCst);
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Returned);
    drop(handle);
    second_move_succeeds(&world);
}

#[test]
fn a_restart_of_the_rings_during_the_release_takes_it_back_or_asks_back() {
    let mut undone = 0;
    for round in 0..12 {
        let world = World::new(MIB);
        let handle = world.in_sync();
        world.disk.stop_rings();
        let result = std::thread::scope(|scope| {
            let release = scope.spawn(|| handle.release(LONG));
            std::thread::sleep(Duration::from_micros(round * 1_500));
            world.disk.start_rings();
            release.join().unwrap()
        });
        undone += u32::from(result.is_err());
        wait_for("the source to serve", || world.disk.write(0, &[1; 512]));
        drop(handle);
        world.disk.stop_rings();
        second_move_succeeds(&world);
    }
    println!("undone before the grant: {undone} of 12");
}

#[test]
fn a_dropped_handle_leaves_nothing_behind() {
    let world = World::new(4 * MIB);
    let handle = world.start();
    std::thread::sleep(Duration::from_millis(5));
    drop(handle);
    second_move_succeeds(&world);
}

#[test]
fn an_activation_that_cannot_be_recorded_serves_once_it_can() {
    let world = World::new(MIB);
    let handle = world.move_all();
    world.host.stores_fail.store(true, Ordering::SeqCst);
    assert!(!world.host.device().first_descriptor());
    world.host.stores_fail.store(false, Ordering::SeqCst);
    wait_for("the activation", || world.host.device().first_descriptor());
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Moved);
}

#[test]
fn another_disk_of_the_same_name_is_refused() {
    let world = World::new(MIB);
    let handle = world.move_all();
    assert!(world.host.device().first_descriptor());
    handle.wait_end(LONG).unwrap();
    let other = World::new(MIB);
    let mut params = other.params();
    params.peer = world.net.address.to_string();
    let end = ferry_migration::source::start(params)
        .unwrap()
        .wait_end(LONG)
        .unwrap();
    println!("{}", end.reason.unwrap());
    assert_eq!(end.phase, SourcePhase::Failed);
    other.assert_source_serves();
}
