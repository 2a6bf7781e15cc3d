//! Frames between two ports of a switch: Ferry's NICs beside testpmd's vhost ports.
//!
//! ```text
//!   client's core                        server's core
//!   testpmd, io forwarding   port 0 ──►  n0 ┐ Ferry's switch, or
//!   between two virtio-user  port 1 ◄──  n1 ┘ testpmd's io forwarding
//! ```
//!
//! The client puts a number of frames into each port and passes on what comes back,
//! so that they go round and round: neither end can run ahead of the other and have
//! its frames dropped, and what is counted is what both can do. All frames of a
//! direction have the MACs of the two ports, which a switch learns from the first.
//! The frames in flight fill half of a ring.
//!
//! The generator of `ferry-bench net`, one way, is a second view: it writes and
//! checks each frame, and drops what finds no buffer.

mod client;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::runs::{Course, on_core};
use super::server::Server;
use super::strangers::Moment;
use super::{ROUNDS_FACTOR, Show, meter};
use crate::error::BenchError;
use crate::net::{self, NetPlan};
use client::Testpmd;

pub use table::{NetResult, NetRun, NetTable, View};

/// The program, in Debian's package dpdk-dev.
const TESTPMD: &str = "dpdk-testpmd";

/// MACs of the two ports.
const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

/// Frames that testpmd takes and gives at once.
const BURST: u16 = 32;

/// Ferry, and what it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ferry,
    Testpmd,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Ferry => "ferry",
            Side::Testpmd => "testpmd",
        }
    }
}

/// What the rows are of.
#[derive(Debug, Clone)]
pub struct NetPlanned {
    /// Bytes of a frame.
    pub sizes: Vec<usize>,
    /// Descriptors of a ring.
    pub ring: u16,
}

impl NetPlanned {
    /// What can be judged before anything is started.
    pub fn check(&self) -> Result<(), BenchError> {
        if let Some(bytes) = self.sizes.iter().find(|b| !(64..=1500).contains(*b)) {
            return Err(BenchError::Usage(format!(
                "--net-size {bytes} is not in 64 to 1500"
            )));
        }
        if !self.ring.is_power_of_two() || !(128..=1024).contains(&self.ring) {
            return Err(BenchError::Usage(format!(
                "--net-ring {} is not 128, 256, 512 or 1024",
                self.ring
            )));
        }
        Ok(())
    }
}

fn command(dir: &Path) -> Command {
    // Line by line: into a pipe it would print when there is a page of it.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", TESTPMD]);
    // It makes folders there, and in /var/run otherwise.
    command.env("RUNTIME_DIRECTORY", dir);
    command.env("XDG_RUNTIME_DIR", dir);
    command
}

/// Arguments of any testpmd, on one core and without hugepages.
fn arguments(name: &str, core: usize) -> Vec<String> {
    [
        "--no-huge",
        "-m",
        "256",
        "--no-pci",
        "--no-telemetry",
        "--file-prefix",
        name,
        "--lcores",
    ]
    .map(String::from)
    .into_iter()
    .chain([format!("0@{core},1@{core}")])
    .collect()
}

/// Both servers, paused.
struct Servers {
    sides: Vec<(Side, Server)>,
}

impl Servers {
    fn start(ferry: &Path, dir: &Path, course: &Course) -> Result<Servers, BenchError> {
        let start = |side| -> Result<(Side, Server), BenchError> {
            let server = on_core(course.cores.server, course.cores.client, || match side {
                Side::Ferry => start_ferry(ferry, dir),
                Side::Testpmd => start_testpmd(dir, course.cores.server),
            })?;
            Ok((side, server))
        };
        let sides = vec![start(Side::Ferry)?, start(Side::Testpmd)?];
        Ok(Servers { sides })
    }

    fn each(&self, what: impl Fn(&Server) -> Result<(), BenchError>) -> Result<(), BenchError> {
        self.sides.iter().try_for_each(|(_, server)| what(server))
    }
}

fn start_ferry(program: &Path, dir: &Path) -> Result<Server, BenchError> {
    let home = dir.join("ferry-nics");
    let sockets = [0, 1].map(|at| dir.join(format!("nic-{at}.sock")));
    let mut text = format!(
        "state_dir = {home:?}\nrun_dir = {home:?}\nworkers = 1\n[migration]\nlisten = \"127.0.0.1:0\"\n\
         [[switch]]\nname = \"lan\"\n"
    );
    for (at, socket) in sockets.iter().enumerate() {
        text += &format!(
            "[[nic]]\nid = \"n{at}\"\nswitch = \"lan\"\nmac = \"{}\"\nany_source = true\nsocket_path = {socket:?}\n",
            MACS[at]
        );
    }
    let config = dir.join("ferry-nics.toml");
    std::fs::create_dir_all(&home)
        .and_then(|()| std::fs::write(&config, text))
        .map_err(|source| BenchError::Target {
            what: "write",
            path: config.clone(),
            source,
            mend: "choose another --dir",
        })?;
    let mut command = Command::new(program);
    command.args(["daemon", "--config"]).arg(&config);
    Server::start("ferry", command, sockets.to_vec(), dir)
}

fn start_testpmd(dir: &Path, core: usize) -> Result<Server, BenchError> {
    let sockets = [0, 1].map(|at| dir.join(format!("vhost-{at}.sock")));
    let mut command = command(dir);
    command.args(arguments("server", core));
    for (at, socket) in sockets.iter().enumerate() {
        let socket = socket.display();
        command.args(["--vdev", &format!("net_vhost{at},iface={socket}")]);
    }
    command.args(["--", "--forward-mode=io", "--total-num-mbufs=16384"]);
    // Without a terminal it ends when its input does; a period has it run on.
    command.args(["--stats-period", "3600"]);
    Server::start("testpmd", command, sockets.to_vec(), dir)
}

