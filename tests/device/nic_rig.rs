//! NICs on a switch and their guests, driven by hand.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ferry_bench::frontend::{Desc, GuestDevice, GuestMemory, Vmm, VmmOptions};
use ferry_dataplane::net::counters::PortTotals;
use ferry_dataplane::net::frame::Mac;
use ferry_dataplane::net::nic::BridgeHandle;
use ferry_vhost::net::config::{Controls, NetOptions, Offloads, feature};
use ferry_vhost::net::device::{Attachment, NetDevice};
use ferry_vhost::session::{self, Listening};

use crate::rig::{Host, MIB, PATIENCE, RawRing, readable, writable};

/// Bytes of virtio's header.
pub const HEADER: u32 = 12;
/// Entries of a ring.
pub const RING: u16 = 64;
/// Bytes of a buffer to receive into.
const BUFFER: u32 = 4096;
/// How long to wait for what is not to come.
pub const REST: Duration = Duration::from_millis(60);

const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const CONFIG_CHANGE_MSG: u32 = 2;

/// A switch on a worker.
pub struct Lan {
    bridge: Arc<BridgeHandle>,
    pub host: Host,
}

/// What sets a NIC apart from another.
#[derive(Clone, Copy)]
pub struct Kind {
    pub pairs: u16,
    pub any_source: bool,
}

impl Default for Kind {
    fn default() -> Kind {
        Kind {
            pairs: 1,
            any_source: false,
        }
    }
}

/// A NIC that listens.
pub struct Nic {
    _listening: Listening,
    pub device: Arc<NetDevice>,
    pub mac: [u8; 6],
    pub socket: PathBuf,
    pairs: u16,
}

impl Lan {
    pub fn new() -> Lan {
        Lan::on(Host::new(1))
    }

    /// On the first worker of a host.
    pub fn on(host: Host) -> Lan {
        let bridge = BridgeHandle::switch(&host.handles()[0], 1).unwrap();
        Lan::of(bridge, host)
    }

    /// Another kind of bridge.
    pub fn of(bridge: Arc<BridgeHandle>, host: Host) -> Lan {
        Lan { bridge, host }
    }

    /// The NIC with the address that ends in `number`.
    pub fn nic(&self, number: u8, kind: Kind) -> Nic {
        let mac = [0x52, 0x54, 0, 0, 0, number];
        let guard = (!kind.any_source).then_some(Mac(mac));
        let port = self.bridge.add_guest(kind.pairs, 1500, guard).unwrap();
        let options = NetOptions {
            mac: Some(mac),
            fixed_mac: !kind.any_source,
            mtu: Some(1500),
            link: None,
            status: true,
            queue_pairs: kind.pairs,
            mergeable: true,
            indirect: true,
            event_idx: true,
            log: true,
            from_guest: Offloads::ALL,
            to_guest: Offloads::ALL,
            control: Some(Controls::ALL),
        };
        let name = format!("nic{number}");
        let device = NetDevice::new(&name, options, Attachment::Switch(port)).unwrap();
        let socket = self.host.dir().join(name);
        Nic {
            _listening: session::listen(device.clone(), &socket, 0o600).unwrap(),
            device,
            mac,
            socket,
            pairs: kind.pairs,
        }
    }
}

impl Nic {
    pub fn totals(&self) -> PortTotals {
        self.device.ports()[0].counters().totals()
    }

    /// All that a NIC counts as its guest's mistakes.
    pub fn errors(&self) -> u64 {
        let totals = self.totals();
        let frames = totals.malformed + totals.spoofed + totals.too_large;
        frames + totals.broken_queues + self.device.refused_commands()
    }

    /// Its guest.
    pub fn guest(&self) -> NicGuest {
        self.guest_with(self.pairs, features())
    }

    pub fn guest_with(&self, pairs: u16, features: u64) -> NicGuest {
        let memory = GuestMemory::new(8 * MIB).unwrap();
        let control = features & feature::CTRL_VQ != 0;
        let rings = 2 * pairs + u16::from(control);
        let device = GuestDevice::new(&memory, rings, RING).unwrap();
        let mut guest = NicGuest::connected(self, &device, features);
        guest.vmm.start(&device).unwrap();
        guest
    }
}

