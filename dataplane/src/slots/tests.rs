use super::*;
use crate::limits::SLOT_SHARE;

fn request(tag: u32) -> Request {
    Request {
        op: Op::Write,
        offset_bytes: 0,
        len_bytes: 512,
        through: false,
        tag,
    }
}

#[test]
fn every_slot_is_given_out_once_until_it_comes_back() {
    let mut table = SlotTable::new();
    let mut taken = Vec::new();
    let mut room = Room::unlimited();
    let mut inbox = Inbox {
        slots: &mut table,
        taken: &mut taken,
        queue: 3,
        lane: 4,
        room: &mut room,
    };
    for tag in 0.. {
        if inbox.begin().is_none() {
            break;
        }
        inbox.commit(request(tag));
    }
    // Without room nothing happens.
    inbox.commit(request(0));
    assert_eq!(taken.len(), SLOTS_PER_WORKER);
    let mut sorted = taken.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), SLOTS_PER_WORKER, "no slot twice");
    assert_eq!(table.in_use(), SLOTS_PER_WORKER);
    for (tag, id) in (0..).zip(&taken) {
        let slot = table.get(*id);
        assert_eq!((slot.request.tag, slot.queue, slot.lane), (tag, 3, 4));
    }
    table.release(taken[7]);
    assert_eq!(table.take(request(9), 0, 0), Some(taken[7]));
    assert_eq!(table.take(request(9), 0, 0), None);
    assert_eq!(table.iter().count(), SLOTS_PER_WORKER);
}

#[test]
fn a_slot_is_clean_when_it_is_taken_again() {
    let mut table = SlotTable::new();
    let id = table.take(request(1), 0, 0).unwrap();
    let slot = table.get_mut(id);
    slot.status = Status::IoError;
    slot.done_bytes = 77;
    slot.tap_seq = 5;
    slot.started = true;
    table.release(id);
    assert_eq!(table.in_use(), 0);
    assert_eq!(table.take(request(2), 0, 0), Some(id));
    let slot = table.get(id);
    assert_eq!((slot.status, slot.done_bytes), (Status::Ok, 0));
    assert_eq!((slot.tap_seq, slot.started), (0, false));
}

#[test]
#[should_panic(expected = "released once")]
fn a_slot_is_not_released_twice() {
    let mut table = SlotTable::new();
    let id = table.take(request(0), 0, 0).unwrap();
    table.release(id);
    table.release(id);
}

#[test]
#[should_panic(expected = "the kernel still owns")]
fn a_slot_that_the_kernel_writes_to_is_not_released() {
    let mut table = SlotTable::new();
    let id = table.take(request(0), 0, 0).unwrap();
    table.get_mut(id).in_kernel = true;
    table.release(id);
}

#[test]
fn a_changed_range_is_rounded_out_to_blocks() {
    let mut table = SlotTable::new();
    let id = table.take(request(0), 0, 0).unwrap();
    let mut range = |offset, len, block| {
        let request = &mut table.get_mut(id).request;
        (request.offset_bytes, request.len_bytes) = (offset, len);
        table.get(id).changed_range(block)
    };
    assert_eq!(range(512, 512, 512), 512..1024);
    assert_eq!(range(512, 512, 4096), 0..4096);
    assert_eq!(range(3584, 1024, 4096), 0..8192);
    assert_eq!(range(4096, 4096, 4096), 4096..8192);
}

/// Takes what the table and the rule allow a disk of `held` requests; returns how many it holds then.
fn fill(table: &mut SlotTable, held: usize) -> usize {
    let mut taken = Vec::new();
    let mut room = Room {
        share: SLOT_SHARE,
        held,
        ..Room::unlimited()
    };
    let mut inbox = Inbox {
        slots: table,
        taken: &mut taken,
        queue: 0,
        lane: 0,
        room: &mut room,
    };
    while inbox.begin().is_some() {
        inbox.commit(request(0));
    }
    held + taken.len()
}

#[test]
fn one_disk_leaves_room_for_another_and_they_end_up_equal() {
    let mut table = SlotTable::new();
    let alone = fill(&mut table, 0);
    assert_eq!(
        alone,
        (SLOTS_PER_WORKER * SLOT_SHARE).div_ceil(SLOT_SHARE + 1)
    );
    let mut held = [alone, fill(&mut table, 0)];
    assert!(held[1] > 128, "{held:?}");
    // Each request that ends lets whoever holds less take one more.
    for turn in 0..SLOTS_PER_WORKER {
        let at = turn % 2;
        let in_use = table.iter().next().map(|(id, _)| id).unwrap();
        table.release(in_use);
        held[at] -= 1;
        for held in &mut held {
            *held = fill(&mut table, *held);
        }
    }
    assert!(held[0].abs_diff(held[1]) < 32, "{held:?}");
}

#[test]
fn however_many_disks_want_slots_each_gets_some() {
    for disks in [3, 30, 300, 1000] {
        let mut table = SlotTable::new();
        let mut held = vec![0; disks];
        for turn in 0..100_000 {
            let at = turn % disks;
            held[at] = fill(&mut table, held[at]);
            // The oldest of the disk that holds most ends.
            if table.in_use() == SLOTS_PER_WORKER || turn % 2 == 0 {
                let most = (0..disks).max_by_key(|&at| held[at]).unwrap();
                let in_use = table.iter().next().map(|(id, _)| id).unwrap();
                table.release(in_use);
                held[most] -= 1;
            }
        }
        let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
        assert!(
            *least > 0 && *most <= 2 + SLOTS_PER_WORKER / disks,
            "{disks}: {least} to {most}"
        );
    }
}
