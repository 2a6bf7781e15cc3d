//! A figure of several runs: the middle one, and how far they lie apart.

use serde::Serialize;

/// A figure of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of the numbers among the values; nothing if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let sorted = sorted(values);
        Some(Spread {
            median: middle(&sorted)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }

    /// Of values among which there is a number; no numbers if there is none.
    pub fn of_some(values: Vec<f64>) -> Spread {
        Spread::of(values).unwrap_or(Spread {
            median: f64::NAN,
            min: f64::NAN,
            max: f64::NAN,
        })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.max.abs() < 100.0 { 2 } else { 0 };
        let Spread { median, min, max } = self;
        write!(f, "{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    middle(&sorted(values.iter().copied()))
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 {
        Some(upper)
    } else {
        Some((sorted[half - 1] + upper) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(
            median(&[f64::NAN, 7.0]),
            Some(7.0),
            "what is no number is left out"
        );
        let spread = Spread::of([5.0, 1.0, 9.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 5.0, 9.0));
    }

    #[test]
    fn a_spread_is_the_middle_and_the_ends() {
        let spread = Spread::of_some(vec![3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(spread.to_string(), "2.00 (1.00 to 3.00)");
    }
}
