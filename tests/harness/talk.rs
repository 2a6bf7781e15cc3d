//! Verified traffic between the guest and its peer in the segment:
//! `ferry-bench talk`, served in the guest and called from outside.

use std::path::PathBuf;

use serde_json::Value;

use super::failure::Context;
use super::guest::{Guest, guest_folder};
use super::network::{GUEST, Network};
use super::process::{Process, Running};
use super::wait::{secs, wait_for};
use super::{Check, TestDir};
use crate::ensure;

/// Where the guest listens, for connections and datagrams.
pub const PORT: u16 = 7171;

/// A hundred connections, datagrams both ways and an echo every 10 ms.
pub const ALL: &[&str] = &["--tcp", "100", "--udp", "100", "--ping", "100"];

/// Emulated, with others on the cores.
const START_LIMIT: std::time::Duration = secs(60);
/// Both sides have 30 s to come to the end of every connection.
const FINISH_LIMIT: std::time::Duration = secs(600);

/// Traffic that flows.
pub struct Talk {
    call: Running,
}

impl Talk {
    /// Starts it, and returns when all connections stand. `words` are those of
    /// `ferry-bench talk call`.
    pub fn start(dir: &TestDir, peer: &Network, guest: &mut Guest, words: &[&str]) -> Check<Self> {
        let serve = format!("ferry-bench talk serve --listen {GUEST}:{PORT} --once --json");
        guest.spawn_bg("talk", &serve)?;
        wait_for("the guest to listen", START_LIMIT, || {
            Ok(guest.bg_log("talk", 1)?.contains("listening").then_some(()))
        })?;
        let to = format!("{GUEST}:{PORT}");
        let mut call = call(dir, "talk", peer, &to, words)?;
        wait_for("all connections to stand", START_LIMIT, || {
            if let Some(output) = call.ended()? {
                crate::fail!("ferry-bench talk: {}{}", output.out, output.err);
            }
            Ok(call.so_far()?.contains("talking").then_some(()))
        })?;
        Ok(Self { call })
    }

    /// Ends it; the report, which must tell of no connection that broke or
    /// stood still, no wrong byte and nothing that came twice, and with
    /// `--lossless` of nothing that was lost.
    pub fn finish(self) -> Check<Value> {
        self.call.signal("INT")?;
        let report = clean(self.call)?;
        println!("{}", brief(&report));
        Ok(report)
    }
}

/// Starts `ferry-bench talk call` in the peer's network.
fn call(dir: &TestDir, name: &str, peer: &Network, to: &str, words: &[&str]) -> Check<Running> {
    // The very program that is in the guest.
    let bench = guest_folder()?.join("ferry-bench");
    let arguments = ["talk", "call", "--to", to, "--json"];
    let arguments = arguments.iter().chain(words);
    Running::spawn_by(peer.enter(), dir, name, &bench, arguments)
}

/// Its report, at its end.
fn clean(call: Running) -> Check<Value> {
    let output = call.finish(FINISH_LIMIT)?;
    let line = output.out.lines().last().unwrap_or_default();
    let report: Value = serde_json::from_str(line).context(|| format!("{line}{}", output.err))?;
    ensure!(output.code == Some(0), "the traffic: {}", brief(&report));
    Ok(report)
}

/// Traffic that ends by itself, with a server that was started.
pub fn transfer(
    dir: &TestDir,
    name: &str,
    peer: &Network,
    to: &str,
    words: &[&str],
) -> Check<Value> {
    clean(call(dir, name, peer, to, words)?)
}

/// The report without its list of connections, but for those that are at fault.
pub fn brief(report: &Value) -> String {
    let mut report = report.clone();
    for side in ["here", "there"] {
        if let Some(tcp) = report[side]["tcp"].as_array_mut() {
            tcp.retain(|it| !it["fault"].is_null());
        }
    }
    report.to_string()
}

/// What passes an interface.
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

/// What of it.
pub struct Wanted<'a> {
    /// `in` or `out`, as the interface's network sees it.
    pub direction: &'a str,
    /// In the words of tcpdump.
    pub filter: &'a str,
    /// So many packets and no more.
    pub count: Option<u32>,
}

