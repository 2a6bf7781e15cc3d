//! `ferry worker list`.

use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{cell, show};
use crate::control::Client;
use crate::error::Done;
use crate::output;

/// Time over which shares are measured.
const INTERVAL: Duration = Duration::from_millis(500);

/// What may be asked of the workers.
#[derive(Subcommand)]
pub enum WorkerCommand {
    /// What each did with its time in the last half second, and since the start.
    List,
}

/// Two readings, as a share of time needs two.
pub fn list(client: &mut Client) -> Done {
    let began = Instant::now();
    let before = client.call("worker.list", json!({}))?;
    std::thread::sleep(INTERVAL);
    let mut list = client.call("worker.list", json!({}))?;
    let seconds = began.elapsed().as_secs_f64();
    let lines = list["workers"].as_array_mut().into_iter().flatten();
    for (at, line) in lines.enumerate() {
        let a_second = |key: &str| {
            let (now, then) = (&line[key], &before["workers"][at][key]);
            (now.as_f64().unwrap_or(0.0) - then.as_f64().unwrap_or(0.0)) / seconds
        };
        let [busy, polling] = ["busy_ns", "polling_ns"].map(|key| a_second(key) / 1e7);
        let requests = a_second("requests").round();
        line["busy_percent"] = json!(busy);
        line["polling_percent"] = json!(polling);
        line["requests_per_second"] = json!(requests);
    }
    show(&list, table);
    Ok(())
}

fn table(list: &Value) -> String {
    let number = |value: &Value, unit: &str| format!("{:.0}{unit}", value.as_f64().unwrap_or(0.0));
    let rows = list["workers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|line| {
            vec![
                cell(&line["worker"]),
                cell(&line["queues"]),
                number(&line["busy_percent"], " %"),
                number(&line["polling_percent"], " %"),
                number(&line["requests_per_second"], ""),
                cell(&line["requests"]),
                cell(&line["sleeps"]),
            ]
        });
    let header = [
        "WORKER",
        "QUEUES",
        "BUSY",
        "POLLING",
        "REQUESTS/S",
        "REQUESTS",
        "SLEEPS",
    ];
    output::table(&header, rows.collect())
}
