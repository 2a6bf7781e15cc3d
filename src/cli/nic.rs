//! `ferry nic` and `ferry switch`.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

use super::{cell, show};
use crate::control::Client;
use crate::error::{Done, Failure};
use crate::limit::Limit;
use crate::name::Name;
use crate::nic::{NicChange, NicConfig, SwitchConfig};
use crate::output;

/// What may be done with NICs.
#[derive(Subcommand)]
pub enum NicCommand {
    /// Serve a NIC.
    Add {
        /// Its name, the same on every host.
        id: Name,
        /// The switch that it is a port of.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["tap", "tap_fds"])]
        switch: Option<Name>,
        /// The tap that it is wired to.
        #[arg(long, value_name = "NAME", conflicts_with = "tap_fds")]
        tap: Option<String>,
        /// A descriptor of this command's that is a queue of a tap, to be handed to the daemon: it then
        /// needs no privilege. For several pairs of queues said once for each. It is gone when the daemon
        /// ends, and has to be handed again.
        #[arg(long = "tap-fd", value_name = "N", conflicts_with = "queue_pairs")]
        tap_fds: Vec<i32>,
        /// Its vhost-user socket; nic-ID.sock in the run directory unless given.
        #[arg(long, value_name = "SOCKET")]
        socket_path: Option<PathBuf>,
        /// Its address; made up unless given. Give the VMM the same.
        #[arg(long)]
        mac: Option<String>,
        /// Bytes behind the Ethernet header.
        #[arg(long, default_value_t = crate::nic::default_mtu())]
        mtu: u16,
        /// Pairs of queues.
        #[arg(long, default_value_t = crate::nic::default_pairs())]
        queue_pairs: u16,
        /// Its guest may send from any address, and not from its own alone.
        #[arg(long)]
        any_source: bool,
        /// Frames that its guest may send in a second.
        #[arg(long, value_name = "N")]
        limit_pps: Option<u64>,
        /// Bits that its guest may send in a second, in millions.
        #[arg(long, value_name = "N")]
        limit_mbps: Option<u64>,
        /// The speed that its guest is told, in millions of bits a second; its tap's unless given.
        #[arg(long, value_name = "MBPS")]
        speed: Option<u32>,
    },
    /// Change a NIC while its guest runs.
    Set {
        /// Its name.
        id: Name,
        /// Whether its link is up. While it is down nothing passes, and its guest is told.
        #[arg(long, value_enum)]
        link: Option<Link>,
        /// Frames that its guest may send in a second, or "none" for as many as it likes.
        #[arg(long, value_name = "N")]
        limit_pps: Option<Limit>,
        /// Bits that its guest may send in a second, in millions, or "none".
        #[arg(long, value_name = "N")]
        limit_mbps: Option<Limit>,
    },
    /// The NICs, and what went through them.
    List,
    /// Let go of a NIC.
    Remove {
        /// Its name.
        id: Name,
    },
}

/// A NIC's link.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// Frames come and go.
    Up,
    /// Nothing does.
    Down,
}

/// What may be done with switches.
#[derive(Subcommand)]
pub enum SwitchCommand {
    /// Make a learning switch.
    Add {
        /// Its name.
        name: Name,
        /// A tap that is a port of it; may be said several times.
        #[arg(long = "tap", value_name = "NAME")]
        taps: Vec<String>,
    },
    /// The switches.
    List,
    /// Remove one that has no NICs.
    Remove {
        /// Its name.
        name: Name,
    },
}

/// Carries it out.
pub fn run(command: NicCommand, client: &mut Client) -> Done {
    match command {
        NicCommand::Add {
            id,
            switch,
            tap,
            tap_fds,
            socket_path,
            mac,
            mtu,
            mut queue_pairs,
            any_source,
            limit_pps,
            limit_mbps,
            speed,
        } => {
            let handed = tap_fds.iter().map(|fd| inherited(*fd));
            let handed = handed.collect::<Done<Vec<_>>>()?;
            let tap_fds = u16::try_from(handed.len()).unwrap_or(u16::MAX);
            if tap_fds > 0 {
                queue_pairs = tap_fds;
            }
            let config = NicConfig {
                id,
                switch,
                tap,
                tap_fds,
                socket_path: socket_path.map(std::path::absolute).transpose()?,
                mac,
                mtu,
                queue_pairs,
                any_source,
                limit_pps,
                limit_bps: limit_mbps.map(|mbps| mbps.saturating_mul(1_000_000)),
                speed_mbps: speed,
                link_down: false,
            };
            config.check()?;
            let line = client.call_with("nic.add", serde_json::to_value(&config)?, &handed)?;
            show(&line, |line| {
                let text = |key: &str| cell(&line[key]);
                let gone = if tap_fds > 0 {
                    "\nIts tap was handed over: it is gone when the daemon ends. Hand it again then."
                } else {
                    ""
                };
                format!(
                    "nic {} at {}{gone}\n\n  {}",
                    config.id,
                    text("socket"),
                    qemu_lines(&text("socket"), &text("mac"), queue_pairs).join(" \\\n  ")
                )
            });
        }
        NicCommand::Set {
            id,
            link,
            limit_pps,
            limit_mbps,
        } => {
            let change = NicChange {
                id,
                link_up: link.map(|link| link == Link::Up),
                limit_pps,
                limit_bps: limit_mbps.map(|limit| limit.times(1_000_000)),
            };
            change.check()?;
            let line = client.call("nic.set", serde_json::to_value(&change)?)?;
            show(&line, |line| match line["lasting"].as_bool() {
                Some(true) => format!("nic {} is set so, also after a restart", change.id),
                _ if line["tap_handed"] == true => {
                    format!(
                        "nic {} is set so until the daemon ends, as it is there itself",
                        change.id
                    )
                }
                _ => format!(
                    "nic {} is set so until the daemon starts again; it is in the daemon's configuration: \
                     change it there as well",
                    change.id
                ),
            });
        }
        NicCommand::List => show(&client.call("nic.list", json!({}))?, table),
        NicCommand::Remove { id } => {
            let gone = client.call("nic.remove", json!({ "id": id }))?;
            show(&gone, |_| format!("nic {id} is not served any more"));
        }
    }
    Ok(())
}

