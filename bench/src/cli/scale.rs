//! `ferry-bench scale`.

use std::path::PathBuf;

use clap::ValueEnum;
use ferry_bench::error::BenchError;
use ferry_bench::scale::{self, Part, ScalePlan};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Named {
    /// One busy disk alone, and beside idle ones
    Idle,
    /// Ten idle disks
    Quiet,
    /// The first request after a pause
    Wake,
    /// Two queues on one worker, and on two
    Workers,
    /// A busy pair of NICs alone, and among idle ones on a switch
    Nics,
    /// A busy disk among many, with and without I/O control
    Throttle,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The ferry program; the one beside this one unless given
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Another ferry program, of an earlier commit for instance, to compare I/O control's cost with
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// Idle disks beside the busy one
    #[arg(long, default_value_t = 1000)]
    disks: usize,
    /// NICs on the switch, a busy pair among them
    #[arg(long, default_value_t = 100)]
    nics: usize,
    /// Alternations of what is compared
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of one measurement
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    seconds: f64,
    /// Measure this alone; repeat for several
    #[arg(long = "part", value_enum)]
    parts: Vec<Named>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<bool, BenchError> {
    let parts = if args.parts.is_empty() {
        Named::value_variants().to_vec()
    } else {
        args.parts
    };
    let plan = ScalePlan {
        server: args.server.map_or_else(beside_us, Ok)?,
        base: args.base,
        disks: args.disks,
        nics: args.nics,
        rounds: args.rounds,
        duration: super::seconds(args.seconds)?,
        parts: parts
            .iter()
            .map(|part| match part {
                Named::Idle => Part::Idle,
                Named::Quiet => Part::Quiet,
                Named::Wake => Part::Wake,
                Named::Workers => Part::Workers,
                Named::Nics => Part::Nics,
                Named::Throttle => Part::Throttle,
            })
            .collect(),
    };
    plan.check()?;
    let report = scale::run(&plan, &mut |what| eprintln!("measuring: {what}"))?;
    super::show(args.json, &report, |report| report.text())?;
    Ok(true)
}

fn beside_us() -> Result<PathBuf, BenchError> {
    let us = std::env::current_exe().map_err(|source| BenchError::Host {
        what: "the path of this program",
        source,
    })?;
    Ok(us.with_file_name("ferry"))
}
