use super::*;
use crate::qos::pacer::Pacer;

const SECOND: u64 = 1_000_000_000;

/// Somebody who keeps `depth` requests of `cost` asked for.
struct Asker {
    shares: f64,
    reservation: f64,
    limit: Option<f64>,
    depth: u32,
    cost: Cost,
}

impl Asker {
    fn of(shares: f64) -> Asker {
        Asker {
            shares,
            reservation: 0.0,
            limit: None,
            depth: 256,
            cost: COST_ONE,
        }
    }
}

/// Runs for `seconds` against a device that takes `latency_ns` for each; I/Os a second of each.
fn run(askers: &[Asker], slots: f64, latency_ns: u64, seconds: u64) -> Vec<f64> {
    let mut scheduler = Scheduler::new();
    let mut pacers = Vec::new();
    let mut waiting = Vec::new();
    for asker in askers {
        let client = scheduler.add();
        scheduler.set_share(client, asker.shares, asker.reservation);
        let pacer = Pacer::default();
        pacer.set_rate(0, asker.limit);
        pacers.push(pacer);
        waiting.push(asker.depth);
    }
    scheduler.set_window(0, slots);
    let one = |cost: Cost| f64::from(cost) / f64::from(COST_ONE);
    let head = |now: u64, at: usize, pacers: &[Pacer]| Head {
        cost: askers[at].cost,
        eligible_ns: pacers[at].book(now, one(askers[at].cost)),
    };
    for at in 0..askers.len() {
        let head = head(0, at, &pacers);
        scheduler.offer(0, u32::try_from(at).unwrap(), head);
    }
    let mut ends = std::collections::BinaryHeap::new();
    let mut ended = vec![0u64; askers.len()];
    let (mut now, warm, end) = (0, SECOND, (seconds + 1) * SECOND);
    while now < end {
        let wake = loop {
            match scheduler.next(now) {
                Next::Go(client) => {
                    let at = client as usize;
                    ends.push(std::cmp::Reverse((now + latency_ns, at)));
                    waiting[at] -= 1;
                    if waiting[at] > 0 {
                        let head = head(now, at, &pacers);
                        scheduler.offer(now, client, head);
                    }
                }
                Next::At(at) => break at,
                Next::Idle => break u64::MAX,
            }
        };
        now = ends.peek().map_or(wake, |it| it.0.0.min(wake));
        while let Some(&std::cmp::Reverse((at_ns, at))) = ends.peek()
            && at_ns <= now
        {
            ends.pop();
            scheduler.done(now, askers[at].cost);
            if now > warm {
                ended[at] += 1;
            }
            waiting[at] += 1;
            if waiting[at] == 1 {
                let head = head(now, at, &pacers);
                scheduler.offer(now, u32::try_from(at).unwrap(), head);
            }
        }
    }
    #[allow(clippy::cast_precision_loss)]
    ended
        .iter()
        .map(|&count| count as f64 / seconds as f64)
        .collect()
}

fn near(rates: &[f64], wanted: &[f64], within: f64) {
    for (rate, wanted) in rates.iter().zip(wanted) {
        assert!(
            (rate / wanted - 1.0).abs() < within,
            "{rates:?}, not {wanted:?}"
        );
    }
}

#[test]
fn shares_are_kept() {
    let shares = [100.0, 2000.0, 500.0, 1000.0];
    let askers: Vec<_> = shares.map(Asker::of).into();
    // 36 slots of 10 ms: 3600 a second.
    near(&run(&askers, 36.0, 10_000_000, 4), &shares, 0.02);
    // A tenth of a slot each for the least.
    let rates = run(&askers, 4.0, 10_000_000, 20);
    near(&rates, &shares.map(|it| it / 9.0), 0.03);
}

#[test]
fn large_requests_count_for_what_they_are() {
    let mut askers: Vec<_> = [1000.0, 1000.0].map(Asker::of).into();
    askers[1].cost = 2 * COST_ONE;
    let rates = run(&askers, 30.0, 10_000_000, 4);
    near(&rates, &[1500.0, 750.0], 0.02);
}

#[test]
fn what_one_does_not_want_the_others_have() {
    let mut askers: Vec<_> = [2000.0, 1000.0, 500.0].map(Asker::of).into();
    askers[0].depth = 1;
    let rates = run(&askers, 31.0, 10_000_000, 4);
    near(&rates, &[100.0, 2000.0, 1000.0], 0.02);
}

/// The example of mClock's paper: at 1200 and at 2500 a second.
#[test]
fn reservations_and_limits_are_kept() {
    let asker = |shares, reservation, limit| Asker {
        reservation,
        limit,
        ..Asker::of(shares)
    };
    let askers = [
        asker(100.0, 250.0, None),
        asker(200.0, 250.0, None),
        asker(300.0, 0.0, Some(1000.0)),
    ];
    near(
        &run(&askers, 12.0, 10_000_000, 10),
        &[250.0, 380.0, 570.0],
        0.03,
    );
    near(
        &run(&askers, 25.0, 10_000_000, 10),
        &[500.0, 1000.0, 1000.0],
        0.03,
    );
}

