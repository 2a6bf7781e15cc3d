//! What a check returns when it does not hold: a sentence for a person.

use std::fmt;

/// A failed check, in words.
#[derive(Debug)]
pub struct Failure(pub String);

/// What every step of a test returns.
pub type Check<T = ()> = Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `Failure` is no `Error` itself, so that any error becomes one by `?`.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Adds what was being done to an error.
pub trait Context<T> {
    /// Puts `doing()` in front of the error's own words.
    fn context(self, doing: impl FnOnce() -> String) -> Check<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Check<T> {
        self.map_err(|error| Failure(format!("{}: {error}", doing())))
    }
}

/// Ends the test with a sentence.
#[macro_export]
macro_rules! fail {
    ($($word:tt)*) => {
        return Err($crate::harness::Failure(format!($($word)*)))
    };
}

/// Ends the test with a sentence unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($holds:expr, $($word:tt)*) => {
        if !$holds {
            $crate::fail!($($word)*);
        }
    };
}
