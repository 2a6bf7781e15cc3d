//! Two hosts with networks of their own, a daemon on each, and a guest with a
//! disk and a NIC that may be on either. Its traffic goes by the segment; what
//! the hosts tell each other goes by a network of theirs, which may be cut.

use std::path::PathBuf;

use serde_json::Value;

use super::daemon::Daemon;
use super::guest::{Guest, Machine, Nic, Qemu, ferry_qmp};
use super::network::{GUEST, GUEST_MAC, HOSTS, Network, Segment};
use super::pair::Arrival;
use super::talk::Talk;
use super::wait::{secs, wait_for};
use super::{Check, TestDir, image};

/// The id of the disk.
pub const DISK: &str = "d0";
/// The id of the NIC.
pub const NIC: &str = "n0";
/// The tap through which the guest's frames go, on either host.
pub const TAP: &str = "vm0";

const SIDES: [&str; 2] = ["a", "b"];
const DISK_BYTES: u64 = 32 * image::MIB;
const MIGRATION_PORT: u16 = 4444;

/// What the NIC's frames go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wiring {
    /// To a tap, a port of the host's bridge.
    Tap,
    /// To a switch of the daemon; the tap is a port of both.
    Switch,
}

/// A ring that holds what comes while an emulated guest does something else.
pub const LONG_RING: &str = ",rx_queue_size=1024";

/// What the pair is like.
pub struct Options {
    /// What the NIC is wired to.
    pub wiring: Wiring,
    /// More of QEMU's properties of the NIC, each with a comma before it.
    pub properties: String,
}

/// The hosts, the guest, and where it is.
pub struct NetPair<'d> {
    dir: &'d TestDir,
    options: Options,
    /// It goes before the daemons, and these before the networks.
    pub guest: Guest,
    daemons: [Daemon<'d>; 2],
    /// The networks.
    pub segment: Segment,
    /// Where the guest is, an index of `daemons`.
    here: usize,
    qemus: u32,
}

impl<'d> NetPair<'d> {
    /// Starts all of it; the guest is at the first host and has its address.
    pub fn start(dir: &'d TestDir, options: Options) -> Check<Self> {
        let segment = Segment::new()?;
        let daemon = |side: usize| {
            let (name, by) = (SIDES[side], segment.hosts[side].enter());
            let address = format!("{}:7077", HOSTS[side]);
            Daemon::spawn_at(&address, by, dir, name, &[ferry_qmp(dir, name)], "")
        };
        let daemons = [daemon(0)?, daemon(1)?];
        image::create(&dir.path("a.img"), DISK_BYTES)?;
        let path = dir.path("a.img").display().to_string();
        let disk = daemons[0].add_disk(DISK, &path, 1)?;
        let nic = add_nic(dir, &daemons[0], &segment.hosts[0], 0, options.wiring)?;
        // From the start, so that what passes its tap can be looked at.
        add_nic(dir, &daemons[1], &segment.hosts[1], 1, options.wiring)?;
        let machine = machine(&segment.hosts[0], nic, &options);
        let mut guest = Guest::boot(dir, "a-0", &machine, &[&disk])?;
        guest.expect(&format!(
            "ifconfig lo up; ifconfig eth0 {GUEST} netmask 255.255.255.0 up"
        ))?;
        Ok(Self {
            dir,
            options,
            guest,
            daemons,
            segment,
            here: 0,
            qemus: 0,
        })
    }

