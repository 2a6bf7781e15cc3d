//! The receiving end.
//!
//! This module holds the order of things; the daemon holds the devices and answers through
//! [`DestinationHost`].
//!
//! 1. `Hello` is checked, the host makes a fresh image, `incoming` is made durable, `Ready` is sent.
//! 2. Frames are applied one after the other by one thread, data verified before it is written.
//! 3. `Flush` is answered after the image's fdatasync.
//! 4. `Grant`: the image is flushed, the host's device takes image and state, `granted` is made
//!    durable, the device waits for its first descriptor, and only then `Granted` is sent.
//! 5. The first descriptor: `activated` is made durable, and only then the device may serve.
//!
//! Until 4 a lost link or an abort discards the copy, and a tombstone says for ever that this
//! migration never was granted. After 4 a lost link changes nothing. A hand-back and an activation
//! that meet are decided by the record's one mutex.

mod session;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_dataplane::backend::file::Image;
use ferry_dataplane::lifecycle::{DiskLifecycle, LifecycleError};
use ferry_dataplane::net::lifecycle::NicLifecycle;

use crate::codec::{
    self, Answer, CodecError, HandBack, Message, NicHello, QMP_BYTES_MAX, Qmp, QmpReply, Returned,
    read_frame, refused, write_message,
};
use crate::handover::{self, Datastore, Step, Together, Word};
use crate::ids::{Claim, DiskId};
use crate::lease::Ownership;
use crate::lease::ownership::{Applied, OwnershipError};
use crate::lease::shared::{ClaimError, SharedDisk};
use crate::negotiate::Hello;
use crate::nic;
use crate::phase::{Event, Phase};
use crate::qmp;
use crate::transport::{self, Paced};

/// Conversations at once: many disks, and room for questions about them.
const CONNECTIONS_MAX: usize = 64;
/// How long a disk waits for those that it moves with, before it says so.
const GROUP_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const GROUP_LOOK: Duration = Duration::from_millis(1);
/// How soon a failed activation is tried again.
const ARM_AGAIN: Duration = Duration::from_secs(1);
/// How long a stranger may take to say something.
const FIRST_FRAME_PATIENCE: Duration = Duration::from_secs(10);

/// What the host made ready for a disk that arrives.
#[derive(Clone)]
pub struct PreparedTarget {
    /// Where the bytes go.
    pub bytes: TargetBytes,
    /// The record beside it. The same object that [`DestinationHost::ownership`] gives from now on.
    pub ownership: Arc<Ownership>,
    /// The device whose rings are held.
    pub disk: Arc<dyn DiskLifecycle>,
}

/// Where the bytes of a disk that arrives are, or go.
#[derive(Clone)]
pub enum TargetBytes {
    /// To an image that is locked by this process.
    Copy {
        /// The image.
        image: Arc<Image>,
        /// It is what an earlier attempt left, and holds what it holds; else it reads as zeroes.
        kept: bool,
    },
    /// They are there: the image is the source's.
    Shared(Arc<dyn SharedDisk>),
}

/// The daemon, as the receiving end sees it. Called from several threads; every call may block but
/// `activated`.
pub trait DestinationHost: Send + Sync {
    /// Makes room for a disk: a device whose rings are held, and an image for it. Changes no
    /// record. The offer has passed its own checks. A disk that has a target already is refused, so
    /// that two offers cannot share one. A refusal's text goes to the source.
    fn prepare(&self, hello: &Hello) -> Result<PreparedTarget, String>;

    /// The copy is complete and durable: the device takes the image as its backend (a shared one it
    /// has by now) and imports `device_state` ([`DiskLifecycle::import`]). It must not serve. On an error nothing may have
    /// changed, and the copy is discarded.
    fn install(&self, claim: &Claim, device_state: &[u8]) -> Result<(), String>;

    /// The copy is void, and the record says so durably: let go of the device, and remove the image, or
    /// keep it for the next attempt if that is `wanted` (not a shared one; and not the record, which is
    /// the proof). Only the target of this very migration is meant: a newer
    /// one of the same disk stays. The device's activation hook, if armed, answers no from now on.
    fn discard(&self, claim: &Claim, wanted: bool, why: &str);

