//! NICs and switches by their commands, with frames from a generator in this process.

use std::path::Path;
use std::time::Duration;

use ferry_bench::net::{NetPlan, Report, run};

use crate::rig::{Host, eventually, networks, text};

fn plan(tx: &Path, rx: &Path) -> NetPlan {
    NetPlan {
        tx: tx.to_owned(),
        rx: Some(rx.to_owned()),
        bidirectional: true,
        bytes: 64,
        duration: Duration::from_millis(400),
        rate_pps: Some(10_000),
        burst: 32,
        // Fewer than any ring on the way has places: what is lost, the daemon lost.
        outstanding: Some(64),
        queue_size: 256,
        queue_pairs: 1,
        vlan: None,
        tso: false,
        mrg_rxbuf: true,
        indirect: true,
        event_idx: true,
        every_byte: true,
        threads: 1,
        cores: Vec::new(),
        wait: Duration::from_secs(20),
        timeout: Duration::from_secs(20),
        lossless: true,
    }
}

/// Frames that are to be cut, as many as their buffers allow.
fn long(plan: NetPlan) -> NetPlan {
    NetPlan {
        bytes: 30_000,
        tso: true,
        // Each takes eight buffers.
        rate_pps: Some(3000),
        queue_size: 1024,
        burst: 8,
        outstanding: Some(32),
        ..plan
    }
}

/// A daemon with two NICs on a switch.
struct Lan {
    host: Host,
    _dir: tempfile::TempDir,
}

impl Lan {
    fn new(more: &[&str]) -> Lan {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), "a");
        host.run(&["switch", "add", "lan"]).ok();
        for id in ["x", "y"] {
            let words = [&["nic", "add", id, "--switch", "lan"], more].concat();
            host.run(&words).ok();
        }
        Lan { host, _dir: dir }
    }

    fn plan(&self) -> NetPlan {
        let socket = |id: &str| self.host.dir.join("run").join(format!("nic-{id}.sock"));
        plan(&socket("x"), &socket("y"))
    }

    fn nic(&self, at: usize) -> serde_json::Value {
        self.host.run(&["nic", "list"]).ok()["nics"][at].clone()
    }
}

#[track_caller]
fn clean(report: &Report) {
    assert!(report.is_clean(), "{}", report.table());
    for direction in &report.directions {
        let received = direction.received.as_ref().expect("both ports receive");
        assert_eq!(received.lost, 0, "{}", report.table());
        assert!(received.rx_frames > 400, "{}", report.table());
    }
}

#[test]
fn frames_cross_a_switch_whole_and_in_order() {
    let lan = Lan::new(&[]);
    for bytes in [64, 500, 1514] {
        clean(
            &run(&NetPlan {
                bytes,
                ..lan.plan()
            })
            .unwrap(),
        );
    }
    let plain = NetPlan {
        bytes: 1514,
        mrg_rxbuf: false,
        indirect: false,
        event_idx: false,
        ..lan.plan()
    };
    clean(&run(&plain).unwrap());
    clean(
        &run(&NetPlan {
            vlan: Some(7),
            ..lan.plan()
        })
        .unwrap(),
    );
    clean(&run(&long(lan.plan())).unwrap());
    let nic = lan.nic(0);
    assert!(nic["rx_frames"].as_u64() > Some(5000), "{nic}");
    assert_eq!(nic["dropped"]["malformed"], 0, "{nic}");
}

#[test]
fn jumbo_frames_and_several_pairs_of_queues() {
    let lan = Lan::new(&["--mtu", "9000", "--queue-pairs", "3"]);
    let plan = NetPlan {
        bytes: 9000,
        queue_pairs: 3,
        ..lan.plan()
    };
    clean(&run(&plan).unwrap());
    // One that uses fewer than are offered.
    clean(&run(&lan.plan()).unwrap());
}

