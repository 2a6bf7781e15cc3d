//! The command line: parse, run, print.

mod blk;
mod churn;
mod device;
mod net;
mod peers;
mod scale;
mod sioc;
mod size;
mod stock;
mod talk;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ferry_bench::error::BenchError;

/// Load on virtual disks and NICs, and proof that they kept what they were given.
#[derive(Debug, Parser)]
#[command(name = "ferry-bench", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load on any vhost-user-blk server
    Blk(blk::Args),
    /// The verified load on a block device or file, with O_DIRECT and io_uring
    Device(device::Args),
    /// Frames through any vhost-user-net server, sent at one port and judged at another
    Net(net::Args),
    /// Verified traffic between two hosts through their kernels' sockets
    #[command(subcommand)]
    Talk(talk::Command),
    /// Ferry beside its peers, in one table of ratios
    Peers(peers::Args),
    /// What idle disks cost, what waking up costs, and what a second worker brings
    Scale(scale::Args),
    /// Shares of a simulated array: what was published, what the book says, and what comes out
    Sioc(sioc::Args),
    /// A vhost-user-blk server built on the usual framework, to be measured against
    Stock(stock::Args),
    /// Clones added to a daemon, used, removed and deleted, again and again
    Churn(churn::Args),
}

/// Exit codes: 0 done and clean, 1 failed or not clean, 2 wrong usage.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Blk(args) => blk::run(args),
        Command::Device(args) => device::run(args),
        Command::Net(args) => net::run(args),
        Command::Talk(command) => talk::run(command),
        Command::Peers(args) => peers::run(&args),
        Command::Scale(args) => scale::run(args),
        Command::Sioc(args) => sioc::run(&args),
        Command::Stock(args) => stock::run(&args),
        Command::Churn(args) => churn::run(args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ferry-bench: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// A time in seconds from the command line.
fn seconds(value: f64) -> Result<std::time::Duration, BenchError> {
    let time = std::time::Duration::try_from_secs_f64(value)
        .ok()
        .filter(|t| !t.is_zero());
    time.ok_or_else(|| BenchError::Usage(format!("--seconds {value} is not a time; use 1 or more")))
}

/// Prints a value as one line of JSON.
/// What a run found, for machines or for people.
fn show<R: serde::Serialize>(
    json: bool,
    report: &R,
    text: impl FnOnce(&R) -> String,
) -> Result<(), BenchError> {
    if json {
        return print_json(report);
    }
    println!("{}", text(report));
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), BenchError> {
    let text = serde_json::to_string(value).map_err(|e| BenchError::Host {
        what: "the result as JSON",
        source: e.into(),
    })?;
    println!("{text}");
    Ok(())
}
