//! `ferry group`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{cell, show};
use crate::control::Client;
use crate::error::Done;
use crate::name::Name;
use crate::output;
use crate::qos::group::GroupChange;

/// What may be done with groups.
#[derive(Subcommand)]
pub enum GroupCommand {
    /// The groups, their limits and their disks.
    List,
    /// Make a group, or change its limits while its disks' guests run. What is not given stays.
    Set(GroupChange),
    /// Remove a group that no disk is in.
    Remove {
        /// Its name.
        name: Name,
    },
}

/// Carries it out.
pub fn run(command: GroupCommand, client: &mut Client) -> Done {
    match command {
        GroupCommand::List => show(&client.call("group.list", json!({}))?, table),
        GroupCommand::Set(change) => {
            change.check()?;
            let line = client.call("group.set", serde_json::to_value(&change)?)?;
            show(&line, |line| {
                let name = &change.name;
                if line["lasting"] == true {
                    return format!("group {name} is set so, also after a restart");
                }
                format!(
                    "group {name} is set so until the daemon starts again; it is in the daemon's \
                     configuration: change it there as well"
                )
            });
        }
        GroupCommand::Remove { name } => {
            let gone = client.call("group.remove", json!({ "name": name }))?;
            show(&gone, |_| format!("group {name} is gone"));
        }
    }
    Ok(())
}

fn table(list: &Value) -> String {
    let rows = list["groups"].as_array().into_iter().flatten().map(|it| {
        let disks = it["disks"].as_array().into_iter().flatten().map(cell);
        vec![
            cell(&it["name"]),
            cell(&it["limit_iops"]),
            cell(&it["limit_mbps"]),
            disks.collect::<Vec<_>>().join(", "),
        ]
    });
    output::table(
        &["GROUP", "LIMIT IOPS", "LIMIT MB/S", "DISKS"],
        rows.collect(),
    )
}
