//! What a disk is to get goes with it when it moves, and what it came with counts where it arrives.

use std::sync::{Arc, Weak};

use ferry_dataplane::clock::now_ns;
use ferry_vhost::blk::qos::{Qos, QosKeeper};

use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::daemon::kept::{self, Kept};
use crate::name::Name;
use crate::qos::disk::DiskQos;

/// Keeps one disk's.
pub struct Keeper {
    daemon: Weak<Daemon>,
    served: Weak<Served>,
}

impl Keeper {
    pub fn new(daemon: &Weak<Daemon>, served: &Arc<Served>) -> Keeper {
        Keeper {
            daemon: daemon.clone(),
            served: Arc::downgrade(served),
        }
    }
}

impl QosKeeper for Keeper {
    /// Of a disk of which nothing was said the other side may know more.
    fn qos(&self) -> Option<Qos> {
        let served = self.served.upgrade()?;
        let said = served.qos().clone();
        if said == DiskQos::default() {
            return None;
        }
        let controlled = served.controlled();
        let booked_ns = controlled
            .as_ref()
            .map_or(0, |it| it.control.booked_ns(now_ns()));
        Some(Qos {
            policy: said.policy(),
            credit_ns: booked_ns.min(0).unsigned_abs(),
            group: said.group.map(|name| name.to_string()),
        })
    }

    fn take_qos(&self, qos: Qos) {
        let (Some(daemon), Some(served)) = (self.daemon.upgrade(), self.served.upgrade()) else {
            return;
        };
        let id = &served.config.id;
        let group = qos.group.and_then(|name| Name::try_from(name).ok());
        let state = daemon.sioc.state();
        let arrived = DiskQos::of(&qos.policy, group);
        *served.qos() = arrived.clone();
        let group = arrived
            .group
            .as_ref()
            .map(|name| (name, state.groups.get(name).cloned()));
        if let Some((name, None)) = &group {
            tracing::warn!(disk = %id, group = %name,
                "the disk came from a group that is not here: it is under no limits but its own; make it \
                 with ferry group set");
        }
        if let Some(controlled) = &*served.controlled() {
            let now_ns = now_ns();
            let control = &controlled.control;
            control.set_policy(now_ns, arrived.policy());
            control.set_group(group.and_then(|(_, group)| group));
            let credit_ns = i64::try_from(qos.credit_ns).unwrap_or(0);
            control.set_booked(now_ns, -credit_ns);
        }
        drop(state);
        served.device.disk().wake();
        if daemon.config.disks.iter().any(|it| it.id == *id) {
            return;
        }
        let kept = Kept {
            disk: served.config_now(),
            unannounced: served.unannounced,
        };
        if let Err(error) = kept::store(&daemon.config.state_dir, &kept) {
            tracing::warn!(disk = %id, %error, "what the disk is to get is forgotten with the next start");
        }
    }
}