    /// The disk serves here from now on. Called on the activating thread; must not block.
    fn activated(&self, claim: &Claim);

    /// The ownership of a disk this host knows, in whatever phase, by its record.
    fn ownership(&self, disk: &DiskId) -> Option<Arc<Ownership>>;

    /// The device that a NIC arrives at. A refusal's text goes to the source.
    fn nic(&self, hello: &NicHello) -> Result<Arc<dyn NicLifecycle>, String> {
        Err(format!("no NIC {} is awaited there", hello.nic))
    }

    /// Runs one command on a VMM's monitor; it passed [`crate::qmp::checked`]. The host knows which
    /// sockets are its VMMs' and refuses others.
    fn qmp(&self, socket: &Path, command: &str) -> Result<String, String>;
}

/// Serves one connection until it ends. Never panics on what the peer sends.
pub fn serve_connection(mut stream: TcpStream, host: &Arc<dyn DestinationHost>) {
    if transport::prepare(&stream).is_err() {
        return;
    }
    let mut paced = Paced::new(&stream);
    paced.begin_frame(FIRST_FRAME_PATIENCE);
    // Data may not come first, so nothing is left in the stream after a frame.
    let first = match read_frame(&mut paced) {
        Ok(frame) => frame.message,
        Err(error) => {
            if !matches!(error, CodecError::Closed | CodecError::Io(_)) {
                let _ = write_message(&mut stream, &refused(error.to_string()));
            }
            return;
        }
    };
    let answer = match first {
        Message::Hello(hello) => return session::receive(stream, host, &hello),
        Message::NicHello(hello) => return nic::receive(stream, host, &hello),
        Message::HandBack(ask) => answer_hand_back(host, &ask),
        Message::Abort(abort) => session::abort(host, &abort),
        Message::Qmp(command) => answer_qmp(host, &command),
        _ => refused("a conversation does not begin with this message"),
    };
    let _ = write_message(&mut stream, &answer);
}

/// Has one monitor command run on `peer`'s host, and gives its answer.
pub fn qmp(peer: &str, socket: &str, command: &str) -> Result<String, String> {
    let question = Qmp {
        socket: socket.to_owned(),
        command: qmp::checked(command)?,
    };
    match transport::ask(peer, &Message::Qmp(question)) {
        Ok(Message::QmpReply(reply)) => Ok(reply.answer),
        Ok(Message::Refused(refused)) => Err(format!("{peer} refused: {}", refused.reason)),
        Ok(_) => Err(format!(
            "{peer} answered a monitor command with something else"
        )),
        Err(error) => Err(format!("cannot reach the monitor through {peer}: {error}")),
    }
}

fn answer_qmp(host: &Arc<dyn DestinationHost>, command: &Qmp) -> Message {
    let ran = qmp::checked_socket(&command.socket)
        .and_then(|socket| Ok((socket, qmp::checked(&command.command)?)))
        .and_then(|(socket, command)| host.qmp(socket, &command));
    match ran {
        Ok(answer) if answer.len() <= QMP_BYTES_MAX => Message::QmpReply(QmpReply { answer }),
        Ok(_) => refused("the monitor's answer is too long to pass on"),
        Err(reason) => refused(reason),
    }
}

/// Gives a disk back if it can be, and says durably how things stand.
fn answer_hand_back(host: &Arc<dyn DestinationHost>, ask: &HandBack) -> Message {
    let claim = &ask.claim;
    let Some(ownership) = host.ownership(&claim.disk) else {
        return refused(format!(
            "disk {} is not known here; if this is the host it was moved to, its record is lost",
            claim.disk
        ));
    };
    let (migration, epoch) = (claim.migration, claim.epoch);
    // The record's mutex orders this against an activation: whoever comes second sees the first.
    session::clearing(|| {
        let mut why = None;
        if ask.though_granted && group(host, &ownership, claim) == Together::Begun {
            // One of its VM's disks is served here, so this one goes with it.
            return say(&ownership, claim, String::new())
                .unwrap_or_else(|| refused("a disk that moves with it is served here"));
        }
        for step in handover::on_hand_back(migration, epoch, ask.though_granted) {
            let Step::Record(event) = step else { continue };
            match ownership.apply(event) {
                Ok(Applied::Changed) => {
                    tracing::info!(%claim, "handed back");
                    host.discard(claim, true, "the source took the disk back");
                }
                Ok(Applied::Repeated) => {}
                Err(OwnershipError::Refused(refusal)) => why = Some(refusal.to_string()),
                // Nothing is true until it is recorded.
                Err(error @ OwnershipError::Lease(_)) => return refused(error.to_string()),
            }
        }
        let reason = "as asked".to_owned();
        say(&ownership, claim, reason).unwrap_or_else(|| {
            refused(why.unwrap_or_else(|| "the attempt is not known here".into()))
        })
    })
}

