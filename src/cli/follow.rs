//! A move that is under way, shown until it is over.

use std::time::Duration;

use ferry_migration::ids::DiskId;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::control::Client;
use crate::error::{Done, Failure};
use crate::name::Name;
use crate::output;

/// How often progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

fn bar() -> ProgressBar {
    if !output::watched() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
    );
    ProgressBar::new(0).with_style(style.expect("a valid template"))
}

fn advance(bar: &ProgressBar, line: &Value) {
    bar.set_length(line["bytes_total"].as_u64().unwrap_or(0));
    bar.set_position(line["bytes_done"].as_u64().unwrap_or(0));
    bar.set_message(line["phase"].as_str().unwrap_or_default().to_owned());
}

/// Shows a disk's migration until it is in sync, or over.
pub fn follow_disk(client: &mut Client, id: &DiskId) -> Done<Value> {
    let bar = bar();
    loop {
        let status = client.call("migrate.status", json!({}))?;
        let disks = status["disks"].as_array().into_iter().flatten();
        let line = disks
            .into_iter()
            .find(|line| line["id"] == json!(id))
            .cloned();
        let line = line.ok_or_else(|| Failure::Failed(format!("disk {id} is not being moved")))?;
        advance(&bar, &line);
        // Its VM may have arrived there meanwhile, and had it.
        let followed = matches!(line["phase"].as_str(), Some("granted" | "moved"));
        if line["in_sync"] == true || followed {
            bar.finish_and_clear();
            return Ok(line);
        }
        // Doubt without a reason is that of a disk that has just been given up.
        let settling = line["phase"] == "in_doubt" && line["reason"].is_null();
        let under_way = matches!(
            line["phase"].as_str(),
            Some("connecting" | "copying" | "in_sync" | "releasing")
        );
        if !under_way && !settling {
            bar.finish_and_clear();
            let phase = line["phase"].as_str().unwrap_or_default();
            // A reason says itself who serves the disk now.
            let why = line["reason"]
                .as_str()
                .map_or(String::new(), |why| format!(": {why}"));
            return Err(Failure::Failed(format!(
                "the copy of disk {id} ended, {phase}{why}"
            )));
        }
        std::thread::sleep(PROGRESS_INTERVAL);
    }
}

/// Waits until a NIC is awaited at the other host.
pub fn follow_nic(client: &mut Client, id: &Name) -> Done<Value> {
    loop {
        let status = client.call("migrate.status", json!({}))?;
        let mut nics = status["nics"].as_array().into_iter().flatten();
        let line = nics.find(|line| line["id"] == json!(id)).cloned();
        let line = line.ok_or_else(|| Failure::Failed(format!("nic {id} is not being moved")))?;
        let why = line["reason"].as_str();
        match (line["phase"].as_str(), why) {
            (Some("connecting"), _) => std::thread::sleep(PROGRESS_INTERVAL),
            (Some("failed" | "cancelled"), why) => {
                let why = why.unwrap_or("cancelled");
                return Err(Failure::Failed(format!("nic {id} is not moved: {why}")));
            }
            _ => return Ok(line),
        }
    }
}

/// Shows a machine's move until it is over.
pub fn follow_machine(client: &mut Client, disks: &[DiskId], nics: &[Name]) -> Done<Value> {
    let bar = bar();
    loop {
        let status = client.call("migrate.status", json!({}))?;
        let machines = status["machines"].as_array().into_iter().flatten();
        let line = machines
            .into_iter()
            .rfind(|line| line["disks"] == json!(disks) && line["nics"] == json!(nics))
            .cloned();
        let line = line.ok_or_else(|| Failure::Failed("the daemon forgot the machine".into()))?;
        let of = |disk: &&Value| disk["id"] == json!(disks.first());
        if let Some(disk) = status["disks"].as_array().into_iter().flatten().find(of) {
            advance(&bar, disk);
        }
        bar.set_message(line["step"].as_str().unwrap_or_default().to_owned());
        if line["over"] == true {
            bar.finish_and_clear();
            return match line["error"].as_str() {
                None => Ok(line),
                Some(error) => Err(Failure::Failed(error.to_owned())),
            };
        }
        std::thread::sleep(PROGRESS_INTERVAL);
    }
}
