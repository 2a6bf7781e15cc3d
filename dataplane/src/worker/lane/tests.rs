use super::*;
use crate::backend::Store;
use crate::request::{Op, Request};
use crate::slots::{Inbox, Room};

fn lane() -> Lane {
    let store = Store::Pending {
        capacity_bytes: 1 << 20,
        block_bytes: 4096,
    };
    let backend = Backend::new(store, false);
    let mut lane = Lane::new(backend, Gate::Open, Arc::default(), Arc::default());
    lane.tracking = true;
    lane
}

/// A write in a slot of lane 0.
fn write(slots: &mut SlotTable, offset_bytes: u64, len_bytes: u64) -> u32 {
    let mut taken = Vec::new();
    let mut room = Room::unlimited();
    let mut inbox = Inbox {
        slots,
        taken: &mut taken,
        queue: 0,
        lane: 0,
        room: &mut room,
    };
    inbox.commit(Request {
        op: Op::Write,
        offset_bytes,
        len_bytes,
        through: false,
        tag: 0,
    });
    taken[0]
}

#[test]
fn ranges_overlap_when_they_share_a_byte() {
    assert!(overlap(&(0..10), &(9..20)));
    assert!(overlap(&(9..20), &(0..10)));
    assert!(overlap(&(5..6), &(0..10)));
    assert!(!overlap(&(0..10), &(10..20)));
    assert!(!overlap(&(10..20), &(0..10)));
}

#[test]
fn a_change_waits_for_those_under_way_on_its_blocks() {
    let (mut lane, mut slots) = (lane(), SlotTable::new());
    let first = write(&mut slots, 512, 512);
    assert!(!lane.conflicts(first, &slots));
    lane.started.push(first);
    let same_block = write(&mut slots, 2048, 512);
    let next_block = write(&mut slots, 4096, 512);
    assert!(lane.conflicts(same_block, &slots));
    assert!(!lane.conflicts(next_block, &slots));
    lane.started.clear();
    assert!(!lane.conflicts(same_block, &slots));
}

#[test]
fn a_change_waits_for_those_that_wait_longer_and_not_for_later_ones() {
    let (mut lane, mut slots) = (lane(), SlotTable::new());
    let long = write(&mut slots, 0, 16384);
    let early = write(&mut slots, 8192, 4096);
    let late = write(&mut slots, 8192, 512);
    let apart = write(&mut slots, 65536, 512);
    lane.started.push(long);
    lane.conflicted.extend([early, late]);
    assert!(lane.conflicts(early, &slots));
    assert!(lane.conflicts(late, &slots));
    assert!(!lane.conflicts(apart, &slots));
    lane.started.clear();
    assert!(!lane.conflicts(early, &slots), "the one that came first");
    assert!(
        lane.conflicts(late, &slots),
        "not before the one ahead of it"
    );
}

#[test]
fn a_lock_holds_back_its_range_and_is_given_when_that_is_quiet() {
    let (mut lane, mut slots) = (lane(), SlotTable::new());
    let inside = write(&mut slots, 4096, 512);
    let outside = write(&mut slots, 8192, 512);
    lane.started.extend([inside, outside]);
    let (reply, given) = crossbeam_channel::bounded(1);
    lane.lock = Some(RangeLock {
        range: 0..8192,
        waiting: Some(reply),
    });
    lane.settle_lock(&slots);
    assert!(given.try_recv().is_err(), "a change is under way there");
    let held = write(&mut slots, 0, 512);
    assert!(lane.conflicts(held, &slots));
    lane.started.retain(|&id| id != inside);
    lane.settle_lock(&slots);
    assert!(given.try_recv().is_ok());
    assert!(lane.conflicts(held, &slots), "until it is unlocked");
    lane.lock = None;
    assert!(!lane.conflicts(held, &slots));
}

#[test]
fn tracking_begins_with_what_is_in_flight_on_this_disk() {
    let (mut lane, mut slots) = (lane(), SlotTable::new());
    lane.tracking = false;
    let mine = write(&mut slots, 0, 4096);
    let waiting = write(&mut slots, 0, 4096);
    let other = write(&mut slots, 0, 4096);
    slots.get_mut(mine).started = true;
    slots.get_mut(other).started = true;
    slots.get_mut(other).lane = 1;
    lane.start_tracking(0, &slots);
    assert_eq!(lane.started, [mine]);
    assert!(lane.conflicts(waiting, &slots));
    lane.conflicted.push_back(waiting);
    lane.stop_tracking();
    assert!(lane.tracking, "one waits still");
    lane.conflicted.clear();
    lane.stop_tracking();
    assert!(!lane.tracking);
}

#[test]
fn a_change_is_mirrored_when_it_begins_behind_the_cursor() {
    let (mut lane, mut slots) = (lane(), SlotTable::new());
    let (events, _queue) = crossbeam_channel::bounded(1);
    let tap = WriteTap {
        failed: Arc::default(),
        events,
        patience_ns: 1,
    };
    let over = write(&mut slots, 4096, 8192);
    let ahead = write(&mut slots, 8192, 512);
    assert!(!lane.mirrors(slots.get(over)));
    let mut mirror = Mirror::new(tap, Arc::default());
    mirror.mirrored_below = 8192;
    lane.mirror = Some(mirror);
    assert!(lane.mirrors(slots.get(over)));
    assert!(!lane.mirrors(slots.get(ahead)));
}
