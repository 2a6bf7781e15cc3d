//! What the command shows: tables and bars for people, JSON lines for machines, logs on standard
//! error.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tracing_subscriber::EnvFilter;

static JSON: AtomicBool = AtomicBool::new(false);

/// Whether the output is for a machine.
pub fn json_mode() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Whether a person watches progress.
pub fn watched() -> bool {
    !json_mode() && std::io::stderr().is_terminal()
}

/// Logs go to standard error; FERRY_LOG chooses what, as RUST_LOG would.
pub fn start_logging(json: bool, verbose: u8) {
    JSON.store(json, Ordering::Relaxed);
    let level = match verbose {
        0 => "ferry=info,ferry_dataplane=info,ferry_vhost=info,ferry_migration=info,warn",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("FERRY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json { log.json().init() } else { log.init() }
}

/// Prints one JSON document on a line.
pub fn json_line(value: &Value) {
    line(&value.to_string());
}

/// Prints a line. A reader that has gone away (`| head`) wants no more, and is no failure.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Bytes for a person.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A table with a header, for a person.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}