/// Everything but offloads, with the control queue.
pub fn features() -> u64 {
    use feature::{
        CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_VQ, GUEST_ANNOUNCE, MQ, STATUS,
    };
    let control = CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR;
    VmmOptions::net().features | control | GUEST_ANNOUNCE | MQ | STATUS
}

/// Virtio 1 and nothing else.
pub fn plain() -> u64 {
    use ferry_bench::frontend::net::feature::{EVENT_IDX, INDIRECT, MQ};
    VmmOptions::net().features & !(EVENT_IDX | INDIRECT | MQ)
}

/// A guest whose rings run: 2p to receive by, 2p + 1 to send, the last to control.
pub struct NicGuest {
    pub vmm: Vmm,
    pub memory: GuestMemory,
    pub device: GuestDevice,
    pub rings: Vec<RawRing>,
    /// Where each ring's buffers are.
    areas: Vec<u64>,
    /// Frames that came by its rings, and those that its NIC counted before it came.
    received: u64,
    before: u64,
}

impl NicGuest {
    /// One whose rings do not run yet.
    pub fn connected(nic: &Nic, device: &GuestDevice, features: u64) -> NicGuest {
        let all = VmmOptions::net().protocol | !VmmOptions::net().protocol;
        let options = VmmOptions {
            features,
            reply_timeout: Duration::from_secs(5),
            protocol: all,
            ..VmmOptions::net()
        };
        let memory = device.memory().clone();
        let rings: Vec<RawRing> = (0..device.queues().len())
            .map(|at| RawRing::new(device, at))
            .collect();
        let area = |_| memory.alloc(u64::from(BUFFER) * u64::from(RING), 4096);
        let areas: Vec<u64> = (0..rings.len()).map(|at| area(at).unwrap()).collect();
        let mut guest = NicGuest {
            vmm: Vmm::connect(&nic.socket, options).unwrap(),
            memory,
            device: device.clone(),
            rings,
            areas,
            received: 0,
            before: nic.totals().rx_frames,
        };
        for ring in (0..guest.pairs() * 2).step_by(2) {
            // Half of a ring, so that tests have descriptors left.
            (0..RING / 2).for_each(|head| guest.post(ring, head));
        }
        guest
    }

    pub fn pairs(&self) -> usize {
        self.rings.len() / 2
    }

    /// The ring of the control queue.
    pub fn control(&mut self) -> &mut RawRing {
        self.rings.last_mut().unwrap()
    }

    /// Where a ring's buffers are; the tests' own for the others.
    pub fn area(&self, ring: usize) -> u64 {
        self.areas[ring]
    }

    fn place(&self, ring: usize, head: u16) -> u64 {
        self.areas[ring] + u64::from(head) * u64::from(BUFFER)
    }

    fn post(&mut self, ring: usize, head: u16) {
        let place = self.place(ring, head);
        self.rings[ring]
            .ring
            .write_desc(head, writable(place, BUFFER));
        self.rings[ring].offer(head);
    }

    /// Sends bytes, the header among them, cut where `cuts` says; waits until they are taken.
    pub fn send_cut(&mut self, pair: usize, bytes: &[u8], cuts: &[usize]) {
        let descs = self.lay(2 * pair + 1, bytes, cuts);
        self.rings[2 * pair + 1].ask(&descs);
    }

    /// Puts bytes into a ring's area; descriptors for them, cut where `cuts` says.
    pub fn lay(&self, ring: usize, bytes: &[u8], cuts: &[usize]) -> Vec<Desc> {
        let base = self.areas[ring];
        self.memory.write(base, bytes).unwrap();
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let mut from = 0;
        let mut descs = Vec::new();
        for end in ends {
            descs.push(readable(base + from as u64, (end - from) as u32));
            from = end;
        }
        descs
    }

