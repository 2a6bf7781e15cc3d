//! `ferry demo`: the main job on a bare machine. Two daemons in two processes, a disk under a
//! stamped and verified load that never pauses, a move there and back, and a verdict. Or a game instead
//! of the load, with `--pinball`.

mod host;
mod machine;
mod pinball;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use ferry_migration::ids::DiskId;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::error::{Done, Failure};
use crate::output;
use crate::spec::parse_size;
use host::Host;
use machine::Machine;

/// The disk's name on both hosts.
const DISK: &str = "demo";
/// How long the load runs before the first move, and after each.
const BETWEEN: Duration = Duration::from_secs(2);
/// A copy that takes longer than this has failed.
const COPY_PATIENCE: Duration = Duration::from_secs(120);

/// `ferry demo`.
#[derive(Args)]
pub struct DemoArguments {
    /// A game of pinball that is played on while its machine, disk and NIC, changes hosts. Without a
    /// terminal it plays by itself, and prints what was seen.
    #[arg(long, conflicts_with_all = ["size", "queues", "depth"])]
    pinball: bool,
    /// How long the game goes on; 15 unless given, 30 with a terminal.
    #[arg(long, requires = "pinball", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Size of the disk.
    #[arg(long, default_value = "256M", value_parser = parse_size)]
    size: u64,
    /// Virtqueues.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    queues: u16,
    /// Requests in flight for each queue.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    depth: u16,
    /// How often it goes there and back.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Draws the load, or the game; the same seed draws the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the two images go for the time of the demo; the system's temporary directory unless
    /// given.
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
}

/// One move, as the machine's driver saw it.
struct Handover {
    route: String,
    blackout: Duration,
    copy: Duration,
    bytes_sent: u64,
    in_flight: u64,
    report: Value,
}

