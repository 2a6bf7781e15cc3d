//! `ferry iostat`: what disks did between two readings, and how long it took.

use std::time::{Duration, Instant};

use clap::Args;
use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use super::{cell, show};
use crate::control::Client;
use crate::error::{Done, Failure};
use crate::output;
use crate::qos::MB;

mod between;

/// `ferry iostat`.
#[derive(Args)]
pub struct IostatArguments {
    /// Disks; all unless given.
    ids: Vec<DiskId>,
    /// Seconds between two readings.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    interval: f64,
    /// Intervals to show; for ever unless given, and one with --json.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

const SECONDS: std::ops::RangeInclusive<f64> = 0.05..=86_400.0;

/// Two readings and more, as what is between them is shown.
pub fn run(arguments: &IostatArguments, client: &mut Client) -> Done {
    if !SECONDS.contains(&arguments.interval) {
        let (least, most) = (SECONDS.start(), SECONDS.end());
        return Err(Failure::Usage(format!(
            "--interval is {least} to {most} seconds"
        )));
    }
    let interval = Duration::from_secs_f64(arguments.interval);
    let asked = json!({ "ids": arguments.ids });
    let mut before = client.call("iostat", asked.clone())?;
    let mut due = Instant::now();
    let mut left = match arguments.count {
        None if output::json_mode() => 1,
        None => u64::MAX,
        Some(count) => count,
    };
    while left > 0 {
        due += interval;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = client.call("iostat", asked.clone())?;
        show(&between::lines(&before, &now), table);
        before = now;
        left -= 1;
    }
    Ok(())
}

fn table(list: &Value) -> String {
    let number = |value: &Value, digits: usize| {
        value
            .as_f64()
            .map_or("-".into(), |it| format!("{it:.digits$}"))
    };
    let latency = |value: &Value| {
        ["mean_ms", "p50_ms", "p99_ms"]
            .map(|key| number(&value[key], 2))
            .join("/")
    };
    let rows = list["disks"].as_array().into_iter().flatten().map(|disk| {
        vec![
            cell(&disk["id"]),
            number(&disk["iops"], 0),
            number(&disk["mbps"], 1),
            latency(&disk["davg"]),
            latency(&disk["qavg"]),
            latency(&disk["gavg"]),
            cell(&disk["in_flight"]),
            cell(&disk["waiting"]),
            cell(&disk["backlog"]),
            match (&disk["window"], disk["sioc"].as_str()) {
                (Value::Null, Some("on")) => "open".into(),
                (window, _) => number(window, 1),
            },
            cell(&disk["errors"]),
        ]
    });
    let header = [
        "DISK",
        "IOPS",
        "MB/S",
        "DAVG ms (mean/p50/p99)",
        "QAVG ms",
        "GAVG ms",
        "IN FLIGHT",
        "WAITING",
        "BACKLOG",
        "WINDOW",
        "ERRORS",
    ];
    output::table(&header, rows.collect())
}