    /// Sends a frame with a header that asks for nothing.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_cut(
            0,
            &[&[0; HEADER as usize], frame].concat(),
            &[HEADER as usize],
        );
    }

    /// The next frame on a ring, with its header.
    pub fn receive_on(&mut self, pair: usize, time: Duration) -> Option<Vec<u8>> {
        let ring = 2 * pair;
        let (head, len) = self.rings[ring].next_used(time)?;
        let head = u16::try_from(head).unwrap();
        let mut bytes = vec![0; len as usize];
        self.memory
            .read(self.place(ring, head), &mut bytes)
            .unwrap();
        self.post(ring, head);
        self.received += 1;
        Some(bytes)
    }

    pub fn receive(&mut self, time: Duration) -> Option<Vec<u8>> {
        let bytes = self.receive_on(0, time)?;
        Some(bytes[HEADER as usize..].to_vec())
    }

    /// All frames that are on their way here, by what its NIC has counted: that is final when a sender
    /// has its buffer back.
    pub fn drain(&mut self, nic: &Nic) -> Vec<Vec<u8>> {
        let coming = nic.totals().rx_frames - self.before - self.received;
        (0..coming)
            .map(|_| self.receive(PATIENCE).expect("it was counted"))
            .collect()
    }

    #[track_caller]
    pub fn assert_receives(&mut self, frame: &[u8]) {
        let found = self.receive(PATIENCE);
        assert_eq!(found.as_deref(), Some(frame));
    }

    /// A command of the control queue; its answer.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        self.command_cut(&[&[class, command], data].concat(), &[2])
    }

    /// The same, cut where `cuts` says.
    pub fn command_cut(&mut self, bytes: &[u8], cuts: &[usize]) -> u8 {
        let ring = self.rings.len() - 1;
        let answer = self.area(ring) + u64::from(BUFFER) * u64::from(RING) - 1;
        self.memory.write(answer, &[0xee]).unwrap();
        let mut descs = self.lay(ring, bytes, cuts);
        descs.push(writable(answer, 1));
        assert_eq!(self.rings[ring].ask(&descs), 1);
        self.rings[ring].byte(answer)
    }

    /// The configuration space.
    pub fn config(&mut self) -> [u8; 17] {
        let mut asked = [0u32, 17, 0].map(u32::to_ne_bytes).concat();
        asked.extend([0; 17]);
        let reply = self.vmm.raw_request(GET_CONFIG, 0, &asked, &[], true);
        *reply.unwrap().unwrap().body.last_chunk().unwrap()
    }

    /// The bits of its status.
    pub fn status(&mut self) -> u16 {
        let config = self.config();
        u16::from_le_bytes([config[6], config[7]])
    }

    /// Has the device say when the configuration changes.
    pub fn listen(&mut self) -> UnixStream {
        let (here, there) = UnixStream::pair().unwrap();
        self.vmm
            .raw_request(SET_BACKEND_REQ_FD, 8, &[], &[there.as_raw_fd()], true)
            .unwrap();
        here.set_read_timeout(Some(REST)).unwrap();
        here
    }
}

/// Whether the device says that its configuration has changed.
pub fn was_told(mut channel: &UnixStream) -> bool {
    let mut message = [0; 12];
    match channel.read_exact(&mut message) {
        Ok(()) => {
            assert_eq!(message[..4], CONFIG_CHANGE_MSG.to_ne_bytes());
            true
        }
        Err(_) => false,
    }
}

/// A frame of 64 bytes, all of its own.
pub fn frame(to: [u8; 6], from: [u8; 6], seed: u8) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &[0x88, 0xb5]].concat();
    frame.resize(64, seed);
    frame
}

/// The same with a tag.
pub fn tagged(to: [u8; 6], from: [u8; 6], vlan: u16, seed: u8) -> Vec<u8> {
    let mut tagged = [&to[..], &from[..], &[0x81, 0]].concat();
    tagged.extend(vlan.to_be_bytes());
    tagged.extend(&frame(to, from, seed)[12..]);
    tagged
}
