//! The command line.

mod lease;
mod vm;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ferry_migration::ids::{DaemonId, DiskId};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::config::{DiskConfig, InflightMode, default_run_dir};
use crate::control::Client;
use crate::error::{Done, Failure};
use crate::images::{self, CloneArguments, CreateArguments};
use crate::spec::{DiskSpec, Usage, parse_size};
use crate::workers::Spin;
use crate::{demo, output, serve};
use vm::VmCommand;

/// How often progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Serves virtual disks to virtual machines over vhost-user, and moves them to another host while
/// the guest runs.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
pub struct Arguments {
    /// One JSON document a line on standard output; logs as JSON on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// More of the log; twice for all of it. FERRY_LOG chooses finely.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// The daemon's control socket.
    #[arg(long, global = true, value_name = "SOCKET")]
    control: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one disk, without configuration, until SIGTERM.
    Serve(ServeArguments),
    /// Serve the disks of a configuration, and move them.
    ///
    /// Exit status, for a supervisor: 0 it was told to end (SIGTERM, SIGINT); 1 it could not start,
    /// and may be tried again; 2 the command line or the configuration is wrong, and trying again is
    /// in vain. It ends by SIGABRT when io_uring itself fails: start it again, and what was in flight
    /// is finished.
    #[command(verbatim_doc_comment)]
    Daemon {
        /// The configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// End when standard input does, for a parent that may die.
        #[arg(long)]
        until_eof: bool,
    },
    /// The daemon's disks.
    #[command(subcommand)]
    Disk(DiskCommand),
    /// The daemon's polling threads.
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// The machines of the configuration, and what is done about those that make no progress.
    #[command(subcommand)]
    Vm(VmCommand),
    /// What happened to the daemon lately.
    Events,
    /// Move disks and machines to another host.
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// Who has the disks that hosts share.
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Two daemons, a verified load, a move there and back, and a verdict. Needs no root.
    Demo(demo::DemoArguments),
}

/// `ferry serve`.
#[derive(Args)]
pub struct ServeArguments {
    /// A raw file or block device, qcow2:PATH, memory:SIZE, or null:SIZE.
    pub disk: DiskSpec,
    /// The vhost-user socket to listen on.
    #[arg(long, value_name = "SOCKET")]
    pub socket_path: PathBuf,
    /// Virtqueues offered.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub num_queues: u16,
    #[command(flatten)]
    pub usage: Usage,
    /// Polling threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// How long a queue without requests is polled before it goes back to kicks, in microseconds;
    /// 0 to sleep at once, max to poll always.
    #[arg(long, value_name = "US", default_value = "50")]
    pub spin_us: Spin,
    /// Where requests in flight are written down, for a successor to finish them.
    #[arg(long, value_enum, default_value_t)]
    pub inflight: InflightMode,
    /// The image is a copy of a disk, and is not taken for that disk from now on.
    #[arg(long)]
    pub new_identity: bool,
}

#[derive(Subcommand)]
enum DiskCommand {
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
    },
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

#[derive(Subcommand)]
enum WorkerCommand {
    /// What each did with its time in the last half second, and since the start.
    List,
}