/// Whether testpmd can be run here, or why not.
pub fn missing() -> Option<String> {
    let there = Command::new(TESTPMD)
        .arg("--help")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    there
        .is_err()
        .then(|| format!("{TESTPMD} is not installed (Debian: dpdk-dev)"))
}

/// Runs that a plan comes to, if none is repeated.
pub fn runs(plan: &NetPlanned, alternations: usize) -> u64 {
    (plan.sizes.len() * 2 * 2 * alternations) as u64
}

/// All rows.
pub fn run(
    show: &mut Show<'_>,
    plan: &NetPlanned,
    dir: &Path,
) -> Result<Vec<NetResult>, BenchError> {
    let course = show.course.clone();
    let servers = Servers::start(&show.plan.ferry, dir, &course)?;
    let mut results = Vec::new();
    for &bytes in &plan.sizes {
        for view in [View::Testpmd, View::Generator] {
            results.push(row(show, plan, (bytes, view), &servers, dir)?);
        }
    }
    Ok(results)
}

/// Who sends and receives.
enum Client {
    /// One of each server's own, which stays.
    Testpmd(Vec<Testpmd>),
    /// This process, anew for each run.
    Generator,
}

fn row(
    show: &mut Show<'_>,
    plan: &NetPlanned,
    (bytes, view): (usize, View),
    servers: &Servers,
    dir: &Path,
) -> Result<NetResult, BenchError> {
    let course = show.course.clone();
    servers.each(Server::resume)?;
    let mut client = match view {
        View::Generator => Client::Generator,
        View::Testpmd => {
            let attach = |(side, server): &(Side, Server)| {
                let name = format!("client-{}", side.name());
                Testpmd::attach(
                    &name,
                    &server.sockets,
                    (bytes, plan.ring),
                    dir,
                    &course.cores,
                )
            };
            let all: Result<Vec<_>, _> = servers.sides.iter().map(attach).collect();
            Client::Testpmd(all?)
        }
    };
    servers.each(Server::pause)?;
    let wanted = show.plan.alternations;
    let mut result = NetResult::new(bytes, view);
    for round in 0..ROUNDS_FACTOR * wanted {
        show.await_quiet();
        if round >= wanted && result.steady_pairs() >= wanted {
            break;
        }
        let mut before = show.round_trip()?;
        for turn in 0..servers.sides.len() {
            let at = (round + turn) % servers.sides.len();
            let (side, server) = &servers.sides[at];
            show.next(&format!("{bytes} B {} {}", view.name(), side.name()))?;
            server.resume()?;
            let run = match &mut client {
                Client::Testpmd(all) => watched(&mut all[at], server, &course),
                Client::Generator => generate(server, bytes, plan.ring, &course),
            };
            server.pause()?;
            let after = show.round_trip()?;
            let run = NetRun {
                round_trips_ns: [before, after],
                ..run?
            };
            match side {
                Side::Ferry => result.ferry_runs.push(run),
                Side::Testpmd => result.testpmd_runs.push(run),
            }
            before = after;
        }
    }
    // A client says goodbye, which its server has to hear.
    servers.each(Server::resume)?;
    drop(client);
    result.sum_up();
    Ok(result)
}

/// Frames that a testpmd got around, and what others had of the cores meanwhile.
fn watched(client: &mut Testpmd, server: &Server, course: &Course) -> Result<NetRun, BenchError> {
    let moments = |client: &Testpmd| {
        [
            Moment::now(course.cores.server, meter::cpu_ns(server.pid())),
            Moment::now(course.cores.client, meter::cpu_ns(client.pid())),
        ]
    };
    client.start()?;
    std::thread::sleep(course.warm_up.max(Duration::from_millis(200)));
    client.rate()?; // from here on
    let before = moments(client);
    std::thread::sleep(course.duration);
    let frames_per_s = client.rate()?;
    let after = moments(client);
    client.stop()?;
    Ok(NetRun {
        frames_per_s,
        strangers: super::runs::strangers(&before, &after),
        round_trips_ns: [0.0; 2],
    })
}

/// Frames that came through from the first port to the second.
fn generate(
    server: &Server,
    bytes: usize,
    ring: u16,
    course: &Course,
) -> Result<NetRun, BenchError> {
    let [tx, rx]: [PathBuf; 2] = [server.sockets[0].clone(), server.sockets[1].clone()];
    let plan = NetPlan {
        tx,
        rx: Some(rx),
        bidirectional: false,
        bytes,
        duration: course.duration,
        rate_pps: None,
        burst: usize::from(BURST),
        outstanding: None,
        queue_size: ring,
        queue_pairs: 1,
        vlan: None,
        tso: false,
        mrg_rxbuf: true,
        indirect: true,
        event_idx: true,
        every_byte: false,
        threads: 1,
        cores: Vec::new(),
        wait: Duration::from_secs(5),
        timeout: Duration::from_secs(10),
        lossless: false,
    };
    let moments = || {
        [
            Moment::now(course.cores.server, meter::cpu_ns(server.pid())),
            Moment::now(course.cores.client, meter::own_cpu_ns()),
        ]
    };
    let before = moments();
    let report = net::run(&plan)?;
    let after = moments();
    let received = report
        .directions
        .first()
        .and_then(|it| it.received.as_ref());
    Ok(NetRun {
        frames_per_s: received.map_or(0.0, |it| it.rx_pps),
        strangers: super::runs::strangers(&before, &after),
        round_trips_ns: [0.0; 2],
    })
}
