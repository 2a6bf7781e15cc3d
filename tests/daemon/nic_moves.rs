//! NICs that move between two daemons, with frames that are counted. The machine is a front-end in this
//! process: it stops the rings at one daemon and starts them at the other, as a VMM does.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferry_bench::frontend::net::{HEADER_BYTES, RxOptions, RxQueue, TxOptions, TxQueue};
use ferry_bench::frontend::{GuestDevice, GuestMemory, Vmm, VmmOptions};
use serde_json::Value;

use crate::rig::{Host, PATIENCE, eventually};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 0x61];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0x70];
const FRAME_BYTES: usize = 60;
const RING: u16 = 256;
const TYPE: [u8; 2] = [0x88, 0xb5];
const RARP: [u8; 2] = [0x80, 0x35];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// fe80::7
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// A machine's NIC, or a station in the network.
struct Nic {
    vmm: Vmm,
    device: GuestDevice,
    rx: RxQueue,
    tx: TxQueue,
    /// Of pairs that nothing comes by.
    _idle: Vec<(RxQueue, TxQueue)>,
    /// Frames that arrived and were not asked for yet.
    arrived: Vec<Vec<u8>>,
}

impl Nic {
    fn at(socket: &Path) -> Nic {
        Nic::on(Vmm::connect(socket, VmmOptions::net()).unwrap(), 1)
    }

    /// A driver that boots.
    fn on(mut vmm: Vmm, pairs: u16) -> Nic {
        let rx = RxOptions {
            frame_bytes_max: 1518,
            mergeable: true,
            indirect: false,
        };
        let tx = TxOptions {
            frame_bytes: u32::try_from(FRAME_BYTES).unwrap(),
            indirect: false,
        };
        let bytes = rx.memory_bytes(RING) + tx.memory_bytes(RING);
        let memory = GuestMemory::new(bytes * u64::from(pairs)).unwrap();
        let device = GuestDevice::new(&memory, 2 * pairs, RING).unwrap();
        let features = vmm.features();
        let blank = [0; FRAME_BYTES];
        let pair = |at: usize| {
            let tx = TxQueue::new(&device, at + 1, features, tx, &[0; HEADER_BYTES], &blank);
            (
                RxQueue::new(&device, at, features, rx).unwrap(),
                tx.unwrap(),
            )
        };
        let (rx, tx) = pair(0);
        let idle = (1..usize::from(pairs)).map(|at| pair(2 * at)).collect();
        vmm.start(&device).unwrap();
        Nic {
            vmm,
            device,
            rx,
            tx,
            _idle: idle,
            arrived: Vec::new(),
        }
    }

    fn send_frame(&mut self, frame: &[u8; FRAME_BYTES]) {
        let began = Instant::now();
        while self.tx.reclaim().unwrap() == 0 {
            assert!(began.elapsed() < PATIENCE, "nothing is taken");
        }
        assert!(self.tx.put(|there| there.write(0, frame)));
        self.tx.commit().unwrap();
    }

    /// A frame that is shorter than any on a wire.
    fn send_short(&mut self, to: [u8; 6], from: [u8; 6], number: u32) {
        let began = Instant::now();
        while self.tx.reclaim().unwrap() == 0 {
            assert!(began.elapsed() < PATIENCE, "nothing is taken");
        }
        assert!(self.tx.put_frame(&numbered(to, from, number)[..18]));
        self.tx.commit().unwrap();
    }

    fn send(&mut self, to: [u8; 6], from: [u8; 6], number: u32) {
        self.send_frame(&numbered(to, from, number));
    }

    fn poll(&mut self) {
        let arrived = &mut self.arrived;
        self.rx
            .poll(RING.into(), |frame| {
                let mut bytes = vec![0; frame.bytes()];
                frame.read(0, &mut bytes);
                arrived.push(bytes);
            })
            .unwrap();
    }

