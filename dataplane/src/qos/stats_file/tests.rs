mod odd;

use tempfile::TempDir;

use super::*;
use crate::qos::division::{Bins, Want};

const PERIOD_NS: u64 = 1_000_000_000;

fn report(ios: u64) -> HostReport {
    let mut demand = Bins::default();
    demand.add(Want {
        shares: 1000.0,
        slots: 64.0,
    });
    demand.add(Want {
        shares: 500.0,
        slots: 1.5,
    });
    HostReport {
        ios,
        latency_ns: 31_000_000,
        units: 4000.5,
        outstanding: 120.25,
        limited: true,
        demand,
        window_total: 240.0,
        unmanaged: false,
        late: false,
    }
}

fn id(number: u8) -> Id {
    let mut id = [number; 16];
    id[0] = 0xfe;
    id
}

/// What another process would have written.
fn block(number: u8, counter: u64, report: &HostReport) -> [u8; BLOCK_BYTES] {
    encode(&Block {
        id: id(number),
        counter,
        left: false,
        report: report.clone(),
    })
}

fn process(directory: &TempDir, number: u8) -> StatsFile {
    StatsFile::new(directory.path(), id(number), PERIOD_NS)
}

/// What a process reads in a period, by the number of I/Os.
fn seen(process: &mut StatsFile, period: u64, own: u64) -> Vec<u64> {
    let others = process.exchange(period * PERIOD_NS, &report(own)).unwrap();
    others.iter().map(|it| it.ios).collect()
}

fn overwrite(directory: &TempDir, place: usize, bytes: &[u8]) {
    let file = open(&directory.path().join(FILE_NAME)).unwrap();
    file.write_all_at(bytes, offset(place)).unwrap();
}

fn block_at(directory: &TempDir, place: usize) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    let file = open(&directory.path().join(FILE_NAME)).unwrap();
    file.read_exact_at(&mut bytes, offset(place)).unwrap();
    bytes
}

