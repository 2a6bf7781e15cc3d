//! Names of machines, NICs and switches.

use std::fmt;
use std::str::FromStr;

use ferry_migration::ids::DiskId;
use serde::{Deserialize, Serialize};

/// A name in the letters of a disk's: it becomes part of a file's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Name, String> {
        match DiskId::from_str(&name) {
            Ok(_) => Ok(Name(name)),
            Err(_) => Err(format!(
                "{name:?} is not a name; use up to 64 letters, digits, '.', '-' and '_', not \
                 beginning with a dot"
            )),
        }
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(name: &str) -> Result<Name, String> {
        Name::try_from(name.to_owned())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
