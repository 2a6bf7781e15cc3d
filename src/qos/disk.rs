//! What a disk is to get of its datastore.

use std::str::FromStr;

use clap::Args;
use ferry_dataplane::qos::Policy;
use ferry_migration::ids::DiskId;
use serde::{Deserialize, Serialize};

use super::shares::Shares;
use super::{MB, check_limit};
use crate::error::{Done, Failure};
use crate::limit::Limit;
use crate::name::Name;

/// As a disk's section, and `ferry disk add`, say it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct DiskQos {
    /// Its part of the datastore while that is congested: low, normal, high, or a number; normal
    /// unless given.
    #[arg(long)]
    pub shares: Option<Shares>,
    /// No more I/Os than so many a second.
    #[arg(long, value_name = "N")]
    pub limit_iops: Option<u64>,
    /// No more megabytes (of 1,000,000 bytes) than so many a second.
    #[arg(long, value_name = "N")]
    pub limit_mbps: Option<u64>,
    /// At least so many I/Os a second, whatever the others' shares.
    #[arg(long, value_name = "N")]
    pub reservation: Option<u64>,
    /// The group whose limits it is under, together with others.
    #[arg(long, value_name = "G")]
    pub group: Option<Name>,
}

impl DiskQos {
    /// What says the same as the engine's words.
    pub fn of(policy: &Policy, group: Option<Name>) -> DiskQos {
        DiskQos {
            shares: Shares::of(policy.shares),
            limit_iops: policy.limit_iops,
            limit_mbps: policy.limit_bytes.map(|bytes| bytes.div_ceil(MB)),
            reservation: Some(policy.reservation_iops).filter(|iops| *iops > 0),
            group,
        }
    }

    /// Checks what types cannot say.
    pub fn check(&self) -> Result<(), String> {
        check_limit("limit_iops", self.limit_iops)?;
        check_limit("limit_mbps", self.limit_mbps)?;
        check_limit("reservation", self.reservation)?;
        if let (Some(reservation), Some(limit)) = (self.reservation, self.limit_iops)
            && reservation > limit
        {
            return Err(format!(
                "a reservation of {reservation} I/Os a second is above limit_iops = {limit}; raise \
                 the limit, or lower the reservation"
            ));
        }
        Ok(())
    }

    /// Its part under congestion.
    pub fn shares(&self) -> Shares {
        self.shares.unwrap_or_default()
    }

    /// Whether anything bounds it by itself.
    pub fn is_limited(&self) -> bool {
        self.limit_iops.is_some() || self.limit_mbps.is_some()
    }

    /// The same in the engine's words.
    pub fn policy(&self) -> Policy {
        Policy {
            shares: self.shares().number(),
            limit_iops: self.limit_iops,
            limit_bytes: self.limit_mbps.map(|mbps| mbps * MB),
            reservation_iops: self.reservation.unwrap_or(0),
        }
    }
}

/// The group that a disk is to be in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Membership {
    /// None.
    None,
    /// This one.
    Of(Name),
}

impl TryFrom<String> for Membership {
    type Error = String;

    fn try_from(text: String) -> Result<Membership, String> {
        match text.as_str() {
            "none" => Ok(Membership::None),
            _ => Name::try_from(text).map(Membership::Of),
        }
    }
}

impl FromStr for Membership {
    type Err = String;

    fn from_str(text: &str) -> Result<Membership, String> {
        Membership::try_from(text.to_owned())
    }
}

impl From<Membership> for String {
    fn from(membership: Membership) -> String {
        match membership {
            Membership::None => "none".into(),
            Membership::Of(name) => name.to_string(),
        }
    }
}

/// What `ferry disk set` sends: what is not said stays.
#[derive(Debug, Clone, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields)]
pub struct DiskChange {
    /// Its name.
    pub id: DiskId,
    /// Its part of the datastore while that is congested: low, normal, high, or a number.
    #[arg(long)]
    pub shares: Option<Shares>,
    /// No more I/Os than so many a second, or "none" for no limit.
    #[arg(long, value_name = "N")]
    pub limit_iops: Option<Limit>,
    /// No more megabytes (of 1,000,000 bytes) than so many a second, or "none".
    #[arg(long, value_name = "N")]
    pub limit_mbps: Option<Limit>,
    /// At least so many I/Os a second, whatever the others' shares, or "none".
    #[arg(long, value_name = "N")]
    pub reservation: Option<Limit>,
    /// The group whose limits it is under, together with others, or "none".
    #[arg(long, value_name = "G")]
    pub group: Option<Membership>,
}

impl DiskChange {
    /// Whether it says anything.
    pub fn check(&self) -> Done {
        let limits = [self.limit_iops, self.limit_mbps, self.reservation];
        if self.shares.is_none() && self.group.is_none() && limits.iter().all(Option::is_none) {
            return Err(Failure::Usage(format!(
                "disk {}: say what to set: --shares, --limit-iops, --limit-mbps, --reservation or \
                 --group",
                self.id
            )));
        }
        Ok(())
    }

    /// What a disk is to get that is changed so.
    pub fn of(&self, qos: &DiskQos) -> DiskQos {
        let limit = |new: Option<Limit>, old| new.map_or(old, Limit::value);
        DiskQos {
            shares: self.shares.or(qos.shares),
            limit_iops: limit(self.limit_iops, qos.limit_iops),
            limit_mbps: limit(self.limit_mbps, qos.limit_mbps),
            reservation: limit(self.reservation, qos.reservation),
            group: match &self.group {
                None => qos.group.clone(),
                Some(Membership::None) => None,
                Some(Membership::Of(name)) => Some(name.clone()),
            },
        }
    }
}