#[derive(Subcommand)]
enum MigrateCommand {
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
    /// Hand a copied disk over, and those that move with it. Its VM must be stopped, as at QEMU's pre-switchover. A VM whose
    /// rings start at the other host where they stopped here does it by itself.
    #[command(visible_alias = "commit")]
    Release {
        /// Its name.
        id: DiskId,
    },
    /// Move a QEMU machine: its disks first, then the rest.
    Vm {
        /// A disk of the machine; repeat for each.
        #[arg(long = "disk", value_name = "ID", required = true)]
        disks: Vec<DiskId>,
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
    /// Stop moving a disk; it is served here as before.
    Cancel {
        /// Its name.
        id: DiskId,
    },
}

/// What becomes of what was moved away.
#[derive(Args)]
struct SourceArguments {
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

/// Carries a command line out.
pub fn run(arguments: Arguments) -> Done {
    let control = arguments
        .control
        .unwrap_or_else(|| default_run_dir().join("control.sock"));
    let client = || Client::connect(&control);
    match arguments.command {
        Command::Serve(arguments) => serve::serve(&arguments),
        Command::Daemon { config, until_eof } => serve::daemon(&config, until_eof),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Disk(DiskCommand::Clone(arguments)) => images::clone(&arguments),
        Command::Disk(DiskCommand::Create(arguments)) => images::create(&arguments),
        Command::Disk(command) => disk(command, &mut client()?),
        Command::Worker(WorkerCommand::List) => worker::list(&mut client()?),
        Command::Vm(command) => vm::run(command, &mut client()?),
        Command::Events => vm::events(&mut client()?),
        Command::Migrate(command) => migrate(command, &mut client()?),
        Command::Lease(command) => lease::run(command, &mut client()?),
    }
}

fn disk(command: DiskCommand, client: &mut Client) -> Done {
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
        } => {
            // The daemon has a working directory of its own.
            let (path, socket_path) = (absolute(path)?, socket_path.map(std::path::absolute));
            let config = DiskConfig {
                id,
                path,
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
        DiskCommand::Clone(_) | DiskCommand::Create(_) => unreachable!("no daemon is asked"),
        DiskCommand::List => show(&client.call("disk.list", json!({}))?, disk_table),
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

fn absolute(spec: DiskSpec) -> Done<DiskSpec> {
    match spec.path().map(std::path::absolute).transpose()? {
        Some(path) => Ok(spec.at(path)),
        None => Ok(spec),
    }
}

fn migrate(command: MigrateCommand, client: &mut Client) -> Done {
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
            to,
            qmp,
            dest_qmp,
            migrate_uri,
            incoming_uri,
            source,
        } => {
            let request = json!({
                "disks": disks, "to": to, "qmp": std::path::absolute(qmp)?, "dest_qmp": dest_qmp,
                "migrate_uri": migrate_uri, "incoming_uri": incoming_uri,
                "keep_source": source.keep_source,
            });
            client.call("migrate.machine", request)?;
            let line = follow_machine(client, &disks)?;
            show(&line, |line| {
                let downtime = &line["downtime_ms"];
                let mut text = format!("the machine runs at {to}; QEMU's downtime {downtime} ms");
                for report in line["handovers"].as_array().into_iter().flatten() {
                    text = format!("{text}\n{}", handover_table(report));
                }
                text
            });
        }
        MigrateCommand::Status => show(&client.call("migrate.status", json!({}))?, status_table),
        MigrateCommand::Cancel { id } => {
            let line = client.call("migrate.cancel", json!({ "id": id }))?;
            show(&line, |_| {
                format!("cancelled; disk {id} is served here as before")
            });
        }
    }
    Ok(())
}

pub(crate) fn show(value: &Value, text: impl FnOnce(&Value) -> String) {
    if output::json_mode() {
        output::json_line(value);
    } else {
        output::line(&text(value));
    }
}

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
fn follow_disk(client: &mut Client, id: &DiskId) -> Done<Value> {
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

/// Shows a machine's move until it is over.
fn follow_machine(client: &mut Client, disks: &[DiskId]) -> Done<Value> {
    let bar = bar();
    loop {
        let status = client.call("migrate.status", json!({}))?;
        let machines = status["machines"].as_array().into_iter().flatten();
        let line = machines
            .into_iter()
            .rfind(|line| line["disks"] == json!(disks))
            .cloned();
        let line = line.ok_or_else(|| Failure::Failed("the daemon forgot the machine".into()))?;
        let of = |disk: &&Value| disk["id"] == json!(disks[0]);
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

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

fn disk_table(list: &Value) -> String {
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
    for machine in status["machines"].as_array().into_iter().flatten() {
        text = format!(
            "{text}\nmachine with {}: {}",
            machine["disks"],
            cell(&machine["step"])
        );
    }
    text
}
