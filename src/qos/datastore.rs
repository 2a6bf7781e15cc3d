//! How a datastore is steered.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ferry_dataplane::qos::{CostModel, Medium};
use serde::{Deserialize, Serialize};

/// Thresholds that may be set, in milliseconds.
pub const THRESHOLD_MS: (f64, f64) = (0.1, 1000.0);

/// Periods that may be set, in milliseconds.
pub const STATS_PERIOD_MS: (u64, u64) = (100, 60_000);

const STATS_PERIOD_MS_DEFAULT: u64 = 2000;

/// What is done on a datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Sioc {
    /// Under congestion its disks get their shares.
    On,
    /// Its latency is measured and told; nothing is held back for it.
    #[default]
    Stats,
    /// Neither. Limits hold.
    Off,
}

impl Sioc {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Sioc::On => "on",
            Sioc::Stats => "stats",
            Sioc::Off => "off",
        }
    }
}

/// What is done while something else than Ferry's disks loads the datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Unmanaged {
    /// Nothing is held back, until it is tried again.
    #[default]
    Stop,
    /// The shares stay.
    Keep,
}

/// What a request counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CostBy {
    /// One for each 32 KiB begun.
    #[default]
    Size,
    /// The time that the medium works on it.
    Time,
    /// One, whatever its size.
    Requests,
}

/// Among whom the datastore is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Divide {
    /// Among all disks, wherever they are served.
    #[default]
    Disks,
    /// First among the hosts, by the sum of their disks' shares.
    Hosts,
}

/// A medium by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MediumName(pub Medium);

impl FromStr for MediumName {
    type Err = String;

    fn from_str(text: &str) -> Result<MediumName, String> {
        text.parse().map(MediumName)
    }
}

impl TryFrom<String> for MediumName {
    type Error = String;

    fn try_from(text: String) -> Result<MediumName, String> {
        text.parse()
    }
}

impl From<MediumName> for String {
    fn from(name: MediumName) -> String {
        name.0.name().into()
    }
}

/// The latency above which a datastore counts as congested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Threshold {
    /// That at nine tenths of the peak throughput, found by trying while the datastore is idle.
    Auto,
    /// So many nanoseconds.
    Ns(u64),
}

/// As a configuration has it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Ms(f64),
    Word(String),
}

