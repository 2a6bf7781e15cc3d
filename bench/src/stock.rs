//! A vhost-user-blk server built the usual way: the peer to be faster than.
//!
//! The vhost-user-backend framework owns the rings, waits for kicks in an epoll
//! thread of its own, and calls back; requests are walked with virtio-queue and
//! carried out one after the other by the thread that was called, with `preadv`
//! and `pwritev`, or `memcpy`. What the framework offers against needless kicks
//! and calls is used: EVENT_IDX, and one call for a batch. This is what such
//! backends look like, not a straw man; nor is it a server to use.

mod disk;
mod request;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::error::BenchError;
use crate::frontend::{BlkConfig, feature};
use request::Request;

pub use disk::{StockDisk, StockKind};

/// Largest ring.
const RING_MAX: usize = 1024;
/// Most data segments of a request.
const SEGMENTS_MAX: u32 = 126;

/// A server to run.
#[derive(Debug, Clone)]
pub struct StockPlan {
    /// Where to listen.
    pub socket: PathBuf,
    /// What to serve.
    pub kind: StockKind,
    /// Queues offered.
    pub queues: u16,
}

/// Serves one connection after the other, for ever.
pub fn serve(plan: &StockPlan) -> Result<(), BenchError> {
    let disk = Arc::new(StockDisk::open(&plan.kind)?);
    let failed = |said: String| BenchError::Peer {
        peer: "stock".into(),
        said,
    };
    let mut listener =
        Listener::new(&plan.socket, true).map_err(|error| failed(error.to_string()))?;
    loop {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Stock::new(disk.clone(), plan.queues, memory.clone())?;
        let backend = Arc::new(RwLock::new(backend));
        let mut daemon = VhostUserDaemon::new("stock".into(), backend, memory)
            .map_err(|error| failed(error.to_string()))?;
        daemon
            .start(&mut listener)
            .map_err(|error| failed(error.to_string()))?;
        // However a front-end leaves, the next one is welcome.
        let _ = daemon.wait();
    }
}

/// One connection's device.
struct Stock {
    disk: Arc<StockDisk>,
    queues: u16,
    event_idx: bool,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    exit: (EventConsumer, EventNotifier),
    /// The request in hand; its room is used again.
    request: Request,
}

impl Stock {
    fn new(
        disk: Arc<StockDisk>,
        queues: u16,
        memory: GuestMemoryAtomic<GuestMemoryMmap>,
    ) -> Result<Self, BenchError> {
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC);
        Ok(Self {
            disk,
            queues,
            event_idx: false,
            memory,
            exit: exit.map_err(|source| BenchError::Host {
                what: "an eventfd",
                source,
            })?,
            request: Request::default(),
        })
    }

    /// Carries out what is available, and calls once if the driver wants it.
    fn process(&mut self, vring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut vring = vring.get_mut();
        let mut any = false;
        while let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(&*memory) {
            let head = chain.head_index();
            let written = self.request.carry_out(chain, &memory, &self.disk);
            vring.add_used(head, written).map_err(io::Error::other)?;
            any = true;
        }
        if any && wants_a_call(&mut vring, &memory, self.event_idx)? {
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    fn config(&self) -> Vec<u8> {
        let mut raw = vec![0; BlkConfig::BYTES as usize];
        raw[..8].copy_from_slice(&(self.disk.bytes() / 512).to_le_bytes());
        raw[12..16].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        raw[20..24].copy_from_slice(&self.disk.block_bytes().to_le_bytes());
        raw[34..36].copy_from_slice(&self.queues.to_le_bytes());
        raw
    }
}

type State = vhost_user_backend::VringState<GuestMemoryAtomic<GuestMemoryMmap>>;

/// virtio-queue always says yes without EVENT_IDX; the driver's flag says more.
fn wants_a_call(vring: &mut State, memory: &GuestMemoryMmap, event_idx: bool) -> io::Result<bool> {
    use vm_memory::{Bytes, GuestAddress};
    if event_idx {
        return vring.needs_notification().map_err(io::Error::other);
    }
    let avail = GuestAddress(vring.get_queue().avail_ring());
    let flags: u16 = memory.read_obj(avail).map_err(io::Error::other)?;
    Ok(u16::from_le(flags) & 1 == 0)
}

impl VhostUserBackendMut for Stock {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        usize::from(self.queues)
    }

    fn max_queue_size(&self) -> usize {
        RING_MAX
    }

    fn features(&self) -> u64 {
        feature::VERSION_1
            | feature::EVENT_IDX
            | feature::INDIRECT
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::MQ
            | feature::PROTOCOL
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let raw = self.config();
        let range = offset as usize..offset.saturating_add(size) as usize;
        raw.get(range).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.exit.0.try_clone().ok()?, self.exit.1.try_clone().ok()?))
    }

    fn handle_event(
        &mut self,
        event: u16,
        set: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings
            .get(usize::from(event))
            .filter(|_| set == EventSet::IN)
        else {
            return Err(io::Error::other("an event of no queue"));
        };
        if !self.event_idx {
            return self.process(vring);
        }
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            self.process(vring)?;
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}
