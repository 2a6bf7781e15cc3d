use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn want(shares: f64, slots: f64) -> Want {
    Want { shares, slots }
}

/// The level by halving: nothing of how it is found above.
fn by_halving(total: f64, wants: &[Want]) -> f64 {
    let taken = |level: f64| wants.iter().map(|it| it.at(level)).sum::<f64>();
    if taken(f64::INFINITY) <= total {
        return f64::INFINITY;
    }
    let (mut low, mut high) = (0.0, 1e12);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if taken(middle) < total {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

fn bins(wants: &[Want]) -> Bins {
    let mut bins = Bins::default();
    wants.iter().for_each(|&it| bins.add(it));
    bins
}

#[test]
fn who_is_full_leaves_the_rest_to_the_others() {
    let hungry = [
        want(1000.0, 1e9),
        want(2500.0, 1e9),
        want(500.0, 10.0),
        want(1000.0, 1e9),
    ];
    let level = level(8000.0, &hungry);
    let parts: Vec<f64> = hungry.iter().map(|it| it.at(level).round()).collect();
    assert_eq!(parts, [1776.0, 4439.0, 10.0, 1776.0]);
}

#[test]
fn nobody_is_held_back_if_all_fit() {
    assert_eq!(
        level(10.0, &[want(1.0, 4.0), want(7.0, 6.0)]),
        f64::INFINITY
    );
    assert_eq!(level(10.0, &[]), f64::INFINITY);
    assert_eq!(
        bins(&[want(1.0, 4.0), want(7.0, 5.9)]).level(10.0),
        f64::INFINITY
    );
}

#[test]
fn floors_come_before_shares_and_nonsense_before_neither() {
    let claim = |shares, slots, floor| Claim {
        want: want(shares, slots),
        floor,
    };
    let mut parts = Vec::new();
    // Row H of the reservations: 250 for the first two, and a limit of 1000 for the third.
    for (total, ideal) in [
        (1200.0, [250.0, 380.0, 570.0]),
        (2500.0, [500.0, 1000.0, 1000.0]),
    ] {
        let claims = [
            claim(100.0, 1e9, 250.0),
            claim(200.0, 1e9, 250.0),
            claim(300.0, 1000.0, 0.0),
        ];
        fill(total, &claims, &mut parts);
        let rounded: Vec<f64> = parts.iter().map(|it| it.round()).collect();
        assert_eq!(rounded, ideal);
    }
    // More promised than there is.
    fill(
        30.0,
        &[claim(1.0, 1e9, 40.0), claim(1.0, 1e9, 20.0)],
        &mut parts,
    );
    assert_eq!(parts, [20.0, 10.0]);
    let nonsense = [
        claim(f64::NAN, 1.0, 1.0),
        claim(-1.0, f64::NAN, f64::NAN),
        claim(1.0, 8.0, -3.0),
    ];
    fill(4.0, &nonsense, &mut parts);
    assert_eq!(parts, [0.0, 0.0, 4.0]);
}

#[test]
fn classes_survive_their_arrays_and_refuse_nonsense() {
    let all = bins(&[want(1000.0, 32.0), want(1.0, 1e6), want(1e6, 1e-6)]);
    let again = Bins::from_classes(*all.shares(), *all.slots(), 1e7);
    assert_eq!(again.as_ref(), Some(&all));
    for nonsense in [f32::NAN, f32::INFINITY, -1.0, 2e7] {
        let mut slots = *all.slots();
        slots[7] = nonsense;
        assert_eq!(Bins::from_classes(*all.shares(), slots, 1e7), None);
        assert_eq!(Bins::from_classes(slots, *all.slots(), 1e7), None);
    }
}

fn some_wants() -> impl Strategy<Value = Vec<Want>> {
    let one =
        (1u32..=20_000, 0.01f64..512.0).prop_map(|(shares, slots)| want(shares.into(), slots));
    vec(one, 1..40)
}

proptest! {
    #[test]
    fn all_is_given_out_and_as_by_halving(wants in some_wants(), part in 0.01f64..1.5) {
        let total = part * wants.iter().map(|it| it.slots).sum::<f64>();
        let level = level(total, &wants);
        let slow = by_halving(total, &wants);
        if level.is_finite() {
            let given: f64 = wants.iter().map(|it| it.at(level)).sum();
            prop_assert!((given / total - 1.0).abs() < 1e-9, "{given} of {total}");
            prop_assert!((level / slow - 1.0).abs() < 1e-6, "{level} {slow}");
        } else {
            prop_assert!(part >= 1.0 - 1e-9);
        }
    }

    #[test]
    fn classes_give_all_out_and_hardly_differ(wants in some_wants(), part in 0.05f64..0.95) {
        let total = part * wants.iter().map(|it| it.slots).sum::<f64>();
        let bins = bins(&wants);
        let level_of_bins = bins.level(total);
        prop_assert!((bins.at(level_of_bins) / total - 1.0).abs() < 1e-4);
        let ratio = level_of_bins / level(total, &wants);
        prop_assert!((0.91..1.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn parts_of_hosts_add_up(one in some_wants(), other in some_wants(), part in 0.05f64..0.95) {
        let (one, other) = (bins(&one), bins(&other));
        let mut all = one.clone();
        all.merge(&other);
        let total = part * all.total().slots;
        let level = all.level(total);
        let sum = one.at(level) + other.at(level);
        prop_assert!((sum / total - 1.0).abs() < 0.05, "{sum} of {total}");
    }

    #[test]
    fn floors_are_kept_and_all_is_given_out(
        wants in some_wants(), floors in vec(0.0f64..40.0, 40), part in 0.05f64..0.95,
    ) {
        let claims: Vec<Claim> = wants.iter().zip(floors)
            .map(|(&want, floor)| Claim { want, floor }).collect();
        let total = part * wants.iter().map(|it| it.slots).sum::<f64>();
        let mut parts = Vec::new();
        let level = fill(total, &claims, &mut parts);
        let sum: f64 = parts.iter().sum();
        prop_assert!((sum / total - 1.0).abs() < 1e-9, "{sum} of {total}");
        if level > 0.0 {
            for (claim, part) in claims.iter().zip(&parts) {
                prop_assert!(*part >= claim.floor.min(claim.want.slots) - 1e-9);
            }
        }
    }

    #[test]
    fn no_number_is_too_odd(numbers in vec(proptest::num::f64::ANY, 8), total in proptest::num::f64::ANY) {
        let wants: Vec<Want> = numbers.chunks(2).map(|it| want(it[0], it[1])).collect();
        prop_assert!(level(total, &wants) >= 0.0);
        let bins = bins(&wants);
        prop_assert!(bins.level(total) >= 0.0);
        prop_assert!(bins.at(1.0) >= 0.0);
    }
}
