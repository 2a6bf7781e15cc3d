//! A vhost-user-net server with two ports, where what is sent at one comes out at
//! the other, and which spoils frames as it is told.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use ferry_bench::frontend::net::feature;
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type State = vhost_user_backend::VringState<Memory>;

const HEADER: usize = 12;
/// Frames held where a port has no buffers for them; then its peer's queue waits.
const HELD_MAX: usize = 256;
/// Where a plain frame's stamp tells the flow, and that of frames not counted.
const FLOW_AT: usize = 43;
const HELLO: u8 = 0x7f;

/// Of the frames from the first port to the second, every so many; never if 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Knobs {
    pub drop: u64,
    pub duplicate: u64,
    /// Comes out after the one behind it.
    pub reorder: u64,
    pub corrupt: u64,
    /// The byte that is corrupted, from the frame's start.
    pub corrupt_at: usize,
}

/// What it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub passed: u64,
    pub dropped: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    /// Frames that were cut into segments.
    pub cut: u64,
}

#[derive(Default)]
struct Port {
    vrings: Vec<VringRwLock>,
    memory: Option<Memory>,
    features: u64,
    /// Header and frame together, by pair.
    held: Vec<VecDeque<Vec<u8>>>,
}

#[derive(Default)]
struct Wire {
    ports: [Port; 2],
    knobs: Knobs,
    /// The frame that comes out after the next.
    back: Option<(usize, Vec<u8>)>,
    done: Done,
}

/// The server; it goes on until the process ends.
pub struct Loopback {
    pub sockets: [PathBuf; 2],
    wire: Arc<Mutex<Wire>>,
    _dir: tempfile::TempDir,
}

impl Loopback {
    /// Serves one connection at each port.
    pub fn start(pairs: usize, offered: u64, knobs: Knobs) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sockets = [0, 1].map(|i| dir.path().join(format!("{i}")));
        let wire = Arc::new(Mutex::new(Wire {
            knobs,
            ..Wire::default()
        }));
        for (port, socket) in sockets.iter().enumerate() {
            lock(&wire).ports[port].held = vec![VecDeque::new(); pairs];
            let mut listener = Listener::new(socket, true).unwrap();
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC);
            let backend = Backend {
                port,
                pairs,
                offered,
                wire: wire.clone(),
                exit: exit.unwrap(),
            };
            let backend = Arc::new(RwLock::new(backend));
            let mut daemon = VhostUserDaemon::new("loopback".into(), backend, memory).unwrap();
            std::thread::spawn(move || {
                daemon.start(&mut listener).unwrap();
                // However the front-end leaves.
                let _ = daemon.wait();
            });
        }
        Self {
            sockets,
            wire,
            _dir: dir,
        }
    }

    pub fn done(&self) -> Done {
        lock(&self.wire).done
    }

    pub fn features(&self) -> [u64; 2] {
        let wire = lock(&self.wire);
        [wire.ports[0].features, wire.ports[1].features]
    }
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap()
}

impl Wire {
    /// Moves frames until nothing moves, and asks for a kick where some may come.
    fn pump(&mut self) -> io::Result<()> {
        loop {
            let mut moved = false;
            for from in 0..2 {
                for pair in 0..self.ports[from].held.len() {
                    moved |= self.drain(from, pair)?;
                    moved |= self.deliver(1 - from, pair)?;
                }
            }
            if !moved && !self.ask_for_kicks()? {
                return Ok(());
            }
        }
    }

    /// Says whether there is more already.
    fn ask_for_kicks(&self) -> io::Result<bool> {
        let mut more = false;
        for (i, port) in self.ports.iter().enumerate() {
            for (ring, vring) in port.vrings.iter().enumerate() {
                let pair = ring / 2;
                let peer_full = self.ports[1 - i].held[pair].len() >= HELD_MAX;
                let wants = if ring % 2 == 0 {
                    !port.held[pair].is_empty()
                } else {
                    !peer_full
                };
                if wants && vring.get_ref().get_queue().ready() {
                    more |= vring.enable_notification().map_err(io::Error::other)?;
                }
            }
        }
        Ok(more)
    }

    /// Takes what a port sends.
    fn drain(&mut self, from: usize, pair: usize) -> io::Result<bool> {
        let port = &self.ports[from];
        let (Some(vring), Some(memory)) = (port.vrings.get(pair * 2 + 1), &port.memory) else {
            return Ok(false);
        };
        let (vring, memory) = (vring.clone(), memory.memory());
        let mut vring = vring.get_mut();
        let mut moved = false;
        while vring.get_queue().ready() && self.ports[1 - from].held[pair].len() < HELD_MAX {
            let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(&*memory) else {
                break;
            };
            let head = chain.head_index();
            let mut frame = Vec::new();
            let mut reader = chain.reader(&*memory).map_err(io::Error::other)?;
            reader.read_to_end(&mut frame)?;
            vring.add_used(head, 0).map_err(io::Error::other)?;
            moved = true;
            self.pass(from, pair, frame);
        }
        Ok(moved)
    }

