use proptest::prelude::*;

use super::*;

/// Walks a disk whose data lies in `data` and returns the steps.
fn walk(capacity: u64, data: &[Range<u64>]) -> Vec<Step> {
    let mut plan = Extents::new(capacity);
    let mut steps = Vec::new();
    loop {
        let at = plan.cursor_bytes();
        let next = data
            .iter()
            .find(|run| run.end > at)
            .map(|run| run.start.max(at)..run.end);
        let Some(step) = plan.step(next) else {
            return steps;
        };
        assert!(steps.len() < 100_000, "the cursor does not move");
        plan.advance(step.range().end);
        steps.push(step);
    }
}

#[test]
fn a_sparse_disk_is_walked_in_holes_and_chunks() {
    let steps = walk(1 << 20, std::slice::from_ref(&(300 * 1024..400 * 1024)));
    assert_eq!(
        steps,
        [
            Step::Hole(0..262_144),
            Step::Data(262_144..458_752),
            Step::Hole(458_752..1_048_576),
        ]
    );
}

#[test]
fn a_dirty_mark_that_comes_while_copying_stays() {
    let mut plan = Extents::new(1 << 20);
    plan.mark_dirty(70_000, 10);
    let run = plan.dirty_run().unwrap();
    assert_eq!(run, 65_536..131_072);
    plan.clear(&run);
    plan.mark_dirty(70_000, 10);
    assert_eq!(plan.dirty_count(), 1);
}

#[test]
fn zeroes_are_told_from_data() {
    let mut data = vec![0; 3 * 65_536 + 512];
    data[65_536 + 7] = 1;
    assert_eq!(
        zero_runs(&data),
        [
            (0..65_536, true),
            (65_536..131_072, false),
            (131_072..197_120, true)
        ]
    );
}

proptest! {
    #[test]
    fn every_byte_is_covered_once_and_data_never_as_a_hole(
        blocks in 1u64..4000,
        cuts in prop::collection::btree_set(0u64..4000, 0..20),
    ) {
        let capacity = blocks * 512;
        let cuts: Vec<u64> = cuts.into_iter().map(|c| c * 512).filter(|c| *c < capacity).collect();
        let data: Vec<Range<u64>> =
            cuts.chunks(2).filter(|c| c.len() == 2).map(|c| c[0]..c[1]).collect();
        let mut at = 0;
        for step in walk(capacity, &data) {
            let range = step.range();
            prop_assert_eq!(range.start, at);
            prop_assert!(range.end > range.start);
            prop_assert!(range.end == capacity || range.end % EXTENT_BYTES == 0);
            if let Step::Hole(hole) = &step {
                prop_assert!(!data.iter().any(|d| d.start < hole.end && hole.start < d.end));
            } else {
                prop_assert!(range.end - range.start <= CHUNK_BYTES);
            }
            at = range.end;
        }
        prop_assert_eq!(at, capacity);
    }

    #[test]
    fn dirty_marks_are_all_found_and_nothing_else(
        marks in prop::collection::vec((0u64..20_000_000, 0u64..300_000), 0..40),
    ) {
        let capacity = 16_777_216 + 512;
        let mut plan = Extents::new(capacity);
        let mut model = std::collections::BTreeSet::new();
        for (offset, len) in &marks {
            plan.mark_dirty(*offset, *len);
            let end = (offset + len).min(capacity);
            if *offset < end {
                model.extend(offset / EXTENT_BYTES..=(end - 1) / EXTENT_BYTES);
            }
        }
        prop_assert_eq!(plan.dirty_count(), model.len());
        while let Some(run) = plan.dirty_run() {
            prop_assert!(run.end <= capacity && run.end - run.start <= CHUNK_BYTES);
            plan.clear(&run);
            for extent in run.start / EXTENT_BYTES..=(run.end - 1) / EXTENT_BYTES {
                prop_assert!(model.remove(&extent));
            }
        }
        prop_assert!(model.is_empty());
    }

    #[test]
    fn nonsense_from_a_backend_still_moves_the_cursor(start in any::<u64>(), end in any::<u64>()) {
        let plan = Extents::new(1 << 20);
        let range = plan.step(Some(start..end)).unwrap().range();
        prop_assert!(range.start == 0 && range.end > 0 && range.end <= 1 << 20);
    }
}
