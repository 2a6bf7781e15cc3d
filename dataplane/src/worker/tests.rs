//! What a turn does, counted: with queues that only pretend.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::bounded;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::backend::{Backend, Store};
use crate::limits::COMMAND_QUEUE;
use crate::queue::Fetched;
use crate::request::{Completion, Op, Request};
use crate::slots::Inbox;
use lane::Gate;

/// What a pretended queue was asked, and what it holds.
#[derive(Debug, Default)]
struct Log {
    /// Calls of any kind.
    calls: AtomicUsize,
    /// Requests that wait.
    waiting: AtomicUsize,
    fetched: AtomicUsize,
}

struct Pretended {
    log: Arc<Log>,
    kick: EventFd,
    len_bytes: u64,
}

impl Pretended {
    fn called(&self) -> &Log {
        self.log.calls.fetch_add(1, Ordering::Relaxed);
        &self.log
    }
}

impl RequestQueue for Pretended {
    fn fetch(&mut self, inbox: &mut Inbox<'_>, budget: usize) -> Fetched {
        let log = self.called();
        let mut count = 0;
        while count < budget && log.waiting.load(Ordering::Relaxed) > 0 && inbox.begin().is_some() {
            inbox.commit(Request {
                op: Op::Read,
                offset_bytes: 0,
                len_bytes: self.len_bytes,
                through: false,
                tag: 0,
            });
            log.waiting.fetch_sub(1, Ordering::Relaxed);
            count += 1;
        }
        log.fetched.fetch_add(count, Ordering::Relaxed);
        Fetched::Some(count)
    }

    fn complete(&mut self, _: &Completion<'_>) {
        self.called();
    }

    fn may_complete(&self) -> bool {
        self.called();
        true
    }

    fn publish(&mut self) {
        self.called();
    }

    fn has_work(&self) -> bool {
        self.called().waiting.load(Ordering::Relaxed) > 0
    }

    fn arm(&mut self) -> bool {
        self.has_work()
    }

    fn disarm(&mut self) {
        self.called();
    }

    fn kick_fd(&self) -> Option<RawFd> {
        self.called();
        Some(self.kick.as_raw_fd())
    }

    fn drain_kick(&self) {
        let _ = self.called();
        let _ = self.kick.read();
    }
}

/// A worker whose turns are made by hand.
struct Bench {
    core: Core,
    commands: Receiver<Command>,
    _sender: Sender<Command>,
}

/// A disk and its queues.
struct Disk {
    lane: u32,
    queues: Vec<(u32, Arc<Log>, EventFd)>,
}

impl Bench {
    fn new(spin_ns: u64) -> Bench {
        let (sender, commands) = bounded(COMMAND_QUEUE);
        let core = Core::new(
            Ring::new().unwrap(),
            Arc::new(Wake::new().unwrap()),
            Arc::default(),
            &WorkerOptions { spin_ns },
        );
        Bench {
            core,
            commands,
            _sender: sender,
        }
    }

    fn disk(&mut self, delay_ns: u64, queues: usize, len_bytes: u64) -> Disk {
        let store = Store::Null {
            capacity_bytes: 1 << 40,
        };
        let backend = Backend {
            delay_ns,
            ..Backend::new(store, false)
        };
        let lane = Lane::new(backend, Gate::Open, Arc::default(), Arc::default());
        let lane = self.core.add_lane(lane);
        let queues = (0..queues)
            .map(|_| {
                let (log, kick) = (Arc::<Log>::default(), EventFd::new(EFD_NONBLOCK).unwrap());
                let queue = Pretended {
                    log: log.clone(),
                    kick: kick.try_clone().unwrap(),
                    len_bytes,
                };
                let id = self.core.add_queue(lane, Box::new(queue), Arc::default());
                (id, log, kick)
            })
            .collect();
        Disk { lane, queues }
    }

    fn turn(&mut self) {
        self.core.turn(&self.commands).unwrap();
    }
}

impl Disk {
    fn give(&self, requests: usize) {
        for (_, log, _) in &self.queues {
            log.waiting.store(requests, Ordering::Relaxed);
        }
    }

    fn fetched(&self) -> usize {
        let of = |(_, log, _): &(u32, Arc<Log>, EventFd)| log.fetched.load(Ordering::Relaxed);
        self.queues.iter().map(of).sum()
    }

    fn calls(&self) -> usize {
        let of = |(_, log, _): &(u32, Arc<Log>, EventFd)| log.calls.load(Ordering::Relaxed);
        self.queues.iter().map(of).sum()
    }
}

const PLENTY: usize = usize::MAX / 2;

