//! NICs, and the switches that some of them are ports of.
//!
//! A switch belongs to one worker, whichever has the fewest; a NIC that is wired to a tap is on a worker
//! for each of its pairs.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferry_dataplane::lifecycle::LifecycleError;
use ferry_dataplane::net::counters::PortTotals;
use ferry_dataplane::net::frame::Mac;
use ferry_dataplane::net::nic::{BridgeHandle, NicPort};
use ferry_dataplane::net::tap::Tap;
use ferry_vhost::net::config::Link;
use ferry_vhost::net::device::{Attachment, NetDevice, Wire};
use ferry_vhost::session::{self, Listening};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Daemon, kept};
use crate::error::{Done, Failure};
use crate::name::Name;
use crate::nic::{NicChange, NicConfig, SwitchConfig};

const SOCKET_MODE: u32 = 0o660;
/// How long a NIC's device may live on in the hands of who is busy with it.
const GONE_PATIENCE: Duration = Duration::from_secs(2);

/// All of a daemon.
#[derive(Default)]
pub struct Nics {
    switches: Mutex<BTreeMap<Name, Switch>>,
    nics: Mutex<BTreeMap<Name, Nic>>,
}

struct Switch {
    config: SwitchConfig,
    bridge: Arc<BridgeHandle>,
    taps: Vec<NicPort>,
}

struct Nic {
    config: NicConfig,
    mac: Mac,
    /// The tap that was handed over with it.
    handed: Option<String>,
    socket: PathBuf,
    /// Dropped first: cuts the front-end.
    _listening: Listening,
    device: Arc<NetDevice>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn random() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low
}

impl Nics {
    /// Cuts all front-ends and lets go of all taps.
    pub fn stop(&self) {
        lock(&self.nics).clear();
        lock(&self.switches).clear();
    }
}

fn open_taps(name: &str, queues: u16) -> Done<Vec<Tap>> {
    Tap::open(name, queues).map_err(|error| {
        let multi = if queues > 1 { " multi_queue" } else { "" };
        let mend = if error.raw_os_error() == Some(libc::EBUSY) {
            "another process has it; stop that, or name another".to_owned()
        } else {
            format!(
                "make it first, for this user: ip tuntap add {name} mode tap vnet_hdr user \
                 USER{multi}; ip link set {name} up"
            )
        };
        Failure::Failed(format!(
            "cannot open the tap {name} with {queues} queue(s): {error}; {mend}"
        ))
    })
}

/// The queues of one tap, as somebody else opened them.
fn handed_taps(id: &Name, files: Vec<OwnedFd>) -> Done<Vec<Tap>> {
    let tap = |file| {
        Tap::from_fd(file).map_err(|error| {
            Failure::Failed(format!(
                "nic {id}: a descriptor cannot be its tap: {error}; hand over /dev/net/tun with an interface \
                 set by TUNSETIFF, with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
            ))
        })
    };
    let taps = files.into_iter().map(tap).collect::<Done<Vec<_>>>()?;
    match taps.iter().find(|tap| tap.name() != taps[0].name()) {
        Some(other) => Err(Failure::Failed(format!(
            "nic {id}: the descriptors are of several interfaces, {} and {}; hand over queues of one",
            taps[0].name(),
            other.name()
        ))),
        None => Ok(taps),
    }
}

fn switch_port(
    switches: &BTreeMap<Name, Switch>,
    switch: &Name,
    config: &NicConfig,
    guard: Option<Mac>,
) -> Done<Attachment> {
    let Some(there) = switches.get(switch) else {
        return Err(Failure::Failed(format!(
            "there is no switch {switch}; make it with ferry switch add {switch}"
        )));
    };
    let port = there
        .bridge
        .add_guest(config.queue_pairs, config.mtu, guard);
    Ok(Attachment::Switch(port.map_err(failed("switch", switch))?))
}

fn unknown(id: &Name) -> Failure {
    Failure::Failed(format!(
        "there is no NIC {id} here; ferry nic list names those there are"
    ))
}