#[test]
fn frames_beyond_the_mtu_are_not_carried() {
    let lan = Lan::new(&["--mtu", "1000"]);
    clean(
        &run(&NetPlan {
            bytes: 1014,
            ..lan.plan()
        })
        .unwrap(),
    );
    let plan = NetPlan {
        bytes: 1514,
        wait: Duration::from_millis(500),
        ..lan.plan()
    };
    assert!(run(&plan).is_err(), "nothing arrives");
    assert!(lan.nic(0)["dropped"]["too_large"].as_u64() > Some(0));
}

#[test]
fn a_nic_keeps_to_its_rate() {
    let lan = Lan::new(&["--limit-pps", "2000"]);
    let plan = NetPlan {
        rate_pps: None,
        outstanding: None,
        duration: Duration::from_secs(1),
        lossless: false,
        bidirectional: false,
        ..lan.plan()
    };
    let report = run(&plan).unwrap();
    let sent = report.directions[0].received.as_ref().unwrap().rx_frames;
    // A second's, and what was in the ring when it was over.
    assert!((1500..=2600).contains(&sent), "{sent}");
}

/// The link and the limits change while frames could flow, and stay so over a restart.
#[test]
fn a_nic_is_changed_while_it_is_served() {
    let mut lan = Lan::new(&[]);
    let set = |lan: &Lan, words: &[&str]| lan.host.run(&[&["nic", "set"], words].concat());
    let line = set(&lan, &["y", "--link", "down", "--limit-pps", "500"]).ok();
    assert_eq!(
        (&line["link_up"], &line["lasting"]),
        (&false.into(), &true.into())
    );
    let quiet = |lan: &Lan| NetPlan {
        wait: Duration::from_millis(500),
        ..lan.plan()
    };
    assert!(run(&quiet(&lan)).is_err(), "nothing passes");
    lan.host.restart();
    eventually("it is back", || lan.nic(1)["link_up"] == false);
    assert_eq!(lan.nic(1)["limit_pps"], 500);
    assert!(run(&quiet(&lan)).is_err(), "nor does it now");
    let dropped = lan.nic(1)["dropped"]["no_link"].as_u64();
    assert!(dropped > Some(0), "{}", lan.nic(1));
    set(&lan, &["y", "--link", "up", "--limit-pps", "none"]).ok();
    assert_eq!(lan.nic(1)["limit_pps"], serde_json::Value::Null);
    clean(&run(&lan.plan()).unwrap());
    set(&lan, &["z", "--link", "up"]).refused(&["no NIC z"]);
    let error = set(&lan, &["y"]).error(2);
    assert!(error.contains("--link"), "{error}");
}

#[test]
fn nics_and_switches_come_back_as_they_were() {
    let mut lan = Lan::new(&[]);
    let before = lan.nic(0);
    lan.host.restart();
    eventually("it is back", || lan.nic(0)["mac"] == before["mac"]);
    clean(&run(&lan.plan()).unwrap());
    lan.host.run(&["nic", "remove", "x"]).ok();
    lan.host.run(&["nic", "remove", "y"]).ok();
    lan.host.run(&["switch", "remove", "lan"]).ok();
    lan.host.restart();
    assert_eq!(
        lan.host.run(&["switch", "list"]).ok()["switches"],
        serde_json::json!([])
    );
    assert_eq!(lan.nic(0), serde_json::Value::Null);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let lan = Lan::new(&[]);
    let add = |words: &[&str]| lan.host.run(&[&["nic", "add", "z"], words].concat());
    let usage = |words: &[&str], said: &str| {
        let error = add(words).error(2);
        assert!(error.contains(said), "{error}");
    };
    usage(&[], "--switch NAME or --tap NAME");
    usage(
        &["--switch", "lan", "--mac", "01:00:00:00:00:01"],
        "single NIC",
    );
    usage(&["--switch", "lan", "--mac", "nonsense"], "hexadecimal");
    usage(&["--switch", "lan", "--mtu", "60"], "MTU");
    usage(&["--switch", "lan", "--queue-pairs", "0"], "queue_pairs");
    add(&["--switch", "wan"]).refused(&["no switch wan", "ferry switch add"]);
    add(&["--tap", "this-name-is-too-long"]).refused(&["no name of an interface"]);
    lan.host
        .run(&["nic", "add", "x", "--switch", "lan"])
        .refused(&["NIC x already"]);
    lan.host
        .run(&["switch", "add", "lan"])
        .refused(&["switch lan already"]);
    lan.host
        .run(&["switch", "remove", "lan"])
        .refused(&["NIC x", "remove it first"]);
    lan.host.run(&["nic", "remove", "z"]).refused(&["no NIC z"]);
    let socket = lan.host.dir.join("run/nic-x.sock");
    let words = ["--switch", "lan", "--socket-path", text(&socket)];
    add(&words).refused(&["in use"]);
}

