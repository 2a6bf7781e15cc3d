//! The report that a hook gets: all that is needed to find out what is wrong, in one JSON file.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use ferry_dataplane::clock::now_ns;
use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use super::hooks::HookEvent;
use crate::daemon::Daemon;
use crate::events;
use crate::name::Name;

/// Events in a report.
const EVENTS_MAX: usize = 64;

/// How long it may take to hear of the disks. Their records may be on storage that hangs, which may
/// be what the report is about.
const GATHER_PATIENCE: Duration = Duration::from_secs(5);

/// Writes the report of an event; where it is. A later one of the same kind takes its place, so
/// there are only so many.
pub fn write(
    daemon: &Arc<Daemon>,
    event: &HookEvent,
    vm: Option<&Name>,
    trial: bool,
) -> io::Result<PathBuf> {
    let dir = daemon.config.run_dir.join("reports");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)?;
    let of = match (vm, event.disk()) {
        (_, Some(disk)) => disk.as_str(),
        (Some(vm), None) => vm.as_str(),
        (None, None) => "daemon",
    };
    let attempt = event.attempt().map_or(String::new(), |n| format!(".{n}"));
    let path = dir.join(format!("{of}.{}{attempt}.json", event.name()));
    let text = serde_json::to_vec_pretty(&contents(daemon, event, vm, trial))?;
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, &path)?;
    Ok(path)
}

fn contents(daemon: &Arc<Daemon>, event: &HookEvent, vm: Option<&Name>, trial: bool) -> Value {
    let (section, line) = match vm {
        Some(vm) => (daemon.config.vm(vm), daemon.escalation.vm_line(daemon, vm)),
        None => (None, None),
    };
    let ids: Vec<DiskId> = match (section, event.disk()) {
        (Some(section), _) => section.disks.clone(),
        (None, Some(disk)) => vec![disk.clone()],
        (None, None) => Vec::new(),
    };
    let (answer, answered) = bounded(1);
    let (own, of) = (daemon.clone(), ids.clone());
    let spawned = std::thread::Builder::new()
        .name("ferry-report".into())
        .spawn(move || answer.send(gather(&own, &of)));
    let gathered = spawned.map(|_| answered.recv_timeout(GATHER_PATIENCE));
    let (disks, migrations, problem) = match gathered {
        Ok(Ok((disks, migrations))) => (disks, migrations, None),
        _ => {
            let why = "the disks' records could not be read in time: their storage may hang";
            (Value::Null, Value::Null, Some(why))
        }
    };
    let now = events::unix_ms();
    json!({
        "version": 1,
        "time": events::utc(now),
        "unix_ms": now,
        "daemon": daemon.id,
        "event": event.name(),
        "trial": trial,
        "attempt": event.attempt(),
        "reason": event.reason(),
        "disk": event.disk(),
        "vm": line,
        "disks": disks,
        "migrations": migrations,
        "problem": problem,
        "events": daemon.events.last(EVENTS_MAX),
    })
}

/// What the disks and their migrations say of themselves. May take long.
fn gather(daemon: &Daemon, ids: &[DiskId]) -> (Value, Value) {
    let lines = ids.iter().map(|id| disk_line(daemon, id));
    let mut migrations = daemon.migrations.status();
    let of_these = |line: &Value| {
        let names = |value: &Value| ids.iter().any(|id| *value == json!(id));
        names(&line["id"])
            || line["disks"]
                .as_array()
                .is_some_and(|all| all.iter().any(names))
    };
    for kind in ["disks", "machines"] {
        if let Some(lines) = migrations[kind].as_array_mut() {
            lines.retain(of_these);
        }
    }
    (lines.collect(), migrations)
}

/// One disk, as `ferry disk list` has it, and its last error.
pub fn disk_line(daemon: &Daemon, id: &DiskId) -> Value {
    let Ok(served) = daemon.disk(id) else {
        let problem = daemon.escalation.problem(id);
        return json!({ "id": id, "phase": null,
            "problem": problem.unwrap_or_else(|| "there is no such disk here".into()) });
    };
    let mut line = served.line();
    let error = served.device.disk().last_error();
    line["last_error"] = match error {
        None => Value::Null,
        Some(error) => json!({
            "error": io::Error::from_raw_os_error(error.os_error).to_string(),
            "os_error": error.os_error,
            "offset_bytes": error.offset_bytes,
            "age_ms": now_ns().saturating_sub(error.at_ns) / 1_000_000,
        }),
    };
    line
}
