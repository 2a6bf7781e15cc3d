//! The sending end: one thread tells the destination what the device tells, one hears its answers.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use ferry_dataplane::lifecycle::LifecycleError;
use ferry_dataplane::limits::MOVE_CAPTURE_FRAMES;
use ferry_dataplane::net::lifecycle::{NicEvent, NicLifecycle, PortFrame, Told};
use serde::Serialize;

use super::{BATCH_BYTES, FRAME_META_BYTES};
use crate::codec::{Message, NicFrames, NicHello, NicState, encode, read_frame, write_message};
use crate::ids::{DaemonId, MigrationId, NicId};
use crate::schema::net::frame_v1;
use crate::sync::lock;
use crate::transport::{self, ANSWER_PATIENCE, FRAME_PATIENCE, HEARTBEAT, Paced};

/// How long frames are passed on after the guest runs at the destination. Switches have learned of it
/// by then, and what was under way has arrived.
const LINGER: Duration = Duration::from_secs(3);
/// How long a destination is looked for that was there once, when the machine is not here any more:
/// nobody waits for what is kept by then.
const GIVE_UP: Duration = Duration::from_secs(120);
/// How long a destination is looked for that the guest runs at, and that has not acknowledged what was kept
/// for it.
const RESEND: Duration = Duration::from_secs(20);
/// How long it may take over that.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// How often it looks whether that has come, when nothing else happens.
const LINGER_STEP: Duration = Duration::from_millis(50);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(500);
/// Events of a port that may wait to be sent: all frames that it keeps, with room for the others.
const PORT_EVENTS_MAX: usize = 2 * MOVE_CAPTURE_FRAMES;

/// What to move and where.
#[derive(Clone)]
pub struct NicParams {
    /// The device.
    pub nic: Arc<dyn NicLifecycle>,
    /// Its name on both hosts.
    pub id: NicId,
    /// A fresh id.
    pub migration: MigrationId,
    /// The daemon that sends.
    pub daemon: DaemonId,
    /// The destination daemon's `host:port`.
    pub peer: String,
}

/// Where a NIC's move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NicPhase {
    /// Talking to the destination, or trying to.
    Connecting,
    /// The destination awaits it; its guest runs here.
    Ready,
    /// Its rings stand still, and the state is on its way.
    Stopped,
    /// The destination has the state.
    Taken,
    /// Its guest runs at the destination; stragglers are passed on.
    Activated,
    /// It is over: the guest runs there.
    Moved,
    /// Called off here.
    Cancelled,
    /// The destination does not take it.
    Failed,
}

/// How a NIC's move goes.
#[derive(Debug, Clone, Serialize)]
pub struct NicStatus {
    /// Where it stands.
    pub phase: NicPhase,
    /// Why it failed, or what it waits for.
    pub reason: Option<String>,
    /// Frames that reached the source and were passed on, since its rings stopped last.
    pub frames_forwarded: u64,
    /// Bytes of them.
    pub bytes_forwarded: u64,
    /// Bytes of the device's state.
    pub state_bytes: usize,
    /// From the stop of the rings here until the news that they run there, in microseconds.
    pub blackout_us: Option<u64>,
}

/// A move under way, or over.
pub struct NicHandle {
    shared: Arc<Shared>,
    cancel: Sender<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared(Mutex<NicStatus>);

impl Shared {
    fn set(&self, change: impl FnOnce(&mut NicStatus)) {
        change(&mut lock(&self.0));
    }
}

impl NicPhase {
    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            NicPhase::Moved | NicPhase::Cancelled | NicPhase::Failed
        )
    }
}

/// Starts to move a NIC.
pub fn start(params: NicParams) -> std::io::Result<NicHandle> {
    let shared = Arc::new(Shared(Mutex::new(NicStatus {
        phase: NicPhase::Connecting,
        reason: None,
        frames_forwarded: 0,
        bytes_forwarded: 0,
        state_bytes: 0,
        blackout_us: None,
    })));
    let (cancel, cancelled) = bounded(1);
    let mover = Mover {
        params,
        shared: shared.clone(),
        cancelled,
        met: false,
        lost: None,
        leave: None,
        stopped: None,
        activated: None,
        after: None,
    };
    let thread = thread::Builder::new()
        .name("ferry-nic".into())
        .spawn(move || mover.run())?;
    Ok(NicHandle {
        shared,
        cancel,
        thread: Mutex::new(Some(thread)),
    })
}

