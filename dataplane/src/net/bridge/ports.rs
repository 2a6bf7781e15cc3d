//! Ports that come and go.

use std::os::fd::AsRawFd;

use crossbeam_channel::Sender;

use super::{Bridge, End, Kind, Port, TapEnd};
use crate::buffer::AlignedBuf;
use crate::net::counters::Cause;
use crate::net::features::Offloads;
use crate::net::filter::Gate;
use crate::net::frame::Mac;
use crate::net::header::{FRAME_BYTES_MAX, HEADER_BYTES, Header};
use crate::net::limit::{Bucket, RateLimit, SharedTime};
use crate::net::queue::{Bytes, Put};
use crate::ring::{NetOp, Ring, Token};
use crate::segments::Segments;

impl Bridge {
    /// Adds a port; its number. `None` when there are as many as there may be.
    pub fn add_port(&mut self, port: Port) -> Option<u16> {
        let free = self.ports.iter().position(Option::is_none);
        let at = free.unwrap_or(self.ports.len());
        let id = u16::try_from(at)
            .ok()
            .filter(|&id| id < crate::limits::PORTS_PER_BRIDGE)?;
        let place = Some(port);
        if at == self.ports.len() {
            self.ports.push(place);
        } else {
            self.ports[at] = place;
        }
        self.active.reserve(self.ports.len());
        self.timed.reserve(self.ports.len());
        self.touched.reserve(self.ports.len() * 2);
        self.wake(id);
        Some(id)
    }

    /// Removes a port whose queues have left. A tap goes when the kernel has ended with it; `done` is
    /// told.
    pub fn remove_port(&mut self, id: u32, port: u16, ring: &mut Ring, done: Sender<()>) {
        if let Some(tap) = self.tap(port) {
            tap.leaving = Some(done);
            // A poll would keep the interface.
            if tap.polled
                && let Err(error) = ring.disarm(Token::Net(id, NetOp::Poll { port }))
            {
                tracing::warn!(tap = tap.tap.name(), %error, "a tap's poll stays");
            }
            self.leaving += 1;
            self.forget_taps();
            return;
        }
        self.forget(port);
        let _ = done.send(());
    }

    fn forget(&mut self, port: u16) {
        self.active.retain(|&other| other != port);
        self.touched.retain(|&other| other != port);
        self.timed.retain(|&(_, other)| other != port);
        if let Kind::Switch(table) = &mut self.kind {
            table.forget_port(port);
        }
        for other in self.ports.iter_mut().flatten() {
            other.path.forget();
        }
        if let Some(place) = self.ports.get_mut(usize::from(port)) {
            *place = None;
        }
    }