fn failed(what: &str, name: &Name) -> impl FnOnce(LifecycleError) -> Failure {
    let about = format!("{what} {name}");
    move |error| Failure::Failed(format!("{about}: {error}"))
}

impl Daemon {
    /// Takes up the switches and NICs of the configuration, and then those that were added before the
    /// last end.
    pub fn take_up_nics(&self) {
        let state_dir = &self.config.state_dir;
        let known = |name: &Name| self.config.switches.iter().any(|it| it.name == *name);
        let kept = kept::load::<SwitchConfig>(state_dir).into_iter();
        let switches = self.config.switches.iter().cloned();
        for config in switches.chain(kept.filter(|it| !known(&it.name))) {
            if let Err(error) = self.start_switch(&config) {
                tracing::error!(switch = %config.name, %error, "a switch is not taken up");
            }
        }
        let known = |id: &Name| self.config.nics.iter().any(|it| it.id == *id);
        let kept = kept::load::<NicConfig>(state_dir).into_iter();
        let nics = self.config.nics.iter().cloned();
        for config in nics.chain(kept.filter(|it| !known(&it.id))) {
            if let Err(error) = self.start_nic(&config, Vec::new()) {
                tracing::error!(nic = %config.id, %error, "a NIC is not taken up");
            }
        }
    }

    /// `ferry switch add`.
    pub fn add_switch(&self, config: &SwitchConfig) -> Done<Value> {
        let line = self.start_switch(config)?;
        kept::store(&self.config.state_dir, config)
            .inspect_err(|_| drop(lock(&self.nics.switches).remove(&config.name)))?;
        Ok(line)
    }

    fn start_switch(&self, config: &SwitchConfig) -> Done<Value> {
        let name = &config.name;
        let mut switches = lock(&self.nics.switches);
        if switches.contains_key(name) {
            return Err(Failure::Failed(format!("there is a switch {name} already")));
        }
        let workers = self.workers();
        let worker = &workers[self.next_home() % workers.len()];
        let bridge = BridgeHandle::switch(worker, random()).map_err(failed("switch", name))?;
        let mut taps = Vec::new();
        for tap in &config.taps {
            for tap in open_taps(tap, 1)? {
                taps.push(bridge.add_tap(tap).map_err(failed("switch", name))?);
            }
        }
        let switch = Switch {
            config: config.clone(),
            bridge,
            taps,
        };
        let line = switch.line();
        switches.insert(name.clone(), switch);
        Ok(line)
    }

    /// `ferry switch remove`.
    pub fn remove_switch(&self, name: &Name) -> Done<Value> {
        let mut switches = lock(&self.nics.switches);
        if !switches.contains_key(name) {
            return Err(Failure::Failed(format!("there is no switch {name}")));
        }
        let nics = lock(&self.nics.nics);
        if let Some(nic) = nics
            .values()
            .find(|nic| nic.config.switch.as_ref() == Some(name))
        {
            return Err(Failure::Failed(format!(
                "NIC {} is a port of switch {name}; remove it first",
                nic.config.id
            )));
        }
        switches.remove(name);
        kept::remove::<SwitchConfig>(&self.config.state_dir, name)?;
        Ok(json!({ "removed": name }))
    }

    /// `ferry nic add`. What came with descriptors is not kept: they end with the daemon.
    pub fn add_nic(&self, config: &NicConfig, files: Vec<OwnedFd>) -> Done<Value> {
        config.check()?;
        if files.len() != usize::from(config.tap_fds) {
            return Err(Failure::Usage(format!(
                "nic {}: {} descriptors were said and {} came",
                config.id,
                config.tap_fds,
                files.len()
            )));
        }
        let handed = handed_taps(&config.id, files)?;
        let mut config = config.clone();
        // From now on it is the NIC's, also after a restart.
        let mac = config.mac()?.unwrap_or_else(|| Mac::random(random()));
        config.mac = Some(mac.to_string());
        let line = self.start_nic(&config, handed)?;
        if config.tap_fds > 0 {
            tracing::warn!(nic = %config.id, tap = %line["tap"],
                "the NIC's tap was handed over; both are gone when the daemon ends, until it is handed again");
            return Ok(line);
        }
        kept::store(&self.config.state_dir, &config)
            .inspect_err(|_| drop(lock(&self.nics.nics).remove(&config.id)))?;
        Ok(line)
    }

