//! Which runs may be compared, and ratios of those.

use serde::Serialize;

use crate::spread::Spread;

/// Round trips of two runs that are compared differ by less than this factor.
pub const STEADY: f64 = 1.5;

/// Round-trip times in nanoseconds before and after a run.
pub type RoundTrips = [f64; 2];

/// Whether runs with these round trips were taken under the same.
pub fn steady(runs: &[RoundTrips]) -> bool {
    let all = || runs.iter().flatten().copied();
    let least = all().fold(f64::INFINITY, f64::min);
    let most = all().fold(0.0, f64::max);
    most < least * STEADY
}

/// Ratios of pairs of runs, each pair from one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Ours over theirs.
    #[serde(flatten)]
    pub spread: Spread,
    /// Pairs that the figures are of.
    pub pairs: usize,
    /// Pairs left out because the machine changed between their runs.
    pub dropped: usize,
    /// No pair was steady, so the figures are of all of them.
    pub unsteady: bool,
}

impl std::fmt::Display for Ratio {
    /// With a mark if others disturbed all of the pairs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.unsteady { " !" } else { "" };
        let s = self.spread;
        write!(f, "{:.2} ({:.2}..{:.2}){mark}", s.median, s.min, s.max)
    }
}

impl Ratio {
    /// Its pairs, for people.
    pub fn counted(&self) -> String {
        if self.dropped > 0 {
            format!("{} of {}", self.pairs, self.pairs + self.dropped)
        } else {
            self.pairs.to_string()
        }
    }

    /// Of pairs (ours, theirs), each with the round trips around the two runs.
    pub fn of(pairs: &[(f64, f64, bool)]) -> Option<Ratio> {
        let kept: Vec<f64> = pairs
            .iter()
            .filter(|p| p.2)
            .map(|(a, b, _)| a / b)
            .collect();
        let unsteady = kept.is_empty();
        let figures = if unsteady {
            pairs.iter().map(|(a, b, _)| a / b).collect()
        } else {
            kept
        };
        Some(Ratio {
            spread: Spread::of(figures.iter().copied())?,
            pairs: figures.len(),
            dropped: pairs.len() - figures.len(),
            unsteady,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_under_different_round_trips_are_not_compared() {
        assert!(steady(&[[100.0, 105.0], [110.0, 140.0]]));
        assert!(
            !steady(&[[100.0, 100.0], [100.0, 151.0]]),
            "after the second run"
        );
        assert!(!steady(&[[100.0, 46.0], [46.0, 46.0]]), "within the first");
        assert!(!steady(&[[f64::NAN, 100.0], [500.0, 100.0]]));
    }

    #[test]
    fn a_ratio_is_of_pairs_not_of_medians() {
        let pairs = [(10.0, 5.0, true), (100.0, 25.0, true), (30.0, 10.0, true)];
        let ratio = Ratio::of(&pairs).unwrap();
        assert_eq!(ratio.spread.median, 3.0);
        assert_eq!((ratio.spread.min, ratio.spread.max), (2.0, 4.0));
        let pairs = [(10.0, 5.0, true), (10.0, 1.0, false)];
        let ratio = Ratio::of(&pairs).unwrap();
        assert_eq!(
            (ratio.spread.median, ratio.pairs, ratio.dropped),
            (2.0, 1, 1)
        );
        assert!(!ratio.unsteady);
        let ratio = Ratio::of(&[(10.0, 1.0, false)]).unwrap();
        assert_eq!(
            (ratio.spread.median, ratio.dropped, ratio.unsteady),
            (10.0, 0, true)
        );
        assert_eq!(Ratio::of(&[]), None);
    }
}