/// Its guest is told what was said, or what its tap says; and that nobody knows.
#[test]
fn a_guest_is_told_the_speed_of_its_nic() {
    use ferry_bench::frontend::{Vmm, VmmOptions};
    const GET_CONFIG: u32 = 24;
    let read = |host: &Host, id: &str| {
        let socket = host.dir.join("run").join(format!("nic-{id}.sock"));
        let mut vmm = Vmm::connect(&socket, VmmOptions::net()).unwrap();
        let mut asked = [12u32, 5, 0].map(u32::to_ne_bytes).concat();
        asked.extend([0; 5]);
        let reply = vmm.raw_request(GET_CONFIG, 0, &asked, &[], true).unwrap();
        let [speed @ .., duplex] = *reply.unwrap().body.last_chunk::<5>().unwrap();
        (u32::from_le_bytes(speed), duplex)
    };
    let lan = Lan::new(&["--speed", "2500"]);
    assert_eq!(read(&lan.host, "x"), (2500, 1));
    assert_eq!(lan.nic(0)["speed_mbps"], 2500);
    let error = lan.host.run(&[
        "nic",
        "add",
        "z",
        "--switch",
        "lan",
        "--speed",
        "2147483648",
    ]);
    assert!(error.error(2).contains("a speed of 2147483648"));
    lan.host.run(&["nic", "add", "z", "--switch", "lan"]).ok();
    assert_eq!(read(&lan.host, "z"), (u32::MAX, 0xff));
    if !networks("a_guest_is_told_the_speed_of_its_nic") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = Host::in_network(dir.path(), "a");
    host.run(&["nic", "add", "x", "--tap", "t0"]).ok();
    let (speed, duplex) = read(&host, "x");
    assert!((10..=1_000_000).contains(&speed), "{speed}");
    assert_eq!(duplex, 1);
}

/// From one tap to the other by a bridge of the kernel's.
#[test]
fn frames_go_by_taps_and_come_by_taps() {
    if !networks("frames_go_by_taps_and_come_by_taps") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = Host::in_network(dir.path(), "a");
    host.ip("link add br0 type bridge mcast_snooping 0");
    for (id, tap) in [("x", "t0"), ("y", "t1")] {
        host.run(&["nic", "add", id, "--tap", tap]).ok();
        host.ip(&format!("link set {tap} master br0 up"));
    }
    host.ip("link set br0 up");
    let socket = |id: &str| host.dir.join("run").join(format!("nic-{id}.sock"));
    let plan = plan(&socket("x"), &socket("y"));
    for bytes in [64, 1514] {
        clean(
            &run(&NetPlan {
                bytes,
                ..plan.clone()
            })
            .unwrap(),
        );
    }
    clean(&run(&long(plan.clone())).unwrap());
    // Over the same taps a second time, and after they are gone.
    host.run(&["nic", "remove", "x"]).ok();
    host.run(&["nic", "add", "x", "--tap", "t0"]).ok();
    host.ip("link set t0 master br0 up");
    clean(&run(&plan).unwrap());
    host.ip("link delete t1");
    eventually("the daemon goes on", || {
        host.run(&["nic", "list"]).ok()["nics"]
            .as_array()
            .map(Vec::len)
            == Some(2)
    });
    host.run(&["nic", "remove", "y"]).ok();
}

