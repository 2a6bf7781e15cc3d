//! What a move asks of a guest's port.

use super::forward::Frame;
use super::{Bridge, Captured, Teller};
use crate::net::announce::Address;
use crate::net::frame::Start;
use crate::net::queue::Bytes;
use crate::ring::Ring;

impl Bridge {
    /// Whether frames are kept while the queues stand still. What was kept is given out when that ends.
    pub fn capture(&mut self, port: u16, on: bool) -> Vec<Captured> {
        let guest = self.guest(port);
        guest.map_or_else(Vec::new, |guest| guest.capture.set(on))
    }

    /// What is kept for the guest, and stays so.
    pub fn in_hand(&mut self, port: u16) -> Vec<Captured> {
        let guest = self.guest(port);
        guest.map_or_else(Vec::new, |guest| guest.capture.in_hand())
    }

    /// Its NIC is to leave: what is kept, and what comes, is told as well.
    pub fn leave(&mut self, port: u16, to: Teller) {
        let now_ns = self.now_ns;
        if let Some(guest) = self.guest(port) {
            guest.capture.leave(guest.receives(), to, now_ns);
        }
    }

    /// What is kept is for nobody.
    pub fn drop_kept(&mut self, port: u16) {
        if let Some(guest) = self.guest(port) {
            guest.capture.drop_kept();
        }
    }

    /// It has left: frames are passed on and not kept.
    pub fn gone(&mut self, port: u16) {
        if let Some(guest) = self.guest(port) {
            guest.capture.gone();
        }
    }

    /// It does not leave, or nothing more is passed on.
    pub fn stay(&mut self, port: u16) {
        if let Some(guest) = self.guest(port) {
            guest.capture.stay();
        }
    }

    /// A NIC is to arrive: what is passed on is given before what comes here.
    pub fn arrive(&mut self, port: u16) {
        if let Some(guest) = self.guest(port) {
            guest.capture.arrive();
        }
    }

    /// Frames that the source passes on.
    pub fn pass_on(&mut self, port: u16, frames: Vec<Captured>) {
        let now_ns = self.now_ns;
        let Some(Some(there)) = self.ports.get_mut(usize::from(port)) else {
            return;
        };
        let super::End::Guest(guest) = &mut there.end else {
            return;
        };
        for frame in frames {
            if !guest.capture.deliver(frame, now_ns) {
                there.counters.capture_lost(1);
            }
        }
        self.give_now(port);
    }

    /// Nothing more comes before what is here.
    pub fn settle_arrival(&mut self, port: u16) {
        let now_ns = self.now_ns;
        let guest = self.guest(port);
        if guest.is_some_and(|guest| guest.capture.settle(now_ns)) {
            self.give_now(port);
        }
    }

    fn give_now(&mut self, port: u16) {
        self.give_captured(port);
        self.publish();
        // For what has no room yet.
        self.wake(port);
    }

    /// The addresses that its guest has spoken of.
    pub fn spoken(&mut self, port: u16) -> Vec<Address> {
        let now_ns = self.now_ns;
        let guest = self.guest(port);
        guest.map_or_else(Vec::new, |guest| guest.spoken.addresses(now_ns))
    }

    /// Those that it spoke of at another host.
    pub fn set_spoken(&mut self, port: u16, addresses: &[Address]) {
        let now_ns = self.now_ns;
        if let Some(guest) = self.guest(port) {
            guest.spoken.replace(addresses, now_ns);
        }
    }

    /// Sends frames as if the guest had; none while its link is down.
    pub fn say(&mut self, id: u32, port: u16, frames: &[Vec<u8>], ring: &mut Ring) {
        let there = self.ports.get(usize::from(port)).and_then(Option::as_ref);
        let gate = there.and_then(|it| it.gate.as_ref());
        if gate.is_some_and(|gate| !gate.link_up) {
            return;
        }
        for bytes in frames {
            let Some(start) = Start::parse(bytes) else {
                continue;
            };
            let frame = Frame {
                header: None,
                ether_type: start.ether_type,
                bytes: Bytes::Own(bytes),
                len: bytes.len(),
                from: port,
                queue: 0,
                tag: None,
            };
            self.forward(id, &frame, &start, ring);
        }
        self.publish();
    }
}
