//! `ferry-bench sioc`.

use std::path::{Path, PathBuf};

use ferry_bench::error::BenchError;
use ferry_bench::sioc::{chart, rows};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this row; repeat for several
    #[arg(long = "row", value_name = "A..H")]
    rows: Vec<char>,
    /// Draw four disks through a congestion, with control and without, into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// An array of JSON objects on stdout, one for each figure
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<bool, BenchError> {
    let names = if args.rows.is_empty() {
        rows::NAMES.to_vec()
    } else {
        args.rows
            .iter()
            .map(|row| row.to_ascii_uppercase())
            .collect()
    };
    let row = |name: char| {
        let unknown = || BenchError::Usage(format!("--row {name} is not one of A to H"));
        rows::run(name).ok_or_else(unknown)
    };
    let rows = names.into_iter().map(row).collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = &args.svg {
        write(path, &chart::draw())?;
    }
    if args.json {
        let lines: Vec<_> = rows.iter().flat_map(|row| &row.lines).collect();
        super::print_json(&lines)?;
    } else {
        println!("{}", rows::text(&rows));
    }
    Ok(true)
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(|source| BenchError::Target {
        what: "write",
        path: path.to_owned(),
        source,
        mend: "name another file with --svg",
    })
}