impl NicHandle {
    /// How it goes.
    pub fn status(&self) -> NicStatus {
        lock(&self.shared.0).clone()
    }

    /// Calls it off. Too late once the guest runs at the destination; the move ends by itself then.
    pub fn cancel(&self) {
        let _ = self.cancel.try_send(());
    }

    /// Waits for its end, which is near after [`NicHandle::cancel`], and after the guest runs there.
    pub fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Why a conversation ended.
enum End {
    Cancelled,
    Refused(String),
    Lost(String),
    Over,
}

struct Mover {
    params: NicParams,
    shared: Arc<Shared>,
    cancelled: Receiver<()>,
    /// The destination has consented once: a lost link is tried again.
    met: bool,
    /// Since when its link is lost.
    lost: Option<Instant>,
    /// The last time that the device was told to leave.
    leave: Option<u64>,
    /// When the rings stopped.
    stopped: Option<Instant>,
    /// When the guest ran at the destination.
    activated: Option<Instant>,
    /// What is left to do since.
    after: Option<After>,
}

/// What a source has to do once its guest runs elsewhere.
struct After {
    /// What the device tells goes on to be heard, whatever becomes of the link.
    told: Receiver<NicEvent>,
    /// What the destination has not acknowledged of what was kept for it, and what was told since.
    kept: Vec<PortFrame>,
    /// How many of them are before the last fence, and when that was sent.
    fenced: Option<(usize, Instant)>,
}

impl After {
    /// What was before the fence is there.
    fn acknowledged(&mut self) {
        if let Some((count, _)) = self.fenced.take() {
            self.kept.drain(..count);
        }
    }
}

impl Mover {
    fn run(mut self) {
        let (phase, reason) = loop {
            let end = self.converse();
            match end {
                End::Lost(why) if self.resends() => {
                    tracing::warn!(nic = %self.params.id, why,
                        "a NIC's move lost its link with frames on their way; trying again");
                    if self.cancelled.recv_timeout(RETRY).is_ok() {
                        break (NicPhase::Moved, None);
                    }
                }
                _ if self.activated.is_some() => break (NicPhase::Moved, None),
                End::Over => {
                    break (
                        NicPhase::Cancelled,
                        Some("the NIC is used otherwise".into()),
                    );
                }
                End::Cancelled => break (NicPhase::Cancelled, None),
                End::Refused(why) => break (NicPhase::Failed, Some(why)),
                End::Lost(why) if !self.met || self.gives_up() => {
                    break (NicPhase::Failed, Some(why));
                }
                End::Lost(why) => {
                    tracing::warn!(nic = %self.params.id, why, "a NIC's move lost its link; trying again");
                    self.shared.set(|status| {
                        status.phase = NicPhase::Connecting;
                        status.reason = Some(why);
                    });
                    if self.cancelled.recv_timeout(RETRY).is_ok() {
                        break (NicPhase::Cancelled, None);
                    }
                }
            }
        };
        if let Some(leave) = self.leave {
            self.params.nic.stay(leave);
        }
        tracing::info!(nic = %self.params.id, ?phase, reason, "a NIC's move is over");
        self.shared
            .set(|status| (status.phase, status.reason) = (phase, reason));
    }

    /// Whether there is something that the destination may not have.
    fn resends(&mut self) -> bool {
        let wanted = self.after.as_ref().is_some_and(|it| !it.kept.is_empty());
        let lost = *self.lost.get_or_insert_with(Instant::now);
        wanted && lost.elapsed() < RESEND
    }

    /// Whether it has looked long enough for the destination.
    fn gives_up(&mut self) -> bool {
        let lost = *self.lost.get_or_insert_with(Instant::now);
        lost.elapsed() > GIVE_UP && !self.params.nic.is_attached()
    }

