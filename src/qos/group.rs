//! Groups: several disks, of a machine as a rule, under one limit.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{MB, check_limit};
use crate::error::{Done, Failure};
use crate::limit::Limit;
use crate::name::Name;

/// `[[disk_group]]`, and what is kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Its name.
    pub name: Name,
    /// No more I/Os than so many a second, of all its disks.
    pub limit_iops: Option<u64>,
    /// No more megabytes (of 1,000,000 bytes) than so many a second, of all its disks.
    pub limit_mbps: Option<u64>,
}

impl GroupConfig {
    /// One without limits.
    pub fn new(name: Name) -> GroupConfig {
        GroupConfig {
            name,
            limit_iops: None,
            limit_mbps: None,
        }
    }

    /// Checks what types cannot say.
    pub fn check(&self) -> Done {
        let wrong = |what| Failure::Usage(format!("group {}: {what}", self.name));
        if self.name.as_str() == "none" {
            return Err(wrong(
                "\"none\" stands for no group; choose another name".to_owned(),
            ));
        }
        check_limit("limit_iops", self.limit_iops).map_err(wrong)?;
        check_limit("limit_mbps", self.limit_mbps).map_err(wrong)
    }

    /// Whether it bounds its disks.
    pub fn is_limited(&self) -> bool {
        self.limit_iops.is_some() || self.limit_mbps.is_some()
    }

    /// Bytes that its disks may move in a second.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.limit_mbps.map(|mbps| mbps * MB)
    }
}

/// What `ferry group set` sends: what is not said stays.
#[derive(Debug, Clone, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// Its name. It is made if it is not there.
    pub name: Name,
    /// No more I/Os than so many a second, of all its disks, or "none" for no limit.
    #[arg(long, value_name = "N")]
    pub limit_iops: Option<Limit>,
    /// No more megabytes (of 1,000,000 bytes) than so many a second, of all its disks, or "none".
    #[arg(long, value_name = "N")]
    pub limit_mbps: Option<Limit>,
}

impl GroupChange {
    /// Whether it says anything.
    pub fn check(&self) -> Done {
        if self.limit_iops.is_none() && self.limit_mbps.is_none() {
            return Err(Failure::Usage(format!(
                "group {}: say what to set: --limit-iops or --limit-mbps",
                self.name
            )));
        }
        Ok(())
    }

    /// A group that is changed so.
    pub fn of(&self, group: &GroupConfig) -> GroupConfig {
        let limit = |new: Option<Limit>, old| new.map_or(old, Limit::value);
        GroupConfig {
            name: group.name.clone(),
            limit_iops: limit(self.limit_iops, group.limit_iops),
            limit_mbps: limit(self.limit_mbps, group.limit_mbps),
        }
    }
}