/// Carries it out.
pub fn run_switch(command: SwitchCommand, client: &mut Client) -> Done {
    match command {
        SwitchCommand::Add { name, taps } => {
            let config = SwitchConfig { name, taps };
            let line = client.call("switch.add", serde_json::to_value(&config)?)?;
            show(&line, |_| format!("switch {}", config.name));
        }
        SwitchCommand::List => show(&client.call("switch.list", json!({}))?, switch_table),
        SwitchCommand::Remove { name } => {
            let gone = client.call("switch.remove", json!({ "name": name }))?;
            show(&gone, |_| format!("switch {name} is gone"));
        }
    }
    Ok(())
}

/// A descriptor that this process was given by who started it.
fn inherited(fd: i32) -> Done<OwnedFd> {
    let copy = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|own| pidfd_getfd(own, fd, PidfdGetfdFlags::empty()));
    copy.map_err(|error| {
        Failure::Usage(format!(
            "cannot hand over descriptor {fd}: {error}; it must be open in this command, as a shell's \
             {fd}<>FILE, or a service manager, makes it"
        ))
    })
}

/// The options that attach a NIC to QEMU.
fn qemu_lines(socket: &str, mac: &str, pairs: u16) -> Vec<String> {
    let (queues, mq) = match pairs {
        1 => (String::new(), String::new()),
        _ => (
            format!(",queues={pairs}"),
            format!(",mq=on,vectors={}", 2 * pairs + 2),
        ),
    };
    vec![
        "-object memory-backend-memfd,id=mem,size=1G,share=on".into(),
        "-machine memory-backend=mem -m 1G".into(),
        format!("-chardev socket,id=ferrynic0,path={socket},reconnect-ms=100"),
        format!("-netdev vhost-user,id=net0,chardev=ferrynic0{queues}"),
        format!("-device virtio-net-pci,netdev=net0,mac={mac}{mq}"),
    ]
}

/// Frames of all causes.
fn sum(dropped: &Value) -> u64 {
    let dropped = dropped.as_object().into_iter().flatten();
    dropped.filter_map(|(_, count)| count.as_u64()).sum()
}

/// A row for each port, and one for a switch without any.
fn switch_table(list: &Value) -> String {
    let size = |value: &Value| output::bytes(value.as_u64().unwrap_or(0));
    let row = |switch: &Value, port: &Value| {
        vec![
            cell(&switch["name"]),
            format!("{} {}", cell(&port["kind"]), cell(&port["name"])),
            cell(&port["rx_frames"]),
            size(&port["rx_bytes"]),
            cell(&port["tx_frames"]),
            size(&port["tx_bytes"]),
            sum(&port["dropped"]).to_string(),
        ]
    };
    let rows = list["switches"].as_array().into_iter().flatten();
    let rows = rows.flat_map(|switch| match switch["ports"].as_array() {
        Some(ports) if !ports.is_empty() => ports.iter().map(|it| row(switch, it)).collect(),
        _ => {
            let mut row = vec![cell(&switch["name"])];
            row.resize(7, "-".into());
            vec![row]
        }
    });
    let header = [
        "SWITCH", "PORT", "RX", "RX BYTES", "TX", "TX BYTES", "DROPPED",
    ];
    output::table(&header, rows.collect())
}

fn table(list: &Value) -> String {
    let size = |value: &Value| output::bytes(value.as_u64().unwrap_or(0));
    let rows = list["nics"].as_array().into_iter().flatten().map(|nic| {
        let to = match (&nic["switch"], &nic["tap"]) {
            (Value::String(switch), _) => format!("switch {switch}"),
            (_, tap) if nic["tap_handed"] == true => {
                format!("tap {}, until the daemon ends", cell(tap))
            }
            (_, tap) => format!("tap {}", cell(tap)),
        };
        let to_tap = match &nic["dropped_to_tap"] {
            Value::Null => "-".into(),
            dropped => sum(dropped).to_string(),
        };
        vec![
            cell(&nic["id"]),
            cell(&nic["mac"]),
            to,
            cell(&nic["attached"]),
            if nic["link_up"] == false {
                "down"
            } else {
                "up"
            }
            .into(),
            cell(&nic["rx_frames"]),
            size(&nic["rx_bytes"]),
            cell(&nic["tx_frames"]),
            size(&nic["tx_bytes"]),
            sum(&nic["dropped"]).to_string(),
            to_tap,
            cell(&nic["socket"]),
        ]
    });
    let header = [
        "NIC", "MAC", "TO", "ATTACHED", "LINK", "RX", "RX BYTES", "TX", "TX BYTES", "DROPPED",
        "TO TAP", "SOCKET",
    ];
    output::table(&header, rows.collect())
}
