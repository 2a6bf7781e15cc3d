//! Each offload negotiated off in turn, and what is on the wire then.
//!
//! One guest has a NIC for each case, so that it boots once. Every NIC carries
//! eight MiB each way, all bytes verified, by IPv4, and by IPv6 where that is
//! another offload. On the way to the peer the kernel finishes what was left to
//! it, and the peer checks every checksum.

use std::path::PathBuf;

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::daemon::Daemon;
use crate::harness::guest::{Guest, Machine, Nic};
use crate::harness::net_pair::{LONG_RING, Wiring};
use crate::harness::network::{HOSTS, Network, Segment};
use crate::harness::process::{Running, find_program};
use crate::harness::talk::{Capture, PORT, Wanted, Wire, transfer};
use crate::harness::trial::{is_long, with_networks};
use crate::harness::wait::secs;
use crate::harness::{Check, Failure, TestDir};

pub fn trials() -> Vec<Trial> {
    with_networks(&[
        ("each_offload_off_through_a_tap", by_tap),
        ("each_offload_off_through_a_switch", by_switch),
    ])
}

/// QEMU's properties and the feature bit that each turns off.
const BITS: &[(&str, usize)] = &[
    ("csum", 0),
    ("guest_csum", 1),
    ("gso", 6),
    ("guest_tso4", 7),
    ("guest_tso6", 8),
    ("guest_ecn", 9),
    ("guest_ufo", 10),
    ("host_tso4", 11),
    ("host_tso6", 12),
    ("host_ecn", 13),
    ("host_ufo", 14),
    ("mrg_rxbuf", 15),
    ("indirect_desc", 28),
    ("event_idx", 29),
    ("guest_uso4", 54),
    ("guest_uso6", 55),
    ("host_uso", 56),
];

/// The bits that are on unless they are turned off. (UFO and USO are for guests that know them.)
const ON: &[usize] = &[0, 1, 7, 8, 11, 12, 15, 28, 29];

/// A frame of the MTU, with its header.
const WHOLE_BYTES: usize = 1514;

/// What is turned off at a NIC.
struct Case {
    number: usize,
    off: Vec<&'static str>,
}

impl Case {
    /// None off, each off, all off. Through a switch all of them take long under emulation: without
    /// `--long` there are those alone that the switch has something to do about.
    fn all(wiring: Wiring) -> Vec<Case> {
        const DONE_BY_A_SWITCH: &[&str] = &["guest_csum", "guest_tso4", "guest_tso6", "mrg_rxbuf"];
        let names = BITS.iter().map(|(name, _)| *name);
        let is_wanted =
            |name: &&str| wiring == Wiring::Tap || is_long() || DONE_BY_A_SWITCH.contains(name);
        let each = names.clone().filter(is_wanted).map(|name| vec![name]);
        let cases = [vec![]].into_iter().chain(each).chain([names.collect()]);
        let numbered = cases.enumerate();
        numbered.map(|(number, off)| Case { number, off }).collect()
    }

    fn is_off(&self, name: &str) -> bool {
        self.off.contains(&name)
    }

    fn name(&self) -> String {
        match self.off.as_slice() {
            [] => "none".to_owned(),
            [one] => (*one).to_owned(),
            _ => "all".to_owned(),
        }
    }

    fn mac(&self) -> String {
        format!("52:54:00:08:00:{:02x}", self.number)
    }

    fn tap(&self) -> String {
        format!("t{}", self.number)
    }

    fn guest(&self) -> String {
        format!("10.8.{}.2", self.number)
    }

    /// Whether IPv6 shows something that IPv4 does not.
    fn wants_ipv6(&self) -> bool {
        matches!(self.name().as_str(), "none" | "all") || self.name().ends_with("tso6")
    }

    fn properties(&self) -> String {
        let off: String = self.off.iter().map(|name| format!(",{name}=off")).collect();
        format!("{LONG_RING},romfile={off}")
    }
}

fn by_tap(dir: &TestDir) -> Check {
    each_off(dir, Wiring::Tap)
}

fn by_switch(dir: &TestDir) -> Check {
    each_off(dir, Wiring::Switch)
}