/// What becomes of the disks that `ownership`'s moves with.
fn group(host: &Arc<dyn DestinationHost>, ownership: &Ownership, claim: &Claim) -> Together {
    let members = ownership.record().members;
    let states: Vec<_> = members
        .iter()
        .map(|member| {
            let known = host.ownership(&member.disk);
            (known.map(|known| known.state()), member.epoch)
        })
        .collect();
    let members = states.iter().map(|(state, epoch)| (state.as_ref(), *epoch));
    handover::together(claim.migration, members)
}

/// Makes an activation durable, together with the disks that it moves with: waits until they are
/// granted too, and fails when one never will be.
fn activate(
    host: &Arc<dyn DestinationHost>,
    ownership: &Ownership,
    claim: &Claim,
    event: Event,
) -> Result<Applied, ActivationError> {
    if ownership.record().members.is_empty() {
        return Ok(ownership.apply(event)?);
    }
    let until = Instant::now() + GROUP_PATIENCE;
    loop {
        // Against a hand-back of one of them.
        let done = session::clearing(|| match group(host, ownership, claim) {
            Together::All | Together::Begun => Some(ownership.apply(event).map_err(Into::into)),
            Together::Never => Some(Err(ActivationError::Never)),
            Together::Waiting => None,
        });
        match done {
            Some(done) => return done,
            None if Instant::now() >= until => return Err(ActivationError::Late),
            None => std::thread::sleep(GROUP_LOOK),
        }
    }
}

/// Why a granted disk is not activated.
#[derive(Debug, thiserror::Error)]
enum ActivationError {
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    #[error("a disk of the same VM was not granted, so none of them is served here")]
    Never,
    #[error("a disk of the same VM is not granted yet")]
    Late,
}

/// What the record makes of an attempt, for its source; `reason` is why it was returned, if it was.
fn say(ownership: &Ownership, claim: &Claim, reason: String) -> Option<Message> {
    let answer = Answer {
        claim: claim.clone(),
        daemon: ownership.daemon(),
    };
    match handover::answer(&ownership.state(), claim.migration, claim.epoch)? {
        Word::Granted => Some(Message::Granted(answer)),
        Word::Activated => Some(Message::Activated(answer)),
        Word::Returned => Some(Message::Returned(Returned {
            claim: answer.claim,
            daemon: answer.daemon,
            reason: codec::cut(reason),
        })),
        Word::Grant => None,
    }
}

/// Lets a granted disk wait for its first descriptor, for a daemon that starts and finds `granted`
/// in a record: call it after the device has its backend and has imported the record's state.
pub fn await_activation(
    target: &PreparedTarget,
    host: &Arc<dyn DestinationHost>,
    claim: &Claim,
) -> Result<(), LifecycleError> {
    arm(target, host, claim, None)
}

fn arm(
    target: &PreparedTarget,
    host: &Arc<dyn DestinationHost>,
    claim: &Claim,
    voice: Option<Arc<session::Voice>>,
) -> Result<(), LifecycleError> {
    let (ours, host, claim) = (target.clone(), host.clone(), claim.clone());
    target.disk.await_activation(Box::new(move || {
        match first_request(&ours, &host, &claim) {
            Ok(()) => {
                host.activated(&claim);
                if let Some(voice) = voice {
                    voice.notice_activation();
                }
                true
            }
            Err(stays) => {
                tracing::error!(%claim, why = stays.why, "the disk's rings stay unserved");
                if stays.again {
                    arm_later(ours, host, claim, voice);
                }
                false
            }
        }
    }))
}