    /// `handed`: the queues of its tap, if they came from outside.
    fn start_nic(&self, config: &NicConfig, handed: Vec<Tap>) -> Done<Value> {
        config.check()?;
        let id = &config.id;
        // In this order everywhere.
        let switches = lock(&self.nics.switches);
        let mut nics = lock(&self.nics.nics);
        if nics.contains_key(id) {
            return Err(Failure::Failed(format!("there is a NIC {id} already")));
        }
        let mac = config.mac()?.unwrap_or_else(|| Mac::random(random()));
        let guard = (!config.any_source).then_some(mac);
        let tap = handed.first().map(|tap| tap.name().to_owned());
        let taps = match &config.tap {
            Some(tap) => open_taps(tap, config.queue_pairs)?,
            None => handed,
        };
        let speed = taps.first().and_then(Tap::speed_mbps);
        let attachment = match &config.switch {
            Some(switch) => switch_port(&switches, switch, config, guard)?,
            None => self.wires(taps, config, guard)?,
        };
        let device = NetDevice::new(id.as_str(), config.options(mac, speed), attachment);
        let device = device.map_err(|error| Failure::Usage(format!("nic {id}: {error}")))?;
        let limited = device.set_limit(config.limit());
        limited.map_err(failed("nic", id))?;
        if config.link_down {
            device.set_link(false).map_err(failed("nic", id))?;
        }
        let default = || self.config.run_dir.join(format!("nic-{id}.sock"));
        let socket = config.socket_path.clone().unwrap_or_else(default);
        let listening = session::listen(device.clone(), &socket, SOCKET_MODE)?;
        self.give_to_group(&socket);
        let nic = Nic {
            config: config.clone(),
            mac,
            handed: tap,
            socket,
            _listening: listening,
            device,
        };
        let line = nic.line();
        nics.insert(id.clone(), nic);
        Ok(line)
    }

    fn wires(&self, taps: Vec<Tap>, config: &NicConfig, guard: Option<Mac>) -> Done<Attachment> {
        let workers = self.workers();
        let wire = |tap| {
            let worker = &workers[self.next_home() % workers.len()];
            let bridge = BridgeHandle::wire(worker)?;
            let guest = bridge.add_guest(1, config.mtu, guard)?;
            let tap = bridge.add_tap(tap)?;
            Ok(Wire { guest, tap })
        };
        let wires: Result<_, LifecycleError> = taps.into_iter().map(wire).collect();
        Ok(Attachment::Wires(wires.map_err(failed("nic", &config.id))?))
    }

    /// `ferry nic set`.
    pub fn set_nic(&self, change: &NicChange) -> Done<Value> {
        change.check()?;
        let id = &change.id;
        let mut nics = lock(&self.nics.nics);
        let nic = nics.get_mut(id).ok_or_else(|| unknown(id))?;
        let config = change.of(&nic.config);
        // What the daemon's configuration says counts at its next start.
        let configured = self.config.nics.iter().any(|it| it.id == *id);
        let lasting = !configured && nic.handed.is_none();
        if lasting {
            kept::store(&self.config.state_dir, &config)?;
        }
        let limited = nic.device.set_limit(config.limit());
        limited.map_err(failed("nic", id))?;
        let device = nic.device.clone();
        nic.config = config;
        // The guest is told by way of its front-end, which nobody else waits for.
        drop(nics);
        // One that came from elsewhere has brought its link.
        if let Some(up) = change.link_up {
            device.set_link(up).map_err(failed("nic", id))?;
        }
        let nics = lock(&self.nics.nics);
        let mut line = nics.get(id).ok_or_else(|| unknown(id))?.line();
        line["lasting"] = lasting.into();
        Ok(line)
    }