impl Handover {
    fn line(&self) -> Value {
        json!({
            "route": self.route,
            "blackout_us": micros(self.blackout),
            "copy_ms": micros(self.copy) / 1000,
            "bytes_sent": self.bytes_sent,
            "in_flight": self.in_flight,
            "release": self.report,
        })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Runs the demo; fails unless everything was verified.
pub fn run(arguments: &DemoArguments) -> Done {
    if arguments.size < 16 << 20 || !arguments.size.is_multiple_of(4096) {
        return Err(Failure::Usage(
            "--size must be 16M or more, in whole 4k".into(),
        ));
    }
    let base = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new()
        .prefix("ferry-demo-")
        .tempdir_in(&base)
        .map_err(|error| {
            Failure::Failed(format!(
                "cannot make a directory in {}: {error}",
                base.display()
            ))
        })?;
    say("two daemons start, each with a state, an image and sockets of its own");
    let hosts = [Host::start("A", dir.path())?, Host::start("B", dir.path())?];
    let result = if arguments.pinball {
        pinball::run(arguments, dir.path(), hosts)
    } else {
        play(arguments, dir.path(), hosts)
    };
    dir.close()
        .map_err(|error| Failure::Failed(format!("cannot clean up: {error}")))?;
    result
}

fn play(arguments: &DemoArguments, dir: &Path, mut hosts: [Host; 2]) -> Done {
    let id: DiskId = DISK.parse()?;
    let began = Instant::now();
    make_image(&hosts[0].image(), arguments.size)?;
    hosts[0].add_disk(&id, arguments.queues, None)?;
    let mut machine = Machine::start(&hosts[0].socket(), arguments)?;
    say(&format!(
        "a load of {} queues of {} requests writes, reads, zeroes and discards on {}, and does not pause",
        arguments.queues,
        arguments.depth,
        output::bytes(arguments.size)
    ));
    machine.run_for(BETWEEN)?;
    let mut handovers = Vec::new();
    for _ in 0..arguments.rounds {
        for (from, to) in [(0, 1), (1, 0)] {
            handovers.push(hand_over(
                &id,
                arguments,
                &mut hosts,
                (from, to),
                &mut machine,
            )?);
            machine.run_for(BETWEEN)?;
        }
    }
    let sent = handovers
        .iter()
        .map(|handover| handover.bytes_sent)
        .sum::<u64>();
    say("everything that was written is read once more");
    let verdict = machine.finish()?;
    drop(hosts);
    let clean = verdict.is_clean();
    let progress = verdict.progress;
    if output::json_mode() {
        output::json_line(&json!({
            "operations": progress.ops,
            "errors": progress.errors,
            "mismatches": progress.mismatches,
            "bytes_sent": sent,
            "disk_bytes": arguments.size,
            "sectors_checked": verdict.sectors_checked,
            "seconds": began.elapsed().as_secs_f64(),
            "handovers": handovers.iter().map(Handover::line).collect::<Vec<_>>(),
        }));
    } else {
        let rows = handovers.iter().map(|handover| {
            vec![
                handover.route.clone(),
                format!("{:.1} s", handover.copy.as_secs_f64()),
                output::bytes(handover.bytes_sent),
                handover.in_flight.to_string(),
                format!("{:.1} ms", handover.blackout.as_secs_f64() * 1e3),
            ]
        });
        let header = ["MOVE", "COPY", "SENT", "IN FLIGHT AT STOP", "BLACKOUT"];
        println!("\n{}\n", output::table(&header, rows.collect()));
        println!("operations     {}", progress.ops);
        println!("errors         {}", progress.errors);
        println!("mismatches     {}", progress.mismatches);
        println!(
            "sent           {} for a disk of {}",
            output::bytes(sent),
            output::bytes(arguments.size)
        );
        println!(
            "verified       {} read back at the end, every sector as written",
            output::bytes(verdict.sectors_checked * 512)
        );
    }
    for finding in &verdict.findings {
        eprintln!("ferry: mismatch: {finding}");
    }
    if clean {
        say("verdict: the disk moved there and back, and no write was lost");
        return Ok(());
    }
    // What there is to look at goes with the directory; the logs are the last word.
    hosts_logs(dir);
    Err(Failure::Failed(
        "the disk did not keep what was written".into(),
    ))
}

fn hosts_logs(dir: &Path) {
    for name in ["A", "B"] {
        if let Ok(text) = std::fs::read_to_string(dir.join(name).join("log")) {
            eprintln!("--- log of {name}\n{text}");
        }
    }
}

fn make_image(path: &Path, bytes: u64) -> Done {
    std::fs::File::create_new(path)?.set_len(bytes)?;
    Ok(())
}

/// Moves the disk, and the machine's rings with it.
fn hand_over(
    id: &DiskId,
    arguments: &DemoArguments,
    hosts: &mut [Host; 2],
    (from, to): (usize, usize),
    machine: &mut Machine,
) -> Done<Handover> {
    let route = format!("{} to {}", hosts[from].name(), hosts[to].name());
    let [a, b] = hosts;
    let (source, target) = if from < to { (a, b) } else { (b, a) };
    target.forget_disk(id)?;
    target.add_disk(id, arguments.queues, Some(arguments.size))?;
    machine.connect_next(&target.socket())?;
    say(&format!("{route}: the disk is copied under the load"));
    let copying = Instant::now();
    let bar = copy_bar();
    let copied = source.copy_disk(id, target.peer(), COPY_PATIENCE, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        machine.check()
    });
    bar.finish_and_clear();
    copied?;
    let copy = copying.elapsed();
    // The machine stops here: its rings are drained, and what it goes on to submit waits in them.
    let in_flight = machine.stop_rings()?;
    let report = source.release(id)?;
    machine.start_rings()?;
    let blackout = machine.blackout()?;
    say(&format!(
        "{route}: handed over, blackout {:.1} ms",
        blackout.as_secs_f64() * 1e3
    ));
    Ok(Handover {
        route,
        blackout,
        copy,
        bytes_sent: report["bytes_sent"].as_u64().unwrap_or(0),
        in_flight,
        report,
    })
}

fn copy_bar() -> ProgressBar {
    if !output::watched() {
        return ProgressBar::hidden();
    }
    let style = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
    let style = ProgressStyle::with_template(style).expect("a valid template");
    ProgressBar::new(0).with_style(style)
}

/// A line of the story, for a person.
fn say(line: &str) {
    if !output::json_mode() {
        println!("{line}");
    }
}
