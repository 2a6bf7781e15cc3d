//! Where frames go: between the NICs and taps of one bridge, which belongs to one worker.
//!
//! ```text
//!   guest's tx ring ─► take ─► check: header, spoof guard, rate ─► where to? ─► deliver
//!   tap ─► reads that do not wait ─► own buffer ────────────────────┘             │
//!                                                      guest's rx ring ◄─ copy ───┤
//!                                                      tap ◄─ write from where it is
//! ```
//!
//! A *wire* joins two ports. A *switch* learns which address is behind which port, and floods what it
//! does not know. Either way a frame between two guests is copied once, from memory to memory. One
//! thread does it all, so that nothing is locked, and nothing is allocated for a frame.
//!
//! A port that has sent nothing for a while is not looked at any more until its guest kicks, or its tap
//! has something; so a bridge with many quiet ports costs what its busy ones cost.
//!
//! Frames for a guest whose queues stand still are captured, a bounded number, and delivered first when
//! they run again.

mod capture;
mod forward;
mod moving;
mod path;
mod ports;
mod rings;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::announce::Spoken;
use super::counters::{Cause, PortCounters};
use super::features::Offloads;
use super::filter::Gate;
use super::frame::Mac;
use super::header::{FRAME_BYTES_MAX, HEAD_BYTES, HEADER_BYTES};
use super::limit::Bucket;
use super::queue::{RxQueue, TxQueue};
use super::table::Table;
use super::tap::Tap;
use crate::buffer::AlignedBuf;
use crate::limits::{TAP_BATCH, TAP_DATAGRAMS, TAP_WRITES};
use crate::ring::{NetOp, Ring};
use crate::segments::Segments;
use capture::Capture;
pub(crate) use capture::Teller;
pub use capture::{Captured, Told};
use path::Path;

/// Marks the kick of a queue that a guest receives by.
const RX_KICK: u16 = 1 << 15;

/// How a bridge decides where a frame goes.
pub(crate) enum Kind {
    /// To the other port.
    Wire,
    /// By its address.
    Switch(Table),
}

/// A queue of frames to send, in its place.
pub(crate) struct TxPlace {
    queue: Box<dyn TxQueue>,
    /// Frames that the kernel writes to a tap, out of the guest's memory.
    in_flight: u32,
    /// It is being stopped, and goes there once nothing is in flight.
    leaving: Option<Sender<Box<dyn TxQueue>>>,
    /// A poll of its kick is in the ring.
    armed: bool,
    broken: bool,
    touched: bool,
}

pub(crate) struct RxPlace {
    queue: Box<dyn RxQueue>,
    /// A poll of its kick is in the ring: frames wait for its guest's buffers.
    armed: bool,
    broken: bool,
    touched: bool,
}

/// A guest's NIC: a pair of queues for each index.
#[derive(Default)]
pub(crate) struct Guest {
    tx: Vec<Option<TxPlace>>,
    rx: Vec<Option<RxPlace>>,
    /// The queue that frames are taken from first.
    first_tx: u16,
    /// Frames that wait for its queues.
    capture: Capture,
    /// The first of them has found fewer buffers than it takes.
    short: bool,
    /// Its addresses.
    spoken: Spoken,
}

/// A frame that is written to a tap.
struct TapWrite {
    header: AlignedBuf,
    segments: Segments,
    /// Whose frame it is: port, queue and tag.
    from: Option<(u16, u16, u32)>,
}

/// One queue of a tap.
pub(crate) struct TapEnd {
    tap: Tap,
    buffers: Vec<Option<AlignedBuf>>,
    /// Buffers that the kernel reads into.
    reading: u16,
    /// What was read, oldest first: the buffer and its bytes.
    ready: VecDeque<(u16, usize)>,
    /// How many reads are worth while.
    batch: u16,
    /// The last read found nothing: the next waits for the poll.
    dry: bool,
    /// A poll is in the ring.
    polled: bool,
    /// Its interface is gone.
    dead: bool,
    writes: Vec<TapWrite>,
    free_writes: Vec<u16>,
    leaving: Option<Sender<()>>,
}

pub(crate) enum End {
    Guest(Guest),
    Tap(Box<TapEnd>),
}

/// What goes into a bridge, and comes out.
pub(crate) struct Port {
    end: End,
    counters: Arc<PortCounters>,
    /// The one address that its guest may send from.
    guard: Option<Mac>,
    /// What passes, unless everything does.
    gate: Option<Box<Gate>>,
    limit: Option<Bucket>,
    /// Bytes behind the Ethernet header that its guest may send.
    mtu: u16,
    path: Path,
    /// In the list of ports that are looked at.
    active: bool,
    last_active_ns: u64,
}

impl Port {
    pub fn guest(pairs: u16, mtu: u16, guard: Option<Mac>, counters: Arc<PortCounters>) -> Port {
        let guest = Guest {
            tx: (0..pairs).map(|_| None).collect(),
            rx: (0..pairs).map(|_| None).collect(),
            first_tx: 0,
            capture: Capture::default(),
            short: false,
            spoken: Spoken::default(),
        };
        Port::new(End::Guest(guest), mtu, guard, counters)
    }

