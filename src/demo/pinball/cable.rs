//! The network between the hosts: a card in a switch of each, and a learning hub that joins the two
//! with the screen. It stands in for the wires and the switches that a data centre has there.

use std::collections::BTreeMap;
use std::path::Path;

use ferry_bench::frontend::net::{RxOptions, RxQueue, TxOptions, TxQueue, feature};
use ferry_bench::frontend::{GuestDevice, GuestMemory, Vmm, VmmOptions};

use super::stack::{FRAME_BYTES, Stack};
use crate::error::Done;

const RING_SIZE: u16 = 256;
/// What is taken of a ring in one turn.
const BATCH: usize = 64;
/// The largest frame, and a tag.
const FRAME_BYTES_MAX: u32 = FRAME_BYTES + 4;
/// Addresses that the hub knows at most; more are flooded.
const LEARNT: usize = 1024;

/// The driver of a NIC with one pair of queues.
pub struct Card {
    rx: RxQueue,
    tx: TxQueue,
    /// Frames for which the ring had no room.
    pub dropped: u64,
}

fn rx_options(features: u64) -> RxOptions {
    RxOptions {
        frame_bytes_max: FRAME_BYTES_MAX,
        mergeable: features & feature::MRG_RXBUF != 0,
        indirect: false,
    }
}

const TX: TxOptions = TxOptions {
    frame_bytes: FRAME_BYTES_MAX,
    indirect: false,
};

impl Card {
    /// Guest memory that it takes.
    pub fn memory_bytes() -> u64 {
        let rx = rx_options(0).memory_bytes(RING_SIZE);
        let merged = rx_options(feature::MRG_RXBUF).memory_bytes(RING_SIZE);
        TX.memory_bytes(RING_SIZE) + rx.max(merged)
    }

    /// Its rings, laid out in that memory, and their driver.
    pub fn new(memory: &GuestMemory, features: u64) -> Done<(GuestDevice, Card)> {
        let device = GuestDevice::new(memory, 2, RING_SIZE)?;
        let rx = RxQueue::new(&device, 0, features, rx_options(features))?;
        let tx = TxQueue::new(&device, 1, features, TX, &[0; 12], &[])?;
        let card = Card { rx, tx, dropped: 0 };
        Ok((device, card))
    }

    /// Shows what has arrived.
    pub fn receive(&mut self, mut see: impl FnMut(Vec<u8>)) -> Done {
        self.rx.poll(BATCH, |frame| {
            let mut bytes = vec![0; frame.bytes()];
            frame.read(0, &mut bytes);
            see(bytes);
        })?;
        Ok(())
    }

    /// Frames that can be sent now.
    pub fn room(&mut self) -> Done<usize> {
        Ok(self.tx.reclaim()?)
    }

    /// Sends a frame, or drops it as a cable does when its end takes no more.
    pub fn send(&mut self, frame: &[u8]) {
        if frame.len() > FRAME_BYTES_MAX as usize || !self.tx.put_frame(frame) {
            self.dropped += 1;
        }
    }

    /// Has what was sent seen.
    pub fn commit(&mut self) -> Done {
        Ok(self.tx.commit()?)
    }
}

/// A card that leads out of a host's switch.
struct Uplink {
    card: Card,
    _vmm: Vmm,
}

impl Uplink {
    fn attach(socket: &Path) -> Done<Uplink> {
        let mut vmm = Vmm::connect(socket, VmmOptions::net())?;
        let memory = GuestMemory::new(Card::memory_bytes())?;
        let (device, card) = Card::new(&memory, vmm.features())?;
        vmm.start(&device)?;
        Ok(Uplink { card, _vmm: vmm })
    }
}

/// The screen's port of the hub; the uplinks' are before it.
const SCREEN: usize = 2;

/// The hub.
pub struct Hub {
    uplinks: [Uplink; 2],
    learnt: BTreeMap<[u8; 6], usize>,
}

impl Hub {
    /// Joins the switches whose uplinks are served at these sockets.
    pub fn join(a: &Path, b: &Path) -> Done<Hub> {
        Ok(Hub {
            uplinks: [Uplink::attach(a)?, Uplink::attach(b)?],
            learnt: BTreeMap::new(),
        })
    }

    /// Carries what waits at any port.
    pub fn turn(&mut self, screen: &mut Stack) -> Done {
        let mut carried = Vec::new();
        for (port, uplink) in self.uplinks.iter_mut().enumerate() {
            uplink.card.room()?;
            uplink.card.receive(|frame| carried.push((port, frame)))?;
        }
        while let Some(frame) = screen.next_frame() {
            carried.push((SCREEN, frame));
        }
        for (from, frame) in carried {
            self.carry(from, frame, screen);
        }
        for uplink in &mut self.uplinks {
            uplink.card.commit()?;
        }
        Ok(())
    }

    fn carry(&mut self, from: usize, frame: Vec<u8>, screen: &mut Stack) {
        let Some(([a, b, c, d, e, f, source @ ..], _)) = frame.split_first_chunk::<12>() else {
            return;
        };
        if source[0] & 1 == 0 && (self.learnt.len() < LEARNT || self.learnt.contains_key(source)) {
            self.learnt.insert(*source, from);
        }
        let to = self.learnt.get(&[*a, *b, *c, *d, *e, *f]).copied();
        for (port, uplink) in self.uplinks.iter_mut().enumerate() {
            if port != from && to.is_none_or(|to| to == port) {
                uplink.card.send(&frame);
            }
        }
        if from != SCREEN && to.is_none_or(|to| to == SCREEN) {
            screen.arrived(frame);
        }
    }

    /// Frames that an uplink had no room for.
    pub fn dropped(&self) -> u64 {
        self.uplinks.iter().map(|it| it.card.dropped).sum()
    }
}
