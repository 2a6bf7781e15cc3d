//! The rig on trial itself, with a server that is known to work: when this
//! fails, look at QEMU and the guest before you look at Ferry.

use libtest_mimic::Trial;
use serde_json::json;

use crate::ensure;
use crate::harness::guest::{Guest, Machine, Qemu};
use crate::harness::storage_daemon::StorageDaemon;
use crate::harness::trial::with_qemu;
use crate::harness::wait::secs;
use crate::harness::{Check, TestDir, image};

pub fn trials() -> Vec<Trial> {
    with_qemu(&[("rig_moves_a_guest_between_storage_daemons", guest_moves)])
}

fn guest_moves(dir: &TestDir) -> Check {
    let machine = Machine::default();
    let disk = dir.path("disk.img");
    image::create(&disk, 64 * image::MIB)?;
    let a = StorageDaemon::spawn(dir, "qsd-a", &disk, machine.queues)?;
    let b = StorageDaemon::spawn(dir, "qsd-b", &disk, machine.queues)?;
    let mut guest = Guest::boot(dir, "a-0", &machine, &[a.socket()])?;
    guest.expect("echo moved | dd of=/dev/vda conv=fsync 2>/dev/null")?;
    guest.spawn_bg("beat", "while :; do echo tick; sleep 1; done")?;

    let mut there = Qemu::incoming(dir, "b-1", &machine, &[b.socket()])?;
    let uri = format!("unix:{}", dir.path("move").display());
    there.listen(&uri)?;
    guest.qmp().prepare_migration()?;
    guest.qmp().execute("migrate", &json!({ "uri": uri }))?;
    guest.qmp().wait_migration("pre-switchover", secs(60))?;
    guest.qmp().migrate_continue()?;
    guest.qmp().wait_migration("completed", secs(60))?;
    there.qmp.run("cont")?;
    drop(guest.arrive(there));

    let found = guest.expect("dd if=/dev/vda bs=6 count=1 iflag=direct,fullblock 2>/dev/null")?;
    let found = if found.is_empty() {
        guest.expect("head -c 5 /dev/vda")?
    } else {
        found
    };
    ensure!(
        found.starts_with("moved"),
        "the guest read {found:?} after its move"
    );
    ensure!(
        guest.bg_status("beat")?.is_none(),
        "the guest's job ended in the move"
    );
    guest.ensure_no_disk_errors()
}
