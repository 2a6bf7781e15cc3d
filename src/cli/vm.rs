//! `ferry vm` and `ferry events`.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{cell, show};
use crate::control::Client;
use crate::error::Done;
use crate::output;

#[derive(Subcommand)]
pub enum VmCommand {
    /// The machines of the configuration: how they are, and how old their requests are.
    List,
    /// One machine, and all that is known of its disks.
    Show {
        /// Its name.
        name: String,
    },
    /// Run a machine's hook as if something had happened to it, with FERRY_TRIAL=1.
    TryHook {
        /// Its name.
        name: String,
        /// What the hook is told.
        #[arg(long, value_enum, default_value_t = TrialEvent::Restart)]
        event: TrialEvent,
    },
}

/// What a hook may be tried with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrialEvent {
    Restart,
    Escalate,
    /// Of the machine's first disk.
    Takeover,
}

impl TrialEvent {
    fn name(self) -> &'static str {
        match self {
            TrialEvent::Restart => "restart",
            TrialEvent::Escalate => "escalate",
            TrialEvent::Takeover => "takeover",
        }
    }
}

pub fn run(command: VmCommand, client: &mut Client) -> Done {
    match command {
        VmCommand::List => show(&client.call("vm.list", json!({}))?, list_table),
        VmCommand::Show { name } => {
            show(&client.call("vm.show", json!({ "name": name }))?, vm_tables);
        }
        VmCommand::TryHook { name, event } => {
            let asked = json!({ "name": name, "event": event.name() });
            let begun = client.call("vm.try_hook", asked)?;
            show(&begun, |_| {
                format!("the hook of vm {name} is run; see how it went: ferry events")
            });
        }
    }
    Ok(())
}

pub fn events(client: &mut Client) -> Done {
    show(&client.call("events", json!({}))?, event_table);
    Ok(())
}

/// An age for a person.
fn age(ms: &Value) -> String {
    match ms.as_u64() {
        None => "-".into(),
        Some(ms @ 0..1000) => format!("{ms} ms"),
        Some(ms @ 1000..120_000) => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        Some(ms @ 120_000..7_200_000) => format!("{} min", ms / 60_000),
        Some(ms) => format!("{} h", ms / 3_600_000),
    }
}

const VM_HEADER: [&str; 9] = [
    "VM",
    "STATE",
    "ATTEMPTS",
    "IN FLIGHT",
    "OLDEST",
    "COMPLETED",
    "HEARTBEAT",
    "DISKS",
    "REASON",
];

fn vm_row(vm: &Value) -> Vec<String> {
    let attempts = format!("{} of {}", vm["attempts"], vm["restart_attempts"]);
    let heartbeat = match &vm["heartbeat"] {
        Value::Null => "-".into(),
        heartbeat if heartbeat["age_ms"].is_null() => "none yet".into(),
        heartbeat => age(&heartbeat["age_ms"]),
    };
    let disks = vm["disks"].as_array().into_iter().flatten().map(|disk| {
        let lacks = if disk["here"] == true {
            ""
        } else {
            " (not here)"
        };
        format!("{}{lacks}", cell(&disk["id"]))
    });
    vec![
        cell(&vm["name"]),
        cell(&vm["state"]),
        attempts,
        cell(&vm["in_flight"]),
        age(&vm["oldest_ms"]),
        age(&vm["completed_ms"]),
        heartbeat,
        disks.collect::<Vec<_>>().join(", "),
        cell(&vm["reason"]),
    ]
}

fn list_table(list: &Value) -> String {
    let rows = list["vms"].as_array().into_iter().flatten().map(vm_row);
    output::table(&VM_HEADER, rows.collect())
}

fn vm_tables(vm: &Value) -> String {
    let rows = vm["disks"].as_array().into_iter().flatten().map(|disk| {
        let mut row = ["id", "phase", "epoch", "attached", "in_flight"]
            .map(|key| cell(&disk[key]))
            .to_vec();
        row.extend(["oldest_ms", "completed_ms", "stalled_ms"].map(|key| age(&disk[key])));
        row.push(cell(&disk["errors"]));
        row.push(cell(&disk["last_error"]["error"]));
        row.push(cell(&disk["problem"]));
        row
    });
    let header = [
        "DISK",
        "PHASE",
        "EPOCH",
        "ATTACHED",
        "IN FLIGHT",
        "OLDEST",
        "COMPLETED",
        "STALLED",
        "ERRORS",
        "LAST ERROR",
        "PROBLEM",
    ];
    let disks = output::table(&header, rows.collect());
    format!("{}\n\n{disks}", output::table(&VM_HEADER, vec![vm_row(vm)]))
}

fn event_table(list: &Value) -> String {
    let rows = list["events"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| {
            let keys = ["number", "time", "what", "vm", "disk", "text"];
            keys.map(|key| cell(&event[key])).to_vec()
        });
    output::table(
        &["NUMBER", "TIME", "EVENT", "VM", "DISK", "TEXT"],
        rows.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        let said = [
            (json!(null), "-"),
            (json!(999), "999 ms"),
            (json!(1250), "1.2 s"),
            (json!(180_000), "3 min"),
            (json!(7_200_000), "2 h"),
        ];
        for (ms, text) in said {
            assert_eq!(age(&ms), text);
        }
    }
}
