//! The oracle against disks that are right and disks that are not.
#![allow(clippy::cast_possible_truncation)]

use proptest::prelude::*;

use super::*;
use crate::rng::Rng;

const SECTORS: u64 = 16;

fn span(start: u64, sectors: u64) -> Span {
    Span { start, sectors }
}

fn oracle() -> Oracle {
    Oracle::new(SECTORS, Initial::Zero, 42)
}

fn stamped(oracle: &Oracle, op: OpId, span: Span) -> Vec<u8> {
    let mut data = vec![0; span.bytes()];
    oracle.fill(op, &mut data);
    data
}

/// Writes one sector and returns what it wrote.
fn written(oracle: &mut Oracle, at: u64) -> Vec<u8> {
    let op = oracle.begin_write(span(at, 1));
    let data = stamped(oracle, op, span(at, 1));
    oracle.complete(op, true);
    data
}

fn read(oracle: &mut Oracle, at: u64, data: &[u8]) -> Option<MismatchKind> {
    let op = oracle.begin_read(span(at, 1));
    oracle.check_read(op, data).first().map(|m| m.kind)
}

#[test]
fn a_lost_write_is_caught() {
    let mut o = oracle();
    written(&mut o, 3);
    assert_eq!(read(&mut o, 3, &[0; SECTOR]), Some(MismatchKind::Zeroed));
}

#[test]
fn a_stale_read_is_caught() {
    let mut o = oracle();
    let old = written(&mut o, 3);
    let new = written(&mut o, 3);
    assert_eq!(read(&mut o, 3, &new), None);
    assert_eq!(read(&mut o, 3, &old), Some(MismatchKind::Stale));
}

#[test]
fn an_older_read_of_what_stood_before_is_not_judged_by_a_newer_one() {
    // Whole, from an earlier run: no torn write could explain it.
    let mut before = [0; SECTOR];
    Stamper::new(41).fill(9, 3, &mut before);
    let mut o = Oracle::new(SECTORS, Initial::Unknown, 42);
    let older = o.begin_read(span(3, 1));
    let discard = o.begin_discard(span(3, 1));
    o.complete(discard, true);
    assert_eq!(read(&mut o, 3, &[0; SECTOR]), None);
    assert!(o.check_read(older, &before).is_empty(), "it began before");
    assert!(read(&mut o, 3, &before).is_some(), "it is zero now");
    assert_eq!(read(&mut o, 3, &[0; SECTOR]), None);
}

#[test]
fn a_torn_sector_is_caught_unless_a_write_is_in_flight() {
    let mut o = oracle();
    let old = written(&mut o, 3);
    let op = o.begin_write(span(3, 1));
    let new = stamped(&o, op, span(3, 1));
    let torn = [&new[..200], &old[200..]].concat();
    assert_eq!(read(&mut o, 3, &torn), None, "in flight");
    let late = o.begin_read(span(3, 1));
    o.complete(op, true);
    assert!(
        o.check_read(late, &torn).is_empty(),
        "in flight when the read began"
    );
    assert_eq!(read(&mut o, 3, &torn), Some(MismatchKind::Torn));
}

#[test]
fn a_read_of_the_wrong_sector_is_caught_even_under_a_write() {
    let mut o = oracle();
    let other = written(&mut o, 4);
    written(&mut o, 3);
    assert_eq!(read(&mut o, 3, &other), Some(MismatchKind::WrongSector));
    o.begin_write(span(3, 1));
    assert_eq!(read(&mut o, 3, &other), Some(MismatchKind::WrongSector));
}

#[test]
fn a_winner_that_flips_is_caught() {
    for winner in 0..2 {
        let mut o = oracle();
        let a = o.begin_write(span(3, 1));
        let b = o.begin_write(span(3, 1));
        let data = [stamped(&o, a, span(3, 1)), stamped(&o, b, span(3, 1))];
        o.complete(b, true);
        assert_eq!(read(&mut o, 3, &data[0]), None, "one is still in flight");
        assert_eq!(read(&mut o, 3, &data[1]), None);
        o.complete(a, true);
        assert_eq!(read(&mut o, 3, &data[winner]), None, "either may win");
        assert_eq!(
            read(&mut o, 3, &data[1 - winner]),
            Some(MismatchKind::Stale),
            "but not both"
        );
        assert_eq!(read(&mut o, 3, &data[winner]), None);
    }
}

