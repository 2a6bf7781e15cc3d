use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn load(disk: u64, worker: usize, percent: u64) -> Load {
    Load {
        unit: Unit {
            disk,
            queue: Some(0),
        },
        worker,
        busy_ns: SECOND / 100 * percent,
    }
}

fn busy(workers: usize, loads: &[Load]) -> Vec<u64> {
    let of = |worker| {
        let here = loads.iter().filter(|load| load.worker == worker);
        here.map(|load| load.busy_ns).sum()
    };
    (0..workers).map(of).collect()
}

/// Looks `seconds` times, makes the moves, and returns them.
fn watch(loads: &mut [Load], workers: usize, seconds: u64) -> Vec<Move> {
    let mut placement = Placement::default();
    let mut moves = Vec::new();
    for second in 1..=seconds {
        let busy = busy(workers, loads);
        let found = placement.look(second * SECOND, SECOND, &busy, loads);
        if let Some(found) = found {
            let moved = loads.iter_mut().find(|load| load.unit == found.unit);
            moved.unwrap().worker = found.to;
            moves.push(found);
        }
    }
    moves
}

#[test]
fn two_busy_disks_on_one_worker_are_parted_and_stay_so() {
    let mut loads = [load(1, 0, 50), load(2, 0, 50)];
    let moves = watch(&mut loads, 2, 100);
    assert_eq!(moves.len(), 1, "{moves:?}");
    // Alone on its worker each takes all of it: there is nothing to better.
    let mut loads = [load(1, 0, 100), load(2, 1, 100)];
    assert!(watch(&mut loads, 2, 100).is_empty());
}

#[test]
fn one_load_does_not_go_to_and_fro() {
    let mut loads = [load(1, 0, 100), load(2, 1, 1)];
    assert!(watch(&mut loads, 2, 1000).is_empty());
}

#[test]
fn a_worker_with_time_to_spare_gives_nothing_away() {
    let mut loads = [load(1, 0, 20), load(2, 0, 25)];
    assert!(watch(&mut loads, 2, 100).is_empty());
}

#[test]
fn a_gain_below_the_margin_is_none() {
    let mut loads = [load(1, 0, 50), load(2, 0, 8), load(3, 1, 45)];
    assert!(watch(&mut loads, 2, 100).is_empty());
}

#[test]
fn a_load_that_jumps_moves_once_and_then_stays_for_a_while() {
    let mut placement = Placement::default();
    let mut worker = [0, 0];
    let mut moves = 0;
    for second in 0..30 {
        // Whichever worker has both, has both in full swing.
        let loads = [load(1, worker[0], 50), load(2, worker[1], 50)];
        let busy = busy(2, &loads);
        if let Some(found) = placement.look(second * SECOND, SECOND, &busy, &loads) {
            worker[usize::from(found.unit.disk == 2)] = found.to;
            moves += 1;
        }
        // The other disk is sent after it by someone who wants to see it run away.
        if second == 10 {
            worker = [worker[0]; 2];
        }
    }
    assert!(moves <= 2, "{moves}");
}

#[test]
fn a_single_look_moves_nothing() {
    let mut placement = Placement::default();
    let quiet = [load(1, 0, 10), load(2, 0, 10)];
    let crowded = [load(1, 0, 50), load(2, 0, 50)];
    for second in 0..100 {
        let loads = if second % 2 == 0 { crowded } else { quiet };
        let moved = placement.look(second * SECOND, SECOND, &busy(2, &loads), &loads);
        assert_eq!(moved, None);
    }
}

proptest! {
    #[test]
    fn loads_that_stay_as_they_are_come_to_rest(
        placed in prop::collection::vec((0usize..4, 0u64..100), 1..24),
        workers in 4usize..6,
    ) {
        let mut loads: Vec<Load> = (0..)
            .zip(&placed)
            .map(|(disk, &(worker, percent))| load(disk, worker, percent))
            .collect();
        // The busiest first: several may be as busy as the busiest, and one is bettered at a time.
        let ranked = |loads: &[Load]| {
            let mut all = busy(workers, loads);
            all.sort_unstable_by(|a, b| b.cmp(a));
            all
        };
        let at_first = ranked(&loads);
        let count = loads.len();
        let moves = watch(&mut loads, workers, 1000);
        let at_last = ranked(&loads);
        prop_assert!(at_last <= at_first);
        prop_assert!(moves.is_empty() || at_last < at_first);
        prop_assert!(moves.len() <= 2 * count, "{} moves of {count} loads", moves.len());
        prop_assert!(moves.iter().all(|found| found.from != found.to && found.to < workers));
        prop_assert_eq!(watch(&mut loads, workers, 100), vec![]);
    }
}
