//! Thin disks: the same requests, and a load, on clones of one base.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ferry_bench::frontend::{Op, QueueOptions, Status};
use ferry_dataplane::backend::thin::{Format, LinkedClone, ThinImage};
use ferry_dataplane::backend::{Backend, Store};

use crate::requests::every_request;
use crate::rig::{Guest, Host, MIB, assert_clean, finish, load, options, plan};

/// A base of zeroes, so that a load may start on a clone.
fn base(host: &Host, bytes: u64) -> PathBuf {
    let path = host.dir().join("base.raw");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    path
}

fn clone(base: &Path, name: &str) -> PathBuf {
    let overlay = base.with_file_name(name);
    let clone = LinkedClone {
        base,
        base_format: Format::Raw,
        overlay: &overlay,
        size_bytes: None,
    };
    clone.make().unwrap();
    overlay
}

fn open(overlay: &Path) -> Backend {
    let image = ThinImage::open(overlay, false).unwrap();
    Backend::new(Store::Thin(Arc::new(image)), false)
}

/// QEMU finds neither corruption nor a leak, where it is installed.
fn assert_sound(overlay: &Path) {
    if let Ok(out) = Command::new("qemu-img").arg("check").arg(overlay).output() {
        assert!(out.status.success(), "{out:?}");
    }
}

#[test]
fn a_clone_does_every_request() {
    let host = Host::new(1);
    let overlay = clone(&base(&host, 16 * MIB), "o.qcow2");
    every_request(&host, &open(&overlay), 512);
    assert_sound(&overlay);
}

#[test]
fn two_clones_under_load_keep_apart_and_leave_their_base() {
    let host = Host::new(2);
    let base = base(&host, 32 * MIB);
    let before = std::fs::read(&base).unwrap();
    let overlays = [clone(&base, "a.qcow2"), clone(&base, "b.qcow2")];
    let served: Vec<_> = (0u64..)
        .zip(&overlays)
        .map(|(n, overlay)| {
            let name = format!("disk{n}");
            host.serve_as(
                &name,
                &open(overlay),
                2,
                ferry_dataplane::disk::Service::Open,
            )
        })
        .collect();
    let guests: Vec<_> = served
        .iter()
        .map(|served| Guest::start(served, 2))
        .collect();
    let loads: Vec<_> = (0u64..)
        .zip(&guests)
        .map(|(n, guest)| load(guest, 32, true, &plan(32 * MIB, 100 + n)))
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    for load in loads {
        assert_clean(load);
    }
    drop((guests, served));
    assert!(std::fs::read(&base).unwrap() == before, "the base changed");
    overlays.iter().for_each(|overlay| assert_sound(overlay));
}

/// More requests than the pool's queue has room for: they wait, and all are answered.
#[test]
fn a_full_pool_makes_requests_wait() {
    let host = Host::new(1);
    let base = base(&host, 16 * MIB);
    let queue = QueueOptions::default().with_depth(128);
    let parts: Vec<_> = (0..12)
        .map(|n| {
            let overlay = clone(&base, &format!("{n}.qcow2"));
            let how = ferry_dataplane::disk::Service::Open;
            let served = host.serve_as(&format!("disk{n}"), &open(&overlay), 1, how);
            let guest = Guest::start_with(&served, 1, options(), queue);
            (served, guest)
        })
        .collect();
    let mut parts = parts;
    for (_, guest) in &mut parts {
        let buffer = guest.buffer(4096);
        for at in 0..40 {
            let op = if at % 8 == 0 { Op::Flush } else { Op::Write };
            let data = if op == Op::Flush {
                &[][..]
            } else {
                &[buffer][..]
            };
            guest.queues[0].submit(op, at * 8, data).unwrap();
        }
        guest.queues[0].commit().unwrap();
    }
    for (_, guest) in &mut parts {
        for _ in 0..40 {
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
    }
}

/// The base is answered after the jobs: nothing is written to guest memory, or to the image, later.
#[test]
fn a_stop_waits_for_the_jobs() {
    let host = Host::new(1);
    let overlay = clone(&base(&host, 64 * MIB), "o.qcow2");
    let served = host.serve(&open(&overlay), 1);
    for round in 0..5u64 {
        let queue = QueueOptions::default().with_depth(64);
        let mut guest = Guest::start_with(&served, 1, options(), queue);
        let buffer = guest.buffer(4096);
        for at in 0..30 {
            let op = if at % 3 == 0 { Op::Read } else { Op::Write };
            let sector = (round * 30 + at) * 128;
            guest.queues[0].submit(op, sector, &[buffer]).unwrap();
        }
        guest.queues[0].commit().unwrap();
        let ring = guest.device.ring(0).unwrap();
        let bases = guest.vmm.stop().unwrap();
        assert_eq!(
            ring.used_index(),
            bases[0],
            "all that was taken is answered"
        );
    }
    drop(served);
    assert_sound(&overlay);
}

/// What a mirror copies is what the guest reads.
#[test]
fn the_control_side_reads_through_the_base() {
    let host = Host::new(1);
    let base = host.dir().join("base.raw");
    std::fs::write(&base, vec![7; 4 << 20]).unwrap();
    let overlay = clone(&base, "o.qcow2");
    let served = host.serve(&open(&overlay), 1);
    let mut guest = Guest::start(&served, 1);
    guest.write(0, 8, &[9; 512]);
    let mut expected = vec![7; 4 << 20];
    expected[4096..4608].fill(9);
    assert!(served.contents() == expected);
    let data = served.device.disk().next_data(0).unwrap();
    assert_eq!(data.map(|data| data.start), Some(0));
}
