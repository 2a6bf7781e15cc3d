//! A device whose block is larger than a sector.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ferry_bench::frontend::{Op, QueueOptions, Segment, Status};
use ferry_dataplane::backend::file::Image;
use ferry_dataplane::backend::{Backend, Store};

use crate::rig::{
    Guest, Host, MIB, assert_clean, finish, image_at, is_root, load, options, plan, skip,
};

/// A loop device with blocks of 4096 bytes; detached on drop.
struct Loop(PathBuf);

impl Loop {
    fn new(test: &str, dir: &Path, bytes: u64) -> Option<Loop> {
        if !is_root() {
            skip(test, "needs root for a loop device");
            return None;
        }
        let file = dir.join("loop.raw");
        std::fs::File::create(&file)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let out = Command::new("losetup")
            .args(["-b", "4096", "--direct-io=on", "--show", "-f"])
            .arg(&file)
            .output();
        match out {
            Ok(out) if out.status.success() => {
                let path = String::from_utf8(out.stdout).unwrap();
                Some(Loop(path.trim().into()))
            }
            other => {
                skip(test, &format!("losetup failed: {other:?}"));
                None
            }
        }
    }

    fn open(&self) -> Backend {
        let image = Image::open(&self.0, false).unwrap();
        Backend::new(Store::Image(Arc::new(image)), false)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A file in memory: no root, and blocks of a page where the kernel takes direct I/O for it.
fn page_blocks(test: &str, dir: &Path, bytes: u64) -> Option<Backend> {
    let backend = image_at(&dir.join("disk.raw"), bytes);
    if backend.geometry().block_bytes != 4096 {
        skip(test, "no direct I/O in memory here");
        return None;
    }
    Some(backend)
}

#[test]
fn writes_to_parts_of_one_block_never_lose_each_other() {
    let host = Host::new(2);
    let name = "writes_to_parts_of_one_block";
    if let Some(device) = Loop::new(name, host.dir(), 16 * MIB) {
        parts_of_one_block(&host, device.open());
    }
}

#[test]
fn writes_to_parts_of_one_page_never_lose_each_other() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let name = "writes_to_parts_of_one_page";
    if let Some(backend) = page_blocks(name, dir.path(), 16 * MIB) {
        parts_of_one_block(&Host::new(2), backend);
    }
}

fn parts_of_one_block(host: &Host, backend: Backend) {
    assert_eq!(backend.geometry().block_bytes, 4096);
    assert_eq!(backend.geometry().capacity_bytes, 16 * MIB);
    let served = host.serve(&backend, 2);
    drop(backend);
    let deep = QueueOptions::default().with_depth(64);
    let mut guest = Guest::start_with(&served, 2, options(), deep);
    assert_eq!(guest.vmm.config().blk_size, 4096);
    assert_eq!(guest.vmm.config().capacity_sectors, 16 * MIB / 512);
    let buffers: Vec<Segment> = (0..64).map(|_| guest.buffer(512)).collect();
    for round in 1..=20u8 {
        // Sector i of 8 blocks, by one queue or the other, all at once.
        for (at, buffer) in buffers.iter().enumerate() {
            let byte = round
                .wrapping_mul(64)
                .wrapping_add(u8::try_from(at).unwrap());
            guest.memory.write(buffer.addr, &[byte; 512]).unwrap();
            let queue = &mut guest.queues[at % 2];
            queue.submit(Op::Write, at as u64, &[*buffer]).unwrap();
        }
        for queue in &mut guest.queues {
            queue.commit().unwrap();
        }
        for at in 0..64 {
            assert_eq!(finish(&mut guest.queues[at % 2]).status, Status::Ok);
        }
        let seen = guest.read(0, 0, 64 * 512);
        for (at, sector) in seen.chunks(512).enumerate() {
            let byte = round
                .wrapping_mul(64)
                .wrapping_add(u8::try_from(at).unwrap());
            assert!(
                sector.iter().all(|b| *b == byte),
                "round {round}, sector {at}"
            );
        }
    }
    assert_eq!(guest.run(0, Op::Flush, 0, &[]), Status::Ok);
    // Over a block's edges, and zeroes in part of a block.
    guest.write(0, 5, &[0xab; 4096]);
    let range = Segment { addr: 0, len: 1024 };
    for (op, sector) in [(Op::WriteZeroes { unmap: true }, 6), (Op::Discard, 10)] {
        assert_eq!(guest.run(1, op, sector, &[range]), Status::Ok);
    }
    let seen = guest.read(0, 5, 4096);
    let zero = |at: usize| (1..3).contains(&at) || (5..7).contains(&at);
    for (at, sector) in seen.chunks(512).enumerate() {
        let byte = if zero(at) { 0 } else { 0xab };
        assert!(sector.iter().all(|b| *b == byte), "sector {at}");
    }
}

#[test]
fn a_stamped_load_of_single_sectors_on_large_blocks() {
    let host = Host::new(2);
    let name = "a_stamped_load_of_single_sectors";
    if let Some(device) = Loop::new(name, host.dir(), 8 * MIB) {
        stamped(&host, &device.open());
    }
}

#[test]
fn a_stamped_load_of_single_sectors_on_pages() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let name = "a_stamped_load_of_single_sectors_on_pages";
    if let Some(backend) = page_blocks(name, dir.path(), 8 * MIB) {
        stamped(&Host::new(2), &backend);
    }
}

fn stamped(host: &Host, backend: &Backend) {
    let served = host.serve(backend, 2);
    let guest = Guest::start(&served, 2);
    let load = load(&guest, 16, false, &plan(8 * MIB, 4));
    std::thread::sleep(Duration::from_millis(800));
    assert_clean(load);
}
