//! What commands change, while disks are served: at once, and for the next start.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use ferry_dataplane::clock::now_ns;
use serde_json::Value;

use super::Datastore;
use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::daemon::kept::{self, Kept, KeptDatastore};
use crate::error::{Done, Failure};
use crate::qos::datastore::DatastoreQos;
use crate::qos::disk::DiskChange;
use crate::qos::picture;

impl Daemon {
    /// `ferry disk set`.
    pub fn set_disk(&self, change: &DiskChange) -> Done<Value> {
        change.check()?;
        let served = self.disk(&change.id)?;
        let wrong = |what| Failure::Usage(format!("disk {}: {what}", change.id));
        // A group that is there now is there until this is done.
        let state = self.sioc.state();
        let mut qos = served.qos();
        let new = change.of(&qos);
        new.check().map_err(wrong)?;
        let group = match &new.group {
            None => None,
            Some(name) => Some(state.groups.get(name).cloned().ok_or_else(|| {
                Failure::Failed(format!(
                    "disk {}: there is no group {name}; make it: ferry group set {name} \
                     --limit-iops N",
                    change.id
                ))
            })?),
        };
        // What the daemon's configuration says counts at its next start.
        let lasting = !self.config.disks.iter().any(|it| it.id == change.id);
        if lasting {
            let kept = Kept {
                disk: served.config.with_qos(new.clone()),
                unannounced: served.unannounced,
            };
            kept::store(&self.config.state_dir, &kept)?;
        }
        let other_group = new.group != qos.group;
        *qos = new;
        let policy = qos.policy();
        drop(qos);
        if let Some(controlled) = &*served.controlled() {
            controlled.control.set_policy(now_ns(), policy);
            if other_group {
                controlled.control.set_group(group);
            }
        }
        drop(state);
        served.device.disk().wake();
        let mut line = served.line();
        line["lasting"] = lasting.into();
        Ok(line)
    }

    /// `ferry datastore set`.
    pub fn set_datastore(&self, path: &Path, change: &DatastoreQos) -> Done<Value> {
        let wrong = |what: String| Failure::Usage(format!("datastore {}: {what}", path.display()));
        if change.is_empty() {
            return Err(wrong("say what to set".into()));
        }
        change.check().map_err(wrong)?;
        let path = std::fs::canonicalize(path)
            .map_err(|error| Failure::Failed(format!("datastore {}: {error}", path.display())))?;
        let is_device = std::fs::metadata(&path).is_ok_and(|it| it.file_type().is_block_device());
        if !path.is_dir() && !is_device {
            return Err(wrong("it is neither a directory nor a block device".into()));
        }
        let mut state = self.sioc.state();
        let lasting = self.keep_datastore(&path, change)?;
        let live = state.said.datastores.entry(path.clone()).or_default();
        *live = change.or(live);
        let live = live.clone();
        let again = change.threshold_ms.is_some();
        if again {
            state.said.found.remove(&path);
        }
        if let Some(datastore) = state.datastores.get(&path).cloned() {
            datastore.set(live, again);
            datastore.steer()?;
        }
        // A datastore that was only named now takes its disks from those around it.
        let disks: Vec<Arc<Served>> = self.disks().values().cloned().collect();
        for served in &disks {
            let home = super::home_of(&state.said, served);
            let at_home = served
                .controlled()
                .as_ref()
                .is_none_or(|it| it.datastore.path == home.path);
            if !at_home {
                self.control_in(&mut state, served)?;
            }
        }
        let mut line = self.datastore_line(&state, &path);
        line["lasting"] = lasting.into();
        let configs: Vec<_> = disks.iter().map(|served| served.config_now()).collect();
        let about = path.display().to_string();
        let findings = picture::judge_said(&state.said, &configs).into_iter();
        let findings: Vec<_> = findings.filter(|it| it.about == about).collect();
        line["findings"] = serde_json::to_value(&findings)?;
        Ok(line)
    }

    /// Keeps what is said, and says whether the next start will do the same: what the configuration
    /// says then counts.
    fn keep_datastore(&self, path: &Path, change: &DatastoreQos) -> Done<bool> {
        let kept = kept::load::<KeptDatastore>(&self.config.state_dir);
        let before = kept.into_iter().find(|it| it.path == path);
        let mut kept = before.unwrap_or_else(|| KeptDatastore::plain(path));
        kept.qos = change.or(&kept.qos);
        if change.threshold_ms.is_some() {
            kept.found_ns = None;
        }
        kept::store(&self.config.state_dir, &kept)?;
        let section = self.config.datastores.iter().find(|it| it.path == path);
        Ok(section.is_none_or(|it| change.conflicts(&it.qos()).is_empty()))
    }
}

impl Datastore {
    /// Keeps a threshold that was found by trying, and goes by it.
    pub(super) fn found(&self, found_ns: u64) {
        self.steering().found_ns = Some(found_ns);
        self.look_now();
        let Some(daemon) = self.daemon.upgrade() else {
            return;
        };
        let state_dir = &daemon.config.state_dir;
        let kept = kept::load::<KeptDatastore>(state_dir);
        let before = kept.into_iter().find(|it| it.path == self.path);
        let mut kept = before.unwrap_or_else(|| KeptDatastore::plain(&self.path));
        kept.found_ns = Some(found_ns);
        if let Err(error) = kept::store(state_dir, &kept) {
            tracing::warn!(datastore = %self.path.display(), %error,
                "the threshold that was found will be looked for again");
        }
    }

    /// Steers it otherwise from now on.
    fn set(&self, qos: DatastoreQos, look_again: bool) {
        let mut steering = self.steering();
        if look_again {
            steering.found_ns = None;
        }
        steering.home.named = true;
        steering.home.qos = qos;
        steering.settings = steering.home.settings();
        let settings = steering.settings;
        drop(steering);
        self.domain
            .set_model(settings.cost_model(), settings.medium);
        self.look_now();
    }
}
