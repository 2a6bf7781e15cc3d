//! The loop that both sides run: what came is read, what is due is sent.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::SideReport;
use super::control::Control;
use super::datagrams::Datagrams;
use super::ping::Ping;
use super::stream::Stream;

/// The senders' clock.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// One side of a session.
pub(super) struct Session {
    pub(super) control: Control,
    pub(super) streams: Vec<Stream>,
    pub(super) udp: Option<Datagrams>,
    pub(super) ping: Option<Ping>,
    ticked: Instant,
}

impl Session {
    pub(super) fn new(control: Control, streams: Vec<Stream>, now: Instant) -> io::Result<Self> {
        control.in_session()?;
        Ok(Self {
            control,
            streams,
            udp: None,
            ping: None,
            ticked: now,
        })
    }

    /// One turn of the loop, a tick long at most; whether the other side has said something.
    pub(super) fn turn(&mut self) -> io::Result<bool> {
        let ready = self.wait()?;
        let now = Instant::now();
        let ticks = now.duration_since(self.ticked).as_nanos() / TICK.as_nanos();
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.ticked += TICK * ticks;
        let readable = |flags: PollFlags| !flags.is_empty() && flags != PollFlags::OUT;
        let mut ready = ready.into_iter().map(readable);
        let mut next = || ready.next().unwrap_or(false);
        let said = next();
        if let Some(udp) = &mut self.udp {
            udp.turn(next(), now);
        }
        if let Some(ping) = &mut self.ping {
            ping.turn(next(), now);
        }
        for stream in &mut self.streams {
            let readable = next();
            stream.tick(u64::from(ticks), now);
            stream.turn(readable, now);
        }
        Ok(said)
    }

    /// Waits until something can be done; what the kernel says of each, in the order of `turn`.
    fn wait(&self) -> io::Result<Vec<PollFlags>> {
        let input = PollFlags::IN;
        let mut fds = vec![PollFd::new(&self.control.socket, input)];
        if let Some(udp) = &self.udp {
            fds.push(PollFd::new(&udp.socket, input));
        }
        if let Some(ping) = &self.ping {
            fds.push(PollFd::new(&ping.socket, input));
        }
        for stream in &self.streams {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, stream.may_receive());
            wanted.set(PollFlags::OUT, stream.has_to_send());
            let mut fd = PollFd::new(&stream.socket, wanted);
            if stream.is_done() {
                // The kernel would tell of its end for ever.
                fd = PollFd::new(&self.control.socket, PollFlags::empty());
            }
            fds.push(fd);
        }
        let left = self.due().saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(fds.iter().map(PollFd::revents).collect())
    }

    /// When the next thing is due by itself.
    fn due(&self) -> Instant {
        let udp = self.udp.as_ref().and_then(Datagrams::next);
        let ping = self.ping.as_ref().and_then(Ping::next);
        let others = [udp, ping].into_iter().flatten();
        others.fold(self.ticked + TICK, Instant::min)
    }

    /// Nothing new is begun.
    pub(super) fn stop(&mut self) {
        let now = Instant::now();
        for stream in &mut self.streams {
            stream.stop(now);
        }
        if let Some(udp) = &mut self.udp {
            udp.stop(now);
        }
        if let Some(ping) = &mut self.ping {
            ping.stop(now);
        }
    }

    /// Each connection that sends or receives has carried so many bytes, or will not.
    pub(super) fn has_carried(&self, least: u64) -> bool {
        self.streams
            .iter()
            .all(|it| it.is_done() || it.carried().is_none_or(|bytes| bytes >= least))
    }

    /// All connections have come to an end.
    pub(super) fn is_drained(&self) -> bool {
        self.streams.iter().all(Stream::is_done)
    }

    /// What this side saw, when the other sent so many datagrams.
    pub(super) fn report(&self, udp_sent_there: u64) -> SideReport {
        SideReport {
            tcp: self.streams.iter().map(Stream::report).collect(),
            udp: self.udp.as_ref().map(|udp| udp.report(udp_sent_there)),
        }
    }

    /// Turns until everything has come to its end, `all_came` has nothing to wait for, or the time is over.
    pub(super) fn drain(
        &mut self,
        patience: Duration,
        mut all_came: impl FnMut(&mut Session, bool) -> io::Result<bool>,
    ) -> io::Result<()> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            let said = self.turn()?;
            if all_came(self, said)? && self.is_drained() {
                break;
            }
        }
        Ok(())
    }
}