    fn converse(&mut self) -> End {
        let mut stream = match transport::connect(&self.params.peer) {
            Ok(stream) => stream,
            Err(error) => {
                return End::Lost(format!("cannot connect to {}: {error}", self.params.peer));
            }
        };
        if let Err(end) = self.greet(&mut stream) {
            return end;
        }
        self.met = true;
        let told = match &self.after {
            Some(after) => after.told.clone(),
            None => match self.takes_leave() {
                Ok(told) => told,
                Err(end) => return end,
            },
        };
        let (heard_to, heard) = bounded(16);
        let hearing = stream.try_clone().and_then(|stream| {
            thread::Builder::new()
                .name("ferry-nic-rx".into())
                .spawn(move || hear(stream, &heard_to))
        });
        let end = match &hearing {
            Ok(_) if self.after.is_some() => self
                .again(&mut stream, &heard)
                .map_or_else(|end| end, |()| self.conduct(&mut stream, &told, &heard)),
            Ok(_) => self.conduct(&mut stream, &told, &heard),
            Err(error) => End::Lost(format!("cannot start a thread: {error}")),
        };
        if !matches!(end, End::Lost(_)) {
            let _ = write_message(&mut stream, &Message::NicDone);
        }
        let _ = stream.shutdown(Shutdown::Both);
        if let Ok(hearing) = hearing {
            let _ = hearing.join();
        }
        end
    }

    fn takes_leave(&mut self) -> Result<Receiver<NicEvent>, End> {
        self.lost = None;
        let (told_to, told) = bounded(self.params.nic.ports().max(1) * PORT_EVENTS_MAX);
        let leave = self.params.nic.leave(told_to);
        self.leave = Some(leave.map_err(|error| End::Refused(error.to_string()))?);
        self.shared
            .set(|status| (status.phase, status.reason) = (NicPhase::Ready, None));
        Ok(told)
    }

    /// Says once more what may not have come, to a destination where the guest runs. It says so at once;
    /// one that has begun anew since does not, and has no use for it.
    fn again(
        &mut self,
        stream: &mut TcpStream,
        heard: &Receiver<Result<Message, String>>,
    ) -> Result<(), End> {
        match heard.recv_timeout(ANSWER_PATIENCE) {
            Ok(Ok(Message::NicActivated)) => {}
            Ok(Err(why)) => return Err(End::Lost(why)),
            _ => return Err(End::Over),
        }
        let Some(after) = &self.after else {
            return Ok(());
        };
        let mut rest = &after.kept[..];
        while !rest.is_empty() {
            let (batch, others) = rest.split_at(batch_len(rest));
            tell(stream, batch)?;
            rest = others;
        }
        self.fence(stream)
    }

    /// Nothing comes any more that has to be first.
    fn fence(&mut self, stream: &mut TcpStream) -> Result<(), End> {
        if let Some(after) = &mut self.after {
            after.fenced = Some((after.kept.len(), Instant::now()));
        }
        say(stream, &Message::NicFence)
    }

    fn greet(&self, stream: &mut TcpStream) -> Result<(), End> {
        let lost = |why: String| End::Lost(format!("{}: {why}", self.params.peer));
        let shape = self.params.nic.shape();
        let hello = NicHello {
            migration: self.params.migration,
            nic: self.params.id.clone(),
            daemon: self.params.daemon,
            shape: shape.map_err(|error| End::Refused(error.to_string()))?,
        };
        write_message(stream, &Message::NicHello(hello)).map_err(|e| lost(e.to_string()))?;
        let mut paced = Paced::new(&*stream);
        loop {
            paced.begin_frame(ANSWER_PATIENCE);
            return match read_frame(&mut paced).map(|frame| frame.message) {
                Ok(Message::Ping) => continue,
                Ok(Message::NicReady) => Ok(()),
                Ok(Message::Refused(no)) if no.passing => Err(lost(no.reason)),
                Ok(Message::Refused(no)) => Err(End::Refused(format!(
                    "{} says: {}",
                    self.params.peer, no.reason
                ))),
                Ok(_) => Err(lost("it broke the protocol".into())),
                Err(error) => Err(lost(error.to_string())),
            };
        }
    }