#[test]
fn a_turn_does_not_touch_a_thousand_idle_disks() {
    let mut bench = Bench::new(20_000);
    let idle: Vec<Disk> = (0..1000).map(|_| bench.disk(1, 2, 512)).collect();
    let busy = bench.disk(0, 1, 512);
    busy.give(PLENTY);
    idle.iter().for_each(|disk| disk.give(1));
    while bench.core.active.len() > 1 || bench.core.slots.in_use() > 0 {
        bench.turn();
    }
    assert!(idle.iter().all(|disk| disk.fetched() == 2));
    bench.turn(); // what the last CQEs and completions left
    let (before, done) = (idle.iter().map(Disk::calls).sum::<usize>(), busy.fetched());
    for _ in 0..1000 {
        bench.turn();
        assert_eq!(bench.core.active, [busy.lane]);
        assert!(bench.core.tended.is_empty(), "{:?}", bench.core.tended);
        assert!(bench.core.held.is_empty() && bench.core.leaving.is_empty());
    }
    let touched = idle.iter().map(Disk::calls).sum::<usize>() - before;
    assert_eq!(touched, 0, "calls of idle queues");
    assert_eq!(busy.fetched() - done, 1000 * FETCH_BUDGET);
    let kicked_before = idle[700].calls();
    // One of them is kicked: it alone comes back, and goes again.
    idle[700].queues[1].1.waiting.store(1, Ordering::Relaxed);
    idle[700].queues[1].2.write(1).unwrap();
    while idle[700].fetched() == 2 {
        bench.turn();
    }
    while bench.core.active.len() > 1 || bench.core.slots.in_use() > 0 {
        bench.turn();
    }
    let now_touched = idle.iter().map(Disk::calls).sum::<usize>() - before;
    let by_itself = idle[700].calls() - kicked_before;
    assert_eq!((now_touched, by_itself > 0), (by_itself, true));
}

#[test]
fn a_disk_of_eight_queues_gets_no_more_of_a_turn_than_a_disk_of_one() {
    let mut bench = Bench::new(u64::MAX);
    let (many, one) = (bench.disk(0, 8, 512), bench.disk(0, 1, 512));
    let large = bench.disk(0, 2, 1 << 18);
    for disk in [&many, &one, &large] {
        disk.give(PLENTY);
    }
    for _ in 0..80 {
        bench.turn();
    }
    assert_eq!(many.fetched(), 80 * FETCH_BUDGET);
    assert_eq!(one.fetched(), 80 * FETCH_BUDGET);
    assert_eq!(large.fetched(), 80 * 4, "a mebibyte a turn");
    for (_, log, _) in many.queues.iter().chain(&large.queues) {
        let share = log.fetched.load(Ordering::Relaxed);
        assert!(
            share == 10 * FETCH_BUDGET || share == 160,
            "of its disk: {share}"
        );
    }
}

#[test]
fn a_slow_disk_at_depth_leaves_its_neighbour_room() {
    let mut bench = Bench::new(u64::MAX);
    let slow = bench.disk(3_600_000_000_000, 8, 512);
    let modest = bench.disk(0, 1, 512);
    slow.give(PLENTY);
    for _ in 0..100 {
        bench.turn();
    }
    let held = slow.fetched();
    assert!((512..=820).contains(&held), "held by the slow disk: {held}");
    for round in 1..=100 {
        modest.give(32);
        bench.turn();
        assert_eq!(modest.fetched(), 32 * round, "served in one turn");
    }
    assert_eq!(slow.fetched(), held, "nothing of the slow disk has ended");
}

#[test]
fn a_full_worker_hands_the_queue_back() {
    let mut bench = Bench::new(0);
    let disk = bench.disk(0, 1, 512);
    let pretended = || Pretended {
        log: Arc::default(),
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        len_bytes: 512,
    };
    let core = &mut bench.core;
    let mut add = |moved| {
        let (reply, answer) = bounded(1);
        core.carry_out(Command::AddQueue {
            lane: disk.lane,
            queue: Box::new(pretended()),
            moved,
            load: Arc::default(),
            reply,
        });
        answer.recv().unwrap().ok()
    };
    for id in 1..QUEUES_PER_WORKER {
        assert_eq!(add(false), u32::try_from(id).ok());
    }
    assert_eq!(add(false), None);
    // One that runs already cannot be left without a worker.
    assert!(add(true).is_some());
    // Places that become free are used again.
    for id in [7, 8] {
        let (to, back) = bounded(1);
        bench.core.remove_queue(id, to);
        bench.core.let_go();
        assert!(back.try_recv().is_ok());
    }
    let again = bench
        .core
        .add_queue(disk.lane, Box::new(pretended()), Arc::default());
    assert_eq!(again, 8);
}

