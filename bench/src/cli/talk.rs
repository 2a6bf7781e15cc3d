//! `ferry-bench talk`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Subcommand;
use ferry_bench::error::BenchError;
use ferry_bench::talk::{self, Load, Server, TalkPlan};
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Be called: one session after another, until SIGINT or SIGTERM
    Serve(Serve),
    /// Call: connections and datagrams, each byte of them verified, and a report of both sides
    Call(Call),
}

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Where to listen, for TCP and for UDP
    #[arg(long, default_value = "0.0.0.0:7171", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// End after one session
    #[arg(long)]
    once: bool,
    /// How long connections may take to be made, and to end
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    patience: f64,
    /// One JSON object for each session on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Call {
    /// Where ferry-bench talk serve listens
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// TCP connections: a third send, a third receive, a third ask and are answered
    #[arg(long, default_value_t = Load::default().tcp, value_name = "N")]
    tcp: u16,
    /// KiB a second of each connection that sends or receives
    #[arg(long, default_value_t = Load::default().bulk_bytes_per_second >> 10, value_name = "N")]
    bulk_kib: u64,
    /// Milliseconds between an answer and the next question
    #[arg(long, default_value_t = Load::default().chat_ms, value_name = "MS")]
    chat_ms: u64,
    /// Numbered datagrams, so many a second each way
    #[arg(long, num_args = 0..=1, default_value_t = 0, value_name = "PPS",
          default_missing_value = "100")]
    udp: u32,
    /// Bytes of a datagram
    #[arg(long, default_value_t = Load::default().udp_bytes, value_name = "BYTES")]
    udp_size: u16,
    /// Echo requests, so many a second; needs CAP_NET_RAW or net.ipv4.ping_group_range
    #[arg(long, num_args = 0..=1, default_value_t = 0, value_name = "PPS",
          default_missing_value = "100")]
    ping: u32,
    /// How long to talk; until SIGINT or SIGTERM unless something else is given
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Stop as well when each connection that sends or receives has carried so many MiB
    #[arg(long, value_name = "N")]
    mib: Option<u64>,
    /// Stop as well when stdin ends
    #[arg(long)]
    until_eof: bool,
    /// How long connections may take to be made, and to end
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    patience: f64,
    /// A lost datagram or echo is a failure (exit code 1), as are connections that broke, bytes
    /// that are wrong and datagrams that came twice
    #[arg(long)]
    lossless: bool,
    /// JSON on stdout: {"talking":true} when all connections stand, and the report
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: Command) -> Result<bool, BenchError> {
    match command {
        Command::Serve(args) => serve(&args),
        Command::Call(args) => call(args),
    }
}

fn serve(args: &Serve) -> Result<bool, BenchError> {
    let told = told()?;
    let server = Server::bind(args.listen, super::seconds(args.patience)?)?;
    let at = server.address()?;
    if args.json {
        super::print_json(&json!({ "listening": at }))?;
    } else {
        println!("listening at {at}");
    }
    while !told.load(Ordering::Relaxed) {
        match server.serve(|| told.load(Ordering::Relaxed)) {
            Ok(Some(report)) if args.json => super::print_json(&report)?,
            Ok(_) => {}
            Err(error) => {
                eprintln!("ferry-bench: a session broke: {error}; see the caller's report");
            }
        }
        if args.once {
            break;
        }
    }
    Ok(true)
}

fn call(args: Call) -> Result<bool, BenchError> {
    let told = told()?;
    let limit = args.seconds.map(super::seconds).transpose()?;
    if args.until_eof {
        let told = told.clone();
        // Left behind when the run ends otherwise: the process ends with it.
        std::thread::spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            told.store(true, Ordering::Relaxed);
        });
    }
    let plan = TalkPlan {
        to: args.to,
        load: Load {
            tcp: args.tcp,
            bulk_bytes_per_second: args.bulk_kib.saturating_mul(1 << 10),
            chat_ms: args.chat_ms,
            udp_pps: args.udp,
            udp_bytes: args.udp_size,
        },
        ping_pps: args.ping,
        patience: super::seconds(args.patience)?,
        lossless: args.lossless,
        until_bytes: args.mib.map(|mib| mib.saturating_mul(1 << 20)),
    };
    let started = || {
        if args.json {
            println!("{}", json!({ "talking": true }));
            let _ = io::stdout().flush();
        }
    };
    let is_over =
        |since: Duration| told.load(Ordering::Relaxed) || limit.is_some_and(|limit| since >= limit);
    let report = talk::call(&plan, started, is_over)?;
    super::show(args.json, &report, |report| report.table())?;
    Ok(report.is_clean())
}

/// Becomes true at SIGINT and SIGTERM.
fn told() -> Result<Arc<AtomicBool>, BenchError> {
    let told = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // The second one ends it at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, told.clone())
            .and_then(|_| signal_hook::flag::register(signal, told.clone()))
            .map_err(|source| BenchError::Host {
                what: "a handler of signals",
                source,
            })?;
    }
    Ok(told)
}