    /// Spoils a frame if its turn has come, and holds it for the other port.
    fn pass(&mut self, from: usize, pair: usize, mut frame: Vec<u8>) {
        let plain = frame.len() > HEADER + FLOW_AT && frame[1] == 0;
        if from == 1 || (plain && frame[HEADER + FLOW_AT] & HELLO == HELLO) {
            return self.hold(1 - from, pair, frame);
        }
        self.done.passed += 1;
        let (count, knobs) = (self.done.passed, self.knobs);
        let turn = |every: u64| every > 0 && count.is_multiple_of(every);
        if turn(knobs.corrupt) {
            frame[HEADER + knobs.corrupt_at] ^= 0x10;
            self.done.corrupted += 1;
        }
        if turn(knobs.drop) {
            self.done.dropped += 1;
            return;
        }
        if turn(knobs.duplicate) {
            self.done.duplicated += 1;
            self.hold(1, pair, frame.clone());
        }
        if turn(knobs.reorder) {
            self.done.reordered += 1;
            self.back = Some((pair, frame));
            return;
        }
        self.hold(1, pair, frame);
        if let Some((pair, frame)) = self.back.take() {
            self.hold(1, pair, frame);
        }
    }

    fn hold(&mut self, to: usize, pair: usize, frame: Vec<u8>) {
        let port = &mut self.ports[to];
        if port.vrings.is_empty() {
            return;
        }
        if frame[1] == 0 || port.features & feature::GUEST_TSO4 != 0 {
            port.held[pair].push_back(frame);
            return;
        }
        self.done.cut += 1;
        let word = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
        let (headers, size) = (word(2), word(4));
        let (head, payload) = frame[HEADER..].split_at(headers);
        let ip = headers - 40;
        for segment in payload.chunks(size) {
            let mut out = vec![0; HEADER];
            out.extend_from_slice(head);
            out.extend_from_slice(segment);
            let total = u16::try_from(40 + segment.len()).unwrap();
            out[HEADER + ip + 2..HEADER + ip + 4].copy_from_slice(&total.to_be_bytes());
            port.held[pair].push_back(out);
        }
    }

    /// Gives a port what is held for it, as far as it has buffers.
    fn deliver(&mut self, to: usize, pair: usize) -> io::Result<bool> {
        let port = &mut self.ports[to];
        let (Some(vring), Some(memory)) = (port.vrings.get(pair * 2), &port.memory) else {
            return Ok(false);
        };
        let mergeable = port.features & feature::MRG_RXBUF != 0;
        let memory = memory.memory();
        let mut vring = vring.get_mut();
        let mut moved = false;
        while let Some(frame) = port.held[pair].front() {
            if !vring.get_queue().ready() || !put(&mut vring, &memory, frame, mergeable)? {
                break;
            }
            port.held[pair].pop_front();
            moved = true;
        }
        Ok(moved)
    }
}

/// Writes a frame to as many buffers as it takes; false if there are too few.
fn put(
    vring: &mut State,
    memory: &GuestMemoryMmap,
    frame: &[u8],
    mergeable: bool,
) -> io::Result<bool> {
    let began = vring.get_queue().next_avail();
    let (mut writers, mut room) = (Vec::new(), 0);
    while room < frame.len() {
        let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory) else {
            vring.get_queue_mut().set_next_avail(began);
            return Ok(false);
        };
        let head = chain.head_index();
        let writer = chain.writer(memory).map_err(io::Error::other)?;
        room += writer.available_bytes();
        writers.push((head, writer));
        assert!(mergeable || room >= frame.len(), "a buffer is too small");
    }
    let mut frame = frame.to_vec();
    frame[10..12].copy_from_slice(&u16::try_from(writers.len()).unwrap().to_le_bytes());
    let mut rest = &frame[..];
    for (head, mut writer) in writers {
        let (now, later) = rest.split_at(writer.available_bytes().min(rest.len()));
        writer.write_all(now)?;
        let written = u32::try_from(now.len()).unwrap();
        vring.add_used(head, written).map_err(io::Error::other)?;
        rest = later;
    }
    Ok(true)
}

struct Backend {
    port: usize,
    pairs: usize,
    offered: u64,
    wire: Arc<Mutex<Wire>>,
    exit: (EventConsumer, EventNotifier),
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.pairs * 2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        self.offered | feature::VERSION_1 | feature::PROTOCOL
    }

    fn acked_features(&mut self, features: u64) {
        lock(&self.wire).ports[self.port].features = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut raw = vec![2, 0, 0, 0, 0, 0x10 + u8::try_from(self.port).unwrap(), 1, 0];
        raw.extend_from_slice(&u16::try_from(self.pairs).unwrap().to_le_bytes());
        let range = offset as usize..offset.saturating_add(size) as usize;
        raw.get(range).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        lock(&self.wire).ports[self.port].memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.exit.0.try_clone().ok()?, self.exit.1.try_clone().ok()?))
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let mut wire = lock(&self.wire);
        wire.ports[self.port].vrings = vrings.to_vec();
        wire.pump()
    }
}
