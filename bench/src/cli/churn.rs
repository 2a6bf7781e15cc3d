//! `ferry-bench churn`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use ferry_bench::churn::{self, ChurnPlan, Server};
use ferry_bench::error::BenchError;
use indicatif::{ProgressBar, ProgressStyle};

use super::size;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Disks that come and go
    #[arg(long, default_value_t = 1000, value_name = "N")]
    cycles: u64,
    /// So many at once
    #[arg(long, default_value_t = 4, value_name = "N")]
    parallel: u16,
    /// Cycles before those that are counted
    #[arg(long, default_value_t = 100, value_name = "N")]
    warm_up: u64,
    /// The daemon's program; the one beside this program unless given
    #[arg(long, value_name = "PATH", conflicts_with = "control")]
    ferry: Option<PathBuf>,
    /// Use the daemon with this control socket. It must be able to read and write --dir; of its
    /// files only those beside the socket are looked at
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Polling threads of the daemon
    #[arg(long, default_value_t = 1, conflicts_with = "control")]
    workers: u16,
    /// Where images are made, in a folder that goes at the end
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Size of the image that is cloned
    #[arg(long, default_value = "64M", value_name = "SIZE", value_parser = size::bytes)]
    base_size: u64,
    /// Give up when an answer or a request takes so long
    #[arg(long, default_value_t = 30, value_name = "S")]
    timeout: u64,
    /// Draws where disks are read and written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl Args {
    fn plan(self) -> Result<ChurnPlan, BenchError> {
        let server = match (self.control, self.ferry) {
            (Some(control), _) => Server::Running(control),
            (None, Some(program)) => Server::Start(program),
            (None, None) => Server::Start(beside()?),
        };
        Ok(ChurnPlan {
            server,
            dir: self.dir,
            cycles: self.cycles,
            warm_up: self.warm_up,
            parallel: self.parallel,
            workers: self.workers,
            base_bytes: self.base_size,
            seed: self.seed,
            timeout: Duration::from_secs(self.timeout),
        })
    }
}

/// The program that is built with this one.
fn beside() -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(|source| BenchError::Host {
        what: "this program's path",
        source,
    })?;
    Ok(own.with_file_name("ferry"))
}

pub(super) fn run(args: Args) -> Result<bool, BenchError> {
    let json = args.json;
    let plan = args.plan()?;
    plan.check()?;
    let bar = bar(plan.cycles);
    let report = churn::run(&plan, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    let report = report?;
    for leak in &report.leaks {
        eprintln!("leak: {leak}");
    }
    super::show(json, &report, |report| report.table().to_string())?;
    Ok(report.is_clean())
}

/// A bar on stderr, for people.
fn bar(cycles: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(cycles);
    let style = "cycles [{bar:30}] {pos}/{len} {per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}