    fn conduct(
        &mut self,
        stream: &mut TcpStream,
        told: &Receiver<NicEvent>,
        heard: &Receiver<Result<Message, String>>,
    ) -> End {
        loop {
            let lingered = self.activated.map(|at| at + LINGER);
            let patience = lingered.map_or(HEARTBEAT, |until| {
                until
                    .saturating_duration_since(Instant::now())
                    .clamp(LINGER_STEP, HEARTBEAT)
            });
            let too_late = never();
            let cancelled = match self.activated {
                Some(_) => &too_late,
                None => &self.cancelled,
            };
            let done = select! {
                recv(cancelled) -> _ => return End::Cancelled,
                recv(told) -> event => match event {
                    Ok(event) => self.pass_on(stream, event, told),
                    Err(_) => return End::Over,
                },
                recv(heard) -> message => match message {
                    Ok(message) => message.map_err(End::Lost).and_then(|it| self.heard(stream, it, told)),
                    Err(_) => return End::Lost("the link is lost".into()),
                },
                default(patience) => write_message(stream, &Message::Ping).map_err(lost),
            };
            if let Err(end) = done {
                return end;
            }
            if lingered.is_some_and(|until| Instant::now() >= until)
                && !self.awaits_acknowledgement()
            {
                return End::Over;
            }
        }
    }

    fn awaits_acknowledgement(&self) -> bool {
        let fenced = self.after.as_ref().and_then(|it| it.fenced);
        fenced.is_some_and(|(_, at)| at.elapsed() < ACKNOWLEDGE)
    }

    /// Tells what the device tells, and what else it has told by now: frames together.
    fn pass_on(
        &mut self,
        stream: &mut TcpStream,
        first: NicEvent,
        told: &Receiver<NicEvent>,
    ) -> Result<(), End> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for event in std::iter::once(first).chain(told.try_iter()) {
            match event {
                NicEvent::Told(port, Told::Frame(frame)) => {
                    let len = frame.bytes.len() + FRAME_META_BYTES;
                    if let Some(after) = &mut self.after {
                        let frame = frame.clone();
                        after.kept.push(PortFrame { port, frame });
                    }
                    if bytes + len > BATCH_BYTES {
                        self.send(stream, std::mem::take(&mut batch))?;
                        bytes = 0;
                    }
                    bytes += len;
                    batch.push(PortFrame { port, frame });
                }
                NicEvent::Told(_, Told::Resumed) => {
                    batch.clear();
                    bytes = 0;
                    self.resumed(stream)?;
                }
                NicEvent::Stopped => {
                    self.send(stream, std::mem::take(&mut batch))?;
                    bytes = 0;
                    self.stopped(stream)?;
                }
            }
        }
        self.send(stream, batch)
    }

    fn send(&self, stream: &mut TcpStream, frames: Vec<PortFrame>) -> Result<(), End> {
        if frames.is_empty() {
            return Ok(());
        }
        let bytes: usize = frames.iter().map(|it| it.frame.bytes.len()).sum();
        let count = frames.len() as u64;
        tell(stream, &frames)?;
        self.shared.set(|status| {
            status.frames_forwarded += count;
            status.bytes_forwarded += bytes as u64;
        });
        Ok(())
    }

    /// The guest goes on here, and has what was kept.
    fn resumed(&mut self, stream: &mut TcpStream) -> Result<(), End> {
        if self.stopped.take().is_some() {
            tracing::info!(nic = %self.params.id, "its guest goes on here");
        }
        self.shared.set(|status| {
            status.phase = NicPhase::Ready;
            (status.frames_forwarded, status.bytes_forwarded) = (0, 0);
        });
        say(stream, &Message::NicResumed)
    }

