//! Shares: a word, or a number.

use std::fmt;
use std::str::FromStr;

use ferry_dataplane::qos::{SHARES_HIGH, SHARES_LOW, SHARES_MAX, SHARES_NORMAL};
use serde::{Deserialize, Serialize};

/// A disk's part of a congested datastore, in proportion to the others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Shares(u32);

/// As a configuration has it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u32),
    Word(String),
}

const WORDS: [(&str, u32); 3] = [
    ("low", SHARES_LOW),
    ("normal", SHARES_NORMAL),
    ("high", SHARES_HIGH),
];

impl Shares {
    /// So many, if a disk may have as many.
    pub fn of(number: u32) -> Option<Shares> {
        (1..=SHARES_MAX).contains(&number).then_some(Shares(number))
    }

    /// As a number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl Default for Shares {
    fn default() -> Shares {
        Shares(SHARES_NORMAL)
    }
}

impl FromStr for Shares {
    type Err = String;

    fn from_str(text: &str) -> Result<Shares, String> {
        if let Some((_, number)) = WORDS.into_iter().find(|(word, _)| *word == text) {
            return Ok(Shares(number));
        }
        text.parse().ok().and_then(Shares::of).ok_or_else(|| {
            format!(
                "{text:?} are no shares; use low ({SHARES_LOW}), normal ({SHARES_NORMAL}), high \
                 ({SHARES_HIGH}), or a number from 1 to {SHARES_MAX}"
            )
        })
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match WORDS.into_iter().find(|(_, number)| *number == self.0) {
            Some((word, _)) => f.write_str(word),
            None => self.0.fmt(f),
        }
    }
}

impl TryFrom<Written> for Shares {
    type Error = String;

    fn try_from(written: Written) -> Result<Shares, String> {
        match written {
            Written::Number(number) => number.to_string().parse(),
            Written::Word(word) => word.parse(),
        }
    }
}

impl From<Shares> for Written {
    fn from(shares: Shares) -> Written {
        Written::Number(shares.0)
    }
}
