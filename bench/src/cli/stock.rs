//! `ferry-bench stock`.

use std::path::PathBuf;

use ferry_bench::error::BenchError;
use ferry_bench::stock::{self, StockKind, StockPlan};

use super::size;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The vhost-user socket to listen on
    #[arg(long, short = 's', value_name = "PATH")]
    socket_path: PathBuf,
    /// A file or block device, memory:SIZE, or null:SIZE
    #[arg(long)]
    disk: String,
    /// Open the file with O_DIRECT
    #[arg(long)]
    direct: bool,
    /// Queues offered
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    num_queues: u16,
}

/// Serves until it is killed.
pub(super) fn run(args: &Args) -> Result<bool, BenchError> {
    let plan = StockPlan {
        socket: args.socket_path.clone(),
        kind: kind(&args.disk, args.direct)?,
        queues: args.num_queues,
    };
    stock::serve(&plan)?;
    Ok(true)
}

fn kind(disk: &str, direct: bool) -> Result<StockKind, BenchError> {
    let sized = |text: &str| match size::bytes(text) {
        Ok(bytes) if bytes > 0 && bytes.is_multiple_of(4096) => Ok(bytes),
        _ => Err(BenchError::Usage(format!(
            "--disk {disk}: the size is a multiple of 4k above 0, such as 256M"
        ))),
    };
    let kind = if let Some(size) = disk.strip_prefix("memory:") {
        StockKind::Memory(sized(size)?)
    } else if let Some(size) = disk.strip_prefix("null:") {
        StockKind::Null(sized(size)?)
    } else {
        return Ok(StockKind::File {
            path: disk.into(),
            direct,
        });
    };
    if direct {
        return Err(BenchError::Usage("--direct is for files".into()));
    }
    Ok(kind)
}