    /// `ferry nic remove`.
    pub fn remove_nic(&self, id: &Name) -> Done<Value> {
        self.migrations.nics.forget(id);
        let Some(nic) = lock(&self.nics.nics).remove(id) else {
            return Err(unknown(id));
        };
        let device = Arc::downgrade(&nic.device);
        drop(nic);
        // Its tap may be wanted again at once.
        let began = Instant::now();
        while device.strong_count() > 0 && began.elapsed() < GONE_PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
        kept::remove::<NicConfig>(&self.config.state_dir, id)?;
        Ok(json!({ "removed": id }))
    }

    /// The device of a NIC.
    pub fn nic(&self, id: &Name) -> Done<Arc<NetDevice>> {
        let nics = lock(&self.nics.nics);
        let device = nics.get(id).map(|nic| nic.device.clone());
        device.ok_or_else(|| {
            Failure::Failed(format!(
                "there is no NIC {id} here; ferry nic list names those there are"
            ))
        })
    }

    /// `ferry nic list`.
    pub fn nic_lines(&self) -> Value {
        let nics = lock(&self.nics.nics);
        let lines: Vec<Value> = nics.values().map(Nic::line).collect();
        json!({ "nics": lines })
    }

    /// `ferry switch list`.
    pub fn switch_lines(&self) -> Value {
        let switches = lock(&self.nics.switches);
        let nics = lock(&self.nics.nics);
        let line = |switch: &Switch| {
            let mut line = switch.line();
            let taps = switch.config.taps.iter().zip(&switch.taps);
            let taps = taps.map(|(name, port)| port_line("tap", name, &port.counters().totals()));
            let on_it = |nic: &&Nic| nic.config.switch.as_ref() == Some(&switch.config.name);
            let nics = nics.values().filter(on_it);
            let nics =
                nics.map(|nic| port_line("nic", nic.config.id.as_str(), &nic.device.totals()));
            line["ports"] = taps.chain(nics).collect();
            line
        };
        let lines: Vec<Value> = switches.values().map(line).collect();
        json!({ "switches": lines })
    }
}

/// A port of a switch, and what went through it.
fn port_line(kind: &str, name: &str, totals: &PortTotals) -> Value {
    json!({
        "kind": kind,
        "name": name,
        "rx_frames": totals.rx_frames,
        "rx_bytes": totals.rx_bytes,
        "tx_frames": totals.tx_frames,
        "tx_bytes": totals.tx_bytes,
        "dropped": dropped(totals),
    })
}

/// Frames that went no further, by cause.
fn dropped(totals: &PortTotals) -> Value {
    json!({
        "no_buffers": totals.no_buffers,
        "spoofed": totals.spoofed,
        "malformed": totals.malformed,
        "too_large": totals.too_large,
        "no_link": totals.no_link,
        "capture_lost": totals.capture_lost,
    })
}

impl Switch {
    fn line(&self) -> Value {
        json!({ "name": self.config.name, "taps": self.config.taps, "tap_ports": self.taps.len() })
    }
}

impl Nic {
    fn line(&self) -> Value {
        let totals = self.device.totals();
        json!({
            "id": self.config.id,
            "mac": self.mac.to_string(),
            "switch": self.config.switch,
            "tap": self.config.tap.as_ref().or(self.handed.as_ref()),
            "tap_handed": self.handed.is_some(),
            "socket": self.socket,
            "mtu": self.config.mtu,
            "queue_pairs": self.config.queue_pairs,
            "speed_mbps": self.device.options().link.filter(|it| *it != Link::UNKNOWN).map(|it| it.speed_mbps),
            "limit_pps": self.config.limit_pps,
            "limit_bps": self.config.limit_bps,
            "attached": self.device.attached(),
            "link_up": self.device.link_is_up(),
            "rx_frames": totals.rx_frames,
            "rx_bytes": totals.rx_bytes,
            "tx_frames": totals.tx_frames,
            "tx_bytes": totals.tx_bytes,
            "limited": totals.limited,
            "filtered": totals.filtered,
            "broken_queues": totals.broken_queues,
            "refused_commands": self.device.refused_commands(),
            "dropped": dropped(&totals),
            "dropped_to_tap": self.device.tap_totals().as_ref().map(dropped),
        })
    }
}