    fn stopped(&mut self, stream: &mut TcpStream) -> Result<(), End> {
        let device_state = match self.params.nic.export() {
            Ok(state) => state,
            // It runs again, and says so next.
            Err(LifecycleError::Refused(_)) => return Ok(()),
            Err(error) => return Err(End::Refused(error.to_string())),
        };
        self.stopped.get_or_insert_with(Instant::now);
        let state_bytes = device_state.len();
        say(stream, &Message::NicState(NicState { device_state }))?;
        self.shared.set(|status| {
            status.phase = NicPhase::Stopped;
            status.state_bytes = state_bytes;
        });
        Ok(())
    }

    fn heard(
        &mut self,
        stream: &mut TcpStream,
        message: Message,
        told: &Receiver<NicEvent>,
    ) -> Result<(), End> {
        match message {
            Message::Ping => Ok(()),
            Message::NicTaken => {
                if let Some(after) = &mut self.after {
                    after.acknowledged();
                }
                self.shared.set(|status| {
                    if status.phase == NicPhase::Stopped {
                        status.phase = NicPhase::Taken;
                    }
                });
                Ok(())
            }
            Message::NicActivated if self.activated.is_none() => self.activated(stream, told),
            Message::Refused(no) => Err(End::Refused(format!(
                "{} says: {}",
                self.params.peer, no.reason
            ))),
            _ => Err(End::Lost(
                "the destination broke the protocol: a message out of place".into(),
            )),
        }
    }

    /// The guest runs there, announced: what was kept goes there before anything else does.
    fn activated(&mut self, stream: &mut TcpStream, told: &Receiver<NicEvent>) -> Result<(), End> {
        // The news that its guest stands still here may be on their way yet.
        if let Ok(first) = told.try_recv() {
            self.pass_on(stream, first, told)?;
        }
        if self.stopped.is_none() {
            return Err(End::Refused(format!(
                "{} says that a machine runs on the NIC there, while its guest runs here; stop one of them",
                self.params.peer
            )));
        }
        let now = Instant::now();
        self.activated = Some(now);
        let blackout = self.stopped.map(|at| now.duration_since(at));
        self.shared.set(|status| {
            status.phase = NicPhase::Activated;
            status.blackout_us = blackout.and_then(|it| u64::try_from(it.as_micros()).ok());
        });
        // The device forgets them; here they stay until the destination has them.
        let kept = self.params.nic.in_hand();
        self.after = Some(After {
            told: told.clone(),
            kept: kept.map_err(|error| End::Lost(error.to_string()))?,
            fenced: None,
        });
        let gone = self.params.nic.gone();
        gone.map_err(|error| End::Lost(error.to_string()))?;
        if let Ok(first) = told.try_recv() {
            self.pass_on(stream, first, told)?;
        }
        self.fence(stream)
    }
}

/// Frames at the start that go into one message; one at least.
fn batch_len(frames: &[PortFrame]) -> usize {
    let mut bytes = 0;
    let fits = |it: &&PortFrame| {
        bytes += it.frame.bytes.len() + FRAME_META_BYTES;
        bytes <= BATCH_BYTES
    };
    frames.iter().take_while(fits).count().max(1)
}

fn tell(stream: &mut TcpStream, frames: &[PortFrame]) -> Result<(), End> {
    let frames = frames.iter().map(frame_v1).collect();
    say(stream, &Message::NicFrames(NicFrames { frames }))
}

fn lost(error: impl std::fmt::Display) -> End {
    End::Lost(format!("the link to the destination is lost: {error}"))
}

fn say(stream: &mut TcpStream, message: &Message) -> Result<(), End> {
    let frame = encode(message, 0).map_err(|error| End::Refused(error.to_string()))?;
    stream.write_all(&frame).map_err(lost)
}

/// Hears the destination until it falls silent.
fn hear(stream: TcpStream, heard: &Sender<Result<Message, String>>) {
    let mut paced = Paced::new(stream);
    loop {
        paced.begin_frame(FRAME_PATIENCE);
        let message = read_frame(&mut paced).map(|frame| frame.message);
        let message =
            message.map_err(|error| format!("the link to the destination is lost: {error}"));
        let failed = message.is_err();
        if heard.send(message).is_err() || failed {
            return;
        }
    }
}
