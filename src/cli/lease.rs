//! `ferry lease`.

use clap::Subcommand;
use ferry_migration::ids::{DaemonId, DiskId};
use serde_json::{Value, json};

use super::{cell, show};
use crate::control::Client;
use crate::error::Done;
use crate::output;

/// What may be done with leases.
#[derive(Subcommand)]
pub enum LeaseCommand {
    /// Who has the disks that hosts share, and whether their leases hold.
    Show {
        /// One disk.
        id: Option<DiskId>,
    },
    /// Take a disk over whose owner is off for sure. Two hosts that serve one disk destroy it: turn
    /// the owner off, or cut it from the storage, before you say this.
    Break {
        /// The disk.
        id: DiskId,
        /// The daemon that you have made sure is off, by the id that ferry lease show prints.
        #[arg(long, value_name = "DAEMON")]
        fenced: DaemonId,
    },
}

/// Carries it out.
pub fn run(command: LeaseCommand, client: &mut Client) -> Done {
    match command {
        LeaseCommand::Show { id } => {
            show(&client.call("lease.show", json!({ "id": id }))?, table);
        }
        LeaseCommand::Break { id, fenced } => {
            let line = client.call("lease.break", json!({ "id": id, "fenced": fenced }))?;
            show(&line, |line| {
                format!(
                    "disk {id} is served here, at epoch {}; start its VM with {}",
                    line["epoch"],
                    line["socket"].as_str().unwrap_or_default()
                )
            });
        }
    }
    Ok(())
}

fn table(list: &Value) -> String {
    let seconds = |ms: &Value| {
        ms.as_f64()
            .map_or_else(|| "-".to_owned(), |ms| format!("{:.1} s", ms / 1000.0))
    };
    let rows = list["leases"].as_array().into_iter().flatten().map(|line| {
        let here = if line["here"] == true { "here" } else { "" };
        vec![
            cell(&line["id"]),
            cell(&line["lease"]),
            cell(&line["epoch"]),
            cell(&line["owner"]),
            format!("{} {here}", cell(&line["address"])),
            seconds(&line["left_ms"]),
            seconds(&line["silent_ms"]),
            seconds(&line["over_after_ms"]),
            cell(&line["fence"]),
        ]
    });
    let header = [
        "DISK",
        "LEASE",
        "EPOCH",
        "OWNER",
        "ADDRESS",
        "LEFT",
        "SILENT",
        "OVER AFTER",
        "FENCE",
    ];
    output::table(&header, rows.collect())
}
