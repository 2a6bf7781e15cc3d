//! What a disk is to get of its datastore, checked. It moves with the disk, so that a move is no way
//! to a larger share, nor to a fresh burst.

use std::str::FromStr;

use ferry_dataplane::qos::{Policy, SHARES_MAX};

use super::qos_v1::QosV1;
use super::{SchemaError, invalid};
use crate::ids::DiskId;

/// The most credit that a state may say; no limit has a burst as long.
pub const CREDIT_NS_MAX: u64 = 10_000_000_000;

/// As it was checked by [`check_qos`], where it came from a peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qos {
    /// Shares, limits and reservation.
    pub policy: Policy,
    /// What is left of the limit's burst, in nanoseconds of the limit's rate.
    pub credit_ns: u64,
    /// The group whose limit it is under besides: a name in the letters of a disk's.
    pub group: Option<String>,
}

impl Qos {
    pub(super) fn from_v1(it: QosV1) -> Result<Qos, SchemaError> {
        let qos = Qos {
            policy: Policy {
                shares: it.shares,
                limit_iops: it.limit_iops,
                limit_bytes: it.limit_bytes,
                reservation_iops: it.reservation_iops,
            },
            credit_ns: it.credit_ns,
            group: it.group,
        };
        check_qos(&qos)?;
        Ok(qos)
    }

    pub(super) fn to_v1(&self) -> QosV1 {
        QosV1 {
            shares: self.policy.shares,
            limit_iops: self.policy.limit_iops,
            limit_bytes: self.policy.limit_bytes,
            reservation_iops: self.policy.reservation_iops,
            credit_ns: self.credit_ns,
            group: self.group.clone(),
        }
    }
}

/// Checks what a disk is to get.
pub fn check_qos(qos: &Qos) -> Result<(), SchemaError> {
    let policy = &qos.policy;
    if !(1..=SHARES_MAX).contains(&policy.shares) {
        return Err(invalid(format!("{} shares", policy.shares)));
    }
    if policy.limit_iops == Some(0) || policy.limit_bytes == Some(0) {
        return Err(invalid("a limit of nothing".into()));
    }
    if qos.credit_ns > CREDIT_NS_MAX {
        return Err(invalid(format!("a credit of {} ns", qos.credit_ns)));
    }
    if let Some(group) = &qos.group
        && DiskId::from_str(group).is_err()
    {
        return Err(invalid("a group whose name is none".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