#[test]
fn a_reservation_is_kept_whatever_the_window() {
    let askers = [
        Asker {
            reservation: 500.0,
            ..Asker::of(1.0)
        },
        Asker::of(10_000.0),
    ];
    let rates = run(&askers, 4.0, 10_000_000, 4);
    assert!(rates[0] > 495.0, "{rates:?}");
}

#[test]
fn limits_hold_while_the_window_is_open() {
    let asker = |limit| Asker {
        limit,
        ..Asker::of(1000.0)
    };
    let askers = [asker(Some(1000.0)), asker(None)];
    let rates = run(&askers, f64::INFINITY, 1_000_000, 4);
    near(&rates, &[1000.0, 256_000.0], 0.005);
}

#[test]
fn many_virtual_hours_change_nothing() {
    let mut scheduler = Scheduler::new();
    let clients = [scheduler.add(), scheduler.add()];
    scheduler.set_share(clients[0], 1e-3, 0.0);
    scheduler.set_share(clients[1], 3e-3, 0.0);
    scheduler.set_window(0, 1.0);
    let head = Head {
        cost: COST_ONE,
        eligible_ns: 0,
    };
    let mut counts = [0u32; 2];
    for client in clients {
        scheduler.offer(0, client, head);
    }
    for now in 1..400_000 {
        let Next::Go(client) = scheduler.next(now) else {
            panic!("one slot is free");
        };
        counts[client as usize] += 1;
        scheduler.done(now, COST_ONE);
        scheduler.offer(now, client, head);
    }
    assert!(scheduler.virtual_now < REBASE * 1.1);
    let ratio = f64::from(counts[1]) / f64::from(counts[0]);
    assert!((ratio - 3.0).abs() < 0.01, "{ratio}");
}

#[test]
fn a_client_that_leaves_takes_what_it_offered() {
    let mut scheduler = Scheduler::new();
    let (stays, leaves) = (scheduler.add(), scheduler.add());
    let head = Head {
        cost: COST_ONE,
        eligible_ns: 0,
    };
    scheduler.set_window(0, 1.0);
    scheduler.offer(0, leaves, head);
    scheduler.offer(
        0,
        stays,
        Head {
            eligible_ns: 50,
            ..head
        },
    );
    scheduler.remove(leaves);
    assert_eq!(scheduler.next(0), Next::At(50));
    assert_eq!(scheduler.next(50), Next::Go(stays));
    assert_eq!(scheduler.next(50), Next::Idle);
    assert!(scheduler.is_empty());
    assert_eq!(scheduler.add(), leaves, "its place is free");
}

#[test]
fn a_share_is_not_saved_up() {
    let mut scheduler = Scheduler::new();
    let clients = [scheduler.add(), scheduler.add()];
    for client in clients {
        scheduler.set_share(client, 100.0, 0.0);
    }
    scheduler.set_window(0, 1.0);
    let head = Head {
        cost: COST_ONE,
        eligible_ns: 0,
    };
    let serve = |now, scheduler: &mut Scheduler| {
        let Next::Go(client) = scheduler.next(now) else {
            panic!("one slot is free");
        };
        scheduler.done(now, COST_ONE);
        scheduler.offer(now, client, head);
        client
    };
    // One is alone for a long time, and then the other comes.
    scheduler.offer(0, clients[0], head);
    for now in 1..10_000 {
        serve(now, &mut scheduler);
    }
    scheduler.offer(10_000, clients[1], head);
    let late = (10_000..10_100).filter(|&now| serve(now, &mut scheduler) == clients[1]);
    let late = late.count();
    assert!((50..=55).contains(&late), "{late} of 100");
}

#[test]
fn who_need_not_wait_passes_nobody() {
    let mut scheduler = Scheduler::new();
    let clients = [scheduler.add(), scheduler.add()];
    scheduler.set_window(0, 2.0);
    let head = Head {
        cost: COST_ONE,
        eligible_ns: 0,
    };
    assert!(scheduler.goes_at_once(0, clients[0], COST_ONE));
    assert!(scheduler.goes_at_once(0, clients[0], COST_ONE));
    assert!(
        !scheduler.goes_at_once(0, clients[1], COST_ONE),
        "it is full"
    );
    scheduler.offer(0, clients[1], head);
    scheduler.done(1, COST_ONE);
    assert!(
        !scheduler.goes_at_once(1, clients[0], COST_ONE),
        "one waits"
    );
    assert_eq!(scheduler.next(1), Next::Go(clients[1]));
    // What went at once counts for shares as well.
    scheduler.offer(1, clients[0], head);
    scheduler.offer(1, clients[1], head);
    scheduler.done(2, COST_ONE);
    assert_eq!(scheduler.next(2), Next::Go(clients[1]));
    scheduler.set_window(3, f64::INFINITY);
    scheduler.withdraw(clients[0]);
    assert!(scheduler.goes_at_once(3, clients[0], 1000 * COST_ONE));
}
