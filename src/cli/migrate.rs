//! `ferry migrate`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ferry_migration::ids::{DaemonId, DiskId};
use serde_json::{Value, json};

use super::follow::{follow_disk, follow_machine, follow_nic};
use super::{cell, show};
use crate::control::Client;
use crate::error::Done;
use crate::name::Name;
use crate::output;

/// What may be done with moves.
#[derive(Subcommand)]
pub enum MigrateCommand {
    /// Copy disks to another host, and keep the copies equal until they are released or cancelled.
    Disk {
        /// Their names. Several are of one VM: the other host gets all of them or none.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<DiskId>,
        /// The other daemon.
        #[arg(long, value_name = "HOST:PORT", value_parser = peer_address)]
        to: String,
        #[command(flatten)]
        source: SourceArguments,
    },
    /// Have a NIC awaited at another host, and pass on what reaches it here while its VM goes there.
    Nic {
        /// Its name.
        id: Name,
        /// The other daemon.
        #[arg(long, value_name = "HOST:PORT", value_parser = peer_address)]
        to: String,
    },
    /// Hand a copied disk over, and those that move with it. Its VM must be stopped, as at QEMU's pre-switchover. A VM whose
    /// rings start at the other host where they stopped here does it by itself.
    #[command(visible_alias = "commit")]
    Release {
        /// Its name.
        id: DiskId,
    },
    /// Move a QEMU machine: its disks first, then the rest, with its NICs.
    Vm {
        /// A disk of the machine; repeat for each.
        #[arg(long = "disk", value_name = "ID", required_unless_present = "nics")]
        disks: Vec<DiskId>,
        /// A NIC of the machine; repeat for each.
        #[arg(long = "nic", value_name = "ID")]
        nics: Vec<Name>,
        /// The other daemon.
        #[arg(long, value_name = "HOST:PORT", value_parser = peer_address)]
        to: String,
        /// Monitor socket of the QEMU here.
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// Monitor socket of the QEMU there, started with -incoming defer -S.
        #[arg(long, value_name = "SOCKET")]
        dest_qmp: PathBuf,
        /// Where QEMU sends the machine, such as tcp:host:4444.
        #[arg(long, value_name = "URI")]
        migrate_uri: String,
        /// Where the QEMU there listens, if that is written differently there.
        #[arg(long, value_name = "URI")]
        incoming_uri: Option<String>,
        #[command(flatten)]
        source: SourceArguments,
    },
    /// Serve a disk here again that was given up, when the host that it was given to cannot be asked
    /// and is off for good. If it is not, two hosts serve the disk, and destroy it.
    Resolve {
        /// Its name.
        id: DiskId,
        /// The daemon that you have made sure is off, by the id that ferry migrate status prints.
        #[arg(long, value_name = "DAEMON")]
        fenced: DaemonId,
    },
    /// What is being moved, and how far it is.
    Status,
    /// Stop moving a disk, or a NIC; it is served here as before.
    Cancel {
        /// Its name.
        id: Name,
        /// It is a NIC's.
        #[arg(long)]
        nic: bool,
    },
}

/// What becomes of what was moved away.
#[derive(Args)]
pub struct SourceArguments {
    /// Whether the images stay here, renamed IMAGE.moved.EPOCH, when the disks are served there.
    #[arg(long, value_name = "yes|no", default_value = "yes", value_parser = yes_or_no,
        action = clap::ArgAction::Set)]
    keep_source: bool,
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("use yes or no".into()),
    }
}

/// `HOST:PORT`, by its form.
fn peer_address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("use HOST:PORT, such as 10.0.0.2:7077".into()),
    }
}