/// Each of its pairs has a queue of the tap's; a rate is that of all of them.
#[test]
fn a_tap_may_have_several_queues() {
    if !networks("a_tap_may_have_several_queues") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = Host::in_network(dir.path(), "a");
    host.ip("link add br0 type bridge mcast_snooping 0");
    for (id, tap) in [("x", "t0"), ("y", "t1")] {
        host.run(&["nic", "add", id, "--tap", tap, "--queue-pairs", "2"])
            .ok();
        host.ip(&format!("link set {tap} master br0 up"));
    }
    host.ip("link set br0 up");
    several_queues(&host, &["x", "y"]);
}

/// Frames cross by two pairs of each NIC, and by no more of them than the NIC's rate allows.
fn several_queues(host: &Host, ids: &[&str; 2]) {
    let socket = |id: &str| host.dir.join("run").join(format!("nic-{id}.sock"));
    let plan = NetPlan {
        queue_pairs: 2,
        ..plan(&socket(ids[0]), &socket(ids[1]))
    };
    clean(&run(&plan).unwrap());
    clean(&run(&long(plan.clone())).unwrap());
    let limit = ["nic", "set", ids[0], "--limit-pps", "2000"];
    host.run(&limit).ok();
    let plan = NetPlan {
        rate_pps: None,
        outstanding: None,
        duration: Duration::from_secs(1),
        lossless: false,
        bidirectional: false,
        ..plan
    };
    let report = run(&plan).unwrap();
    let sent = report.directions[0].received.as_ref().unwrap().rx_frames;
    assert!((1500..=2800).contains(&sent), "{sent}");
}

/// What goes to a tap whose interface is down is lost, and both lists say where.
#[test]
fn what_a_tap_does_not_take_is_shown() {
    if !networks("what_a_tap_does_not_take_is_shown") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = Host::in_network(dir.path(), "a");
    host.run(&["switch", "add", "lan", "--tap", "up0"]).ok();
    host.run(&["nic", "add", "x", "--switch", "lan"]).ok();
    host.run(&["nic", "add", "y", "--tap", "t1"]).ok();
    let socket = |id: &str| host.dir.join("run").join(format!("nic-{id}.sock"));
    let plan = NetPlan {
        wait: Duration::from_millis(500),
        ..plan(&socket("x"), &socket("y"))
    };
    assert!(run(&plan).is_err(), "nothing passes");
    let nics = host.run(&["nic", "list"]).ok()["nics"].clone();
    assert_eq!(nics[0]["dropped_to_tap"], serde_json::Value::Null);
    let lost = nics[1]["dropped_to_tap"]["no_link"].as_u64();
    assert!(lost > Some(0), "{nics}");
    let ports = host.run(&["switch", "list"]).ok()["switches"][0]["ports"].clone();
    assert_eq!(
        (&ports[0]["kind"], &ports[0]["name"]),
        (&"tap".into(), &"up0".into())
    );
    assert!(ports[0]["dropped"]["no_link"].as_u64() > Some(0), "{ports}");
    assert_eq!(ports[0]["rx_frames"], 0);
    assert_eq!(
        (&ports[1]["kind"], &ports[1]["name"]),
        (&"nic".into(), &"x".into())
    );
    assert!(ports[1]["tx_frames"].as_u64() > Some(0), "{ports}");
}

/// A NIC of a switch, and one behind the switch's tap.
#[test]
fn a_tap_is_a_port_of_a_switch() {
    if !networks("a_tap_is_a_port_of_a_switch") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = Host::in_network(dir.path(), "a");
    host.ip("link add br0 type bridge mcast_snooping 0");
    host.run(&["switch", "add", "lan", "--tap", "up0"]).ok();
    host.run(&["nic", "add", "x", "--switch", "lan"]).ok();
    host.run(&["nic", "add", "y", "--tap", "t1"]).ok();
    for link in ["up0", "t1"] {
        host.ip(&format!("link set {link} master br0 up"));
    }
    host.ip("link set br0 up");
    let socket = |id: &str| host.dir.join("run").join(format!("nic-{id}.sock"));
    for bytes in [64, 1514] {
        let plan = plan(&socket("x"), &socket("y"));
        clean(&run(&NetPlan { bytes, ..plan }).unwrap());
    }
}