#[test]
fn hosts_read_what_the_others_wrote() {
    let directory = TempDir::new().unwrap();
    let mut processes: Vec<StatsFile> = (0..4).map(|it| process(&directory, it)).collect();
    for period in 0..3 {
        for (number, process) in processes.iter_mut().enumerate() {
            seen(process, period, 100 * period + number as u64);
        }
    }
    assert_eq!(seen(&mut processes[1], 3, 301), [200, 202, 203]);
    let places: Vec<Option<usize>> = processes.iter().map(StatsFile::place).collect();
    assert_eq!(places, [Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(processes[1].ignored(), Ignored::default());
    // Nobody has it open.
    let open_files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = open_files.filter_map(|it| std::fs::read_link(it.path()).ok());
    let path = directory.path().join(FILE_NAME);
    assert!(!links.into_iter().any(|link| link == path));
}

#[test]
fn who_has_nothing_new_to_say_is_late() {
    let directory = TempDir::new().unwrap();
    let [mut one, mut two] = [0, 1].map(|it| process(&directory, it));
    let late = |others: Vec<HostReport>| others.iter().map(|it| it.late).collect::<Vec<_>>();
    let own = report(1);
    two.exchange(0, &own).unwrap();
    assert_eq!(late(one.exchange(1, &own).unwrap()), [false]);
    assert_eq!(late(one.exchange(PERIOD_NS, &own).unwrap()), [true]);
    two.exchange(PERIOD_NS + 1, &own).unwrap();
    assert_eq!(late(one.exchange(2 * PERIOD_NS, &own).unwrap()), [false]);
    // The file was not read again.
    assert_eq!(late(one.others(2 * PERIOD_NS + 1)), [true]);
}

#[test]
fn a_block_says_what_was_put_in() {
    for open in [false, true] {
        let mut report = report(7);
        if open {
            (report.window_total, report.unmanaged, report.limited) = (f64::INFINITY, true, false);
        }
        let read = decode(&block(3, 9, &report)).unwrap().unwrap();
        assert_eq!(
            read,
            Block {
                id: id(3),
                counter: 9,
                left: false,
                report
            }
        );
    }
}

#[test]
fn torn_blocks_and_wrong_checksums_are_left_out_and_counted() {
    let directory = TempDir::new().unwrap();
    let (mut one, mut two) = (process(&directory, 1), process(&directory, 2));
    seen(&mut one, 0, 1);
    seen(&mut two, 0, 2);
    assert_eq!(seen(&mut one, 1, 1), [2]);
    // The first bytes of the next block only.
    let mut torn = block_at(&directory, 1);
    let next = HostReport {
        window_total: 99.0,
        ..report(9000)
    };
    torn[..64].copy_from_slice(&block(2, 2, &next)[..64]);
    overwrite(&directory, 1, &torn);
    assert_eq!(
        seen(&mut one, 2, 1),
        [2],
        "what it said before still counts"
    );
    assert_eq!(
        one.ignored(),
        Ignored {
            torn: 1,
            ..Ignored::default()
        }
    );
    let mut flipped = block(2, 3, &report(9000));
    flipped[60] ^= 1;
    overwrite(&directory, 1, &flipped);
    seen(&mut one, 3, 1);
    assert_eq!(seen(&mut one, 4, 1), [0; 0], "and then it is dead");
    assert_eq!(one.ignored().torn, 2, "each counted once");
    assert_eq!(one.place(), Some(0));
    // It finds its block spoilt, and takes another: nobody knows whose the spoilt one is.
    assert_eq!(seen(&mut two, 4, 2), [1]);
    assert_eq!(two.place(), Some(2));
    assert_eq!(seen(&mut one, 5, 1), [2]);
}

#[test]
fn a_later_version_is_left_out_counted_and_not_overwritten() {
    let directory = TempDir::new().unwrap();
    let mut later = block(9, 1, &report(9));
    later[8] = 2;
    let mut one = process(&directory, 1);
    overwrite(&directory, 0, &later);
    assert_eq!(seen(&mut one, 0, 1), [0; 0]);
    assert_eq!(
        one.ignored().torn,
        1,
        "the checksum is of the first version"
    );
    // As a later Ferry would write it.
    later[12..16].fill(0);
    let checksum = crc32c::crc32c(&later);
    later[12..16].copy_from_slice(&checksum.to_le_bytes());
    overwrite(&directory, 0, &later);
    for period in 1..5 {
        assert_eq!(seen(&mut one, period, 1), [0; 0]);
    }
    assert_eq!(
        one.ignored(),
        Ignored {
            torn: 1,
            version: 1,
            ..Ignored::default()
        }
    );
    assert_eq!((one.place(), block_at(&directory, 0)), (Some(1), later));
}

#[test]
fn a_counter_that_goes_backwards_is_stale() {
    let directory = TempDir::new().unwrap();
    let mut one = process(&directory, 1);
    let write = |counter, ios| overwrite(&directory, 0, &block(2, counter, &report(ios)));
    write(50, 50);
    assert_eq!(seen(&mut one, 0, 1), [50]);
    write(51, 51);
    assert_eq!(seen(&mut one, 1, 1), [51]);
    write(10, 10);
    assert_eq!(seen(&mut one, 2, 1), [51], "what was newer counts");
    assert_eq!(one.ignored().stale, 1);
    write(11, 11);
    assert_eq!(
        seen(&mut one, 3, 1),
        [11],
        "a new life: three periods without a newer one"
    );
    write(12, 12);
    assert_eq!(seen(&mut one, 4, 1), [12]);
    assert_eq!(one.ignored().stale, 1);
}

#[test]
fn a_dead_host_is_forgotten_within_three_periods_and_stays_so() {
    let directory = TempDir::new().unwrap();
    let (mut one, mut two) = (process(&directory, 1), process(&directory, 2));
    // It writes a tenth of a period after the other has read.
    for period in 0..5 {
        let now_ns = period * PERIOD_NS;
        one.exchange(now_ns, &report(1)).unwrap();
        two.exchange(now_ns + PERIOD_NS / 10, &report(2)).unwrap();
    }
    // Killed right after that, in period 4.1.
    assert_eq!(seen(&mut one, 5, 1), [2]);
    assert_eq!(seen(&mut one, 6, 1), [2]);
    assert_eq!(seen(&mut one, 7, 1), [0; 0]);
    for period in 8..40 {
        assert_eq!(
            seen(&mut one, period, 1),
            [0; 0],
            "its block is still there"
        );
    }
    // Who starts now cannot know, for three periods.
    let mut three = process(&directory, 3);
    assert_eq!(seen(&mut three, 40, 3), [1, 2]);
    seen(&mut one, 41, 1);
    assert_eq!(seen(&mut three, 42, 3), [1, 2]);
    seen(&mut one, 42, 1);
    assert_eq!(seen(&mut three, 43, 3), [1]);
}

#[test]
fn a_lost_race_for_a_place_is_noticed() {
    let directory = TempDir::new().unwrap();
    let (mut one, mut two) = (process(&directory, 1), process(&directory, 2));
    seen(&mut one, 0, 1);
    // As if both had found place 0 free.
    overwrite(&directory, 0, &block(2, 1, &report(2)));
    two.place = Some(0);
    two.counter = 1;
    assert_eq!(seen(&mut one, 1, 1), [2]);
    assert_eq!(one.place(), Some(1));
    assert_eq!(seen(&mut two, 1, 2), [1]);
    assert_eq!(two.place(), Some(0));
}

#[test]
fn many_that_race_all_find_a_place() {
    let directory = TempDir::new().unwrap();
    let mut processes: Vec<StatsFile> = (0..24).map(|it| process(&directory, it)).collect();
    for period in 0..30 {
        std::thread::scope(|scope| {
            for process in &mut processes {
                scope.spawn(|| seen(process, period, 1));
            }
        });
    }
    let mut places: Vec<usize> = processes.iter().filter_map(StatsFile::place).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 24);
    assert_eq!(seen(&mut processes[0], 30, 1).len(), 23);
}

#[test]
fn a_file_that_is_removed_is_made_again() {
    let directory = TempDir::new().unwrap();
    let (mut one, mut two) = (process(&directory, 1), process(&directory, 2));
    for period in 0..2 {
        seen(&mut one, period, 1);
        seen(&mut two, period, 2);
    }
    std::fs::remove_file(one.path()).unwrap();
    assert_eq!(seen(&mut two, 2, 2), [1], "who was alive still is");
    assert_eq!(seen(&mut one, 3, 1), [2]);
    assert_eq!(seen(&mut two, 3, 2), [1]);
    assert_eq!((two.place(), one.place()), (Some(0), Some(1)));
}

#[test]
fn what_is_no_file_is_refused_and_the_others_are_not_lost() {
    let directory = TempDir::new().unwrap();
    let (mut one, mut two) = (process(&directory, 1), process(&directory, 2));
    seen(&mut one, 0, 1);
    seen(&mut two, 0, 2);
    seen(&mut one, 1, 1);
    let path = directory.path().join(FILE_NAME);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(one.exchange(2 * PERIOD_NS, &report(1)).is_err());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(one.exchange(2 * PERIOD_NS, &report(1)).is_err());
    assert_eq!(one.others(2 * PERIOD_NS).len(), 1);
    assert_eq!(one.others(4 * PERIOD_NS).len(), 0);
}

#[test]
fn when_all_places_are_taken_it_still_reads_and_waits_for_one() {
    let directory = TempDir::new().unwrap();
    let mut writers: Vec<StatsFile> = (0..128).map(|it| process(&directory, it)).collect();
    for writer in &mut writers {
        seen(writer, 0, 1);
    }
    let mut late = process(&directory, 200);
    assert_eq!(seen(&mut late, 1, 1).len(), 128);
    assert_eq!(late.place(), None);
    let length = std::fs::metadata(late.path()).unwrap().len();
    assert_eq!(length, offset(128));
    // All but one go on; its place is taken once it is long dead.
    for period in 2..70 {
        for (number, writer) in writers.iter_mut().enumerate() {
            if number != 77 {
                seen(writer, period, 1);
            }
        }
        seen(&mut late, period, 1);
        assert_eq!(late.place().is_some(), period >= 61, "{period}");
    }
    assert_eq!(late.place(), Some(77));
    // Who comes back finds its place lost, and none free.
    assert_eq!(seen(&mut writers[77], 70, 1).len(), 128);
    assert_eq!(writers[77].place(), None);
}

#[test]
fn who_leaves_takes_its_block_away() {
    let directory = TempDir::new().unwrap();
    let (mut one, mut two) = (process(&directory, 1), process(&directory, 2));
    seen(&mut one, 0, 1);
    seen(&mut two, 0, 2);
    seen(&mut two, 1, 2);
    one.withdraw().unwrap();
    // Whoever saw it before knows that it has left, and does not wait for its death.
    assert_eq!(seen(&mut two, 1, 2), [0; 0]);
    let mut three = process(&directory, 3);
    assert_eq!(seen(&mut three, 1, 3), [2]);
    assert_eq!(three.place(), Some(0));
    // Not what is another's by now.
    one.place = Some(0);
    one.withdraw().unwrap();
    assert_eq!(seen(&mut two, 1, 2), [3]);
}

#[test]
fn odd_sizes_are_read_as_far_as_they_go() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(FILE_NAME);
    std::fs::write(&path, vec![7; 5000]).unwrap();
    let mut one = process(&directory, 1);
    assert_eq!(seen(&mut one, 0, 1), [0; 0]);
    assert_eq!((one.ignored().torn, one.place()), (2, Some(2)));
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert_eq!(seen(&mut one, 1, 1), [0; 0]);
    assert_eq!(one.place(), Some(2));
}