#[test]
fn a_queue_whose_gaps_are_long_is_not_polled_in_vain_until_one_is_short() {
    let spin_ns = 1_000_000;
    let mut bench = Bench::new(spin_ns);
    let keep = bench.disk(0, 1, 512); // keeps the worker from sleeping
    let sparse = bench.disk(0, 1, 512);
    keep.give(PLENTY);
    let (id, log, kick) = &sparse.queues[0];
    let is_polled = |bench: &Bench| bench.core.active.contains(&sparse.lane);
    let request = |bench: &mut Bench, gap_ns: u64| {
        while is_polled(bench) {
            bench.turn();
        }
        let done = log.fetched.load(Ordering::Relaxed);
        bench.core.queue(*id).last_active_ns = now_ns() - gap_ns;
        log.waiting.store(1, Ordering::Relaxed);
        kick.write(1).unwrap();
        while log.fetched.load(Ordering::Relaxed) == done {
            bench.turn();
        }
        is_polled(bench)
    };
    for _ in 1..crate::limits::SPIN_MISSES {
        assert!(request(&mut bench, 5 * spin_ns), "polled on");
    }
    for _ in 0..10 {
        assert!(!request(&mut bench, 5 * spin_ns), "polled in vain");
    }
    assert!(request(&mut bench, 0), "a short gap, and not polled");
}

#[test]
fn a_device_whose_waits_are_long_is_not_polled_through_them() {
    let spin_ns = 1 << 33; // seconds: no turn takes so long
    let long_ns = 3 * spin_ns;
    let mut bench = Bench::new(spin_ns);
    let disk = bench.disk(1 << 60, 1, 512); // and no request ends
    let (id, log, _) = &disk.queues[0];
    let request = |bench: &mut Bench| {
        let done = disk.fetched();
        log.waiting.store(1, Ordering::Relaxed);
        while disk.fetched() == done {
            bench.turn();
        }
    };
    let parks_after = |bench: &mut Bench, idle_ns: u64| {
        let now_ns = std::mem::replace(&mut bench.core.now_ns, long_ns);
        bench.core.queue(*id).last_active_ns = long_ns - idle_ns;
        bench.core.park_quiet();
        bench.core.now_ns = now_ns;
        let parked = bench.core.active.is_empty();
        bench.core.poll_queue(*id);
        parked
    };
    let waited = |bench: &mut Bench, wait_ns: u64| {
        let entry = bench.core.queue(*id);
        Core::judge_wait(entry, entry.last_active_ns + wait_ns, spin_ns);
    };
    request(&mut bench);
    assert!(!parks_after(&mut bench, spin_ns / 2));
    for _ in 0..crate::limits::SPIN_MISSES {
        waited(&mut bench, long_ns);
        waited(&mut bench, 0); // the others of a batch say nothing
    }
    assert!(!parks_after(&mut bench, spin_ns / 2), "no time to answer");
    request(&mut bench);
    assert!(parks_after(&mut bench, spin_ns / 2), "polled in vain");
    waited(&mut bench, spin_ns / 2);
    request(&mut bench);
    assert!(
        !parks_after(&mut bench, spin_ns / 2),
        "a short wait, and not polled"
    );
    assert!(parks_after(&mut bench, spin_ns));
}

#[test]
fn nothing_is_polled_while_a_kernel_thread_writes() {
    let mut bench = Bench::new(u64::MAX / 4); // polled for ever, otherwise
    let disk = bench.disk(1 << 60, 1, 512); // no request ends
    let (id, log, kick) = &disk.queues[0];
    disk.give(2);
    while disk.fetched() < 2 {
        bench.turn();
    }
    let is_polled = |bench: &Bench| !bench.core.active.is_empty();
    bench.core.park_quiet();
    assert!(is_polled(&bench));
    bench.core.lane(disk.lane).buffered_writes = 2;
    bench.core.park_quiet();
    assert!(!is_polled(&bench), "the core is kept from who writes");
    // One of them ends.
    bench.core.lane(disk.lane).buffered_writes = 1;
    bench.core.poll_again(*id);
    assert!(!is_polled(&bench), "polled again with a write in flight");
    bench.core.lane(disk.lane).buffered_writes = 0;
    bench.core.poll_again(*id);
    assert!(is_polled(&bench));
    // A request that finds no room: nothing is asked of the kernel in vain.
    bench.core.lane(disk.lane).buffered_writes = 1;
    log.waiting.store(1, Ordering::Relaxed);
    kick.write(1).unwrap();
    bench.core.park_quiet();
    assert!(is_polled(&bench));
    assert!(
        kick.read().is_ok(),
        "the kick was read though there is work"
    );
}

#[test]
fn a_kick_is_read_before_the_next_is_waited_for() {
    let mut bench = Bench::new(0);
    let disk = bench.disk(0, 1, 512);
    let keep = bench.disk(0, 1, 512); // keeps the worker from sleeping
    keep.give(PLENTY);
    let (_, log, kick) = &disk.queues[0];
    for round in 1..=3 {
        log.waiting.store(1, Ordering::Relaxed);
        kick.write(1).unwrap();
        while disk.fetched() < round || bench.core.active.contains(&disk.lane) {
            bench.turn();
        }
        assert!(kick.read().is_err(), "it would be taken for a new one");
    }
}
