//! Disks that grow while a guest uses them.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferry_bench::frontend::{Op, QueueOptions, Status, VmmOptions};
use ferry_dataplane::backend::file::{Cache, Image};
use ferry_dataplane::backend::grow::GrowError;
use ferry_dataplane::backend::thin::{Format, ThinImage, create};
use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::lifecycle::{DiskLifecycle, WriteTap};
use ferry_vhost::blk::resize::ResizeError;

use crate::rig::{Guest, Host, MIB, Served, image_at, memory_disk, options};

const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const NEED_REPLY: u32 = 8;

/// A guest whose front-end listens to the back-end.
fn listening(served: &Served, queues: u16) -> (Guest, UnixStream) {
    let options = VmmOptions {
        // Whatever is offered.
        protocol: options().protocol | !options().protocol,
        ..options()
    };
    let mut guest = Guest::start_with(served, queues, options, QueueOptions::default());
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let sent = guest.vmm.raw_request(
        SET_BACKEND_REQ_FD,
        NEED_REPLY,
        &[],
        &[theirs.as_raw_fd()],
        true,
    );
    assert_eq!(sent.unwrap().unwrap().body, [0; 8]);
    (guest, ours)
}

/// Size of the disk in bytes, as the front-end reads it now.
fn told(guest: &mut Guest) -> u64 {
    let words = [0u32, 60, 0].map(u32::to_ne_bytes).concat();
    let asked = [words, vec![0; 60]].concat();
    let reply = guest
        .vmm
        .raw_request(GET_CONFIG, 0, &asked, &[], true)
        .unwrap()
        .unwrap();
    u64::from_le_bytes(reply.body[12..20].try_into().unwrap()) * 512
}

/// Request 2, version 1 and no flags, no body.
fn hear_change(channel: &mut UnixStream) {
    let mut heard = [0; 12];
    channel.read_exact(&mut heard).unwrap();
    assert_eq!(heard, *[2u32, 1, 0].map(u32::to_ne_bytes).concat());
}

fn beyond(guest: &mut Guest, queue: usize, sector: u64) -> Status {
    let buffer = guest.buffer(4096);
    guest.run(queue, Op::Write, sector, &[buffer])
}

fn cached(path: &Path) -> Backend {
    let image = Image::create_with(path, 4 * MIB, Cache::Writeback).unwrap();
    Backend::new(Store::Image(Arc::new(image)), false)
}

fn thin(path: &Path) -> Backend {
    create(path, Format::Qcow2, 4 * MIB).unwrap();
    let image = ThinImage::open(path, false).unwrap();
    Backend::new(Store::Thin(Arc::new(image)), false)
}

#[test]
fn a_disk_grows_under_its_guest_and_the_front_end_is_told() {
    let host = Host::new(2);
    let at = |name: &str| host.dir().join(name);
    for backend in [
        image_at(&at("direct"), 4 * MIB),
        cached(&at("cached")),
        thin(&at("thin")),
    ] {
        let served = host.serve(&backend, 2);
        let (mut guest, mut channel) = listening(&served, 2);
        let (old, new) = (4 * MIB / 512, 8 * MIB / 512);
        guest.write(0, old - 8, &[1; 4096]);
        assert_eq!(beyond(&mut guest, 0, old), Status::IoErr);
        assert_eq!(beyond(&mut guest, 1, old), Status::IoErr);

        assert!(served.device.resize(8 * MIB).unwrap());
        hear_change(&mut channel);
        assert_eq!(told(&mut guest), 8 * MIB);
        // Both queues serve the new range, which reads as zeroes, up to its end.
        assert_eq!(
            guest.read(0, old - 8, 8192),
            [[1; 4096], [0; 4096]].concat()
        );
        guest.write(1, old, &[2; 4096]);
        guest.write(0, new - 8, &[3; 4096]);
        assert_eq!(
            guest.read(0, old - 8, 8192),
            [[1; 4096], [2; 4096]].concat()
        );
        assert_eq!(guest.read(1, new - 8, 4096), [3; 4096]);
        assert_eq!(beyond(&mut guest, 0, new), Status::IoErr);

        // No smaller, and in whole blocks.
        let refused = served.device.resize(4 * MIB);
        assert!(
            matches!(refused, Err(ResizeError::Grow(GrowError::Smaller { has, .. })) if has == 8 * MIB)
        );
        let refused = served.device.resize(8 * MIB + 1);
        assert!(matches!(
            refused,
            Err(ResizeError::Grow(GrowError::Ragged { .. }))
        ));
        assert_eq!(told(&mut guest), 8 * MIB);
        // The next guest sees it from the start, and this one's channel is not used any more.
        drop(guest);
        let mut next = Guest::start(&served, 1);
        assert_eq!(next.read(0, new - 8, 4096), [3; 4096]);
        assert!(!served.device.resize(12 * MIB).unwrap());
        assert_eq!(beyond(&mut next, 0, 12 * MIB / 512 - 8), Status::Ok);
    }
}

#[test]
fn a_front_end_that_does_not_listen_holds_nothing_up() {
    let host = Host::new(1);
    let served = host.serve(&image_at(&host.dir().join("d"), 4 * MIB), 1);
    let (mut guest, channel) = listening(&served, 1);
    let mut unheard = 0;
    for _ in 0..2000 {
        unheard += u32::from(!served.device.resize(8 * MIB).unwrap());
    }
    assert!(unheard > 0, "the channel is never full");
    drop(channel);
    assert!(!served.device.resize(8 * MIB).unwrap());
    guest.write(0, 8 * MIB / 512 - 8, &[9; 4096]);
}

#[test]
fn what_cannot_grow_says_why_and_stays_as_it_is() {
    let host = Host::new(1);
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = image_at(&host.dir().join("d"), 4 * MIB);
    let read_only = Backend {
        read_only: true,
        ..image.clone()
    };
    for (backend, why) in [
        (memory_disk(4 * MIB), "in memory"),
        (image_at(&tmpfs.path().join("t"), 4 * MIB), "truncate -s"),
        (read_only, "read-only"),
    ] {
        let served = host.serve(&backend, 1);
        let error = served.device.resize(8 * MIB).unwrap_err().to_string();
        assert!(error.contains(why), "{why:?} is not in: {error}");
        assert_eq!(served.device.disk().geometry().capacity_bytes, 4 * MIB);
    }
    let served = host.serve(&image, 1);
    let (events, _queue) = crossbeam_channel::bounded(16);
    let tap = WriteTap {
        failed: Arc::default(),
        events,
        patience_ns: 1_000_000_000,
    };
    served.device.attach_tap(tap).unwrap();
    let refused = served.device.resize(8 * MIB);
    assert!(matches!(
        refused,
        Err(ResizeError::Grow(GrowError::Mirrored))
    ));
    served.device.detach_tap();
    assert!(!served.device.resize(8 * MIB).unwrap());
}