impl Capture {
    /// Starts it at `interface`. Nothing, and a word about it, for those who are
    /// root in their own networks alone: tcpdump wants to be somebody else. In
    /// CI that is a failure, as what it was to prove is not.
    pub fn start(
        dir: &TestDir,
        name: &str,
        host: &Network,
        interface: &str,
        wanted: &Wanted,
    ) -> Check<Option<Self>> {
        if !host.is_of_root() {
            ensure!(
                !super::trial::in_ci(),
                "what passes {interface} is not seen: tcpdump wants root"
            );
            eprintln!("SKIPPED what passes {interface}: tcpdump wants root");
            return Ok(None);
        }
        let file = dir.path(format!("{name}.pcap"));
        let path = file.display().to_string();
        let tcpdump = super::process::find_program("tcpdump").unwrap_or_default();
        let mut words = vec!["-i", interface, "-Q", wanted.direction, "-n", "-U"];
        words.extend(["--immediate-mode", "-Z", "root", "-w", &path]);
        let count = wanted.count.map(|count| count.to_string());
        if let Some(count) = &count {
            words.extend(["-c", count]);
        }
        words.push(wanted.filter);
        let mut tcpdump = Process::spawn_by(host.enter(), dir, name, &tcpdump, words)?;
        wait_for("tcpdump to listen", secs(20), || {
            tcpdump.ensure_alive()?;
            Ok(tcpdump.last_words().contains("listening").then_some(()))
        })?;
        Ok(Some(Self { tcpdump, file }))
    }

    /// The traffic's datagrams that pass on their way to the guest.
    pub fn of_datagrams(
        dir: &TestDir,
        name: &str,
        host: &Network,
        interface: &str,
    ) -> Check<Option<Self>> {
        let wanted = Wanted {
            direction: "out",
            filter: &format!("udp and dst host {GUEST} and dst port {PORT}"),
            count: None,
        };
        Self::start(dir, name, host, interface, &wanted)
    }

    /// Ends it; the packets.
    fn packets(&mut self) -> Check<Vec<u8>> {
        if self.tcpdump.ended()?.is_none() {
            // What it has not read when it is told to end it leaves unread.
            std::thread::sleep(secs(1));
            self.tcpdump.signal("INT")?;
            self.tcpdump.wait(secs(20))?;
        }
        Ok(std::fs::read(&self.file)?)
    }

    /// Ends it; the numbers of the datagrams in the order in which they passed.
    pub fn numbers(mut self) -> Check<Vec<u64>> {
        let bytes = self.packets()?;
        let said = self.tcpdump.last_words();
        ensure!(said.contains("0 packets dropped by kernel"), "{said}");
        Ok(packets(&bytes).filter_map(number).collect())
    }

    /// Ends it; what tcpdump thinks of the packets, some of which there must be.
    pub fn judge(mut self) -> Check<Wire> {
        let bytes = self.packets()?;
        let path = self.file.display().to_string();
        let output = std::process::Command::new("tcpdump")
            .args(["-Z", "root", "-n", "-vv", "-r", &path])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let wire = Wire {
            packets: packets(&bytes).count(),
            longest_bytes: packets(&bytes).map(<[u8]>::len).max().unwrap_or(0),
            right: text.matches("(correct)").count(),
            unfinished: text.matches("(incorrect").count(),
        };
        ensure!(wire.packets > 0, "nothing passed: {path}");
        ensure!(
            wire.right + wire.unfinished == wire.packets,
            "{wire:?}, and tcpdump says: {text}"
        );
        Ok(wire)
    }
}

/// Packets that passed.
#[derive(Debug)]
pub struct Wire {
    /// How many.
    pub packets: usize,
    /// The longest, with its Ethernet header.
    pub longest_bytes: usize,
    /// Those whose TCP checksum is right.
    pub right: usize,
    /// Those whose is not: somebody is still to complete it.
    pub unfinished: usize,
}

/// The packets in a file of tcpdump's.
fn packets(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = file.get(24..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (head, more) = rest.split_at_checked(16)?;
        let length = u32::from_le_bytes(head[8..12].try_into().ok()?);
        let (packet, more) = more.split_at_checked(usize::try_from(length).ok()?)?;
        rest = more;
        Some(packet)
    })
}

/// The number of a datagram: behind the headers of Ethernet, IPv4 and UDP and
/// the session's.
fn number(packet: &[u8]) -> Option<u64> {
    let options = usize::from(packet.get(14)? & 15) * 4;
    let at = 14 + options + 8 + 8;
    let bytes = packet.get(at..at + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The datagrams to the guest that it never got, though they had passed: there
/// must be none of them, whatever else was lost on the way.
pub fn lost_after(report: &Value, passed: &[u64]) -> Vec<u64> {
    let ranges = report["there"]["udp"]["received"]["missing"].as_array();
    let ranges = ranges.into_iter().flatten();
    let ranges: Vec<(u64, u64)> = ranges
        .filter_map(|it| Some((it[0].as_u64()?, it[1].as_u64()?)))
        .collect();
    let missing = |number: &u64| ranges.iter().any(|(a, b)| (*a..=*b).contains(number));
    passed.iter().copied().filter(missing).collect()
}
