use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

fn servers(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

#[test]
fn so_many_are_in_work_at_a_time_and_the_others_queue() {
    let servers = servers(2);
    let now = 100 * MS;
    let due: Vec<u64> = (0..5).map(|_| serve(&servers, now, 2 * MS)).collect();
    assert_eq!(due, [102, 102, 104, 104, 106].map(|ms| ms * MS));
    // One of both is free at 104; work of twice the length takes it for as long.
    assert_eq!(serve(&servers, 103 * MS, 4 * MS), 108 * MS);
    assert_eq!(serve(&servers, 103 * MS, 2 * MS), 108 * MS);
    // What was not used is not saved up.
    assert_eq!(serve(&servers, 200 * MS, 2 * MS), 202 * MS);
}

#[test]
fn a_load_gets_what_the_servers_can_do() {
    // 64 outstanding, 8 servers of 2 ms: 4000 a second, and each waits 16 ms.
    let servers = servers(8);
    let mut outstanding = std::collections::VecDeque::from(vec![0u64; 64]);
    let (mut ended, mut waited_ns) = (0u64, 0);
    while let Some(now) = outstanding.pop_front()
        && now < 1000 * MS
    {
        let due = serve(&servers, now, 2 * MS);
        if now > 100 * MS {
            (ended, waited_ns) = (ended + 1, waited_ns + due - now);
        }
        outstanding.push_back(due);
    }
    assert!((3590..=3610).contains(&ended), "{ended}");
    assert_eq!(waited_ns / ended, 16 * MS);
}

#[test]
fn nonsense_is_forgotten() {
    let now = 5 * MS;
    let servers = [
        AtomicU64::new(u64::MAX),
        AtomicU64::new(now + AHEAD_NS_MAX + 1),
    ];
    assert_eq!(serve(&servers, now, MS), now + MS);
    assert_eq!(serve(&servers, now, MS), now + MS);
    assert_eq!(serve(&servers, now, MS), now + 2 * MS);
    let servers = [AtomicU64::new(now + AHEAD_NS_MAX)];
    assert_eq!(serve(&servers, now, MS), now + AHEAD_NS_MAX + MS);
    assert_eq!(serve(&servers, now, MS), now + MS);
    assert_eq!(serve(&[], now, MS), now);
}

#[test]
fn large_requests_take_more_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let device = Bottleneck::open(dir.path(), 1).unwrap();
    let now = clock::now_ns();
    let took = |op, len| device.serve(now, MS, op, len) - now;
    assert_eq!(took(Op::Read, 4096), MS);
    assert_eq!(took(Op::Write, 64 << 10), 3 * MS);
    assert_eq!(took(Op::Flush, 0), 4 * MS);
    assert_eq!(took(Op::Discard, 1 << 30), 5 * MS);
}

#[test]
fn those_of_one_directory_share_it() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |dir: &tempfile::TempDir| Bottleneck::open(dir.path(), 1).unwrap();
    let (one, two, apart) = (open(&dir), open(&dir), open(&other));
    let now = clock::now_ns();
    let serve = |device: &Bottleneck| device.serve(now, MS, Op::Read, 512) - now;
    assert_eq!(serve(&one), MS);
    assert_eq!(serve(&two), 2 * MS);
    assert_eq!(serve(&apart), MS);
    drop(one);
    assert_eq!(serve(&two), 3 * MS);
    assert_eq!(serve(&open(&dir)), 4 * MS);
}

#[test]
fn what_is_not_the_bottlenecks_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let refused = || Bottleneck::open(dir.path(), 4).unwrap_err().to_string();
    for other in [b"mine".to_vec(), vec![7; 4096], vec![0; 8192]] {
        fs::write(&path, &other).unwrap();
        assert!(refused().contains("not what Ferry keeps there"));
        assert_eq!(fs::read(&path).unwrap(), other);
    }
    fs::remove_file(&path).unwrap();
    symlink(dir.path().join("elsewhere"), &path).unwrap();
    assert!(refused().contains(FILE));
    assert!(!dir.path().join("elsewhere").exists());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(refused().contains(FILE));
}

#[test]
fn a_file_that_is_truncated_ends_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let device = Bottleneck::open(dir.path(), 1).unwrap();
    let now = clock::now_ns();
    device.serve(now, MS, Op::Read, 512);
    let file = fs::File::options()
        .write(true)
        .open(dir.path().join(FILE))
        .unwrap();
    file.set_len(0).unwrap();
    assert_eq!(device.serve(now, MS, Op::Read, 512), now + MS);
    // It is good again for those who open it.
    assert_eq!(
        Bottleneck::open(dir.path(), 1)
            .unwrap()
            .serve(now, MS, Op::Read, 512),
        now + MS
    );
}

#[test]
fn threads_take_each_servers_time_once() {
    let servers = servers(3);
    let ends: Vec<u64> = std::thread::scope(|scope| {
        let work = || {
            (0..1000)
                .map(|_| serve(&servers, 0, MS))
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect()
    });
    for step in 1..=1333 {
        let ended = ends.iter().filter(|&&end| end == step * MS).count();
        assert_eq!(ended, 3, "{step}");
    }
}

proptest! {
    /// Whatever the file held and whenever requests come: none is due before its work could be done,
    /// and none so late that it looks hung.
    #[test]
    fn waits_are_bounded(
        held in prop::collection::vec(any::<u64>(), 1..5),
        work in prop::collection::vec((0u64..1_000_000_000, 0u64..3_000_000_000), 1..50),
    ) {
        let servers: Vec<AtomicU64> = held.into_iter().map(AtomicU64::new).collect();
        let mut now = 0;
        for (gap, work) in work {
            now += gap;
            let due = serve(&servers, now, work);
            prop_assert!(due >= now + work && due <= now + AHEAD_NS_MAX + work);
        }
    }
}