/// Says to the test below, run in a daemon's network, whom to hand a tap, and of how many queues.
const HAND_OVER: &str = "FERRY_TEST_HAND_OVER";
const HAND_OVER_QUEUES: &str = "FERRY_TEST_HAND_OVER_QUEUES";

/// No test by itself: a process that may open taps, for a daemon that need not.
#[test]
fn hands_a_tap_over() {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    let Ok(control) = std::env::var(HAND_OVER) else {
        return;
    };
    let queues = std::env::var(HAND_OVER_QUEUES).unwrap().parse().unwrap();
    let taps = ferry_dataplane::net::tap::Tap::open("t0", queues).unwrap();
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let mut add = Command::new(env!("CARGO_BIN_EXE_ferry"));
    add.args(["nic", "add", "x", "--control", &control]);
    let mut handed = Vec::new();
    for tap in &taps {
        let file = pidfd_getfd(&own, tap.as_raw_fd(), PidfdGetfdFlags::empty()).unwrap();
        // The copy is the command's as well.
        let file = rustix::io::dup(&file).unwrap();
        add.args(["--tap-fd", &file.as_raw_fd().to_string()]);
        handed.push(file);
    }
    assert!(add.status().unwrap().success());
}

/// Opens the tap `t0` in a daemon's network, by a process that may, and hands it to the daemon.
#[track_caller]
fn hand_over(host: &Host, queues: u16) {
    let control = host.dir.join("run/control.sock");
    let handed = std::process::Command::new("nsenter")
        .args(["-t", &host.pid().to_string(), "--user", "--net"])
        .args(["--preserve-credentials", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "nics::hands_a_tap_over", "--nocapture"])
        .env(HAND_OVER, text(&control))
        .env(HAND_OVER_QUEUES, queues.to_string())
        .output()
        .unwrap();
    assert!(handed.status.success(), "{handed:?}");
}

#[test]
fn a_tap_of_several_queues_may_be_handed_over() {
    if !networks("a_tap_of_several_queues_may_be_handed_over") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = Host::in_network(dir.path(), "a");
    hand_over(&host, 2);
    let line = host.run(&["nic", "list"]).ok()["nics"][0].clone();
    assert_eq!(
        (&line["tap_handed"], &line["queue_pairs"]),
        (&true.into(), &2.into())
    );
    host.ip("link add br0 type bridge mcast_snooping 0");
    host.run(&["nic", "add", "y", "--tap", "t1", "--queue-pairs", "2"])
        .ok();
    for tap in ["t0", "t1"] {
        host.ip(&format!("link set {tap} master br0 up"));
    }
    host.ip("link set br0 up");
    several_queues(&host, &["x", "y"]);
}

#[test]
fn a_tap_is_handed_over_by_who_may_open_it() {
    if !networks("a_tap_is_handed_over_by_who_may_open_it") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::in_network(dir.path(), "a");
    let add = |words: &[&str]| host.run(&[&["nic", "add", "x"], words].concat());
    // The command's input is /dev/null.
    add(&["--tap-fd", "0"]).refused(&["cannot be its tap", "IFF_VNET_HDR"]);
    let error = add(&["--tap-fd", "99"]).error(2);
    assert!(error.contains("must be open in this command"), "{error}");
    hand_over(&host, 1);
    let line = host.run(&["nic", "list"]).ok()["nics"][0].clone();
    assert_eq!(
        (&line["tap"], &line["tap_handed"]),
        (&"t0".into(), &true.into())
    );
    host.ip("link add br0 type bridge mcast_snooping 0");
    host.run(&["nic", "add", "y", "--tap", "t1"]).ok();
    for tap in ["t0", "t1"] {
        host.ip(&format!("link set {tap} master br0 up"));
    }
    host.ip("link set br0 up");
    let socket = |id: &str| host.dir.join("run").join(format!("nic-{id}.sock"));
    clean(&run(&plan(&socket("x"), &socket("y"))).unwrap());
    host.restart();
    let nics = host.run(&["nic", "list"]).ok()["nics"].clone();
    assert_eq!(nics.as_array().map(Vec::len), Some(1), "{nics}");
    assert_eq!(nics[0]["id"], "y");
}