impl Threshold {
    fn of_ms(ms: f64) -> Result<Threshold, String> {
        let (least, most) = THRESHOLD_MS;
        if !(least..=most).contains(&ms) {
            return Err(format!(
                "a threshold is {least} to {most} milliseconds, or auto"
            ));
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
        #[expect(clippy::cast_sign_loss, reason = "bounded just above")]
        Ok(Threshold::Ns((ms * 1e6).round() as u64))
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Threshold, String> {
        match text {
            "auto" => Ok(Threshold::Auto),
            _ => Threshold::of_ms(text.parse().unwrap_or(f64::NAN)),
        }
    }
}

impl TryFrom<Written> for Threshold {
    type Error = String;

    fn try_from(written: Written) -> Result<Threshold, String> {
        match written {
            Written::Ms(ms) => Threshold::of_ms(ms),
            Written::Word(word) => word.parse(),
        }
    }
}

impl From<Threshold> for Written {
    fn from(threshold: Threshold) -> Written {
        match threshold {
            Threshold::Auto => Written::Word("auto".into()),
            Threshold::Ns(ns) => Written::Ms(ms(ns)),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Threshold::Auto => f.write_str("auto"),
            Threshold::Ns(ns) => write!(f, "{} ms", ms(*ns)),
        }
    }
}

/// Nanoseconds as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What is said of a datastore: by its section, by `ferry datastore set`, or by nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields)]
pub struct DatastoreQos {
    /// on: its disks get their shares under congestion; stats: it is measured; off: neither.
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sioc: Option<Sioc>,
    /// What it is made of: fc, sas, sata, ssd or nvme; ssd unless set.
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub medium: Option<MediumName>,
    /// Latency in milliseconds above which it counts as congested, or auto; the medium's unless set.
    #[arg(long, value_name = "MS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold_ms: Option<Threshold>,
    /// How often hosts tell each other what they did, in milliseconds; the same on all.
    #[arg(long, value_name = "MS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_period_ms: Option<u64>,
    /// What is done while something else loads it: stop holding back, or keep the shares.
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmanaged: Option<Unmanaged>,
    /// What a request counts for: by its size, by the medium's time for it, or one each.
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostBy>,
    /// Whether it is divided among all disks, or among hosts first.
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divide: Option<Divide>,
}

impl DatastoreQos {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == DatastoreQos::default()
    }

    /// What this leaves open, as `other` says it.
    #[must_use]
    pub fn or(&self, other: &DatastoreQos) -> DatastoreQos {
        DatastoreQos {
            sioc: self.sioc.or(other.sioc),
            medium: self.medium.or(other.medium),
            threshold_ms: self.threshold_ms.or(other.threshold_ms),
            stats_period_ms: self.stats_period_ms.or(other.stats_period_ms),
            unmanaged: self.unmanaged.or(other.unmanaged),
            cost: self.cost.or(other.cost),
            divide: self.divide.or(other.divide),
        }
    }

    /// Keys that both say, and say differently.
    pub fn conflicts(&self, other: &DatastoreQos) -> Vec<&'static str> {
        fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            a.is_some() && b.is_some() && a != b
        }
        let keys = [
            ("sioc", differ(&self.sioc, &other.sioc)),
            ("medium", differ(&self.medium, &other.medium)),
            (
                "threshold_ms",
                differ(&self.threshold_ms, &other.threshold_ms),
            ),
            (
                "stats_period_ms",
                differ(&self.stats_period_ms, &other.stats_period_ms),
            ),
            ("unmanaged", differ(&self.unmanaged, &other.unmanaged)),
            ("cost", differ(&self.cost, &other.cost)),
            ("divide", differ(&self.divide, &other.divide)),
        ];
        let both = keys.into_iter().filter(|(_, differ)| *differ);
        both.map(|(key, _)| key).collect()
    }

    /// Checks what types cannot say.
    pub fn check(&self) -> Result<(), String> {
        let (least, most) = STATS_PERIOD_MS;
        match self.stats_period_ms {
            Some(ms) if !(least..=most).contains(&ms) => Err(format!(
                "stats_period_ms must be {least} to {most}, and the same on all hosts"
            )),
            _ => Ok(()),
        }
    }

    /// What is done, with nothing left open.
    pub fn settings(&self) -> Settings {
        let medium = self.medium.map_or(Medium::Ssd, |name| name.0);
        Settings {
            sioc: self.sioc.unwrap_or_default(),
            medium,
            threshold: self
                .threshold_ms
                .unwrap_or(Threshold::Ns(medium.threshold_ns())),
            period_ns: self.stats_period_ms.unwrap_or(STATS_PERIOD_MS_DEFAULT) * 1_000_000,
            unmanaged: self.unmanaged.unwrap_or_default(),
            cost: self.cost.unwrap_or_default(),
            divide: self.divide.unwrap_or_default(),
        }
    }
}

/// How a datastore is steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub sioc: Sioc,
    pub medium: Medium,
    pub threshold: Threshold,
    pub period_ns: u64,
    pub unmanaged: Unmanaged,
    pub cost: CostBy,
    pub divide: Divide,
}

impl Settings {
    /// The threshold as it is before one was found by trying.
    pub fn threshold_ns(&self) -> u64 {
        match self.threshold {
            Threshold::Ns(ns) => ns,
            Threshold::Auto => self.medium.threshold_ns(),
        }
    }

    /// What a request counts for.
    pub fn cost_model(&self) -> CostModel {
        match self.cost {
            CostBy::Size => CostModel::Size,
            CostBy::Time => CostModel::DeviceTime(self.medium),
            CostBy::Requests => CostModel::Requests,
        }
    }
}