    pub fn tap(tap: Tap, counters: Arc<PortCounters>) -> Port {
        let buffer = |_| Some(AlignedBuf::new(HEADER_BYTES + FRAME_BYTES_MAX));
        let write = |_| TapWrite {
            header: AlignedBuf::new(HEADER_BYTES),
            segments: Segments::new(),
            from: None,
        };
        let tap = TapEnd {
            tap,
            buffers: (0..TAP_BATCH).map(buffer).collect(),
            reading: 0,
            ready: VecDeque::with_capacity(TAP_BATCH.into()),
            batch: 1,
            dry: true,
            polled: false,
            dead: false,
            writes: (0..TAP_WRITES).map(write).collect(),
            free_writes: (0..TAP_WRITES).collect(),
            leaving: None,
        };
        Port::new(End::Tap(Box::new(tap)), u16::MAX, None, counters)
    }

    /// Whether its rate is used up.
    fn is_over_rate(&self, now_ns: u64) -> bool {
        let limit = self.limit.as_ref();
        limit.is_some_and(|limit| limit.next_ns() > now_ns)
    }

    fn new(end: End, mtu: u16, guard: Option<Mac>, counters: Arc<PortCounters>) -> Port {
        Port {
            end,
            counters,
            guard,
            gate: None,
            limit: None,
            mtu,
            path: Path::default(),
            active: false,
            last_active_ns: 0,
        }
    }
}

/// A bridge on its worker.
pub(crate) struct Bridge {
    kind: Kind,
    ports: Vec<Option<Port>>,
    /// Ports that are looked at in each turn.
    active: Vec<u16>,
    /// Which of them is first.
    first: usize,
    /// Ports that are looked at again at a time, each once: over their rate, or with frames that wait for more
    /// buffers than their guest offers.
    timed: Vec<(u64, u16)>,
    /// Ports with queues to be published.
    touched: Vec<u16>,
    /// Scratch, kept to save allocations.
    scratch: Option<(Box<Segments>, Box<[u8; HEAD_BYTES]>)>,
    whole: Vec<u8>,
    piece: Vec<u8>,
    now_ns: u64,
    /// Queues and taps that are to go once the kernel has ended with them.
    leaving: usize,
}

impl Bridge {
    pub fn new(kind: Kind) -> Bridge {
        Bridge {
            kind,
            ports: Vec::new(),
            active: Vec::new(),
            first: 0,
            timed: Vec::new(),
            touched: Vec::new(),
            scratch: Some((Box::default(), Box::new([0; HEAD_BYTES]))),
            whole: vec![0; FRAME_BYTES_MAX],
            piece: vec![0; FRAME_BYTES_MAX],
            now_ns: 0,
            leaving: 0,
        }
    }

    /// The time, for what is done between turns.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Shows what completions brought, and lets go of what they were waited for.
    pub fn settle(&mut self) {
        self.publish();
        if self.leaving > 0 {
            self.forget_taps();
            for port in 0..self.ports.len() {
                self.let_go(u16::try_from(port).expect("few ports"));
            }
        }
    }

    /// When a port is to be looked at again that nothing else wakes.
    pub fn next_event_ns(&self) -> Option<u64> {
        self.timed.iter().map(|&(due_ns, _)| due_ns).min()
    }

    fn look_at(&mut self, port: u16, due_ns: u64) {
        match self.timed.iter_mut().find(|it| it.1 == port) {
            Some(it) => it.0 = due_ns,
            None => self.timed.push((due_ns, port)),
        }
    }

    fn wake_timed(&mut self) {
        let mut at = 0;
        while let Some(&(due_ns, port)) = self.timed.get(at) {
            if due_ns <= self.now_ns {
                self.timed.swap_remove(at);
                self.wake(port);
            } else {
                at += 1;
            }
        }
    }

    /// Whether nothing is to be done before a kick, or before a tap has something, or before a time.
    pub fn is_quiet(&self) -> bool {
        self.active.is_empty()
    }

    /// Takes what the active ports have and sends it on; true when there was something.
    pub fn turn(&mut self, id: u32, ring: &mut Ring, now_ns: u64) -> bool {
        self.now_ns = now_ns;
        self.wake_timed();
        let count = self.active.len();
        if count == 0 {
            return false;
        }
        self.first = (self.first + 1) % count;
        let mut worked = false;
        for at in (self.first..count).chain(0..self.first) {
            let port = self.active[at];
            let found = self.take_from(id, port, ring);
            if found && let Some(port) = &mut self.ports[usize::from(port)] {
                port.last_active_ns = now_ns;
                worked = true;
            }
        }
        self.publish();
        worked
    }

    /// Shows the guests what they were given.
    pub(super) fn publish(&mut self) {
        while let Some(id) = self.touched.pop() {
            let Some(port) = &mut self.ports[usize::from(id)] else {
                continue;
            };
            let End::Guest(guest) = &mut port.end else {
                continue;
            };
            for place in guest.tx.iter_mut().flatten().filter(|it| it.touched) {
                place.touched = false;
                place.queue.publish();
            }
            for place in guest.rx.iter_mut().flatten().filter(|it| it.touched) {
                place.touched = false;
                place.queue.publish();
            }
        }
    }

