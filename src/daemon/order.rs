//! The order in which disks are taken up: those of a machine each after the ones that it needs.

use std::collections::BTreeMap;

use ferry_migration::ids::DiskId;

use super::Daemon;
use super::add::Origin;
use crate::config::DiskConfig;
use crate::escalation::settings::VmConfig;
use crate::events::{About, What};

/// A machine's disks stand together, in its order, where its first one was; all else stays.
pub fn in_order(
    mut disks: Vec<(DiskConfig, Origin)>,
    vms: &[VmConfig],
) -> Vec<(DiskConfig, Origin)> {
    let mut ordered = Vec::with_capacity(disks.len());
    while !disks.is_empty() {
        let first = &disks[0].0.id;
        let Some(vm) = vms.iter().find(|vm| vm.disks.contains(first)) else {
            ordered.push(disks.remove(0));
            continue;
        };
        for id in &vm.disks {
            let at = disks.iter().position(|(disk, _)| disk.id == *id);
            ordered.extend(at.map(|at| disks.remove(at)));
        }
    }
    ordered
}

impl Daemon {
    /// Takes disks up. One that cannot be served must not keep the others from their machines, but
    /// for those of its own machine that come after it.
    pub(super) fn take_up_in_order(&self, disks: Vec<(DiskConfig, Origin)>) {
        // Of each machine the disk that failed, if one did.
        let mut failed: BTreeMap<&str, DiskId> = BTreeMap::new();
        for (disk, origin) in in_order(disks, &self.config.vms) {
            let id = disk.id.clone();
            let vm = self.config.vm_of(&id).map(|vm| vm.name.as_str());
            let about = About {
                vm,
                disk: Some(&id),
            };
            let needed = vm.and_then(|vm| failed.get(vm));
            let taken_up = match needed {
                None => self
                    .add_disk_from(disk, origin)
                    .map_err(|why| why.to_string()),
                Some(needed) => Err(format!(
                    "disk {needed}, which comes before it in its vm, could not be taken up; mend \
                     that and start the daemon again, or add both with ferry disk add"
                )),
            };
            match taken_up {
                Ok(_) => self
                    .events
                    .note(What::DiskUp, about, "the disk was taken up"),
                Err(why) => {
                    let text = format!("the disk is not served: {why}");
                    self.events.note(What::DiskRefused, about, text);
                    if let Some(vm) = vm {
                        failed.entry(vm).or_insert_with(|| id.clone());
                    }
                    self.escalation.set_problem(&id, why);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_disks_stand_together_in_its_order() {
        let disk = |id: &str| {
            let text = format!("id = '{id}'\npath = 'null:1M'");
            (toml::from_str(&text).unwrap(), Origin::Configured)
        };
        let vm = |name: &str, disks: &str| {
            toml::from_str(&format!("name = '{name}'\ndisks = {disks}")).unwrap()
        };
        let vms = [vm("a", "['a1', 'a2', 'a3']"), vm("b", "['b2', 'b1']")];
        let disks = ["x", "a3", "b1", "a1", "y", "b2"].map(disk).to_vec();
        let order: Vec<_> = in_order(disks, &vms)
            .into_iter()
            .map(|(disk, _)| disk.id.to_string())
            .collect();
        assert_eq!(order, ["x", "a1", "a3", "b2", "b1", "y"]);
    }
}