    /// The numbers of the next frames of ours, until there are so many; others are left.
    #[track_caller]
    fn numbers(&mut self, count: usize) -> Vec<u32> {
        let began = Instant::now();
        loop {
            self.poll();
            let ours = |frame: &&Vec<u8>| frame[12..14] == TYPE;
            if self.arrived.iter().filter(ours).count() >= count {
                break;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{} of {count} came",
                self.arrived.iter().filter(ours).count()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        self.take(TYPE)
            .iter()
            .map(|frame| u32::from_be_bytes(frame[14..18].try_into().unwrap()))
            .collect()
    }

    /// Those of a type that have arrived.
    fn take(&mut self, ether_type: [u8; 2]) -> Vec<Vec<u8>> {
        let all = std::mem::take(&mut self.arrived);
        let (ours, others) = all
            .into_iter()
            .partition(|frame| frame[12..14] == ether_type);
        self.arrived = others;
        ours
    }

    /// Nothing more comes.
    #[track_caller]
    fn rests(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(self.numbers(0), Vec::<u32>::new());
    }

    /// The rings start at another daemon, where they stopped.
    fn start_at(&mut self, mut vmm: Vmm, bases: &[u16]) -> Vmm {
        vmm.start_at(&self.device, bases).unwrap();
        std::mem::replace(&mut self.vmm, vmm)
    }
}

fn numbered(to: [u8; 6], from: [u8; 6], number: u32) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&TYPE);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

/// An ARP request, from which a host learns an address.
fn arp(from: [u8; 6], ip: [u8; 4]) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&ARP);
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&from);
    frame[28..32].copy_from_slice(&ip);
    frame
}

/// As much of a neighbour solicitation as says who sends it.
fn solicitation(from: [u8; 6], ip: [u8; 16]) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&[0x33, 0x33, 0xff, 0, 0, 1]);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&IPV6);
    // ICMPv6 comes next.
    (frame[14], frame[20], frame[21]) = (0x60, 58, 255);
    frame[22..38].copy_from_slice(&ip);
    frame[54] = 135;
    frame
}

/// A link between the hosts that can be cut.
struct Link {
    address: String,
    cut: Arc<AtomicBool>,
    /// What goes there is lost.
    swallows: Arc<AtomicBool>,
}

impl Link {
    fn to(peer: &str) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cut = Arc::new(AtomicBool::new(false));
        let (is_cut, peer) = (cut.clone(), peer.to_owned());
        let (swallows, never) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let swallowed = swallows.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                if !is_cut.load(Ordering::SeqCst) {
                    let far = TcpStream::connect(&peer).unwrap();
                    carry(&near, &far, &is_cut, &swallowed);
                    carry(&far, &near, &is_cut, &never);
                }
            }
        });
        Link {
            address,
            cut,
            swallows,
        }
    }

    /// Whether nothing is carried any more.
    fn is_idle(&self) -> bool {
        // Besides the one here, that of who listens.
        Arc::strong_count(&self.cut) == 2
    }

    /// What goes to the peer does not come there, though it seems to.
    fn swallow(&self, swallow: bool) {
        self.swallows.store(swallow, Ordering::SeqCst);
    }

    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