    /// The daemon the guest is at.
    pub fn source(&mut self) -> &mut Daemon<'d> {
        &mut self.daemons[self.here]
    }

    /// The daemon it is to move to.
    pub fn destination(&mut self) -> &mut Daemon<'d> {
        &mut self.daemons[1 - self.here]
    }

    /// The network of the host that the guest is at.
    pub fn host(&self) -> &Network {
        &self.segment.hosts[self.here]
    }

    /// The NIC's line of `ferry nic list` where the guest is.
    pub fn nic(&self) -> Check<Value> {
        let list = self.daemons[self.here].expect(&["nic", "list"])?;
        let nics = list["nics"].as_array().into_iter().flatten();
        let mut nics = nics.filter(|nic| nic["id"] == NIC);
        Ok(nics.next().cloned().unwrap_or_default())
    }

    /// Does something, moves the guest for instance, while traffic flows
    /// between it and its peer; `words` are those of `ferry-bench talk call`.
    /// The traffic's report, which must tell of no fault.
    pub fn talk(
        &mut self,
        words: &[&str],
        meanwhile: impl FnOnce(&mut Self) -> Check,
    ) -> Check<Value> {
        let talk = Talk::start(self.dir, &self.segment.peer, &mut self.guest, words)?;
        meanwhile(self)?;
        talk.finish()
    }

    /// Makes the other host ready for a move: the disk, the NIC of the same id
    /// and MAC, its tap in that host's bridge, and a QEMU that waits and is not
    /// told to listen yet.
    pub fn prepare_closed(&mut self) -> Check<Arrival> {
        let there = 1 - self.here;
        let (daemon, host) = (&self.daemons[there], &self.segment.hosts[there]);
        let path = self.dir.path(format!("{}.img", SIDES[there]));
        let disk = match daemon.disk(DISK)? {
            Some(_) => daemon.socket(DISK),
            None => {
                let path = path.display().to_string();
                daemon.add_incoming(DISK, &path, 1, DISK_BYTES)?
            }
        };
        let nic = add_nic(self.dir, daemon, host, there, self.options.wiring)?;
        let machine = machine(host, nic, &self.options);
        self.qemus += 1;
        let name = format!("{}-{}", SIDES[there], self.qemus);
        let qemu = Qemu::incoming(self.dir, &name, &machine, &[&disk])?;
        let uri = format!("tcp:{}:{MIGRATION_PORT}", HOSTS[there]);
        Ok(Arrival { qemu, uri })
    }

    /// The words of `ferry migrate vm` for the disk, the NIC and the arrival.
    pub fn vm_words(&mut self, arrival: &Arrival) -> Vec<String> {
        let to = self.destination().address();
        let qmp = self.guest.qemu().ferry_qmp.display().to_string();
        let dest_qmp = arrival.qemu.ferry_qmp.display().to_string();
        let pairs = [
            ("--disk", DISK),
            ("--nic", NIC),
            ("--to", &to),
            ("--qmp", &qmp),
            ("--dest-qmp", &dest_qmp),
            ("--migrate-uri", &arrival.uri),
            ("--incoming-uri", &arrival.uri),
        ];
        let words = pairs.iter().flat_map(|&(flag, value)| [flag, value]);
        ["migrate", "vm"]
            .into_iter()
            .chain(words)
            .map(str::to_owned)
            .collect()
    }

    /// A whole move by `ferry migrate vm`; its report.
    pub fn move_guest(&mut self) -> Check<Value> {
        self.move_with(|_| true)
    }

    /// The same, of which the daemons are not told that the NIC moves: QEMU
    /// alone carries its state.
    pub fn move_guest_untold(&mut self) -> Check<Value> {
        self.move_with(|word| !["--nic", NIC].contains(&word))
    }

    fn move_with(&mut self, said: impl Fn(&str) -> bool) -> Check<Value> {
        let arrival = self.prepare_closed()?;
        let mut words = self.vm_words(&arrival);
        words.retain(|word| said(word));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let report = self.source().expect(&words)?;
        self.arrived(arrival)?;
        Ok(report)
    }

    /// Takes note that the guest has moved; the QEMU it came from ends.
    pub fn arrived(&mut self, arrival: Arrival) -> Check {
        self.here = 1 - self.here;
        drop(self.guest.arrive(arrival.qemu));
        self.guest.qmp().wait_status("running", secs(20))?;
        // A disk that nobody has used yet might still go back.
        self.guest
            .expect("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null")?;
        wait_for("the disk to be served here", secs(20), || {
            let disk = self.daemons[self.here].disk(DISK)?;
            Ok(disk.filter(|disk| disk["phase"] == "serving").map(drop))
        })
    }
}

fn machine(host: &Network, socket: PathBuf, options: &Options) -> Machine {
    Machine {
        queues: 1,
        nics: vec![Nic {
            socket,
            mac: GUEST_MAC.to_owned(),
            properties: options.properties.clone(),
        }],
        by: host.enter().to_vec(),
        ..Machine::default()
    }
}

/// Adds the NIC at a host, unless it is known there, and its tap to the bridge;
/// its socket.
fn add_nic(
    dir: &TestDir,
    daemon: &Daemon,
    host: &Network,
    side: usize,
    wiring: Wiring,
) -> Check<PathBuf> {
    let socket = dir.path(format!("{}-nic.sock", SIDES[side]));
    let list = daemon.expect(&["nic", "list"])?;
    let mut nics = list["nics"].as_array().into_iter().flatten();
    if nics.any(|nic| nic["id"] == NIC) {
        return Ok(socket);
    }
    let path = socket.display().to_string();
    let words = [
        "nic",
        "add",
        NIC,
        "--mac",
        GUEST_MAC,
        "--socket-path",
        &path,
    ];
    let backend = match wiring {
        Wiring::Tap => ["--tap", TAP],
        Wiring::Switch => {
            daemon.expect(&["switch", "add", "lan", "--tap", TAP])?;
            ["--switch", "lan"]
        }
    };
    daemon.expect(&[&words[..], &backend].concat())?;
    host.ip(&format!("link set {TAP} master br0 up"))?;
    Ok(socket)
}
