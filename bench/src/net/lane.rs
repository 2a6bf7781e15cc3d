//! A direction from its sender to its sink, driven by one thread.

use std::time::{Duration, Instant};

use super::sender::Sender;
use super::sink::Sink;
use super::{NetPlan, clock_ns};
use crate::error::BenchError;
use crate::frontend::PeerWatch;

/// How often a thread that polls looks up from its rings.
const LOOK_UP_NS: u64 = 50_000_000;
/// After the last frame was sent: nothing new for so long is the end, and so is
/// the longer one whatever comes.
const QUIET_NS: u64 = 100_000_000;
const DRAIN_NS_MAX: u64 = 2_000_000_000;
/// Frames to be learnt from: how often, and how many at least.
const HELLO_EVERY: Duration = Duration::from_millis(10);
const HELLOS_MIN: u32 = 3;

/// One direction; an end that nobody is at is missing.
#[derive(Debug)]
pub(super) struct Lane {
    pub sender: Option<Sender>,
    pub sink: Option<Sink>,
    /// Under load; else only kept going.
    pub measured: bool,
    /// On the server at the sender's side.
    watch: PeerWatch,
    /// Frames that the device had taken at the last look, and since when.
    taken: (u64, u64),
    /// Frames and bytes received by the end of sending.
    pub by_end: (u64, u64),
}

impl Lane {
    pub fn new(sender: Option<Sender>, sink: Option<Sink>, watch: PeerWatch) -> Self {
        Self {
            sender,
            sink,
            measured: false,
            watch,
            taken: (0, 0),
            by_end: (0, 0),
        }
    }

    /// Segments that have not come yet, in any shape.
    pub fn missing(&self) -> u64 {
        match (&self.sender, &self.sink) {
            (Some(sender), Some(sink)) => {
                let came = sink.eye.sum(|t| t.unique) + sink.eye.corrupted;
                sender.segments.saturating_sub(came)
            }
            _ => 0,
        }
    }

    /// How many more frames may be sent where at most so many may be under way.
    #[inline]
    fn room(&self, outstanding: Option<usize>) -> usize {
        let (Some(most), Some(sender)) = (outstanding, &self.sender) else {
            return usize::MAX;
        };
        let under_way = self.missing().div_ceil(sender.segments_each());
        most.saturating_sub(usize::try_from(under_way).unwrap_or(usize::MAX))
    }

    /// Whether a frame to be learnt from has come, or none can.
    fn is_met(&self) -> bool {
        let both = self.measured && self.sender.is_some();
        !both || self.sink.as_ref().is_none_or(|sink| sink.eye.heard)
    }

    fn listen(&mut self) -> Result<usize, BenchError> {
        match &mut self.sink {
            Some(sink) => Ok(sink.turn()?),
            None => Ok(0),
        }
    }

    fn hello(&mut self) -> Result<(), BenchError> {
        if let Some(sender) = &mut self.sender {
            sender.hello(clock_ns())?;
        }
        Ok(())
    }

    /// Fails if the server is gone, or takes nothing for too long.
    fn look_up(&mut self, now_ns: u64, timeout: Duration) -> Result<(), BenchError> {
        let in_flight = match &mut self.sender {
            Some(sender) => sender.in_flight()?,
            None => 0,
        };
        if self.watch.gone() {
            return Err(BenchError::Gone { in_flight });
        }
        let Some(sender) = self.sender.as_ref().filter(|_| self.measured) else {
            return Ok(());
        };
        let taken = sender.frames.saturating_sub(in_flight as u64);
        if taken != self.taken.0 || in_flight == 0 {
            self.taken = (taken, now_ns);
        } else if u128::from(now_ns - self.taken.1) > timeout.as_nanos() {
            return Err(BenchError::Stuck {
                after: timeout,
                in_flight,
            });
        }
        Ok(())
    }

    fn note_end(&mut self) {
        self.by_end = self
            .sink
            .as_ref()
            .map_or((0, 0), |s| (s.eye.frames, s.eye.bytes));
    }
}

/// Sends from each side, so that whoever forwards learns where the MACs are, until
/// a frame of each measured direction has arrived. Nothing tells from outside when
/// a server has begun to forward, so it is asked again and again.
///
/// Returns whether all have arrived in time.
pub(super) fn meet(lanes: &mut [Lane], wait: Duration) -> Result<bool, BenchError> {
    let began = Instant::now();
    let mut hellos = 0;
    loop {
        lanes.iter_mut().try_for_each(Lane::hello)?;
        hellos += 1;
        let until = Instant::now() + HELLO_EVERY;
        while Instant::now() < until {
            for lane in &mut *lanes {
                lane.listen()?;
            }
            std::thread::sleep(HELLO_EVERY / 10);
        }
        let met = lanes.iter().all(Lane::is_met);
        if met && hellos >= HELLOS_MIN {
            return Ok(true);
        }
        if let Some(lane) = lanes.iter().find(|lane| lane.watch.gone()) {
            let in_flight = lane.sender.as_ref().map_or(0, Sender::queued);
            return Err(BenchError::Gone { in_flight });
        }
        if began.elapsed() > wait {
            return Ok(met);
        }
    }
}

/// Sends for so long, and waits for what is still under way. Returns how long the
/// sending took.
pub(super) fn drive(lanes: &mut [Lane], plan: &NetPlan) -> Result<Duration, BenchError> {
    let began = clock_ns();
    let total = u64::try_from(plan.duration.as_nanos()).unwrap_or(u64::MAX);
    let mut look_up = began + LOOK_UP_NS;
    for lane in &mut *lanes {
        lane.taken.1 = began;
    }
    let mut now = began;
    while now - began < total {
        for lane in &mut *lanes {
            let room = lane.room(plan.outstanding);
            if let (true, Some(sender)) = (lane.measured, &mut lane.sender) {
                sender.go(now, now - began, room)?;
            }
            lane.listen()?;
        }
        now = clock_ns();
        if now >= look_up {
            look_up = now + LOOK_UP_NS;
            for lane in &mut *lanes {
                lane.look_up(now, plan.timeout)?;
            }
        }
    }
    lanes.iter_mut().for_each(Lane::note_end);
    drain(lanes)?;
    Ok(Duration::from_nanos(now - began))
}

fn drain(lanes: &mut [Lane]) -> Result<(), BenchError> {
    let began = clock_ns();
    let (mut now, mut seen) = (began, began);
    while now - began < DRAIN_NS_MAX && now - seen < QUIET_NS {
        for lane in &mut *lanes {
            if lane.listen()? > 0 {
                seen = now;
            }
        }
        now = clock_ns();
    }
    Ok(())
}
