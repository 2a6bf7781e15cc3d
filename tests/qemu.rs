//! Tests with real guests under QEMU: the disk as a guest sees it, moves of a
//! running guest between two daemons, and daemons that are killed under it.
//!
//! ```text
//!   cargo test --test qemu                       all of them, one after another
//!   cargo test --test qemu -- discard            those whose name has the word
//!   FERRY_KEEP=1 cargo test --test qemu -- NAME  keeps the folder with the logs
//! ```

#[path = "qemu/broken_moves.rs"]
mod broken_moves;
#[path = "qemu/disk.rs"]
mod disk;
mod harness;
#[path = "qemu/kills.rs"]
mod kills;
#[path = "qemu/moves.rs"]
mod moves;
#[path = "qemu/nic.rs"]
mod nic;
#[path = "qemu/nic_moves.rs"]
mod nic_moves;
#[path = "qemu/offloads.rs"]
mod offloads;
#[path = "qemu/pull.rs"]
mod pull;
#[path = "qemu/rig.rs"]
mod rig;
#[path = "qemu/shared.rs"]
mod shared;
#[path = "qemu/talks.rs"]
mod talks;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    // Two guests at a time on two cores would only time each other out, and
    // a child's life hangs on the thread that spawned it.
    arguments.test_threads = Some(1);
    let trials = [
        rig::trials(),
        disk::trials(),
        moves::trials(),
        broken_moves::trials(),
        pull::trials(),
        shared::trials(),
        nic::trials(),
        talks::trials(),
        nic_moves::trials(),
        offloads::trials(),
        kills::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit();
}
