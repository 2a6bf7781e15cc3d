//! One end of the TCP stream: a TCP stack of its own, with frames in and frames out.

use std::collections::VecDeque;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::error::{Done, Failure};

/// Where the game is served.
const GAME_PORT: u16 = 7777;
const SCREEN_PORT: u16 = 49152;
const BUFFER_BYTES: usize = 64 * 1024;
/// Frames that wait for room in a ring.
const OUTBOX: usize = 64;
/// The largest frame: 1500 bytes behind an Ethernet header.
pub const FRAME_BYTES: u32 = 1514;
/// What is not acknowledged for so long is taken for a connection that broke.
const BROKEN: time::Duration = time::Duration::from_secs(10);

/// Who is at an end of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Guest,
    Screen,
}

impl End {
    pub const fn mac(self) -> [u8; 6] {
        match self {
            End::Guest => [0x52, 0x54, 0, 0, 0, 1],
            End::Screen => [0x52, 0x54, 0, 0, 0, 2],
        }
    }

    fn address(self) -> IpAddress {
        match self {
            End::Guest => IpAddress::v4(10, 0, 0, 1),
            End::Screen => IpAddress::v4(10, 0, 0, 2),
        }
    }
}

/// The stack and its one stream.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    stream: SocketHandle,
    port: Port,
    began: Instant,
    open: bool,
}

/// What the stack takes for a network card.
#[derive(Default)]
struct Port {
    inbox: VecDeque<Vec<u8>>,
    outbox: VecDeque<Vec<u8>>,
}

impl Stack {
    /// The guest awaits the screen, which connects.
    pub fn new(end: End) -> Done<Stack> {
        let mut port = Port::default();
        let config = Config::new(EthernetAddress(end.mac()).into());
        let zero = time::Instant::from_micros(0);
        let mut interface = Interface::new(config, &mut port, zero);
        interface.update_ip_addrs(|all| {
            // There is room for more than one.
            let _ = all.push(IpCidr::new(end.address(), 24));
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(BROKEN));
        match end {
            End::Guest => socket.listen(GAME_PORT).map_err(failed)?,
            End::Screen => {
                let there = (End::Guest.address(), GAME_PORT);
                let context = interface.context();
                let connected = socket.connect(context, there, SCREEN_PORT);
                connected.map_err(failed)?;
            }
        }
        let mut sockets = SocketSet::new(Vec::new());
        let stream = sockets.add(socket);
        Ok(Stack {
            interface,
            sockets,
            stream,
            port,
            began: Instant::now(),
            open: false,
        })
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.stream)
    }

    /// A frame that arrived.
    pub fn arrived(&mut self, frame: Vec<u8>) {
        self.port.inbox.push_back(frame);
    }

    /// The next frame to be sent.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.port.outbox.pop_front()
    }

    /// Does what is to be done now.
    pub fn poll(&mut self) {
        let micros = i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX);
        let now = time::Instant::from_micros(micros);
        self.interface.poll(now, &mut self.port, &mut self.sockets);
        if self.socket().state() == State::Established {
            self.open = true;
        }
    }

    /// Whether the stream is established.
    pub fn is_open(&mut self) -> bool {
        self.socket().state() == State::Established
    }

    /// Takes what has come, all of it.
    pub fn receive(&mut self, into: &mut Vec<u8>) {
        let socket = self.socket();
        while socket.can_recv() {
            let took = socket.recv(|bytes| {
                into.extend_from_slice(bytes);
                (bytes.len(), ())
            });
            if took.is_err() {
                return;
            }
        }
    }

    /// Sends all of these bytes, or none.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let socket = self.socket();
        let room = socket.send_capacity() - socket.send_queue();
        socket.can_send() && room >= bytes.len() && socket.send_slice(bytes).is_ok()
    }

    /// Nothing more is sent.
    pub fn close(&mut self) {
        self.socket().close();
    }

    /// The other end sends no more, and all that it sent was taken.
    pub fn is_finished(&mut self) -> bool {
        let state = self.socket().state();
        self.open && !self.socket().may_recv() && state != State::Closed
    }

    /// The stream broke off, or could not be made: without its orderly end.
    pub fn is_reset(&mut self) -> bool {
        self.socket().state() == State::Closed
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("the game's TCP stack: {error}"))
}

struct Arrived(Vec<u8>);
struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, see: F) -> R {
        see(&self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, now: time::Instant) -> Option<(Arrived, Room<'_>)> {
        if self.outbox.len() >= OUTBOX {
            return None;
        }
        let frame = self.inbox.pop_front()?;
        Some((Arrived(frame), self.transmit(now)?))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Room<'_>> {
        (self.outbox.len() < OUTBOX).then_some(Room(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES as usize;
        capabilities
    }
}
