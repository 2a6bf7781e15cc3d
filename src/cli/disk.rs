//! `ferry disk`.

use std::path::PathBuf;

use clap::Subcommand;
use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use super::{cell, show};
use crate::config::{DiskConfig, InflightMode};
use crate::control::Client;
use crate::error::Done;
use crate::images::{CloneArguments, CreateArguments};
use crate::qos::disk::{DiskChange, DiskQos};
use crate::spec::{DiskSpec, Usage, parse_size};
use crate::{output, serve};

/// What may be done with disks.
#[derive(Subcommand)]
pub enum DiskCommand {
    /// Serve a disk, or await one that is moved here.
    Add {
        /// Its name, the same on every host.
        id: DiskId,
        /// A raw file or block device, qcow2:PATH, memory:SIZE, or null:SIZE.
        #[arg(long)]
        path: DiskSpec,
        /// Its vhost-user socket; ID.sock in the run directory unless given.
        #[arg(long, value_name = "SOCKET")]
        socket_path: Option<PathBuf>,
        /// Virtqueues offered.
        #[arg(long, default_value_t = 1)]
        num_queues: u16,
        #[command(flatten)]
        usage: Usage,
        /// The disk is elsewhere and will be moved here, to this path.
        #[arg(long)]
        incoming: bool,
        /// Other hosts serve disks from its datastore too, and see the same image.
        #[arg(long)]
        shared: bool,
        /// Size of a disk that will be moved here.
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// Where requests in flight are written down, for a successor to finish them.
        #[arg(long, value_enum, default_value_t)]
        inflight: InflightMode,
        /// What is at the path is a copy of a disk, and a disk of its own from now on.
        #[arg(long, conflicts_with = "incoming")]
        new_identity: bool,
        #[command(flatten)]
        qos: DiskQos,
    },
    /// Change what a disk gets of its datastore, while its guest runs. What is not given stays.
    Set(DiskChange),
    /// Make a thin disk that reads as a base and keeps its own writes. Needs no daemon.
    Clone(CloneArguments),
    /// Make an image that reads as zeroes and takes no space yet. Needs no daemon.
    Create(CreateArguments),
    /// Make a disk larger while its guest runs.
    Resize {
        /// Its name.
        id: DiskId,
        /// Its new size.
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// The disks, who owns them, and what they did.
    List,
    /// Let go of a disk; its image stays.
    Remove {
        /// Its name.
        id: DiskId,
    },
}

/// Carries it out, by the daemon.
pub fn run(command: DiskCommand, client: &mut Client) -> Done {
    match command {
        DiskCommand::Add {
            id,
            path,
            socket_path,
            num_queues,
            usage,
            incoming,
            shared,
            size,
            inflight,
            new_identity,
            qos,
        } => {
            // The daemon has a working directory of its own.
            let (path, socket_path) = (absolute(path)?, socket_path.map(std::path::absolute));
            let config = DiskConfig {
                socket_path: socket_path.transpose()?,
                num_queues,
                read_only: usage.read_only,
                cache: usage.cache,
                pin_guest_memory: usage.pin_guest_memory,
                incoming,
                shared,
                size,
                inflight,
                new_identity,
                ..DiskConfig::plain(id, path).with_qos(qos)
            };
            config.check()?;
            let line = client.call("disk.add", serde_json::to_value(&config)?)?;
            show(&line, |line| {
                let socket = line["socket"].as_str().unwrap_or_default();
                let lines = serve::qemu_lines(socket.as_ref(), config.num_queues);
                format!(
                    "disk {} at {socket}\n\n  {}",
                    config.id,
                    lines.join(" \\\n  ")
                )
            });
        }
        DiskCommand::Set(change) => {
            change.check()?;
            let line = client.call("disk.set", serde_json::to_value(&change)?)?;
            show(&line, |line| said(&change, line));
        }
        DiskCommand::Clone(_) | DiskCommand::Create(_) => unreachable!("no daemon is asked"),
        DiskCommand::List => show(&client.call("disk.list", json!({}))?, table),
        DiskCommand::Resize { id, size } => {
            let line = client.call("disk.resize", json!({ "id": id, "bytes": size }))?;
            show(&line, |line| {
                let guest = if line["told"] == true {
                    "its guest was told"
                } else {
                    "its guest sees it when it starts next"
                };
                format!("disk {id} has {}; {guest}", output::bytes(size))
            });
        }
        DiskCommand::Remove { id } => {
            let gone = client.call("disk.remove", json!({ "id": id }))?;
            show(&gone, |_| format!("disk {id} removed"));
        }
    }
    Ok(())
}

/// What was set, for how long, and what else is needed for it to count.
fn said(change: &DiskChange, line: &Value) -> String {
    let id = &change.id;
    let mut text = if line["lasting"] == true {
        format!("disk {id} is set so, also after a restart")
    } else {
        format!(
            "disk {id} is set so until the daemon starts again; it is in the daemon's configuration: \
             change it there as well"
        )
    };
    let counts_when_on = change.shares.is_some() || change.reservation.is_some();
    if counts_when_on && line["sioc"] != "on" {
        text += &match line["datastore"].as_str() {
            Some(path) => format!(
                "\nshares and reservations count where I/O control is on: ferry datastore set {path} \
                 --sioc on"
            ),
            None => {
                "\nshares and reservations count on a datastore, and the disk is on none".into()
            }
        };
    }
    text
}

fn absolute(spec: DiskSpec) -> Done<DiskSpec> {
    match spec.path().map(std::path::absolute).transpose()? {
        Some(path) => Ok(spec.at(path)),
        None => Ok(spec),
    }
}

fn table(list: &Value) -> String {
    let size = |value: &Value| output::bytes(value.as_u64().unwrap_or(0));
    let rows = list["disks"].as_array().into_iter().flatten().map(|disk| {
        let plain = ["id", "phase", "epoch", "attached"].map(|key| cell(&disk[key]));
        let mut row = plain.to_vec();
        row.push(size(&disk["bytes"]));
        row.extend(["reads", "writes", "errors"].map(|key| cell(&disk[key])));
        row.extend(["read_bytes", "written_bytes"].map(|key| size(&disk[key])));
        row.extend(["path", "socket"].map(|key| cell(&disk[key])));
        row
    });
    let header = [
        "DISK", "PHASE", "EPOCH", "ATTACHED", "SIZE", "READS", "WRITES", "ERRORS", "READ",
        "WRITTEN", "PATH", "SOCKET",
    ];
    output::table(&header, rows.collect())
}
