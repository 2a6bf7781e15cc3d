//! Moves that succeed, and hand-backs.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferry_dataplane::qos::Policy;
use ferry_migration::lease::Restart;
use ferry_migration::phase::Phase;
use ferry_migration::schema::qos::Qos;
use ferry_migration::source::{self, SourceError, SourcePhase};
use support::{FakeHost, MIB, Net, World, disk_id, wait_for};

const LONG: Duration = Duration::from_secs(30);

#[test]
fn an_idle_disk_moves_and_is_equal() {
    let world = World::new(8 * MIB);
    let handle = world.move_all();
    assert_eq!(handle.status().phase, SourcePhase::Granted);
    assert!(world.host.device().first_descriptor());
    let end = handle.wait_end(LONG).unwrap();
    assert_eq!(end.phase, SourcePhase::Moved);
    assert!(matches!(
        world.ownership.phase(),
        Phase::Moved { epoch: 2, .. }
    ));
    assert!(matches!(
        world.host.record().phase(),
        Phase::Serving { epoch: 2, .. }
    ));
    assert_eq!(world.host.activated.load(Ordering::SeqCst), 1);
}

#[test]
fn shares_limits_and_credit_move_with_the_disk() {
    let world = World::new(MIB);
    let qos = Qos {
        policy: Policy {
            shares: 2000,
            limit_iops: Some(1000),
            limit_bytes: None,
            reservation_iops: 100,
        },
        credit_ns: 1_234_567,
        group: Some("vm".into()),
    };
    *world.disk.qos.lock().unwrap() = Some(qos.clone());
    let handle = world.move_all();
    assert_eq!(*world.host.device().qos.lock().unwrap(), Some(qos));
    assert!(world.host.device().first_descriptor());
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Moved);
}

#[test]
fn a_busy_disk_moves_and_is_equal() {
    for seed in 1..=6 {
        let world = World::new(24 * MIB);
        world
            .disk
            .fail_one_in
            .store(if seed % 2 == 0 { 50 } else { 0 }, Ordering::SeqCst);
        let load = world.disk.load(4, seed);
        let handle = world.in_sync();
        std::thread::sleep(Duration::from_millis(100));
        world.disk.stop_rings();
        let report = handle.release(LONG).unwrap();
        drop(load);
        assert!(
            world.copy() == world.disk.bytes(),
            "seed {seed}: the copy differs"
        );
        println!(
            "seed {seed}: {} guest writes, longest {} us, sent {} MiB; {report:?}",
            world.disk.completed.load(Ordering::SeqCst),
            world.disk.longest_us.load(Ordering::SeqCst),
            report.bytes_sent / MIB
        );
    }
}

/// A VMM that stops its rings is answered at once: the last mirrored writes are complete for the
/// guest and still on their way. A release must wait for them.
#[test]
fn writes_on_their_way_at_the_stop_are_in_the_copy() {
    const PIECE: u64 = 256 * 1024;
    for round in 0..5u8 {
        let world = World::new(64 * MIB);
        let handle = world.in_sync();
        let threads: Vec<_> = (0..64 * MIB / PIECE)
            .map(|at| {
                let disk = world.disk.clone();
                let data = vec![round ^ 0x5a; usize::try_from(PIECE).unwrap()];
                std::thread::spawn(move || disk.write(at * PIECE, &data))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(3));
        world.disk.stop_rings();
        handle.release(LONG).unwrap();
        let written = threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap().then_some(()))
            .count();
        assert!(written > 0, "nothing was on its way");
        assert!(
            world.copy() == world.disk.bytes(),
            "round {round}: the copy differs after {written} writes"
        );
    }
}

#[test]
fn a_disk_of_odd_size_moves() {
    let world = World::new(5 * MIB + 4096);
    let load = world.disk.load(2, 9);
    let handle = world.in_sync();
    world.disk.stop_rings();
    handle.release(LONG).unwrap();
    drop(load);
    assert!(world.copy() == world.disk.bytes());
}

#[test]
fn a_running_disk_is_not_released_and_stays_in_sync() {
    let world = World::new(4 * MIB);
    let handle = world.in_sync();
    assert!(matches!(handle.release(LONG), Err(SourceError::Refused(_))));
    assert!(world.disk.write(4096, &[9; 4096]));
    world.disk.stop_rings();
    handle.release(LONG).unwrap();
    assert!(world.copy() == world.disk.bytes());
}