#[test]
fn a_winner_that_flips_under_overlapping_reads_is_caught() {
    let mut o = oracle();
    let a = o.begin_write(span(3, 1));
    let b = o.begin_write(span(3, 1));
    let data = [stamped(&o, a, span(3, 1)), stamped(&o, b, span(3, 1))];
    let early = o.begin_read(span(3, 1));
    o.complete(a, true);
    o.complete(b, true);
    let (first, second) = (o.begin_read(span(3, 1)), o.begin_read(span(3, 1)));
    assert!(o.check_read(first, &data[0]).is_empty());
    assert_eq!(
        o.check_read(second, &data[1]).len(),
        1,
        "nothing was in flight in either"
    );
    assert!(
        o.check_read(early, &data[1]).is_empty(),
        "this one began under the writes"
    );
}

#[test]
fn a_read_in_flight_may_see_what_was_replaced_meanwhile() {
    let mut o = oracle();
    let old = written(&mut o, 3);
    let slow = o.begin_read(span(3, 1));
    written(&mut o, 3);
    written(&mut o, 3);
    assert!(o.check_read(slow, &old).is_empty());
    assert_eq!(read(&mut o, 3, &old), Some(MismatchKind::Stale));
}

#[test]
fn a_failed_write_leaves_both_possible_and_the_first_read_decides() {
    for lands in [false, true] {
        let mut o = oracle();
        let old = written(&mut o, 3);
        let op = o.begin_write(span(3, 1));
        let new = stamped(&o, op, span(3, 1));
        o.complete(op, false);
        let (is, not) = if lands { (&new, &old) } else { (&old, &new) };
        assert_eq!(read(&mut o, 3, is), None);
        assert!(read(&mut o, 3, not).is_some());
    }
}

#[test]
fn zeroes_must_be_zero_and_discards_may_be() {
    let mut o = oracle();
    let data = written(&mut o, 3);
    let op = o.begin_discard(span(3, 1));
    o.complete(op, true);
    assert_eq!(read(&mut o, 3, &[0; SECTOR]), None);
    assert_eq!(
        read(&mut o, 3, &data),
        Some(MismatchKind::Stale),
        "it was zero a moment ago"
    );
    let data = written(&mut o, 3);
    let op = o.begin_discard(span(3, 1));
    o.complete(op, true);
    assert_eq!(read(&mut o, 3, &data), None, "or kept");
    let op = o.begin_write_zeroes(span(3, 1));
    o.complete(op, true);
    assert_eq!(read(&mut o, 3, &data), Some(MismatchKind::Stale));
    assert_eq!(read(&mut o, 3, &[0; SECTOR]), None);
}

#[test]
fn unknown_contents_must_not_change_by_themselves() {
    let mut o = Oracle::new(SECTORS, Initial::Unknown, 1);
    assert_eq!(read(&mut o, 0, &[7; SECTOR]), None);
    assert_eq!(read(&mut o, 0, &[8; SECTOR]), Some(MismatchKind::Foreign));
    assert_eq!(read(&mut o, 0, &[7; SECTOR]), None);
}

#[test]
fn a_sweep_names_what_was_touched() {
    let mut o = oracle();
    let a = o.begin_write(span(2, 5));
    let b = o.begin_discard(span(12, 1));
    o.complete(a, true);
    o.complete(b, true);
    o.begin_read(span(0, 16));
    assert_eq!(o.sweep(3), [span(2, 3), span(5, 2), span(12, 1)]);
}

/// A disk that does each operation at some instant of its flight, sector by
/// sector, in any order.
struct Simulation {
    oracle: Oracle,
    rng: Rng,
    disk: Vec<Vec<u8>>,
    flying: Vec<Flying>,
}