    /// Something that was given to the kernel is done.
    pub fn ended(&mut self, op: NetOp, result: i32) {
        let (NetOp::Kick { port, .. }
        | NetOp::Poll { port }
        | NetOp::Read { port, .. }
        | NetOp::Write { port, .. }) = op;
        let Some(there) = self
            .ports
            .get_mut(usize::from(port))
            .and_then(Option::as_mut)
        else {
            return;
        };
        match (op, &mut there.end) {
            (NetOp::Kick { queue, .. }, End::Guest(guest)) => {
                if let Some(place) = guest
                    .rx_at(queue & !RX_KICK)
                    .filter(|_| queue & RX_KICK != 0)
                {
                    place.armed = false;
                    place.queue.drain_kick();
                } else if let Some(place) = guest.tx_at(queue) {
                    place.armed = false;
                    place.queue.drain_kick();
                }
                self.wake(port);
            }
            (NetOp::Poll { .. }, End::Tap(tap)) => {
                (tap.polled, tap.dry) = (false, false);
                self.wake(port);
            }
            (NetOp::Read { index, .. }, End::Tap(tap)) => tap.was_read(index, result),
            (NetOp::Write { index, .. }, End::Tap(tap)) => {
                let from = tap.writes[usize::from(index)].from.take();
                tap.free_writes.push(index);
                match usize::try_from(result) {
                    Ok(bytes) => {
                        let bytes = bytes.saturating_sub(HEADER_BYTES);
                        there.counters.received(1, bytes as u64);
                    }
                    Err(_) => there.counters.dropped(refused_by_tap(-result), 1),
                }
                if let Some((port, queue, tag)) = from {
                    self.given_back(port, queue, tag);
                }
            }
            _ => {}
        }
    }

    /// A tap has written a guest's frame.
    fn given_back(&mut self, port: u16, queue: u16, tag: u32) {
        let Some(Some(there)) = self.ports.get_mut(usize::from(port)) else {
            return;
        };
        if let End::Guest(guest) = &mut there.end
            && let Some(Some(place)) = guest.tx.get_mut(usize::from(queue))
        {
            place.queue.done(tag);
            place.in_flight -= 1;
            if !std::mem::replace(&mut place.touched, true) {
                self.touched.push(port);
            }
        }
    }

    fn wake(&mut self, port: u16) {
        let now_ns = self.now_ns;
        if let Some(Some(there)) = self.ports.get_mut(usize::from(port)) {
            there.last_active_ns = now_ns;
            if !there.active {
                there.active = true;
                self.active.push(port);
            }
        }
    }
}

/// Why a tap did not take a frame.
fn refused_by_tap(error: i32) -> Cause {
    match error {
        // The interface is down, or gone.
        libc::EIO | libc::EBADFD | libc::ENODEV => Cause::NoLink,
        libc::EINVAL => Cause::Malformed,
        _ => Cause::NoBuffers,
    }
}

impl TapEnd {
    /// Whether it may have no room for the next frame.
    fn is_full(&self) -> bool {
        let least = if self.tap.takes() == Offloads::ALL {
            1
        } else {
            TAP_DATAGRAMS
        };
        self.free_writes.len() < usize::from(least)
    }

    fn was_read(&mut self, index: u16, result: i32) {
        self.reading -= 1;
        match usize::try_from(result) {
            Ok(bytes) if bytes >= HEADER_BYTES => self.ready.push_back((index, bytes)),
            // Nothing there: until the poll says more.
            _ if result == -libc::EAGAIN => self.dry = true,
            _ if self.dead => {}
            _ => {
                let error = std::io::Error::from_raw_os_error(-result);
                tracing::error!(tap = self.tap.name(), %error, "a tap is gone; remove its NIC or switch");
                (self.dead, self.dry) = (true, true);
            }
        }
    }

    /// Gives the kernel what it may read into, or has it say when there is something.
    fn post(&mut self, id: u32, port: u16, ring: &mut Ring) -> std::io::Result<()> {
        if self.dead {
            return Ok(());
        }
        if !self.dry {
            let fd = self.tap.as_raw_fd();
            let taken =
                |ready: &VecDeque<(u16, usize)>, index| ready.iter().any(|it| it.0 == index);
            debug_assert_eq!(self.reading, 0);
            let mut left = self.batch;
            for index in 0..TAP_BATCH {
                if left == 0 {
                    break;
                }
                if taken(&self.ready, index) {
                    continue;
                }
                if let Some(buffer) = &mut self.buffers[usize::from(index)] {
                    ring.read_frame(fd, buffer, (id, NetOp::Read { port, index }))?;
                    self.reading += 1;
                    left -= 1;
                }
            }
        } else if !self.polled {
            ring.poll_frames(self.tap.as_raw_fd(), (id, NetOp::Poll { port }))?;
            self.polled = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