    /// Removes the taps that are to go and that the kernel has ended with.
    pub fn forget_taps(&mut self) {
        for at in 0..self.ports.len() {
            let port = u16::try_from(at).expect("few ports");
            let Some(tap) = self.tap(port) else { continue };
            if tap.leaving.is_some() && tap.is_idle() {
                let done = tap.leaving.take();
                self.forget(port);
                self.leaving -= 1;
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
        }
    }

    /// Whether nothing is in the kernel's hands and no queue is left.
    pub fn is_empty(&self) -> bool {
        self.ports.iter().flatten().all(|port| match &port.end {
            End::Guest(guest) => guest.tx.iter().flatten().all(|it| it.in_flight == 0),
            End::Tap(tap) => tap.is_idle(),
        })
    }

    pub fn set_guard(&mut self, port: u16, guard: Option<Mac>) {
        if let Some(Some(there)) = self.ports.get_mut(usize::from(port)) {
            there.guard = guard;
        }
    }

    /// Without a link what was captured is lost as well.
    pub fn set_gate(&mut self, port: u16, gate: Gate) {
        let Some(Some(there)) = self.ports.get_mut(usize::from(port)) else {
            return;
        };
        if !gate.link_up
            && let End::Guest(guest) = &mut there.end
        {
            let lost = guest.capture.drop_kept();
            there.counters.dropped(Cause::NoLink, lost as u64);
        }
        there.gate = (gate != Gate::OPEN).then(|| Box::new(gate));
        self.wake(port);
    }

    /// A limit that is set again, or to something else, does not begin with a full bucket. `shared`: with
    /// the other wires of the NIC.
    pub fn set_limit(&mut self, port: u16, limit: Option<RateLimit>, shared: Option<SharedTime>) {
        let now_ns = self.now_ns;
        if let Some(Some(there)) = self.ports.get_mut(usize::from(port)) {
            match (limit, &mut there.limit) {
                (Some(limit), Some(bucket)) => bucket.set_limit(limit, now_ns),
                (limit, place) => {
                    *place = limit.map(|limit| match shared {
                        Some(shared) => Bucket::sharing(limit, now_ns, shared),
                        None => Bucket::new(limit, now_ns),
                    });
                }
            }
        }
        self.wake(port);
    }

    /// A wire's tap leaves unfinished what its guest takes so; a switch finishes for each.
    pub fn set_tap_offloads(&mut self, port: u16, offloads: Offloads) {
        if let Some(tap) = self.tap(port)
            && let Err(error) = tap.tap.set_offloads(offloads)
        {
            tracing::warn!(tap = tap.tap.name(), %error, "a tap's offloads are not set");
        }
    }
}

impl TapEnd {
    fn is_idle(&self) -> bool {
        self.reading == 0 && self.free_writes.len() == self.writes.len()
    }

    /// Writes a frame from where it is, but for its first bytes, which were looked at; false when it has
    /// too many pieces.
    pub(super) fn write(
        &mut self,
        (id, port, index): (u32, u16, u16),
        header: Header,
        (head, bytes): (&[u8], &Segments),
        ring: &mut Ring,
    ) -> bool {
        let write = &mut self.writes[usize::from(index)];
        let own = HEADER_BYTES + head.len();
        write.header[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        write.header[HEADER_BYTES..own].copy_from_slice(head);
        write.segments.clear();
        write.segments.push_own(&mut write.header, own)
            && write.segments.push_rest(bytes, head.len())
            && self.submit((id, port, index), ring)
    }

    /// Writes a copy of it.
    pub(super) fn copy(
        &mut self,
        (id, port, index): (u32, u16, u16),
        header: Header,
        (bytes, len): (&Bytes<'_>, usize),
        ring: &mut Ring,
    ) -> bool {
        let write = &mut self.writes[usize::from(index)];
        let whole = HEADER_BYTES + len;
        if write.header.len() < whole {
            write.header = AlignedBuf::new(HEADER_BYTES + FRAME_BYTES_MAX);
        }
        write.header[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        bytes.start(&mut write.header[HEADER_BYTES..whole]);
        write.segments.clear();
        write.segments.push_own(&mut write.header, whole) && self.submit((id, port, index), ring)
    }

    /// Writes a copy of a frame that was finished here.
    pub(super) fn put_copy(
        &mut self,
        (id, port): (u32, u16),
        header: Option<&Header>,
        bytes: &[u8],
        ring: &mut Ring,
    ) -> Put {
        let Some(index) = self.free_writes.pop() else {
            return Put::NoRoom;
        };
        let header = header.copied().unwrap_or_default();
        let frame = (&Bytes::Own(bytes), bytes.len());
        if self.copy((id, port, index), header, frame, ring) {
            return Put::Done;
        }
        self.free_writes.push(index);
        Put::TooLarge
    }

    fn submit(&mut self, (id, port, index): (u32, u16, u16), ring: &mut Ring) -> bool {
        let write = &self.writes[usize::from(index)];
        let op = (id, NetOp::Write { port, index });
        ring.write_frame(self.tap.as_raw_fd(), &write.segments, op)
            .is_ok()
    }
}
