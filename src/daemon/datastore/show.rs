//! What is shown of the leases (`ferry lease show`).

use std::sync::Arc;

use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use super::{Datastore, MS, lock, now_ns};
use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::daemon::shared::SharedImage;
use crate::error::{Done, Failure};

impl Datastore {
    /// A disk's line of it.
    fn line(&self, served: &Served, shared: &SharedImage) -> Done<Value> {
        let newest = shared.newest()?;
        let mine = newest
            .as_ref()
            .is_some_and(|(_, link)| shared.is_mine(link));
        let (silent_ms, lease_ms) = newest
            .as_ref()
            .and_then(|(_, link)| {
                let others = lock(&self.others);
                let other = others.get(&link.owner)?;
                Some((other.watch.silent_ns() / MS, other.lease_ms))
            })
            .unwrap_or((0, self.settings.lease_ms));
        let left = lock(&self.holder).ends_ns().saturating_sub(now_ns()) / MS;
        let state = match &newest {
            None => "unclaimed",
            Some(_) if mine && left > 0 => "held",
            Some(_) if mine => "lapsed",
            Some((_, link)) if self.is_over(link.owner) => "over",
            Some(_) => "elsewhere",
        };
        Ok(json!({
            "id": served.config.id,
            "disk": served.ownership.disk_uuid(),
            "datastore": self.root(),
            "fence": self.settings.fence,
            "phase": served.ownership.phase().name(),
            "lease": state,
            "epoch": newest.as_ref().map(|(epoch, _)| epoch),
            "owner": newest.as_ref().map(|(_, link)| link.owner),
            "address": newest.as_ref().map(|(_, link)| &link.address),
            "here": mine,
            "left_ms": mine.then_some(left),
            "silent_ms": (!mine && newest.is_some()).then_some(silent_ms),
            "over_after_ms": (!mine).then_some(lease_ms + self.settings.io_ms),
            "trouble": *lock(&self.trouble),
        }))
    }
}

impl Daemon {
    /// `ferry lease show`.
    pub fn leases(&self, id: Option<&DiskId>) -> Done<Value> {
        let disks: Vec<Arc<Served>> = match id {
            Some(id) => vec![self.disk(id)?],
            None => self.disks().values().cloned().collect(),
        };
        let mut lines = Vec::new();
        for served in &disks {
            match &served.shared {
                Some(shared) => lines.push(shared.datastore.line(served, shared)?),
                None if id.is_some() => {
                    return Err(Failure::Failed(format!(
                        "disk {} is not shared between hosts, so there is no lease on it",
                        served.config.id
                    )));
                }
                None => {}
            }
        }
        Ok(json!({ "leases": lines }))
    }
}
