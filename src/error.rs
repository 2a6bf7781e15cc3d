//! How the command fails: 2 for wrong usage, 1 for everything else.

use std::fmt;
use std::process::ExitCode;

/// What went wrong, for a person.
#[derive(Debug)]
pub enum Failure {
    /// The request makes no sense as it stands.
    Usage(String),
    /// It was understood, and failed.
    Failed(String),
}

impl Failure {
    /// Says it on standard error, as JSON in JSON mode, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if crate::output::json_mode() {
            eprintln!("{}", serde_json::json!({ "error": self.to_string() }));
        } else {
            eprintln!("ferry: {self}");
        }
        ExitCode::from(match self {
            Failure::Usage(_) => 2,
            Failure::Failed(_) => 1,
        })
    }

    /// A failure with its chain of causes.
    pub fn of(error: impl std::error::Error) -> Failure {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            // Some messages carry their cause already.
            if !text.contains(&cause.to_string()) {
                text = format!("{text}: {cause}");
            }
            source = cause.source();
        }
        Failure::Failed(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(what) | Failure::Failed(what) => f.write_str(what),
        }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::of(error)
    }
}

/// Results of the command.
pub type Done<T = ()> = Result<T, Failure>;