fn each_off(dir: &TestDir, wiring: Wiring) -> Check {
    let segment = Segment::new()?;
    segment.finish_packets()?;
    let host = &segment.hosts[0];
    let address = format!("{}:7077", HOSTS[0]);
    let daemon = Daemon::spawn_at(&address, host.enter(), dir, "a", &[], "")?;
    let cases = Case::all(wiring);
    if wiring == Wiring::Switch {
        daemon.expect(&["switch", "add", "lan", "--tap", "lan0"])?;
        host.ip("link set lan0 master br0 up")?;
    }
    let mut nics = Vec::new();
    for case in &cases {
        nics.push(Nic {
            socket: add_nic(dir, &daemon, host, case, wiring)?,
            mac: case.mac(),
            properties: case.properties(),
        });
    }
    let machine = Machine {
        queues: 1,
        nics,
        by: host.enter().to_vec(),
        ..Machine::default()
    };
    let mut guest = Guest::boot(dir, "a-0", &machine, &[])?;
    set_up(&mut guest, &segment.peer, &cases)?;
    iperf(dir, &segment.peer, &mut guest)?;
    for case in &cases {
        carry(dir, &segment, case, wiring)?;
    }
    let list = daemon.expect(&["nic", "list"])?;
    for nic in list["nics"].as_array().into_iter().flatten() {
        for cause in ["malformed", "spoofed", "too_large"] {
            ensure!(nic["dropped"][cause] == 0, "{cause}: {nic}");
        }
    }
    Ok(())
}

fn add_nic(
    dir: &TestDir,
    daemon: &Daemon,
    host: &Network,
    case: &Case,
    wiring: Wiring,
) -> Check<PathBuf> {
    let tap = case.tap();
    let socket = dir.path(format!("{tap}.sock"));
    let (path, mac) = (socket.display().to_string(), case.mac());
    let words = ["nic", "add", &tap, "--mac", &mac, "--socket-path", &path];
    let backend = match wiring {
        Wiring::Tap => ["--tap", &tap],
        Wiring::Switch => ["--switch", "lan"],
    };
    daemon.expect(&[&words[..], &backend].concat())?;
    if wiring == Wiring::Tap {
        host.ip(&format!("link set {tap} master br0 up"))?;
    }
    Ok(socket)
}

/// Gives every NIC its addresses, and requires that what is off is off.
fn set_up(guest: &mut Guest, peer: &Network, cases: &[Case]) -> Check {
    // Each NIC answers for its own address alone.
    guest.expect("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; ifconfig lo up")?;
    let found = guest.expect(
        "for d in /sys/class/net/eth*; do \
         echo $(cat $d/address) ${d##*/} $(cat $d/device/features); done",
    )?;
    for case in cases {
        let (mac, number) = (case.mac(), case.number);
        let line = found.lines().find(|line| line.starts_with(&mac));
        let line = line.ok_or_else(|| Failure(format!("no NIC {mac} in {found}")))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, name, features] = words[..] else {
            crate::fail!("{line}")
        };
        let is_on = |bit: usize| features.as_bytes().get(bit) == Some(&b'1');
        for (property, bit) in BITS.iter().filter(|(name, _)| case.is_off(name)) {
            ensure!(!is_on(*bit), "{property} is off, and not: {features}");
        }
        if case.off.is_empty() {
            let off: Vec<_> = ON.iter().filter(|bit| !is_on(**bit)).collect();
            ensure!(off.is_empty(), "{off:?} are not negotiated: {features}");
        }
        guest.expect(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad; \
             ip address add {}/24 dev {name}; ip address add fd08:{number}::2/64 dev {name}; \
             ip link set {name} up",
            case.guest()
        ))?;
        peer.ip(&format!("address add 10.8.{number}.1/24 dev eth0"))?;
        peer.ip(&format!("address add fd08:{number}::1/64 dev eth0 nodad"))?;
    }
    let serve = format!("ferry-bench talk serve --listen [::]:{PORT}");
    guest.spawn_bg("talk", &serve)
}

/// Eight MiB each way, and some datagrams.
const LOAD: &[&str] = &[
    "--tcp",
    "3",
    "--bulk-kib",
    "16384",
    "--mib",
    "8",
    "--chat-ms",
    "10",
    "--udp",
    "50",
];