struct Flying {
    op: OpId,
    kind: Kind,
    span: Span,
    data: Vec<u8>,
    /// Sectors not done yet.
    left: Vec<u64>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let disk = vec![vec![0; SECTOR]; SECTORS as usize];
        Self {
            oracle: oracle(),
            rng: Rng::new(seed),
            disk,
            flying: Vec::new(),
        }
    }

    fn begin(&mut self) {
        let start = self.rng.below(SECTORS);
        let s = span(start, 1 + self.rng.below((SECTORS - start).min(4)));
        let (kind, op) = match self.rng.below(10) {
            0..4 => (Kind::Write, self.oracle.begin_write(s)),
            4 => (Kind::WriteZeroes, self.oracle.begin_write_zeroes(s)),
            5 => (Kind::Discard, self.oracle.begin_discard(s)),
            _ => (Kind::Read, self.oracle.begin_read(s)),
        };
        let mut data = vec![0; s.bytes()];
        if kind == Kind::Write {
            self.oracle.fill(op, &mut data);
        }
        let left = (0..s.sectors).collect();
        self.flying.push(Flying {
            op,
            kind,
            span: s,
            data,
            left,
        });
    }

    /// Does one sector of one operation, or ends it. Says whether it was right.
    fn step(&mut self) -> bool {
        let i = self.rng.below(self.flying.len() as u64) as usize;
        let fails = self.rng.percent(5);
        let f = &mut self.flying[i];
        if f.left.is_empty() || (fails && f.kind != Kind::Read) {
            let ok = f.left.is_empty();
            let f = self.flying.swap_remove(i);
            if f.kind == Kind::Read {
                return self.oracle.check_read(f.op, &f.data).is_empty();
            }
            self.oracle.complete(f.op, ok);
            return true;
        }
        let nth = f
            .left
            .swap_remove(self.rng.below(f.left.len() as u64) as usize);
        let disk = &mut self.disk[(f.span.start + nth) as usize];
        let part = nth as usize * SECTOR..(nth as usize + 1) * SECTOR;
        match f.kind {
            Kind::Read => f.data[part].copy_from_slice(disk),
            Kind::Discard if self.rng.percent(50) => {}
            _ => disk.copy_from_slice(&f.data[part]),
        }
        true
    }

    fn run(&mut self, steps: usize) -> bool {
        (0..steps).all(|_| {
            if self.flying.is_empty() || (self.flying.len() < 8 && self.rng.percent(30)) {
                self.begin();
            }
            self.step()
        })
    }

    fn drain(&mut self) -> bool {
        while !self.flying.is_empty() {
            if !self.step() {
                return false;
            }
        }
        true
    }

    fn sweep(&mut self) -> bool {
        (0..SECTORS).all(|at| {
            let data = self.disk[at as usize].clone();
            read(&mut self.oracle, at, &data).is_none()
        })
    }
}

proptest! {
    #[test]
    fn a_correct_disk_is_never_accused(seed in any::<u64>()) {
        let mut sim = Simulation::new(seed);
        prop_assert!(sim.run(2000));
        prop_assert!(sim.drain());
        prop_assert!(sim.sweep());
        prop_assert!(sim.oracle.sectors_open() == 0, "all is known after a sweep");
    }

    /// After a sweep every sector has one value, so any swap of two different
    /// sectors, and any return of an older value, is caught.
    #[test]
    fn a_disk_that_goes_back_in_time_is_caught(seed in any::<u64>(), at in 0..SECTORS) {
        let mut sim = Simulation::new(seed);
        prop_assert!(sim.run(500) && sim.drain() && sim.sweep());
        let before = sim.disk[at as usize].clone();
        prop_assert!(sim.run(500) && sim.drain() && sim.sweep());
        let changed = sim.disk[at as usize] != before;
        sim.disk[at as usize] = before;
        prop_assert_eq!(sim.sweep(), !changed);
    }
}
