//! `ferry-bench blk`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use ferry_bench::blk::{self, BlkPlan, Pattern, Watcher};
use ferry_bench::error::BenchError;
use indicatif::{ProgressBar, ProgressStyle};

use super::size;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Rw {
    Read,
    Write,
    Randread,
    Randwrite,
    Randrw,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The server's vhost-user socket
    #[arg(long, short = 's', value_name = "PATH")]
    socket_path: PathBuf,
    /// What requests do and where they fall
    #[arg(long, value_enum, default_value = "randread")]
    rw: Rw,
    /// Share of reads of --rw randrw, in percent
    #[arg(long, value_name = "PCT", value_parser = clap::value_parser!(u8).range(0..=100))]
    rw_mix_read: Option<u8>,
    /// Bytes of a request
    #[arg(long, default_value = "4k", value_name = "SIZE", value_parser = size::bytes_u32)]
    block_size: u32,
    /// Requests in flight per queue
    #[arg(long, default_value_t = 32)]
    depth: u16,
    /// Queues, each with a thread
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// How long to run
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    seconds: f64,
    /// Stamp what is written, check what is read, and read everything written
    /// once more at the end; draws its own sizes and mix. Destroys the disk's
    /// contents
    #[arg(long, conflicts_with_all = ["rw", "rw_mix_read"])]
    verify: bool,
    /// With --verify: the disk is all zero now, so anything else is a mismatch
    #[arg(long, requires = "verify")]
    fresh: bool,
    /// Use only this much of the disk, from its start (--verify: 256M unless given)
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    span: Option<u64>,
    /// Put descriptor chains into indirect tables, if the server takes them
    #[arg(long)]
    indirect: bool,
    /// Poll this long for a completion before sleeping; 1000000 never sleeps
    #[arg(long, default_value_t = 50, value_name = "US")]
    spin_us: u64,
    /// Give up when nothing completes for this long
    #[arg(long, default_value_t = 30, value_name = "S")]
    timeout: u64,
    /// Draws the load; the same seed draws the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Without a size, a verified run keeps its bookkeeping in bounds.
const VERIFY_SPAN: u64 = 256 << 20;

impl Args {
    fn plan(self) -> Result<BlkPlan, BenchError> {
        let random = !matches!(self.rw, Rw::Read | Rw::Write);
        let read_percent = match self.rw {
            Rw::Read | Rw::Randread => 100,
            Rw::Write | Rw::Randwrite => 0,
            Rw::Randrw => 50,
        };
        let pattern = match self.rw_mix_read {
            Some(read_percent) => Pattern {
                random: true,
                read_percent,
            },
            None => Pattern {
                random,
                read_percent,
            },
        };
        let duration = super::seconds(self.seconds)?;
        Ok(BlkPlan {
            socket: self.socket_path,
            pattern,
            // A verified run draws sizes; the disk's block is its grid.
            block_bytes: self.block_size,
            depth: self.depth,
            queues: self.queues,
            duration,
            verify: self.verify,
            fresh: self.fresh,
            seed: self.seed,
            span_bytes: self.span,
            span_default: self.verify.then_some(VERIFY_SPAN),
            indirect: self.indirect,
            spin: Duration::from_micros(self.spin_us),
            timeout: Duration::from_secs(self.timeout),
        })
    }
}

pub(super) fn run(args: Args) -> Result<bool, BenchError> {
    let json = args.json;
    let plan = args.plan()?;
    plan.check()?;
    let mut bar = Bar::new(plan.duration);
    let report = blk::run(&plan, &mut bar)?;
    bar.clear();
    for finding in &report.findings {
        eprintln!("mismatch: {finding}");
    }
    super::show(json, &report, |report| report.table().to_string())?;
    Ok(report.is_clean())
}

/// A bar on stderr, for people and for runs over a second.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(total: Duration) -> Self {
        if total <= Duration::from_secs(1) || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(millis(total));
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {percent}% ETA {eta}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message("load");
        Self(Some(bar))
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Watcher for Bar {
    fn at(&mut self, elapsed: Duration, _: Duration) {
        if let Some(bar) = &self.0 {
            bar.set_position(millis(elapsed));
        }
    }

    fn sweeping(&mut self, checked: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message("last reading");
            bar.set_length(total);
            bar.set_position(checked);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