/// Carries it out.
pub fn run(command: MigrateCommand, client: &mut Client) -> Done {
    match command {
        MigrateCommand::Disk { ids, to, source } => {
            let keep_source = source.keep_source;
            let wanted = json!({ "ids": ids, "to": to, "keep_source": keep_source });
            client.call("migrate.disk", wanted)?;
            for id in &ids[1..] {
                follow_disk(client, id)?;
            }
            let id = &ids[0];
            let line = follow_disk(client, id)?;
            show(&line, |line| {
                if line["in_sync"] != true {
                    return format!("disk {id} has followed its VM to {to}");
                }
                format!(
                    "disk {id} is in sync with {to}: {} sent\nnext: stop its VM, then ferry migrate \
                     release {id} (ferry migrate vm does both); or ferry migrate cancel {id}",
                    output::bytes(line["bytes_sent"].as_u64().unwrap_or(0))
                )
            });
        }
        MigrateCommand::Nic { id, to } => {
            client.call("migrate.nic", json!({ "id": id, "to": to }))?;
            let line = follow_nic(client, &id)?;
            show(&line, |_| {
                format!(
                    "nic {id} is awaited at {to}\nnext: migrate its VM there; or ferry migrate cancel \
                     --nic {id}"
                )
            });
        }
        MigrateCommand::Resolve { id, fenced } => {
            let line = client.call("migrate.resolve", json!({ "id": id, "fenced": fenced }))?;
            show(&line, |_| format!("disk {id} is served here"));
        }
        MigrateCommand::Release { id } => {
            let report = client.call("migrate.release", json!({ "id": id }))?;
            show(&report, |report| {
                let one = [report.clone()];
                let reports = report["handovers"]
                    .as_array()
                    .map_or(&one[..], |all| &all[..]);
                let tables: Vec<_> = reports.iter().map(handover_table).collect();
                format!("disk {id} is handed over\n{}", tables.join("\n"))
            });
        }
        MigrateCommand::Vm {
            disks,
            nics,
            to,
            qmp,
            dest_qmp,
            migrate_uri,
            incoming_uri,
            source,
        } => {
            let request = json!({
                "disks": disks, "nics": nics, "to": to, "qmp": std::path::absolute(qmp)?, "dest_qmp": dest_qmp,
                "migrate_uri": migrate_uri, "incoming_uri": incoming_uri,
                "keep_source": source.keep_source,
            });
            client.call("migrate.machine", request)?;
            let line = follow_machine(client, &disks, &nics)?;
            show(&line, |line| {
                let downtime = &line["downtime_ms"];
                let mut text = format!("the machine runs at {to}; QEMU's downtime {downtime} ms");
                for nic in line["nic_moves"].as_array().into_iter().flatten() {
                    text = format!("{text}\n{}", nic_line(nic));
                }
                for report in line["handovers"].as_array().into_iter().flatten() {
                    text = format!("{text}\n{}", handover_table(report));
                }
                text
            });
        }
        MigrateCommand::Status => show(&client.call("migrate.status", json!({}))?, status_table),
        MigrateCommand::Cancel { id, nic } => {
            let (what, method) = if nic {
                ("nic", "migrate.cancel_nic")
            } else {
                ("disk", "migrate.cancel")
            };
            let line = client.call(method, json!({ "id": id }))?;
            show(&line, |_| {
                format!("cancelled; {what} {id} is served here as before")
            });
        }
    }
    Ok(())
}

/// How a NIC's move went.
fn nic_line(nic: &Value) -> String {
    let blackout = match nic["blackout_us"].as_u64() {
        Some(us) => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        None => "-".into(),
    };
    format!(
        "nic {}: {}, blackout {blackout}, {} frames ({}) passed on",
        cell(&nic["id"]),
        cell(&nic["phase"]),
        cell(&nic["frames_forwarded"]),
        output::bytes(nic["bytes_forwarded"].as_u64().unwrap_or(0)),
    )
}

fn handover_table(report: &Value) -> String {
    let rows = report
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| match key.strip_suffix("_us") {
            Some(name) => vec![name.replace('_', " "), format!("{value} us")],
            None if key == "bytes_sent" => {
                vec!["sent".into(), output::bytes(value.as_u64().unwrap_or(0))]
            }
            None => vec![key.clone(), value.to_string()],
        });
    output::table(&["HANDOVER", ""], rows.collect())
}

fn status_table(status: &Value) -> String {
    let size = |value: &Value| output::bytes(value.as_u64().unwrap_or(0));
    let rows = status["disks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|disk| {
            let rate = format!("{}/s", size(&disk["bytes_per_second"]));
            let eta = disk["eta_seconds"]
                .as_u64()
                .map_or("-".into(), |eta| format!("{eta} s"));
            let mut row = ["id", "to", "phase"].map(|key| cell(&disk[key])).to_vec();
            row.extend(["bytes_done", "bytes_total", "bytes_sent"].map(|key| size(&disk[key])));
            row.extend([rate, eta, cell(&disk["reason"])]);
            row
        });
    let header = [
        "DISK", "TO", "PHASE", "DONE", "OF", "SENT", "RATE", "ETA", "REASON",
    ];
    let mut text = output::table(&header, rows.collect());
    let nics = status["nics"].as_array().into_iter().flatten();
    let rows: Vec<_> = nics
        .map(|nic| {
            [
                "id",
                "to",
                "phase",
                "frames_forwarded",
                "blackout_us",
                "reason",
            ]
            .map(|key| cell(&nic[key]))
            .to_vec()
        })
        .collect();
    if !rows.is_empty() {
        let header = ["NIC", "TO", "PHASE", "PASSED ON", "BLACKOUT us", "REASON"];
        text = format!("{text}\n{}", output::table(&header, rows));
    }
    for machine in status["machines"].as_array().into_iter().flatten() {
        text = format!(
            "{text}\nmachine with {}: {}",
            machine["disks"],
            cell(&machine["step"])
        );
    }
    text
}
