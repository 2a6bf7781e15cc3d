//! The command line.

mod datastore;
mod disk;
mod follow;
mod group;
mod iostat;
mod lease;
mod migrate;
mod nic;
mod vm;
mod worker;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::config::{InflightMode, default_run_dir};
use crate::control::Client;
use crate::error::Done;
use crate::spec::{DiskSpec, Usage};
use crate::workers::Spin;
use crate::{demo, doctor, images, output, serve};
use datastore::DatastoreCommand;
use disk::DiskCommand;
use group::GroupCommand;
use iostat::IostatArguments;
use lease::LeaseCommand;
use migrate::MigrateCommand;
use nic::{NicCommand, SwitchCommand};
use vm::VmCommand;
use worker::WorkerCommand;

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
    /// Where disks live, and how what the storage can do is divided there.
    #[command(subcommand)]
    Datastore(DatastoreCommand),
    /// Groups of disks, each under limits of its own.
    #[command(subcommand)]
    Group(GroupCommand),
    /// What disks do, and how long it takes: at the device, held back before it, and both.
    Iostat(IostatArguments),
    /// The daemon's NICs.
    #[command(subcommand)]
    Nic(NicCommand),
    /// The daemon's switches, which join NICs and taps.
    #[command(subcommand)]
    Switch(SwitchCommand),
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
    Lease(LeaseCommand),
    /// What this host lacks, what of the configuration is against good practice, and what to do. Needs
    /// no daemon.
    ///
    /// Exit status: 0 when there is nothing but warnings, 1 when something makes serving impossible.
    #[command(verbatim_doc_comment)]
    Doctor {
        /// The configuration; /etc/ferry/ferry.toml unless given, if it is there.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
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
        Command::Disk(command) => disk::run(command, &mut client()?),
        Command::Datastore(command) => datastore::run(command, &mut client()?),
        Command::Group(command) => group::run(command, &mut client()?),
        Command::Iostat(arguments) => iostat::run(&arguments, &mut client()?),
        Command::Doctor { config } => doctor::run(config.as_deref()),
        Command::Nic(command) => nic::run(command, &mut client()?),
        Command::Switch(command) => nic::run_switch(command, &mut client()?),
        Command::Worker(WorkerCommand::List) => worker::list(&mut client()?),
        Command::Vm(command) => vm::run(command, &mut client()?),
        Command::Events => vm::events(&mut client()?),
        Command::Migrate(command) => migrate::run(command, &mut client()?),
        Command::Lease(command) => lease::run(command, &mut client()?),
    }
}

pub(crate) fn show(value: &Value, text: impl FnOnce(&Value) -> String) {
    if output::json_mode() {
        output::json_line(value);
    } else {
        output::line(&text(value));
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}
