//! `ferry-bench peers`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::ValueEnum;
use ferry_bench::error::BenchError;
use ferry_bench::peers::cell::{Backend, Mix};
use ferry_bench::peers::{self, NetPlanned, Plan, Table, Watcher};
use indicatif::{ProgressBar, ProgressStyle};

use super::size;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendName {
    /// Nothing behind it: the path alone
    Null,
    /// The server's memory
    Memory,
    /// A file on tmpfs
    Tmpfs,
    /// A file in the page cache
    Cached,
    /// A file on a disk, O_DIRECT
    Disk,
}

impl From<BackendName> for Backend {
    fn from(name: BackendName) -> Backend {
        match name {
            BackendName::Null => Backend::Null,
            BackendName::Memory => Backend::Memory,
            BackendName::Tmpfs => Backend::Tmpfs,
            BackendName::Cached => Backend::Cached,
            BackendName::Disk => Backend::Disk,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MixName {
    /// Reads alone
    Read,
    /// Writes alone
    Write,
    /// 70 reads to 30 writes
    Mixed,
}

impl From<MixName> for Mix {
    fn from(name: MixName) -> Mix {
        match name {
            MixName::Read => Mix::Read,
            MixName::Write => Mix::Write,
            MixName::Mixed => Mix::Mixed,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A part of the table in under two minutes: reads of 4 KiB at depth 1 and 32, short runs
    #[arg(long)]
    quick: bool,
    /// Kinds of disk [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    backend: Vec<BackendName>,
    /// What requests do [default: all; --quick: read]
    #[arg(long, value_enum, value_delimiter = ',')]
    mix: Vec<MixName>,
    /// Requests in flight [default: 1,32,128; --quick: 1,32]
    #[arg(long, value_delimiter = ',')]
    depth: Vec<u16>,
    /// Bytes of a request [default: 4k,128k; --quick: 4k]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = size::bytes_u32)]
    block_size: Vec<u32>,
    /// Rounds in which the servers take turns [default: 5; --quick: 3]
    #[arg(long)]
    alternations: Option<usize>,
    /// Measured time of a run [default: 1; --quick: 0.25]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Without the rows on growth with queues and disks; --quick has none
    #[arg(long)]
    no_growth: bool,
    /// Bytes of a frame, in the rows on NICs [default: 64,1500]
    #[arg(long, value_name = "BYTES", value_delimiter = ',')]
    net_size: Vec<usize>,
    /// Descriptors of a NIC's ring
    #[arg(long, value_name = "N", default_value_t = 256)]
    net_ring: u16,
    /// Without the rows on NICs
    #[arg(long, conflicts_with = "net_only")]
    no_net: bool,
    /// The rows on NICs alone
    #[arg(long, conflicts_with = "backend")]
    net_only: bool,
    /// The ferry to compare; the one beside this program unless given
    #[arg(long, value_name = "PATH")]
    ferry: Option<PathBuf>,
    /// Where files are made; must be on a disk, not on tmpfs [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where files on tmpfs are made
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    tmpfs_dir: PathBuf,
    /// Bytes of each memory disk and each file
    #[arg(long, default_value = "256M", value_parser = size::bytes)]
    size: u64,
    /// How long to wait, in all, for others to leave the two cores
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    patience: f64,
    /// Core of the servers [default: the first allowed]
    #[arg(long, value_name = "N")]
    server_core: Option<usize>,
    /// Core of the client [default: the last allowed]
    #[arg(long, value_name = "N")]
    client_core: Option<usize>,
    /// One JSON object on stdout, with every run
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The tables as Markdown
    #[arg(long)]
    markdown: bool,
    /// Also draw a chart
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Args {
    fn plan(&self) -> Result<Plan, BenchError> {
        let quick = self.quick;
        let seconds = self.seconds.unwrap_or(if quick { 0.25 } else { 1.0 });
        Ok(Plan {
            ferry: self.ferry.clone().unwrap_or_else(beside),
            backends: match self.net_only {
                true => Vec::new(),
                false => or_all(&self.backend, &Backend::ALL),
            },
            net: (!self.no_net).then(|| NetPlanned {
                sizes: or_all(&self.net_size, &[64, 1500]),
                ring: self.net_ring,
            }),
            mixes: or_all(&self.mix, if quick { &[Mix::Read] } else { &Mix::ALL }),
            depths: or_all(&self.depth, if quick { &[1, 32] } else { &[1, 32, 128] }),
            block_bytes: or_all(
                &self.block_size,
                if quick {
                    &[4 << 10]
                } else {
                    &[4 << 10, 128 << 10]
                },
            ),
            growth: !quick && !self.no_growth,
            alternations: self.alternations.unwrap_or(if quick { 3 } else { 5 }),
            duration: super::seconds(seconds)?,
            dir: self.dir.clone().unwrap_or_else(std::env::temp_dir),
            tmpfs_dir: self.tmpfs_dir.clone(),
            span_bytes: self.size,
            patience: patience(self.patience)?,
            server_core: self.server_core,
            client_core: self.client_core,
        })
    }
}

fn or_all<N: Copy + Into<T>, T: Clone>(chosen: &[N], all: &[T]) -> Vec<T> {
    if chosen.is_empty() {
        all.to_vec()
    } else {
        chosen.iter().map(|n| (*n).into()).collect()
    }
}

fn patience(seconds: f64) -> Result<Duration, BenchError> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| BenchError::Usage(format!("--patience {seconds} is not a number of seconds")))
}

/// The `ferry` that was built with this program.
fn beside() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    here.with_file_name("ferry")
}

pub(super) fn run(args: &Args) -> Result<bool, BenchError> {
    let plan = args.plan()?;
    plan.check()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends it at once.
        let handler = signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()));
        handler.map_err(|source| BenchError::Host {
            what: "a signal handler",
            source,
        })?;
    }
    let mut bar = Bar::new();
    let table = peers::run(&plan, &stop, &mut bar)?;
    bar.0.finish_and_clear();
    if let Some(path) = &args.svg {
        write(path, &peers::chart(&table))?;
    }
    if args.json {
        super::print_json(&table)?;
    } else {
        print(&table, args.markdown);
    }
    Ok(table.is_clean())
}

fn print(table: &Table, markdown: bool) {
    if markdown {
        println!("{}", table.markdown());
    } else {
        println!("{}", table.text());
    }
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(|source| BenchError::Target {
        what: "write",
        path: path.to_owned(),
        source,
        mend: "name another file with --svg",
    })
}

/// A bar on stderr for people; notes on stderr for everyone.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len} ETA {eta} {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }
}

impl Watcher for Bar {
    fn at(&mut self, done: u64, total: u64, next: &str) {
        self.0.set_length(total);
        self.0.set_position(done);
        self.0.set_message(next.to_owned());
    }

    fn note(&mut self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
    }
}
