//! The `ferry` command.

mod cli;
mod config;
mod control;
mod daemon;
mod demo;
mod doctor;
mod error;
mod escalation;
mod events;
mod files;
mod images;
mod limit;
mod migrate;
mod name;
mod nic;
mod output;
mod qmp;
mod qos;
mod serve;
mod spec;
mod workers;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse(); // clap ends with 2 on wrong usage
    output::start_logging(arguments.json, arguments.verbose);
    match cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