/// One way, until it is cut.
fn carry(from: &TcpStream, to: &TcpStream, cut: &Arc<AtomicBool>, swallows: &Arc<AtomicBool>) {
    let (mut from, mut to, cut) = (
        from.try_clone().unwrap(),
        to.try_clone().unwrap(),
        cut.clone(),
    );
    let swallows = swallows.clone();
    from.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while !cut.load(Ordering::SeqCst) {
            match from.read(&mut bytes) {
                Ok(0) => break,
                Ok(_) if swallows.load(Ordering::SeqCst) => {}
                Ok(len) => to.write_all(&bytes[..len]).unwrap(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Two hosts, a NIC that both know, and a station at each.
struct World {
    hosts: [Host; 2],
    guest: Nic,
    stations: [Nic; 2],
    _dir: tempfile::TempDir,
}

fn socket(host: &Host, id: &str) -> std::path::PathBuf {
    host.dir.join("run").join(format!("nic-{id}.sock"))
}

impl World {
    fn new() -> World {
        World::of(1)
    }

    /// With so many pairs of queues, of which one is used.
    fn of(pairs: u16) -> World {
        let dir = tempfile::tempdir().unwrap();
        let hosts = ["a", "b"].map(|name| Host::new(dir.path(), name));
        for host in &hosts {
            host.run(&["switch", "add", "lan"]).ok();
            let mac = "02:00:00:00:00:61";
            let (id, pairs) = (["nic", "add", "g"], pairs.to_string());
            let how = ["--switch", "lan", "--mac", mac, "--queue-pairs", &pairs];
            host.run(&[&id[..], &how].concat()).ok();
            host.run(&["nic", "add", "p", "--switch", "lan", "--any-source"])
                .ok();
        }
        let vmm = Vmm::connect(&socket(&hosts[0], "g"), VmmOptions::net());
        let mut guest = Nic::on(vmm.unwrap(), pairs);
        let mut stations = [0, 1].map(|at| Nic::at(&socket(&hosts[at], "p")));
        guest.send_frame(&arp(GUEST, [10, 0, 0, 7]));
        stations[0].send(GUEST, PEER, 0);
        assert_eq!(guest.numbers(1), [0]);
        World {
            hosts,
            guest,
            stations,
            _dir: dir,
        }
    }

    fn announce(&self, from: usize, to: usize) {
        let peer = self.hosts[to].peer();
        self.hosts[from]
            .run(&["migrate", "nic", "g", "--to", &peer])
            .ok();
    }

    fn send(&mut self, at: usize, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.stations[at].send(GUEST, PEER, number);
        }
    }

    /// A move with frames in its blackout.
    #[track_caller]
    fn moves(&mut self, from: usize, to: usize, numbers: std::ops::Range<u32>) {
        self.announce(from, to);
        let there = self.connect(to);
        let bases = self.guest.vmm.stop().unwrap();
        self.send(from, numbers.clone());
        self.guest.start_at(there, &bases);
        let wanted: Vec<u32> = numbers.collect();
        assert_eq!(self.guest.numbers(wanted.len()), wanted);
    }

    fn leaving(&self, at: usize) -> Value {
        self.hosts[at].run(&["migrate", "status"]).ok()["nics"][0].clone()
    }

    #[track_caller]
    fn wait_phase(&self, at: usize, phase: &str) {
        eventually(phase, || self.leaving(at)["phase"] == phase);
    }

    fn counter(&self, at: usize, key: &str) -> u64 {
        let nics = self.hosts[at].run(&["nic", "list"]).ok();
        let nics = nics["nics"].as_array().unwrap().clone();
        let nic = nics.iter().find(|nic| nic["id"] == "g").unwrap();
        nic[key]
            .as_u64()
            .or_else(|| nic["dropped"][key].as_u64())
            .unwrap()
    }

    fn connect(&self, at: usize) -> Vmm {
        Vmm::connect(&socket(&self.hosts[at], "g"), VmmOptions::net()).unwrap()
    }
}

#[test]
fn what_reaches_the_source_while_its_rings_stand_still_is_first_at_the_destination() {
    let mut world = World::new();
    world.guest.send_frame(&solicitation(GUEST, LINK_LOCAL));
    world.announce(0, 1);
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(0, 1..101);
    world.wait_phase(0, "taken");
    // What comes there before its guest does is the source's to give.
    world.send(1, 900..910);
    world.send(0, 101..151);
    let here = world.guest.start_at(there, &bases);
    // Both networks at once: those of the source are first.
    world.send(1, 1000..1010);
    let mut numbers = world.guest.numbers(160);
    assert_eq!(numbers.split_off(150), (1000..1010).collect::<Vec<_>>());
    assert_eq!(numbers, (1..151).collect::<Vec<_>>());
    // A straggler, though the machine there is gone by now.
    drop(here);
    world.wait_phase(0, "activated");
    world.send(0, 151..154);
    assert_eq!(world.guest.numbers(3), [151, 152, 153]);
    world.guest.rests();
    world.wait_phase(0, "moved");
    let report = world.leaving(0);
    assert_eq!(report["frames_forwarded"], 153, "{report}");
    assert!(report["blackout_us"].as_u64() > Some(0), "{report}");
    assert_eq!(world.counter(1, "rx_frames"), 1 + 163);
    // The network there has heard of it, each time with its address.
    world.stations[1].poll();
    assert_eq!(world.stations[1].take(RARP).len(), 6);
    let arps = world.stations[1].take(ARP);
    assert_eq!(arps.len(), 6);
    assert_eq!(arps[0][28..32], [10, 0, 0, 7]);
    // To all nodes: an advertisement that nobody asked for, and that overrides what they know.
    let advertised = world.stations[1].take(IPV6);
    assert_eq!(advertised.len(), 6);
    for frame in &advertised {
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!((frame[54], frame[58]), (136, 0x20));
        assert_eq!(frame[62..78], LINK_LOCAL);
        assert_eq!(frame[80..86], GUEST);
    }
    // And back again.
    world.announce(1, 0);
    let there = world.connect(0);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(1, 200..220);
    world.guest.start_at(there, &bases);
    assert_eq!(world.guest.numbers(20), (200..220).collect::<Vec<_>>());
    assert_eq!(world.counter(0, "rx_frames"), 1 + 163 + 20);
    assert_eq!(world.counter(0, "capture_lost"), 0);
    // And on, while stragglers of that move are still passed on.
    world.moves(0, 1, 300..320);
    world.moves(1, 0, 400..420);
    world.send(0, 500..505);
    assert_eq!(world.guest.numbers(5), (500..505).collect::<Vec<_>>());
    world.wait_phase(1, "moved");
    world.send(0, 505..510);
    assert_eq!(world.guest.numbers(5), (505..510).collect::<Vec<_>>());
}

#[test]
fn a_cancelled_move_delivers_at_the_source() {
    let mut world = World::new();
    world.announce(0, 1);
    for (round, cancel) in [(0, false), (1, true), (2, false)] {
        let first = 100 * round + 1;
        let bases = world.guest.vmm.stop().unwrap();
        world.send(0, first..first + 50);
        if cancel {
            world.hosts[0]
                .run(&["migrate", "cancel", "--nic", "g"])
                .ok();
        } else if round == 0 {
            world.wait_phase(0, "taken");
        }
        world.send(0, first + 50..first + 60);
        world
            .guest
            .vmm
            .start_at(&world.guest.device, &bases)
            .unwrap();
        world.send(0, first + 60..first + 70);
        let wanted: Vec<u32> = (first..first + 70).collect();
        assert_eq!(world.guest.numbers(70), wanted);
    }
    world.guest.rests();
    world.stations[1].poll();
    assert_eq!(world.stations[1].take(RARP).len(), 0);
    assert_eq!(world.leaving(0)["phase"], "cancelled");
}

/// A machine that boots on the NIC of one that did not come is served.
#[test]
fn a_move_that_fails_leaves_the_nic_there_free() {
    let mut world = World::new();
    let mut there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    let state = world.guest.vmm.save_state().unwrap();
    there.load_state(&state).unwrap();
    drop(there);
    world
        .guest
        .vmm
        .start_at(&world.guest.device, &bases)
        .unwrap();
    world.send(0, 1..5);
    assert_eq!(world.guest.numbers(4), [1, 2, 3, 4]);
    let mut fresh = Nic::at(&socket(&world.hosts[1], "g"));
    world.send(1, 10..12);
    assert_eq!(fresh.numbers(2), [10, 11]);
}

/// The VMM carries the state, and nobody has told Ferry of the move.
#[test]
fn a_vmm_alone_carries_the_state_and_the_frames_in_hand() {
    let mut world = World::new();
    let mut there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(0, 1..21);
    // In its hands by the time it answers what comes next.
    eventually("all are captured", || {
        world.stations[0].tx.reclaim().unwrap();
        world.stations[0].tx.in_flight() == 0
    });
    let state = world.guest.vmm.save_state().unwrap();
    there.load_state(&state).unwrap();
    // Once is enough.
    there.load_state(&state).unwrap();
    world.guest.start_at(there, &bases);
    world.send(1, 100..105);
    let wanted: Vec<u32> = (1..21).chain(100..105).collect();
    assert_eq!(world.guest.numbers(25), wanted);
    assert_eq!(world.counter(1, "rx_frames"), 26);
    eventually("it is announced", || {
        world.stations[1].poll();
        !world.stations[1].take(RARP).is_empty()
    });
}

/// Both ways at once, as `ferry migrate vm` has it under QEMU: no frame is given twice.
#[test]
fn a_state_that_comes_both_ways_is_one() {
    let mut world = World::new();
    world.announce(0, 1);
    let mut there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(0, 1..31);
    let state = world.guest.vmm.save_state().unwrap();
    world.wait_phase(0, "taken");
    there.load_state(&state).unwrap();
    world.send(0, 31..41);
    world.guest.start_at(there, &bases);
    assert_eq!(world.guest.numbers(40), (1..41).collect::<Vec<_>>());
    world.guest.rests();
}

#[test]
fn a_destination_that_is_restarted_in_between_is_told_again() {
    let mut world = World::new();
    world.announce(0, 1);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(0, 1..11);
    world.wait_phase(0, "taken");
    world.hosts[1].kill();
    world.wait_phase(0, "connecting");
    world.send(0, 11..21);
    world.hosts[1].start();
    world.wait_phase(0, "taken");
    world.stations[1] = Nic::at(&socket(&world.hosts[1], "p"));
    let there = world.connect(1);
    world.guest.start_at(there, &bases);
    assert_eq!(world.guest.numbers(20), (1..21).collect::<Vec<_>>());
}

/// What the source kept meanwhile is late, and is not lost.
#[test]
fn a_link_that_is_cut_in_between_loses_no_frame() {
    let mut world = World::new();
    let link = Link::to(&world.hosts[1].peer());
    world.hosts[0]
        .run(&["migrate", "nic", "g", "--to", &link.address])
        .ok();
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(0, 1..11);
    world.wait_phase(0, "taken");
    link.cut(true);
    world.wait_phase(0, "connecting");
    world.send(0, 11..21);
    world.guest.start_at(there, &bases);
    world.send(1, 100..105);
    let wanted: Vec<u32> = (1..11).chain(100..105).collect();
    assert_eq!(world.guest.numbers(15), wanted);
    link.cut(false);
    assert_eq!(world.guest.numbers(10), (11..21).collect::<Vec<_>>());
    world.wait_phase(0, "moved");
    world.guest.rests();
}

/// The link goes as the guest begins there: with what the source had just sent, and was to send.
#[test]
fn a_link_that_is_lost_at_activation_loses_no_frame() {
    let mut world = World::new();
    let link = Link::to(&world.hosts[1].peer());
    world.hosts[0]
        .run(&["migrate", "nic", "g", "--to", &link.address])
        .ok();
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(0, 1..11);
    world.wait_phase(0, "taken");
    assert_eq!(world.leaving(0)["frames_forwarded"], 10);
    link.swallow(true);
    world.send(0, 11..21);
    world.guest.start_at(there, &bases);
    world.wait_phase(0, "activated");
    link.cut(true);
    assert_eq!(world.guest.numbers(10), (1..11).collect::<Vec<_>>());
    eventually("the link is cut", || link.is_idle());
    link.swallow(false);
    // Still passed on, if it takes its time.
    world.send(0, 21..26);
    link.cut(false);
    assert_eq!(world.guest.numbers(15), (11..26).collect::<Vec<_>>());
    world.wait_phase(0, "moved");
    world.guest.rests();
}

/// Its source goes on asking, until it is told.
#[test]
fn a_nic_that_is_removed_where_it_is_awaited_is_gone() {
    let world = World::new();
    world.announce(0, 1);
    world.wait_phase(0, "ready");
    world.hosts[1].run(&["nic", "remove", "g"]).ok();
    world.wait_phase(0, "failed");
    let why = world.leaving(0)["reason"].as_str().unwrap().to_owned();
    assert!(why.contains("removed there"), "{why}");
}

#[test]
fn another_machine_does_not_get_the_frames() {
    let mut world = World::new();
    world.announce(0, 1);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(0, 1..11);
    world.wait_phase(0, "taken");
    let mut stranger = Nic::at(&socket(&world.hosts[1], "g"));
    stranger.rests(); // its rings begin elsewhere
    drop(stranger);
    let there = world.connect(1);
    world.guest.start_at(there, &bases);
    assert_eq!(world.guest.numbers(10), (1..11).collect::<Vec<_>>());
}

#[test]
fn a_nic_that_does_not_fit_is_refused() {
    let world = World::new();
    let peer = world.hosts[1].peer();
    let [a, b] = &world.hosts;
    let add = |host: &Host, more: &[&str]| {
        host.run(&[&["nic", "add", "z", "--switch", "lan"], more].concat())
            .ok();
    };
    let start = |host: &Host, id: &str| host.run(&["migrate", "nic", id, "--to", &peer]);
    start(a, "nobody").refused(&["no NIC nobody", "ferry nic list"]);
    add(a, &["--mac", "02:00:00:00:00:01"]);
    start(a, "z").refused(&["no NIC z is awaited there", "ferry nic add z"]);
    let wrong: [(&[&str], &str); 3] = [
        (&["--mac", "02:00:00:00:00:02"], "--mac"),
        (&["--mac", "02:00:00:00:00:01", "--mtu", "9000"], "--mtu"),
        (
            &["--mac", "02:00:00:00:00:01", "--queue-pairs", "2"],
            "--queue-pairs",
        ),
    ];
    for (words, mend) in wrong {
        add(b, words);
        start(a, "z").refused(&["give both the same", mend]);
        b.run(&["nic", "remove", "z"]).ok();
    }
    // One that a guest runs on is not awaited.
    let _there = Nic::at(&socket(b, "g"));
    start(a, "g").refused(&["a guest runs on the NIC there"]);
    a.run(&["migrate", "nic", "g", "--to", "127.0.0.1:1"])
        .refused(&["cannot connect"]);
}

#[test]
fn many_short_frames_cross() {
    let mut world = World::new();
    world.announce(0, 1);
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    for number in 0..3000 {
        world.stations[0].send_short(GUEST, PEER, number);
    }
    world.guest.start_at(there, &bases);
    assert_eq!(world.guest.numbers(3000), (0..3000).collect::<Vec<_>>());
}

/// Before the state is there nobody can tell it from the machine that moves.
#[test]
fn a_machine_that_boots_where_another_is_to_arrive_waits() {
    let mut world = World::new();
    world.announce(0, 1);
    let mut stranger = Nic::at(&socket(&world.hosts[1], "g"));
    world.send(1, 900..903);
    stranger.rests();
    world.send(0, 1..5);
    assert_eq!(world.guest.numbers(4), [1, 2, 3, 4]);
    assert_eq!(world.leaving(0)["phase"], "ready");
    world.stations[1].poll();
    assert_eq!(world.stations[1].take(RARP).len(), 0);
    // The other does not come: the NIC is its own.
    world.hosts[0]
        .run(&["migrate", "cancel", "--nic", "g"])
        .ok();
    eventually("it is served", || {
        world.stations[1].send(GUEST, PEER, 7);
        stranger.poll();
        !stranger.take(TYPE).is_empty()
    });
}

#[test]
fn a_move_that_is_called_off_and_begun_again_at_once_arrives() {
    let mut world = World::new();
    for _ in 0..5 {
        world.announce(0, 1);
        world.hosts[0]
            .run(&["migrate", "cancel", "--nic", "g"])
            .ok();
    }
    world.moves(0, 1, 1..30);
    world.wait_phase(0, "moved");
}

/// No ring says where it is.
#[test]
fn a_machine_without_a_driver_moves_on() {
    let mut world = World::new();
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    let state = world.guest.vmm.save_state().unwrap();
    drop(std::mem::replace(&mut world.guest.vmm, there));
    world.guest.vmm.load_state(&state).unwrap();
    world.announce(1, 0);
    let mut back = world.connect(0);
    let state = world.guest.vmm.save_state().unwrap();
    back.load_state(&state).unwrap();
    world.guest.start_at(back, &bases);
    world.send(0, 1..5);
    assert_eq!(world.guest.numbers(4), [1, 2, 3, 4]);
}

#[test]
fn a_nic_on_which_a_machine_stands_still_is_not_awaited() {
    let world = World::new();
    let mut other = Nic::at(&socket(&world.hosts[1], "g"));
    other.vmm.stop().unwrap();
    let peer = world.hosts[1].peer();
    world.hosts[0]
        .run(&["migrate", "nic", "g", "--to", &peer])
        .refused(&["stands still"]);
}

/// A guest's address that has gone to another station is not announced as the guest's.
#[test]
fn what_another_station_has_by_now_is_not_announced() {
    let mut world = World::new();
    world.guest.send_frame(&arp(GUEST, [10, 0, 0, 8]));
    world.stations[0].send_frame(&arp(PEER, [10, 0, 0, 7]));
    world.moves(0, 1, 1..3);
    eventually("it is announced", || {
        world.stations[1].poll();
        let arps = world.stations[1].take(ARP);
        let spoken: Vec<_> = arps.iter().map(|it| it[28..32].to_vec()).collect();
        assert!(!spoken.contains(&vec![10, 0, 0, 7]));
        spoken.contains(&vec![10, 0, 0, 8])
    });
}

/// It was to move on before its rings ran, and does so after they did.
#[test]
fn a_machine_that_begins_before_it_moves_on_arrives_there() {
    let mut world = World::new();
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    let state = world.guest.vmm.save_state().unwrap();
    drop(std::mem::replace(&mut world.guest.vmm, there));
    world.guest.vmm.load_state(&state).unwrap();
    world.announce(1, 0);
    let guest = &mut world.guest;
    guest.vmm.start_at(&guest.device, &bases).unwrap();
    eventually("it is announced", || {
        world.stations[1].poll();
        !world.stations[1].take(RARP).is_empty()
    });
    world.send(1, 1..40);
    assert_eq!(world.guest.numbers(39).len(), 39);
    let back = world.connect(0);
    let bases = world.guest.vmm.stop().unwrap();
    world.send(1, 40..45);
    drop(world.guest.start_at(back, &bases));
    assert_eq!(world.guest.numbers(5), [40, 41, 42, 43, 44]);
    world.wait_phase(1, "moved");
}

/// The source says that it is called off, when the machine stands at the destination already.
#[test]
fn a_machine_that_is_there_when_its_move_is_called_off_goes_on() {
    let mut world = World::new();
    world.announce(0, 1);
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    world.wait_phase(0, "taken");
    drop(std::mem::replace(&mut world.guest.vmm, there));
    world.hosts[0]
        .run(&["migrate", "cancel", "--nic", "g"])
        .ok();
    std::thread::sleep(Duration::from_millis(200));
    let guest = &mut world.guest;
    guest.vmm.start_at(&guest.device, &bases).unwrap();
    eventually("it is announced", || {
        world.stations[1].poll();
        !world.stations[1].take(RARP).is_empty()
    });
    world.send(1, 1..5);
    assert_eq!(world.guest.numbers(4), [1, 2, 3, 4]);
}

/// Its rings did not run at the destination, and the source's VMM is gone.
#[test]
fn a_machine_that_did_not_begin_comes_back() {
    let mut world = World::new();
    world.announce(0, 1);
    let there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    world.wait_phase(0, "taken");
    drop(std::mem::replace(&mut world.guest.vmm, there));
    std::thread::sleep(Duration::from_millis(100));
    world.announce(1, 0);
    let back = world.connect(0);
    drop(world.guest.start_at(back, &bases));
    world.send(0, 1..5);
    assert_eq!(world.guest.numbers(4), [1, 2, 3, 4]);
    world.wait_phase(1, "moved");
}

/// Where another has run before it came.
#[test]
fn a_machine_that_boots_after_its_move_is_not_the_last_one() {
    let mut world = World::new();
    world.send(0, 1..30);
    assert_eq!(world.guest.numbers(29).len(), 29);
    let mut there = world.connect(1);
    let World {
        hosts,
        guest,
        mut stations,
        _dir,
    } = world;
    drop(guest);
    let mut fresh = Vmm::connect(&socket(&hosts[0], "g"), VmmOptions::net()).unwrap();
    there.load_state(&fresh.save_state().unwrap()).unwrap();
    let mut booted = Nic::on(there, 1);
    for number in 50..53 {
        stations[1].send(GUEST, PEER, number);
    }
    assert_eq!(booted.numbers(3), [50, 51, 52]);
}

#[test]
fn a_link_that_came_down_is_up_again_where_the_move_fails() {
    let mut world = World::new();
    let link = |world: &World, at: usize| {
        let nics = world.hosts[at].run(&["nic", "list"]).ok();
        nics["nics"][0]["link_up"].as_bool().unwrap()
    };
    let set = |world: &World, at: usize, words: &[&str]| {
        world.hosts[at]
            .run(&[&["nic", "set", "g"], words].concat())
            .ok();
    };
    set(&world, 0, &["--link", "down"]);
    let mut there = world.connect(1);
    let bases = world.guest.vmm.stop().unwrap();
    let state = world.guest.vmm.save_state().unwrap();
    there.load_state(&state).unwrap();
    assert!(!link(&world, 1), "it comes as it was");
    set(&world, 1, &["--limit-pps", "100000"]);
    assert!(!link(&world, 1), "another setting changes nothing of it");
    drop(there);
    eventually("it is up", || link(&world, 1));
    // And one that is up comes so where it is down.
    let guest = &mut world.guest;
    guest.vmm.start_at(&guest.device, &bases).unwrap();
    set(&world, 0, &["--link", "up"]);
    set(&world, 1, &["--link", "down"]);
    world.moves(0, 1, 1..5);
    assert!(link(&world, 1));
}

/// A pair that never received begins at 0 wherever it comes.
#[test]
fn an_idle_pair_of_queues_forgets_no_address() {
    let mut world = World::of(2);
    world.moves(0, 1, 1..5);
    let mut heard = 0;
    eventually("it is announced again and again", || {
        world.stations[1].poll();
        let arps = world.stations[1].take(ARP);
        heard += arps.iter().filter(|it| it[28..32] == [10, 0, 0, 7]).count();
        heard >= 4
    });
}