/// Why a first request is not served.
struct Stays {
    why: String,
    /// It may be served later.
    again: bool,
}

/// What has to be true and durable before a granted disk is served.
fn first_request(
    target: &PreparedTarget,
    host: &Arc<dyn DestinationHost>,
    claim: &Claim,
) -> Result<(), Stays> {
    let (datastore, shared) = match &target.bytes {
        TargetBytes::Copy { .. } => (Datastore::Own, None),
        TargetBytes::Shared(image) => (Datastore::Shared, Some(image)),
    };
    let _alone = shared.map(|image| image.alone());
    // Whoever changed that has closed what was open, and may have opened it anew.
    is_granted(target, claim)?;
    let done = first_steps(target, host, claim, datastore, shared);
    if let (Err(_), Some(image), false) = (&done, shared, target.ownership.may_serve())
        && let Err(why) = image.let_go()
    {
        tracing::error!(%claim, why, "the image is kept open");
    }
    done
}

/// It may have been handed back, or taken over, since it was armed.
fn is_granted(target: &PreparedTarget, claim: &Claim) -> Result<(), Stays> {
    let (migration, epoch) = (claim.migration, claim.epoch);
    match target.ownership.phase() {
        Phase::Granted {
            migration: m,
            epoch: e,
        } if (m, e) == (migration, epoch) => Ok(()),
        phase => Err(Stays {
            why: format!("the disk is {} here", phase.name()),
            again: false,
        }),
    }
}

fn first_steps(
    target: &PreparedTarget,
    host: &Arc<dyn DestinationHost>,
    claim: &Claim,
    datastore: Datastore,
    shared: Option<&Arc<dyn SharedDisk>>,
) -> Result<(), Stays> {
    for step in handover::on_first_request(claim.migration, claim.epoch, datastore) {
        match (step, shared) {
            (Step::Take, Some(image)) => image.take().map_err(|why| Stays { why, again: true })?,
            (Step::Claim { epoch, through, .. }, Some(image)) => {
                image.claim(epoch, through, None).map_err(|error| Stays {
                    again: matches!(error, ClaimError::Failed { .. }),
                    why: error.to_string(),
                })?;
            }
            (Step::Record(event), _) => {
                activate(host, &target.ownership, claim, event).map_err(|error| Stays {
                    again: matches!(
                        error,
                        ActivationError::Late
                            | ActivationError::Ownership(OwnershipError::Lease(_))
                    ),
                    why: error.to_string(),
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The disk is ours and the record cannot be written: tries again, for the guest waits.
fn arm_later(
    target: PreparedTarget,
    host: Arc<dyn DestinationHost>,
    claim: Claim,
    voice: Option<Arc<session::Voice>>,
) {
    std::thread::spawn(move || {
        std::thread::sleep(ARM_AGAIN);
        if is_granted(&target, &claim).is_err() {
            return;
        }
        if let Err(error) = arm(&target, &host, &claim, voice) {
            tracing::error!(%claim, %error, "the device does not wait for its disk any more");
        }
    });
}

/// Accepts connections and serves each on a thread, a bounded number at once.
pub struct Server {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` (`host:port`).
    pub fn start(address: &str, host: Arc<dyn DestinationHost>) -> io::Result<Server> {
        let listener = transport::listen(address)?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::Builder::new()
            .name("ferry-listener".to_owned())
            .spawn(move || accept_all(&listener, &host, &stop))?;
        Ok(Server {
            address,
            stopping,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    /// Stops accepting. Conversations under way end by themselves.
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes `accept`.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_all(listener: &TcpListener, host: &Arc<dyn DestinationHost>, stop: &AtomicBool) {
    // One clone for each running conversation, besides this one.
    let places = Arc::new(());
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        if Arc::strong_count(&places) > CONNECTIONS_MAX {
            tracing::warn!("too many migration connections; one is turned away");
            continue;
        }
        let (place, host) = (places.clone(), host.clone());
        let spawned = std::thread::Builder::new()
            .name("ferry-incoming".to_owned())
            .spawn(move || {
                serve_connection(stream, &host);
                drop(place);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot serve a migration connection");
        }
    }
}
