//! A handover under chaos, by chance: seeded, deterministic, thousands of runs a second.
//!
//! ```text
//!   cargo test --test simulator -- --nocapture                           as many as fit in the budget
//!   FERRY_SIM_RUNS=1000000 cargo test --release --test simulator -- --nocapture    a million
//!   FERRY_SIM_SEED=N cargo test --test simulator -- --nocapture         one, with all of its trace
//! ```
//!
//! Where the explorer goes every way within small bounds, this goes long ways at random. Production
//! code: the table and the lists of steps, the records with their restarts, the copy's plan, the proof
//! of a pull, the device's state, and the codec, through which every message and all data pass as
//! bytes. Around it a world: two hosts with a disk whose cache a power cut loses, a guest that
//! numbers its writes, the mirror's order, a link that is cut, stalls and damages, clocks that drift,
//! daemons that are killed between any two steps or suspended, records that cannot be written, VMMs
//! and operators that do things right or wrong. A time of that, and then all is healed and one host
//! must own the disk, and serve it.
//!
//! What it takes for granted: a guest has no two writes to one block at the same time; 16-bit ring
//! indexes of two machines do not agree by chance. The daemon's threads, sockets and files have tests
//! of their own.

#[path = "simulator/chaos.rs"]
mod chaos;
#[path = "simulator/copy.rs"]
mod copy;
#[path = "simulator/coverage.rs"]
mod coverage;
#[path = "simulator/daemon.rs"]
mod daemon;
#[path = "simulator/destination.rs"]
mod destination;
#[path = "simulator/device.rs"]
mod device;
#[path = "simulator/guest.rs"]
mod guest;
#[path = "simulator/host.rs"]
mod host;
#[path = "simulator/image.rs"]
mod image;
#[path = "simulator/mirror.rs"]
mod mirror;
#[path = "simulator/oracle.rs"]
mod oracle;
#[path = "simulator/release.rs"]
mod release;
#[path = "simulator/resolve.rs"]
mod resolve;
#[path = "simulator/rings.rs"]
mod rings;
#[path = "simulator/run.rs"]
mod run;
#[path = "simulator/source.rs"]
mod source;
#[path = "simulator/state.rs"]
mod state;
#[path = "simulator/store.rs"]
mod store;
#[path = "simulator/tasks.rs"]
mod tasks;
#[path = "simulator/wire.rs"]
mod wire;
#[path = "simulator/world.rs"]
mod world;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coverage::{Happened, Seen};
use run::run;

/// Seeds of the short test, which every planted fault must show in.
const FIRST: u64 = 25_000;
/// What the long one may take.
const BUDGET: Duration = Duration::from_secs(100);
const THREADS: usize = 2;
/// Lines of a failure's trace.
const TAIL: usize = 120;

/// What all threads have done.
#[derive(Default)]
struct Sum {
    runs: u64,
    events: u64,
    seen: Seen,
}

/// Says which run it was that panicked.
struct At(u64);

impl Drop for At {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}: the simulation itself panicked", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// Replays a seed with everything told.
fn replay(seed: u64) {
    let outcome = run(seed, true);
    for line in &outcome.trace {
        println!("{line}");
    }
    assert_eq!(outcome.broken, None, "seed {seed}");
}

fn fail(seed: u64) -> ! {
    let outcome = run(seed, true);
    // The guest's own requests fill it; where they matter, there is the replay.
    let told = |line: &&String| !line.contains(" is done at ");
    let lines: Vec<&String> = outcome.trace.iter().filter(told).collect();
    let tail = lines.len().saturating_sub(TAIL);
    let lines = lines[tail..].iter().map(|line| line.as_str());
    panic!(
        "seed {seed}: {}\n{}\nall of it: FERRY_SIM_SEED={seed} cargo test --test simulator -- --nocapture",
        outcome
            .broken
            .unwrap_or_else(|| "broken once, and not again: it is not deterministic".into()),
        lines.collect::<Vec<_>>().join("\n"),
    );
}

/// Runs these seeds, or as many of them as fit in the budget, and requires that all of it happened.
fn run_all(seeds: Range<u64>) {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let (sum, broken) = (Mutex::new(Sum::default()), Mutex::new(None));
    let began = Instant::now();
    let endless = seeds.end == u64::MAX;
    let goes_on = |seed| seed < seeds.end && !(endless && began.elapsed() >= BUDGET);
    let work = || {
        let mut mine = Sum::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) || !goes_on(seed) {
                break;
            }
            let at = At(seed);
            let outcome = run(seed, false);
            drop(at);
            mine.runs += 1;
            mine.events += outcome.events;
            mine.seen.add(&outcome.seen);
            if outcome.broken.is_some() {
                stop.store(true, Ordering::Relaxed);
                broken.lock().unwrap().get_or_insert(seed);
            }
        }
        let mut sum = sum.lock().unwrap();
        sum.runs += mine.runs;
        sum.events += mine.events;
        sum.seen.add(&mine.seen);
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    let sum = sum.into_inner().unwrap();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} runs, {} events, {} moves completed, {} crashes, in {seconds:.1} s: {:.0} runs a second",
        sum.runs,
        sum.events,
        sum.seen.of(Happened::Moved),
        sum.seen.of(Happened::Kill) + sum.seen.of(Happened::PowerCut),
        sum.runs as f64 / seconds,
    );
    print!("{}", sum.seen.table());
    if let Some(seed) = broken.into_inner().unwrap() {
        fail(seed);
    }
    let missing = sum.seen.missing();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

#[test]
fn the_first_seeds_keep_every_promise() {
    if number("FERRY_SIM_SEED")
        .or(number("FERRY_SIM_RUNS"))
        .is_none()
    {
        run_all(0..FIRST);
    }
}

#[test]
fn a_handover_under_chaos_keeps_every_promise() {
    match (number("FERRY_SIM_SEED"), number("FERRY_SIM_RUNS")) {
        (Some(seed), _) => replay(seed),
        (None, Some(runs)) => run_all(0..runs),
        (None, None) => run_all(FIRST..u64::MAX),
    }
}

#[test]
fn a_seed_repeats_itself() {
    for seed in 0..20 {
        let (first, again) = (run(seed, false), run(seed, true));
        assert_eq!(first.events, again.events, "seed {seed}");
        assert_eq!(first.broken, again.broken, "seed {seed}");
    }
}
