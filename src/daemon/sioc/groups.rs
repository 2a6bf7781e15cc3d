//! Groups of disks under one limit.

use std::sync::Arc;

use ferry_dataplane::clock::now_ns;
use serde_json::{Value, json};

use super::State;
use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::daemon::kept;
use crate::error::{Done, Failure};
use crate::name::Name;
use crate::qos::group::{GroupChange, GroupConfig};

impl Daemon {
    /// `ferry group set`: makes it if it is not there.
    pub fn set_group(&self, change: &GroupChange) -> Done<Value> {
        change.check()?;
        let name = &change.name;
        let mut state = self.sioc.state();
        let known = state.said.groups.get(name).cloned();
        let config = change.of(&known.unwrap_or_else(|| GroupConfig::new(name.clone())));
        config.check()?;
        let lasting = !self.is_configured(name);
        if lasting {
            kept::store(&self.config.state_dir, &config)?;
        }
        let group = state.groups.entry(name.clone()).or_default().clone();
        group.set(now_ns(), config.limit_iops, config.limit_bytes());
        state.said.groups.insert(name.clone(), config);
        for served in self.members(name) {
            if let Some(controlled) = &*served.controlled() {
                // One that lost its group is back in it.
                if controlled.control.group().is_none() {
                    controlled.control.set_group(Some(group.clone()));
                }
                controlled.datastore.domain.announce();
            }
            served.device.disk().wake();
        }
        let mut line = self.group_line(&state, name);
        line["lasting"] = lasting.into();
        Ok(line)
    }

    /// `ferry group remove`.
    pub fn remove_group(&self, name: &Name) -> Done<Value> {
        let mut state = self.sioc.state();
        if !state.groups.contains_key(name) {
            return Err(Failure::Failed(format!(
                "there is no group {name}; ferry group list names those there are"
            )));
        }
        if let Some(served) = self.members(name).first() {
            let id = &served.config.id;
            return Err(Failure::Failed(format!(
                "disk {id} is in group {name}; take it out first: ferry disk set {id} --group none"
            )));
        }
        if self.is_configured(name) {
            return Err(Failure::Failed(format!(
                "group {name} is in the daemon's configuration; remove it there, and start the daemon \
                 again"
            )));
        }
        kept::remove::<GroupConfig>(&self.config.state_dir, name)?;
        state.groups.remove(name);
        state.said.groups.remove(name);
        Ok(json!({ "removed": name.as_str() }))
    }

    /// `ferry group list`.
    pub fn group_lines(&self) -> Value {
        let state = self.sioc.state();
        let names = state.said.groups.keys();
        let lines: Vec<Value> = names.map(|name| self.group_line(&state, name)).collect();
        json!({ "groups": lines })
    }

    fn group_line(&self, state: &State, name: &Name) -> Value {
        let config = &state.said.groups[name];
        let disks: Vec<_> = self.members(name);
        let disks: Vec<_> = disks.iter().map(|it| it.config.id.clone()).collect();
        json!({
            "name": name.as_str(),
            "limit_iops": config.limit_iops,
            "limit_mbps": config.limit_mbps,
            "disks": disks,
        })
    }

    fn is_configured(&self, name: &Name) -> bool {
        self.config.groups.iter().any(|it| it.name == *name)
    }

    fn members(&self, name: &Name) -> Vec<Arc<Served>> {
        let disks: Vec<Arc<Served>> = self.disks().values().cloned().collect();
        let of_it = |served: &Arc<Served>| served.qos().group.as_ref() == Some(name);
        disks.into_iter().filter(of_it).collect()
    }
}
