//! A file on tmpfs: mapped, and served by copies.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferry_bench::frontend::{Op, Segment, Status};
use ferry_dataplane::backend::file::{Cache, Image, ImageError};
use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::disk::Service;

use crate::places::Small;
use crate::rig::{Guest, Host, MIB, assert_clean, image_at, load, memory_disk, plan};

/// A folder on tmpfs.
fn shm() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn taken(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn range(bytes: u64) -> Segment {
    Segment {
        addr: 0,
        len: u32::try_from(bytes).unwrap(),
    }
}

#[test]
fn a_stamped_load_from_two_workers() {
    let dir = shm();
    let host = Host::new(2);
    let served = host.serve(&image_at(&dir.path().join("disk.raw"), 8 * MIB), 2);
    let guest = Guest::start(&served, 2);
    let running = load(&guest, 16, true, &plan(8 * MIB, 31));
    std::thread::sleep(Duration::from_millis(800));
    assert_clean(running);
}

#[test]
fn reading_what_was_never_written_takes_no_memory() {
    let dir = shm();
    let path = dir.path().join("disk.raw");
    let host = Host::new(1);
    let served = host.serve(&image_at(&path, 4 * MIB), 1);
    let mut guest = Guest::start(&served, 1);
    for at in 0..4 {
        assert_eq!(guest.read(0, at * 2048, 1 << 20), vec![0; 1 << 20]);
    }
    assert_eq!(taken(&path), 0);
    guest.write(0, 801, &[7; 512]);
    assert_eq!(taken(&path), 4096);
    // What was there before is mapped when the file is opened again.
    drop((guest, served));
    let image = Image::open(&path, false).unwrap();
    let served = host.serve(&Backend::new(Store::Image(Arc::new(image)), false), 1);
    let mut guest = Guest::start(&served, 1);
    let mut wanted = vec![0; 4096];
    wanted[512..1024].fill(7);
    assert_eq!(guest.read(0, 800, 4096), wanted);
    assert_eq!(served.contents().len() as u64, 4 * MIB);
    assert_eq!(taken(&path), 4096);
}

#[test]
fn large_ranges_are_given_back_or_kept() {
    let dir = shm();
    let path = dir.path().join("disk.raw");
    let host = Host::new(1);
    let served = host.serve(&image_at(&path, 16 * MIB), 1);
    let mut guest = Guest::start(&served, 1);
    for at in 0..16 {
        guest.write(0, at * 2048, &[9; 1 << 20]);
    }
    assert_eq!(taken(&path), 16 * MIB);
    let keep = Op::WriteZeroes { unmap: false };
    assert_eq!(guest.run(0, keep, 0, &[range(4 * MIB)]), Status::Ok);
    assert_eq!(taken(&path), 16 * MIB);
    assert_eq!(
        guest.run(0, Op::Discard, 12 * 2048, &[range(4 * MIB)]),
        Status::Ok
    );
    assert_eq!(taken(&path), 12 * MIB);
    guest.write(0, 13 * 2048, &[8; 4096]);
    let seen = served.contents();
    let all =
        |from: u64, to: u64, byte: u8| seen[from as usize..to as usize].iter().all(|b| *b == byte);
    assert!(all(0, 4 * MIB, 0) && all(4 * MIB, 12 * MIB, 9) && all(12 * MIB, 13 * MIB, 0));
    assert!(all(13 * MIB, 13 * MIB + 4096, 8) && all(13 * MIB + 4096, 16 * MIB, 0));
}

/// Running out of room fails the request that needs it, and nothing else.
#[test]
fn a_full_file_system_fails_the_write_that_finds_it_full() {
    let Some(small) = Small::mount("a_full_file_system_fails_the_write", "size=2m") else {
        return;
    };
    let path = small.path().join("disk.raw");
    let host = Host::new(1);
    let sound = host.serve_as("sound", &memory_disk(8 * MIB), 1, Service::Open);
    let other = Guest::start(&sound, 1);
    let running = load(&other, 8, false, &plan(8 * MIB, 32));
    let served = host.serve(&image_at(&path, 8 * MIB), 1);
    let mut guest = Guest::start(&served, 1);
    let part = 256 << 10;
    let buffer = guest.buffer(part);
    let mut written = Vec::new();
    for at in 0..32u64 {
        let byte = u8::try_from(at + 1).unwrap();
        let data = vec![byte; part as usize];
        guest.memory.write(buffer.addr, &data).unwrap();
        match guest.run(0, Op::Write, at * 512, &[buffer]) {
            Status::Ok => written.push((at, data)),
            status => assert_eq!(status, Status::IoErr),
        }
    }
    assert!((6..=8).contains(&written.len()), "{} fit", written.len());
    for (at, data) in &written {
        assert_eq!(guest.read(0, at * 512, part as usize), *data);
    }
    // Holes are read without taking room, and what has room is written again.
    assert_eq!(guest.read(0, 16000, 4096), [0; 4096]);
    guest.write(0, 0, &[0xaa; 4096]);
    assert_eq!(guest.run(0, Op::Flush, 0, &[]), Status::Ok);
    // Room that is given back can be had elsewhere, and is not thought to be there still.
    assert_eq!(
        guest.run(0, Op::Discard, 0, &[range(part.into())]),
        Status::Ok
    );
    guest.write(0, 8192, &vec![0xbb; part as usize]);
    assert_eq!(guest.run(0, Op::Write, 0, &[buffer]), Status::IoErr);
    assert_eq!(guest.read(0, 0, 4096), [0; 4096]);
    assert_eq!(
        guest.read(0, 8192, part as usize),
        vec![0xbb; part as usize]
    );
    assert_clean(running);
}

/// Somebody cuts the file short: its disk fails from then on, and no other.
#[test]
fn a_file_that_is_truncated_fails_its_own_disk_alone() {
    let dir = shm();
    let path = dir.path().join("disk.raw");
    let host = Host::new(1);
    let sound = host.serve_as("sound", &memory_disk(8 * MIB), 1, Service::Open);
    let other = Guest::start(&sound, 1);
    let running = load(&other, 8, false, &plan(8 * MIB, 33));
    for op in [Op::Read, Op::Write] {
        let _ = std::fs::remove_file(&path);
        let served = host.serve(&image_at(&path, 8 * MIB), 1);
        let mut guest = Guest::start(&served, 1);
        for at in 0..8 {
            guest.write(0, at * 2048, &[5; 1 << 20]);
        }
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(4 * MIB).unwrap();
        guest.write(0, 0, &[6; 4096]);
        let buffer = guest.buffer(64 << 10);
        assert_eq!(guest.run(0, op, 10_000, &[buffer]), Status::IoErr);
        // What is left may be whole, but who knows.
        for op in [Op::Read, Op::Write, Op::Flush] {
            let data: &[Segment] = if op == Op::Flush { &[] } else { &[buffer] };
            assert_eq!(guest.run(0, op, 0, data), Status::IoErr, "{op:?}");
        }
        assert!(served.device.disk().next_data(4 * MIB).is_err());
    }
    assert_clean(running);
}

#[test]
fn its_lock_is_held_while_it_is_served_and_no_longer() {
    let dir = shm();
    let path = dir.path().join("disk.raw");
    let host = Host::new(1);
    let served = host.serve(&image_at(&path, MIB), 1);
    served.assert_serves();
    let second = Image::open_with(&path, false, Cache::Writeback);
    assert!(
        matches!(second, Err(ImageError::Locked { .. })),
        "{second:?}"
    );
    drop(served);
    assert_eq!(
        Image::open(&path, true).unwrap().geometry().block_bytes,
        512
    );
}