#[test]
fn rings_that_restart_get_the_disk_back() {
    let world = World::new(4 * MIB);
    let handle = world.move_all();
    world.disk.start_rings();
    let end = handle.wait_end(LONG).unwrap();
    assert_eq!(end.phase, SourcePhase::Returned);
    assert!(matches!(
        world.ownership.phase(),
        Phase::Serving { epoch: 3, .. }
    ));
    assert!(matches!(
        world.host.record().phase(),
        Phase::Returned { epoch: 2, .. }
    ));
    assert!(!world.host.device().first_descriptor(), "both sides serve");
    assert!(!world.host.has_image());
    world.assert_source_serves();
    drop(handle);
    // And it can go again.
    let handle = world.move_all();
    assert!(world.host.device().first_descriptor());
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Moved);
    assert!(matches!(
        world.host.record().phase(),
        Phase::Serving { epoch: 4, .. }
    ));
}

#[test]
fn after_activation_there_is_no_way_back() {
    let world = World::new(4 * MIB);
    let handle = world.move_all();
    assert!(world.host.device().first_descriptor());
    world.disk.start_rings();
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Moved);
    assert!(!world.disk.write(0, &[1; 512]), "both sides serve");
    assert!(world.host.device().write(0, &[1; 512]));
}

#[test]
fn a_hand_back_and_an_activation_that_meet_have_one_winner() {
    let mut back = 0;
    for round in 0..20 {
        let world = World::new(MIB);
        let handle = world.move_all();
        let device = world.host.device();
        let activation = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 60));
            device.first_descriptor()
        });
        world.disk.start_rings();
        let end = handle.wait_end(LONG).unwrap().phase;
        let there = activation.join().unwrap();
        let here = world.disk.write(0, &[1; 512]);
        assert!(here != there, "round {round}: here {here}, there {there}");
        assert_eq!(
            end,
            if here {
                SourcePhase::Returned
            } else {
                SourcePhase::Moved
            }
        );
        back += u32::from(here);
    }
    println!("handed back {back} of 20");
}

#[test]
fn there_and_back_again() {
    let world = World::new(6 * MIB);
    let handle = world.move_all();
    let device = world.host.device();
    assert!(device.first_descriptor());
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Moved);
    drop(handle);

    // The first host receives now, under the record it has.
    let home = FakeHost::named(world.dir.path(), "home.img", world.ownership.daemon());
    home.adopt(&world.disk, &world.ownership);
    let server = ferry_migration::destination::Server::start("127.0.0.1:0", home.clone()).unwrap();
    let net = Net::before(server.address());
    let load = device.load(2, 5);
    let mut params = world.params();
    params.disk = device.clone();
    params.ownership = world.host.record();
    params.peer = net.address.to_string();
    let handle = source::start(params).unwrap();
    handle.wait_in_sync(LONG).unwrap();
    device.stop_rings();
    handle.release(LONG).unwrap();
    drop(load);
    assert!(home.image_bytes() == device.bytes());
    assert!(world.disk.first_descriptor());
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Moved);
    assert!(matches!(
        world.ownership.phase(),
        Phase::Serving { epoch: 3, .. }
    ));
}

#[test]
fn a_destination_that_restarts_while_granted_still_has_the_disk() {
    let world = World::new(2 * MIB);
    let handle = world.move_all();
    world.net.cut();
    world.host.restart();
    world.net.heal();
    let record = world.host.record().record();
    assert!(matches!(
        record.at_restart(),
        Restart::AwaitActivation { epoch: 2, .. }
    ));
    // It answers the source's rings by its record alone.
    world.disk.start_rings();
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Returned);
    world.assert_source_serves();
}

#[test]
fn a_source_that_restarts_in_doubt_finds_out() {
    let world = World::new(2 * MIB);
    let handle = world.move_all();
    drop(handle);
    let end = |disk: &Arc<support::FakeDisk>| {
        let disk = support::as_lifecycle(disk);
        source::resolve(
            &disk,
            world.ownership.clone(),
            disk_id(),
            None,
            Arc::new(|_| None),
        )
        .unwrap()
    };
    let handle = end(&world.disk);
    wait_for("the grant to be known", || {
        handle.status().phase == SourcePhase::Granted
    });
    world.disk.start_rings();
    assert_eq!(handle.wait_end(LONG).unwrap().phase, SourcePhase::Returned);
    world.assert_source_serves();
}

#[test]
fn monitors_are_reached_through_the_channel() {
    let world = World::new(MIB);
    let peer = world.net.address.to_string();
    let ask = |socket, command| ferry_migration::destination::qmp(&peer, socket, command);
    let answer = ask("/run/vm.qmp", r#"{"execute": "query-status"}"#).unwrap();
    assert!(answer.contains("query-status"));
    assert!(
        ask("/run/vm.qmp", r#"{"execute":"quit"}"#)
            .unwrap_err()
            .contains("not passed on")
    );
    assert!(
        ask("/run/other", r#"{"execute":"cont"}"#)
            .unwrap_err()
            .contains("no such monitor")
    );
    assert!(
        ask("/run/../x", r#"{"execute":"cont"}"#)
            .unwrap_err()
            .contains("absolute")
    );
}
