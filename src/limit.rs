//! A limit that is set, or taken away.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// So much in a second, or as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// As much as it likes.
    None,
    /// So much.
    To(u64),
}

impl Limit {
    /// The limit, if there is to be one.
    pub fn value(self) -> Option<u64> {
        match self {
            Limit::None => None,
            Limit::To(most) => Some(most),
        }
    }

    /// The same in units of which each is `unit` of these.
    #[must_use]
    pub fn times(self, unit: u64) -> Limit {
        match self {
            Limit::None => Limit::None,
            Limit::To(most) => Limit::To(most.saturating_mul(unit)),
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        match text {
            "none" => Ok(Limit::None),
            _ => text
                .parse()
                .map(Limit::To)
                .map_err(|_| "a limit is a whole number, or none".into()),
        }
    }
}
