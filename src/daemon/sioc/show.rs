//! What is shown of the datastores (`ferry datastore list`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::State;
use crate::daemon::Daemon;
use crate::qos::datastore::{Sioc, Threshold, ms};
use crate::qos::said::Home;

impl Daemon {
    /// `ferry datastore list`.
    pub fn datastore_lines(&self) -> Value {
        let state = self.sioc.state();
        let named = state.said.datastores.keys();
        let with_disks = state.datastores.iter().filter(|(path, datastore)| {
            !path.as_os_str().is_empty() && !datastore.steering().members.is_empty()
        });
        let paths: BTreeSet<PathBuf> = named
            .chain(with_disks.map(|(path, _)| path))
            .cloned()
            .collect();
        let lines: Vec<Value> = paths
            .iter()
            .map(|path| self.datastore_line(&state, path))
            .collect();
        json!({ "datastores": lines })
    }

    pub(super) fn datastore_line(&self, state: &State, path: &Path) -> Value {
        let there = state.datastores.get(path);
        let said = state.said.datastores.get(path);
        let home = Home {
            path: path.to_owned(),
            named: said.is_some(),
            qos: said.cloned().unwrap_or_default(),
        };
        let settings = home.settings();
        let disks: Vec<_> = there.map_or(Vec::new(), |it| {
            let steering = it.steering();
            let disks = steering.members.iter();
            disks.map(|member| member.id.clone()).collect()
        });
        let threshold = match settings.threshold {
            Threshold::Auto => json!("auto"),
            Threshold::Ns(ns) => json!(ms(ns)),
        };
        let threshold_ns = there.map_or(settings.threshold_ns(), |it| it.settings().1);
        let mut line = json!({
            "path": path,
            "named": home.named,
            "sioc": settings.sioc,
            "medium": settings.medium.name(),
            "medium_said": home.qos.medium.is_some(),
            "threshold_ms": threshold,
            "threshold_ms_now": ms(threshold_ns),
            "stats_period_ms": settings.period_ns / 1_000_000,
            "unmanaged": settings.unmanaged,
            "cost": settings.cost,
            "divide": settings.divide,
            "disks": disks,
        });
        if let Some(there) = there.filter(|_| settings.sioc != Sioc::Off) {
            there.status().add_to(&mut line);
        }
        line
    }
}
