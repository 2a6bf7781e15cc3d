//! The caller's side.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::control::{Control, Found, Hello, Ready, Stop};
use super::datagrams::Datagrams;
use super::pattern::Side;
use super::ping::Ping;
use super::report::Report;
use super::session::Session;
use super::stream::Stream;
use super::{STRAGGLERS, SideReport, TalkPlan};
use crate::error::BenchError;

/// Talks until `is_over` says so, given for how long it has; `started` is told when all
/// connections stand.
pub fn call(
    plan: &TalkPlan,
    started: impl FnOnce(),
    mut is_over: impl FnMut(Duration) -> bool,
) -> Result<Report, BenchError> {
    plan.check()?;
    let unreachable = |source| BenchError::Unreachable {
        to: plan.to,
        source,
    };
    let mut session = connect(plan).map_err(unreachable)?;
    started();
    let began = Instant::now();
    let mut lost_control = false;
    let carried = |it: &Session| plan.until_bytes.is_some_and(|least| it.has_carried(least));
    while !is_over(began.elapsed()) && !carried(&session) {
        // It has nothing to say before it is told to stop: it has gone.
        if session.turn().map_err(unreachable)? {
            lost_control = true;
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    session.stop();
    let there = match lost_control {
        true => None,
        false => ask(plan, &mut session).map_err(unreachable)?,
    };
    let udp = there.as_ref().and_then(|side| side.udp.as_ref());
    let udp_sent_there = udp.map_or(0, |udp| udp.sent);
    if there.is_some() {
        session
            .drain(STRAGGLERS, |it, _| {
                let echoed = it.ping.as_ref().is_none_or(Ping::is_answered);
                let udp = it.udp.as_ref().map_or(0, Datagrams::received);
                Ok(echoed && udp >= udp_sent_there)
            })
            .map_err(unreachable)?;
    }
    let report = Report {
        to: plan.to.to_string(),
        seconds,
        connections_reset: 0,
        mismatches: 0,
        stuck: 0,
        tcp_longest_silence_ms: 0.0,
        here: session.report(udp_sent_there),
        there,
        ping: session.ping.as_ref().map(Ping::report),
        lossless: plan.lossless,
    };
    Ok(report.judge())
}

fn connect(plan: &TalkPlan) -> io::Result<Session> {
    let load = &plan.load;
    let control = TcpStream::connect_timeout(&plan.to, plan.patience)?;
    let mut control = Control::new(control, plan.patience)?;
    let session = number()?;
    control.send(&Hello::new(session, load.clone()), plan.patience)?;
    let mut streams = Vec::new();
    for number in 0..load.tcp {
        let mut socket = TcpStream::connect_timeout(&plan.to, plan.patience)?;
        let mut head = [0; 10];
        head[..8].copy_from_slice(&session.to_le_bytes());
        head[8..].copy_from_slice(&number.to_le_bytes());
        socket.write_all(&head)?;
        streams.push((socket, number));
    }
    let Ready { ready: _ } = control.expect()?;
    let now = Instant::now();
    let streams = streams
        .into_iter()
        .map(|(socket, number)| Stream::new(socket, Side::Caller, session, number, load, now));
    let streams = streams.collect::<io::Result<Vec<_>>>()?;
    let mut it = Session::new(control, streams, now)?;
    if load.udp_pps > 0 {
        let socket = UdpSocket::bind(any(plan.to))?;
        let (peer, side) = (Some(plan.to), Side::Caller);
        it.udp = Some(Datagrams::new(socket, peer, side, session, load, now)?);
    }
    if let (1.., IpAddr::V4(to)) = (plan.ping_pps, plan.to.ip()) {
        it.ping = Some(Ping::new(to, session, plan.ping_pps, now)?);
    }
    Ok(it)
}

/// Tells the server to stop, and waits for the end of all connections and for its report; nothing
/// when it has gone.
fn ask(plan: &TalkPlan, session: &mut Session) -> io::Result<Option<SideReport>> {
    let udp_sent = session.udp.as_ref().map_or(0, Datagrams::sent);
    let stop = Stop { udp_sent };
    if session.control.send(&stop, plan.patience).is_err() {
        return Ok(None);
    }
    let mut there = None;
    let mut gone = false;
    // It drains as long itself, and then reports.
    session.drain(plan.patience + 2 * STRAGGLERS, |it, said| {
        if said && there.is_none() && !gone {
            match it.control.take::<Found>() {
                Ok(found) => there = found.map(|line| line.found),
                Err(_) => gone = true,
            }
        }
        Ok(there.is_some() || gone)
    })?;
    Ok(there)
}

/// A number that no other session has.
fn number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn any(like: SocketAddr) -> SocketAddr {
    let unspecified: IpAddr = match like {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(unspecified, 0)
}
