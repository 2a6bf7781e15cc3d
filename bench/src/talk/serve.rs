//! The side that is called.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::control::{Control, Found, Hello, Ready, Stop};
use super::datagrams::Datagrams;
use super::pattern::Side;
use super::report::SideReport;
use super::session::Session;
use super::stream::Stream;
use super::{Load, STRAGGLERS};
use crate::error::BenchError;

/// How often a server looks whether it is to end.
const MOMENT: Duration = Duration::from_millis(20);

/// Serves one session at a time.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    udp: UdpSocket,
    patience: Duration,
}

impl Server {
    /// Listens, for connections and for datagrams.
    pub fn bind(at: SocketAddr, patience: Duration) -> Result<Self, BenchError> {
        let bind = || {
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            // The same port, also where the system chose it.
            let udp = UdpSocket::bind(listener.local_addr()?)?;
            Ok((listener, udp))
        };
        let (listener, udp) = bind().map_err(|source| BenchError::Bind { at, source })?;
        Ok(Self {
            listener,
            udp,
            patience,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr, BenchError> {
        let address = self.listener.local_addr();
        address.map_err(|source| BenchError::Host {
            what: "the address",
            source,
        })
    }

    /// Serves the next session to its end; `None` when `is_over` before. A session that breaks is
    /// an error, and no reason not to serve another.
    pub fn serve(&self, mut is_over: impl FnMut() -> bool) -> io::Result<Option<SideReport>> {
        let Some(socket) = self.accept(&mut is_over, None)? else {
            return Ok(None);
        };
        let mut control = Control::new(socket, self.patience)?;
        let hello: Hello = control.expect()?;
        if !hello.is_known() || hello.load.check().is_err() {
            return Err(io::Error::other("a caller of another version"));
        }
        let Some(mut session) = self.begin(control, &hello, &mut is_over)? else {
            return Ok(None);
        };
        let stop = loop {
            if is_over() {
                return Ok(None);
            }
            if session.turn()?
                && let Some(stop) = session.control.take::<Stop>()?
            {
                break stop;
            }
        };
        session.stop();
        session.drain(self.patience, |_, _| Ok(true))?;
        session.drain(STRAGGLERS, |it, _| {
            let came = it.udp.as_ref().map_or(0, Datagrams::received);
            Ok(came >= stop.udp_sent)
        })?;
        let found = session.report(stop.udp_sent);
        let line = Found { found };
        session.control.send(&line, self.patience)?;
        Ok(Some(line.found))
    }

    /// The next connection; `None` when it `is_over` before.
    fn accept(
        &self,
        is_over: &mut impl FnMut() -> bool,
        patience: Option<Duration>,
    ) -> io::Result<Option<TcpStream>> {
        let began = Instant::now();
        while !is_over() {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(false)?;
                    return Ok(Some(socket));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if patience.is_some_and(|patience| began.elapsed() > patience) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(MOMENT / 10);
        }
        Ok(None)
    }

    /// Takes all connections of a session, and starts it.
    fn begin(
        &self,
        mut control: Control,
        hello: &Hello,
        is_over: &mut impl FnMut() -> bool,
    ) -> io::Result<Option<Session>> {
        let mut sockets: Vec<Option<TcpStream>> = Vec::new();
        sockets.resize_with(usize::from(hello.load.tcp), || None);
        while sockets.iter().any(Option::is_none) {
            let Some(mut socket) = self.accept(is_over, Some(self.patience))? else {
                return Ok(None);
            };
            socket.set_read_timeout(Some(self.patience))?;
            let mut head = [0; 10];
            // One that says nothing, or belongs to nobody here, is hung up on.
            if socket.read_exact(&mut head).is_err() {
                continue;
            }
            let [session @ .., low, high] = head;
            let at = usize::from(u16::from_le_bytes([low, high]));
            if session == hello.session.to_le_bytes()
                && let Some(place) = sockets.get_mut(at)
            {
                *place = Some(socket);
            }
        }
        let now = Instant::now();
        let (session, load) = (hello.session, &hello.load);
        let streams = (0..load.tcp).zip(sockets.into_iter().flatten());
        let streams = streams
            .map(|(number, socket)| Stream::new(socket, Side::Server, session, number, load, now));
        let streams = streams.collect::<io::Result<Vec<_>>>()?;
        let udp = self.datagrams(session, load, now)?;
        control.send(&Ready { ready: true }, self.patience)?;
        let mut it = Session::new(control, streams, now)?;
        it.udp = udp;
        Ok(Some(it))
    }

    fn datagrams(&self, session: u64, load: &Load, now: Instant) -> io::Result<Option<Datagrams>> {
        if load.udp_pps == 0 {
            return Ok(None);
        }
        let socket = self.udp.try_clone()?;
        Datagrams::new(socket, None, Side::Server, session, load, now).map(Some)
    }
}