fn carry(dir: &TestDir, segment: &Segment, case: &Case, wiring: Wiring) -> Check {
    let filter = format!("tcp and host {} and greater 1000", case.guest());
    let capture = |name: &str, at: &Network, interface: &str, direction: &str| {
        let wanted = Wanted {
            direction,
            filter: &filter,
            count: Some(100),
        };
        let name = format!("{}-{name}", case.tap());
        Capture::start(dir, &name, at, interface, &wanted)
    };
    let is_looked_at = [
        "none",
        "all",
        "csum",
        "guest_csum",
        "host_tso4",
        "guest_tso4",
    ];
    let is_looked_at = is_looked_at.contains(&case.name().as_str());
    let mut captures = Vec::new();
    if wiring == Wiring::Tap && is_looked_at {
        let (host, tap) = (&segment.hosts[0], case.tap());
        captures.push(("from", capture("from", host, &tap, "in")?));
        captures.push(("to", capture("to", host, &tap, "out")?));
        captures.push(("peer", capture("peer", &segment.peer, "eth0", "in")?));
    }
    let began = std::time::Instant::now();
    let mut to = vec![format!("{}:{PORT}", case.guest())];
    if case.wants_ipv6() {
        to.push(format!("[fd08:{}::2]:{PORT}", case.number));
    }
    for to in &to {
        let name = format!("{}-talk", case.tap());
        let report = transfer(dir, &name, &segment.peer, to, LOAD)
            .map_err(|Failure(words)| Failure(format!("{} off: {words}", case.name())))?;
        let seconds = report["seconds"].as_f64().unwrap_or_default();
        println!("{} off, {to}: {seconds:.2} s", case.name());
    }
    let all = began.elapsed().as_secs_f64();
    for (at, capture) in captures {
        let Some(capture) = capture else { continue };
        let wire = capture.judge()?;
        println!("{} off, {at}: {wire:?} in {all:.1} s", case.name());
        judge(case, at, &wire)
            .map_err(|Failure(words)| Failure(format!("{} off, {at}: {words}", case.name())))?;
    }
    Ok(())
}

/// What may be on the wire `from` the guest, `to` it, and where the `peer` is.
fn judge(case: &Case, at: &str, wire: &Wire) -> Check {
    let (csum, tso4) = match at {
        "from" => ("csum", "host_tso4"),
        "to" => ("guest_csum", "guest_tso4"),
        _ => {
            ensure!(wire.unfinished == 0, "not finished: {wire:?}");
            ensure!(wire.longest_bytes <= WHOLE_BYTES, "too long: {wire:?}");
            return Ok(());
        }
    };
    // Who may leave no checksum undone may leave nothing undone.
    let checksums = !case.is_off(csum);
    let segments = checksums && !case.is_off(tso4);
    ensure!(
        (wire.unfinished > 0) == checksums,
        "checksums are left undone: {} expected, {wire:?}",
        checksums
    );
    ensure!(
        (wire.longest_bytes > WHOLE_BYTES) == segments,
        "segments are left undone: {segments} expected, {wire:?}"
    );
    Ok(())
}

/// iperf3 between the guest and the peer, both ways; where it is not installed that is said.
fn iperf(dir: &TestDir, peer: &Network, guest: &mut Guest) -> Check {
    let Some(iperf3) = find_program("iperf3") else {
        ensure!(
            std::env::var("CI").as_deref() != Ok("true"),
            "in CI, and iperf3 is missing (tests/setup installs it)"
        );
        eprintln!("SKIPPED iperf3: it is missing (tests/setup installs it)");
        return Ok(());
    };
    for (way, word) in [("from", ""), ("to", "-R")] {
        let name = format!("iperf-{way}");
        let words = ["-s", "-1", "-J", "-p", "5201"];
        let server = Running::spawn_by(peer.enter(), dir, &name, &iperf3, words)?;
        let client = format!("iperf3 -c 10.8.0.1 -t 2 {word} >/tmp/iperf 2>&1");
        let tried = format!(
            "for i in 1 2 3 4 5; do {client} && exit 0; sleep 1; done; cat /tmp/iperf; exit 1"
        );
        guest.expect(&tried)?;
        let output = server.finish(secs(60))?;
        let report: serde_json::Value = serde_json::from_str(&output.out)?;
        let sum = match way {
            "from" => &report["end"]["sum_received"],
            _ => &report["end"]["sum_sent"],
        };
        let bits = sum["bits_per_second"].as_f64().unwrap_or_default();
        let bytes = sum["bytes"].as_u64();
        println!("iperf3 {way} the guest: {:.0} Mbit/s", bits / 1e6);
        ensure!(bytes > Some(0), "{report}");
    }
    Ok(())
}
