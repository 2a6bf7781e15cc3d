//! A device whose block is larger than a sector.

use std::time::Duration;

use ferry_bench::frontend::{Op, QueueOptions, Segment, Status};
use ferry_dataplane::backend::Backend;
use ferry_dataplane::backend::file::Cache;

use crate::places::Loop;
use crate::rig::{Guest, Host, MIB, assert_clean, finish, load, options, plan};

#[test]
fn writes_to_parts_of_one_block_never_lose_each_other() {
    let host = Host::new(2);
    let name = "writes_to_parts_of_one_block";
    if let Some(device) = Loop::new(name, host.dir(), 16 * MIB) {
        parts_of_one_block(&host, device.open(Cache::None));
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
        stamped(&host, &device.open(Cache::None));
    }
}

fn stamped(host: &Host, backend: &Backend) {
    let served = host.serve(backend, 2);
    let guest = Guest::start(&served, 2);
    let load = load(&guest, 16, false, &plan(8 * MIB, 4));
    std::thread::sleep(Duration::from_millis(800));
    assert_clean(load);
}
