//! One mirror's receiving end, from `Hello` to the end of its connection.

use std::cell::Cell;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferry_dataplane::backend::file::Image;
use ferry_dataplane::buffer::AlignedBuf;

use super::{DestinationHost, PreparedTarget, TargetBytes, answer_hand_back, arm};
use crate::codec::{
    self, Answer, CodecError, DATA_BYTES_MAX, Data, Differs, Digest, Frame, Grant, Message, Pull,
    Refused, Returned, Tag, Zero, cut, data_intact, read_frame, refused, write_message,
};
use crate::handover::{self, Datastore, Step};
use crate::ids::Claim;
use crate::lease::ownership::{Applied, OwnershipError};
use crate::lease::shared::{ClaimError, SharedDisk};
use crate::lease::{Ownership, Peer};
use crate::negotiate::{Hello, Ready, check_hello, check_target};
use crate::phase::{Event, Phase};
use crate::schema::BlkState;
use crate::sync::lock;
use crate::transport::{FRAME_PATIENCE, HEARTBEAT, Paced};

/// Between two lines about why a disk is not granted.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The half of the connection that speaks: the session answers, and a thread of its own says that
/// this side lives, so that a slow disk is not taken for a dead link.
pub(super) struct Voice {
    stream: Mutex<TcpStream>,
    activated: AtomicBool,
    /// The disk may be asked for: its grant has not come.
    receiving: AtomicBool,
    /// Rings were started since the source was last asked for the disk.
    pulls: AtomicBool,
    over: Mutex<bool>,
    wake: Condvar,
}

impl Voice {
    fn new(stream: TcpStream) -> Arc<Voice> {
        Arc::new(Voice {
            stream: Mutex::new(stream),
            activated: AtomicBool::new(false),
            receiving: AtomicBool::new(true),
            pulls: AtomicBool::new(false),
            over: Mutex::new(false),
            wake: Condvar::new(),
        })
    }

    fn say(&self, message: &Message) -> Result<(), CodecError> {
        write_message(&mut *lock(&self.stream), message)
    }

    /// Has the notice sent by the heartbeat's thread. Never blocks on the network.
    pub fn notice_activation(&self) {
        self.activated.store(true, Ordering::Release);
        let _over = lock(&self.over);
        self.wake.notify_all();
    }

    /// Has the source asked for the disk, by the heartbeat's thread.
    fn notice_rings(&self) {
        self.pulls.store(true, Ordering::Release);
        let _over = lock(&self.over);
        self.wake.notify_all();
    }

    fn end(&self) {
        *lock(&self.over) = true;
        self.wake.notify_all();
    }

    /// Speaks every second until the session is over. `pull` is what there is to ask for.
    fn beat(&self, activated: &Answer, pull: impl Fn() -> Option<Message>) {
        let mut told = false;
        let mut last = Instant::now();
        loop {
            {
                let over = lock(&self.over);
                let news = self.activated.load(Ordering::Acquire) && !told;
                let pulls = self.pulls.swap(false, Ordering::AcqRel);
                let left = HEARTBEAT.saturating_sub(last.elapsed());
                if !*over && !news && !pulls && !left.is_zero() {
                    drop(
                        self.wake
                            .wait_timeout(over, left)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                    continue;
                }
                if *over {
                    return;
                }
            }
            let news = self.activated.load(Ordering::Acquire) && !told;
            let message = if news {
                Message::Activated(activated.clone())
            } else if self.receiving.load(Ordering::Acquire) {
                pull().unwrap_or(Message::Ping)
            } else {
                Message::Ping
            };
            if self.say(&message).is_err() {
                let _ = lock(&self.stream).shutdown(Shutdown::Both);
                return;
            }
            told |= news;
            last = Instant::now();
        }
    }
}

/// Receives one disk.
pub(super) fn receive(mut stream: TcpStream, host: &Arc<dyn DestinationHost>, hello: &Hello) {
    let voice = match stream.try_clone() {
        Ok(copy) => Voice::new(copy),
        Err(error) => {
            tracing::warn!(claim = %hello.claim, %error, "an incoming disk is refused");
            return;
        }
    };
    let target = match prepare(host, hello, &voice) {
        Ok(target) => target,
        Err(no) => {
            tracing::warn!(claim = %hello.claim, reason = no.reason, "an incoming disk is refused");
            let _ = write_message(&mut stream, &Message::Refused(no));
            return;
        }
    };
    let answer = Answer {
        claim: hello.claim.clone(),
        daemon: target.ownership.daemon(),
    };
    let beating = {
        let (voice, answer, target) = (voice.clone(), answer.clone(), target.clone());
        std::thread::Builder::new()
            .name("ferry-mirror-beat".to_owned())
            .spawn(move || voice.beat(&answer, || pull(&target, &answer.claim)))
    };
    let mut session = Session {
        host,
        target: &target,
        hello,
        voice: &voice,
        answer,
        buffer: AlignedBuf::new(DATA_BYTES_MAX),
        granted: false,
        not_granted: None,
        aborted: false,
        failed: Cell::new(false),
    };
    let why = match &beating {
        Ok(_) => session.run(&stream),
        Err(error) => format!("cannot start a thread: {error}"),
    };
    if !session.granted {
        tracing::warn!(claim = %hello.claim, why, "an incoming disk is discarded");
        // A link that was lost is tried again, as a rule; an operator's word is not.
        let wanted = !session.aborted && !session.failed.get();
        give_up(host, &target, &hello.claim, wanted, &why);
        let _ = voice.say(&refused(why));
    }
    voice.end();
    let _ = stream.shutdown(Shutdown::Both);
    if let Ok(beating) = beating {
        let _ = beating.join();
    }
}

/// What to ask the source for when a VM has arrived before the grant: its rings were started, and
/// wait. Asked again every second, for the source may be busy copying or not be convinced yet.
fn pull(target: &PreparedTarget, claim: &Claim) -> Option<Message> {
    let waits = matches!(target.ownership.phase(),
        Phase::Incoming { migration, .. } if migration == claim.migration);
    let rings = target.disk.rings();
    (waits && rings.iter().any(|ring| ring.running)).then(|| {
        Message::Pull(Pull {
            claim: claim.clone(),
            bases: rings.iter().map(|ring| ring.next_avail).collect(),
        })
    })
}

/// Held while a disk's place is taken or cleared, so that an offer never meets a half-cleared one.
static PLACES: Mutex<()> = Mutex::new(());

/// Makes a copy's end durable and then has the host clear its place, as one step for new offers.
pub(super) fn clearing<T>(work: impl FnOnce() -> T) -> T {
    let _alone = lock(&PLACES);
    work()
}

/// Makes room and makes `incoming` durable; after this a copy is there to be discarded.
fn prepare(
    host: &Arc<dyn DestinationHost>,
    hello: &Hello,
    voice: &Arc<Voice>,
) -> Result<PreparedTarget, Refused> {
    let _alone = lock(&PLACES);
    let final_word = |reason: String| Refused {
        reason: cut(reason),
        passing: false,
    };
    check_hello(hello).map_err(final_word)?;
    let known = host.ownership(&hello.claim.disk);
    // Most often the rest of an attempt that its source has left and this side not yet.
    if known
        .as_ref()
        .is_some_and(|known| matches!(known.phase(), Phase::Incoming { .. }))
    {
        let reason = format!("disk {} is being received already", hello.claim.disk);
        return Err(Refused {
            reason,
            passing: true,
        });
    }
    prepare_alone(host, hello, known.as_deref(), voice).map_err(final_word)
}

fn prepare_alone(
    host: &Arc<dyn DestinationHost>,
    hello: &Hello,
    known: Option<&Ownership>,
    voice: &Arc<Voice>,
) -> Result<PreparedTarget, String> {
    let claim = &hello.claim;
    // Before the host makes an image: a record that cannot take the disk says so without one.
    if let Some(known) = known {
        let (migration, epoch) = (claim.migration, claim.epoch);
        let event = Event::Accept { migration, epoch };
        crate::phase::next(&known.state(), event).map_err(|refusal| refusal.to_string())?;
        let blank = matches!(known.phase(), Phase::Vacant | Phase::Returned { .. });
        if !blank && known.disk_uuid() != hello.disk_uuid {
            // Epochs of two disks say nothing about each other.
            return Err(format!(
                "another disk of the name {} was here before; choose another name",
                claim.disk
            ));
        }
    }
    let target = host.prepare(hello)?;
    // No address: only the source asks.
    let peer = Peer {
        address: String::new(),
        daemon: hello.daemon,
    };
    // Before `Ready`: a ring that starts from now on is heard of.
    let hears = Arc::downgrade(voice);
    let notice = Box::new(move || {
        if let Some(voice) = hears.upgrade() {
            voice.notice_rings();
        }
    });
    let geometry = match &target.bytes {
        TargetBytes::Copy { image, .. } => image.geometry(),
        TargetBytes::Shared(_) => target.disk.geometry(),
    };
    let accepted = check_target(hello, geometry).and_then(|()| {
        let held = target.disk.quiesce(notice);
        held.map_err(|error| error.to_string())?;
        match target.ownership.accept(
            claim.migration,
            claim.epoch,
            hello.disk_uuid,
            peer,
            hello.members.clone(),
        ) {
            Ok(Applied::Changed) => Ok(()),
            Ok(Applied::Repeated) => Err(format!("{claim} is being received already")),
            Err(error) => Err(error.to_string()),
        }
    });
    match accepted {
        Ok(()) => Ok(target),
        Err(reason) => {
            host.discard(claim, false, &reason);
            Err(reason)
        }
    }
}

/// The tombstone first, then the copy.
fn give_up(
    host: &Arc<dyn DestinationHost>,
    target: &PreparedTarget,
    claim: &Claim,
    wanted: bool,
    why: &str,
) {
    clearing(|| {
        match target.ownership.apply(Event::Discard {
            migration: claim.migration,
        }) {
            Ok(Applied::Changed) => host.discard(claim, wanted, why),
            // Whoever changed it discards it.
            Ok(Applied::Repeated) => {}
            Err(OwnershipError::Refused(refusal)) => {
                tracing::info!(%claim, %refusal, "the copy is kept");
            }
            Err(error) => tracing::error!(%claim, %error, "the copy cannot be given up durably"),
        }
    });
}

struct Session<'a> {
    host: &'a Arc<dyn DestinationHost>,
    target: &'a PreparedTarget,
    hello: &'a Hello,
    voice: &'a Arc<Voice>,
    answer: Answer,
    buffer: AlignedBuf,
    granted: bool,
    /// Why the source did not grant the disk when that was last said here, and when.
    not_granted: Option<(String, Instant)>,
    /// By the source, which has given the attempt up.
    aborted: bool,
    /// The disk here has failed.
    failed: Cell<bool>,
}

impl Session<'_> {
    /// Applies frames in their order until the connection ends, and says why it did.
    fn run(&mut self, stream: &TcpStream) -> String {
        let ready = Message::Ready(Ready {
            daemon: self.answer.daemon,
            kept: matches!(self.target.bytes, TargetBytes::Copy { kept: true, .. }),
        });
        if let Err(error) = self.voice.say(&ready) {
            return error.to_string();
        }
        let mut paced = Paced::new(std::io::BufReader::with_capacity(64 * 1024, stream));
        loop {
            paced.begin_frame(FRAME_PATIENCE);
            let frame = match read_frame(&mut paced) {
                Ok(frame) => frame,
                Err(error) => return error.to_string(),
            };
            match self.hear(frame, &mut paced) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(why)) | Err(why) => return why,
            }
        }
    }

    fn hear(&mut self, frame: Frame, from: &mut impl Read) -> Result<ControlFlow<String>, String> {
        match frame.message {
            Message::Ping => {}
            Message::NotGranted(no) => self.not_granted(cut(no.reason)),
            Message::Data(data) => self.data(&data, frame.data_bytes, from)?,
            Message::Zero(zero) => self.zero(&zero)?,
            Message::Digest(digest) => self.digest(&digest)?,
            Message::Flush(tag) => {
                self.receiving()?;
                self.flush()?;
                self.acknowledge(Tag::Flush(tag))?;
            }
            Message::Grant(grant) => return self.grant(grant),
            Message::HandBack(ask) => {
                let answer = answer_hand_back(self.host, &ask);
                self.voice.say(&answer).map_err(|error| error.to_string())?;
            }
            Message::Abort(abort) if abort.claim == self.hello.claim => {
                self.aborted = true;
                return Ok(ControlFlow::Break(
                    "the source aborted the migration".into(),
                ));
            }
            _ => return Err("the source broke the protocol: a message out of place".into()),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// It is asked every second, and a reason may have a number in it that counts.
    fn not_granted(&mut self, reason: String) {
        let said = self.not_granted.as_ref();
        if said.is_none_or(|(why, at)| *why != reason && at.elapsed() >= SAY_AGAIN) {
            tracing::warn!(claim = %self.hello.claim, reason,
                "rings were started here, and the source does not grant the disk: they wait");
            self.not_granted = Some((reason, Instant::now()));
        }
    }

    /// Refuses bytes for a copy that is not being received any more: a hand-back may have voided
    /// it on another connection, and after the grant it is the disk.
    fn receiving(&self) -> Result<(), String> {
        match self.target.ownership.phase() {
            Phase::Incoming { migration, .. } if migration == self.hello.claim.migration => Ok(()),
            phase => Err(format!(
                "the disk is {} here and takes no copy",
                phase.name()
            )),
        }
    }

    fn data(&mut self, data: &Data, len: usize, from: &mut impl Read) -> Result<(), String> {
        self.receiving()?;
        self.check_range(data.offset_bytes, len as u64)?;
        from.read_exact(&mut self.buffer[..len])
            .map_err(|error| error.to_string())?;
        if !data_intact(&self.buffer[..len], &data.crcs) {
            return Err(format!(
                "data for byte {} arrived damaged (its checksum is wrong); check the network \
                 and the memory of both hosts, then migrate again",
                data.offset_bytes
            ));
        }
        self.image()?
            .write_at(data.offset_bytes, &self.buffer, len)
            .map_err(|error| self.disk_failed("write", data.offset_bytes, &error))?;
        self.acknowledge(data.tag)
    }

    fn zero(&mut self, zero: &Zero) -> Result<(), String> {
        self.receiving()?;
        self.check_range(zero.offset_bytes, zero.len_bytes)?;
        self.image()?
            .zero(zero.offset_bytes..zero.offset_bytes + zero.len_bytes)
            .map_err(|error| self.disk_failed("zero", zero.offset_bytes, &error))?;
        self.acknowledge(zero.tag)
    }

    /// Whether what was kept of an earlier attempt is what the source has.
    fn digest(&mut self, digest: &Digest) -> Result<(), String> {
        self.receiving()?;
        let (offset, len_bytes) = (digest.offset_bytes, digest.len_bytes);
        self.check_range(offset, len_bytes)?;
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        if len > DATA_BYTES_MAX {
            return Err("the source broke the protocol: a digest of too much".into());
        }
        let TargetBytes::Copy { image, .. } = &self.target.bytes else {
            return Err("the source broke the protocol: it asks about a shared disk".into());
        };
        image
            .read_at(offset, &mut self.buffer, len)
            .map_err(|error| self.disk_failed("read", offset, &error))?;
        if codec::digest(&self.buffer[..len]) == digest.hash {
            return self.acknowledge(digest.tag);
        }
        let differs = Message::Differs(Differs {
            tag: digest.tag,
            offset_bytes: offset,
            len_bytes,
        });
        self.voice.say(&differs).map_err(|error| error.to_string())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), String> {
        let block = u64::from(self.hello.shape.block_bytes);
        let end = offset.checked_add(len);
        let inside = end.is_some_and(|end| end <= self.hello.shape.capacity_bytes);
        if inside && len > 0 && offset.is_multiple_of(block) && len.is_multiple_of(block) {
            return Ok(());
        }
        Err(format!(
            "the source broke the protocol: {len} bytes at {offset} are not on the disk"
        ))
    }

    fn flush(&self) -> Result<(), String> {
        match &self.target.bytes {
            TargetBytes::Copy { image, .. } => image
                .flush()
                .map_err(|error| self.disk_failed("flush", 0, &error)),
            // Nothing was sent.
            TargetBytes::Shared(_) => Ok(()),
        }
    }

    fn image(&self) -> Result<&Image, String> {
        match &self.target.bytes {
            TargetBytes::Copy { image, .. } => Ok(image),
            TargetBytes::Shared(_) => {
                Err("the source broke the protocol: it sends bytes of a shared disk".into())
            }
        }
    }

    fn disk_failed(&self, doing: &str, offset: u64, error: &std::io::Error) -> String {
        // What the page cache says it has is not to be compared with.
        self.failed.set(true);
        let path = self.image().map(|image| image.path().display().to_string());
        let path = path.unwrap_or_else(|_| "the disk".into());
        format!("cannot {doing} {path} at byte {offset}: {error}")
    }

    fn acknowledge(&self, tag: Tag) -> Result<(), String> {
        self.voice
            .say(&Message::Ack(tag))
            .map_err(|error| error.to_string())
    }

    /// The disk changes hands. Each step is durable before the next; see the module's head.
    fn grant(&mut self, grant: Grant) -> Result<ControlFlow<String>, String> {
        if grant.claim != self.hello.claim {
            return Err("the source broke the protocol: it grants another disk".into());
        }
        // From here on a look at the device may wait for its disk.
        self.voice.receiving.store(false, Ordering::Release);
        let outcome = match self.target.ownership.phase() {
            Phase::Incoming { .. } => self.take(grant.device_state),
            // A repetition, or one that lost against a hand-back: the record has the answer.
            _ => Ok(()),
        };
        if let Err(why) = &outcome {
            let wanted = !self.failed.get();
            give_up(self.host, self.target, &self.hello.claim, wanted, why);
        }
        let reason = outcome
            .err()
            .unwrap_or_else(|| "it was handed back before".into());
        // Not durably anything: no answer is true, the source has to ask again.
        let message = super::say(&self.target.ownership, &self.hello.claim, reason)
            .ok_or("the outcome of the grant cannot be recorded")?;
        self.granted = matches!(message, Message::Granted(_) | Message::Activated(_));
        self.voice
            .say(&message)
            .map_err(|error| error.to_string())?;
        if self.granted {
            Ok(ControlFlow::Continue(()))
        } else {
            Ok(ControlFlow::Break("the grant was not taken".into()))
        }
    }

    fn take(&mut self, device_state: Vec<u8>) -> Result<(), String> {
        let claim = &self.hello.claim;
        let device_state = Some(device_state);
        let (datastore, shared) = match &self.target.bytes {
            TargetBytes::Copy { .. } => (Datastore::Own, None),
            TargetBytes::Shared(image) => (Datastore::Shared, Some(image)),
        };
        let _alone = shared.map(|image| image.alone());
        if shared.is_some() {
            self.receiving()?;
        }
        let taken = self.take_steps(claim, device_state, datastore, shared);
        let phase = self.target.ownership.phase();
        let is_ours = matches!(
            phase,
            Phase::Incoming { .. } | Phase::Granted { .. } | Phase::Serving { .. }
        );
        // Handed back or taken over while it was opened: whoever did that found nothing to close.
        if let (Err(_), Some(image), false) = (&taken, shared, is_ours)
            && let Err(why) = image.let_go()
        {
            tracing::error!(claim = %claim, why, "the image is kept open");
        }
        taken
    }

    fn take_steps(
        &self,
        claim: &Claim,
        mut device_state: Option<Vec<u8>>,
        datastore: Datastore,
        shared: Option<&Arc<dyn SharedDisk>>,
    ) -> Result<(), String> {
        for step in handover::on_grant(claim.migration, claim.epoch, datastore) {
            match (step, shared) {
                (Step::Flush, _) => self.flush()?,
                (Step::Take, Some(image)) => image.take()?,
                (Step::Claim { epoch, through, .. }, Some(image)) => {
                    image
                        .claim(epoch, through, None)
                        .map_err(|error| self.lost(&error))?;
                }
                (Step::Record(_), _) => {
                    if let Some(device_state) = device_state.take() {
                        self.install_and_record(device_state)?;
                    }
                }
                // `grant` says what came of it.
                _ => {}
            }
        }
        Ok(())
    }

    /// A shared disk is another's before its grant was taken.
    fn lost(&self, error: &ClaimError) -> String {
        if let ClaimError::Taken { epoch, .. } = error {
            let epoch = *epoch;
            // Whatever the record says: it is not granted, and a late word about it is refused.
            if let Err(error) = self.target.ownership.apply(Event::TakenOver { epoch }) {
                tracing::warn!(claim = %self.hello.claim, %error, "a takeover is not recorded");
            }
            self.host
                .discard(&self.hello.claim, false, "another host took it over");
        }
        error.to_string()
    }

    fn install_and_record(&self, device_state: Vec<u8>) -> Result<(), String> {
        let claim = &self.hello.claim;
        let state = BlkState::decode(&device_state).map_err(|error| error.to_string())?;
        if crate::schema::geometry(&state.blk) != crate::schema::geometry(&self.hello.shape) {
            return Err("the device's shape changed since the migration began".into());
        }
        self.host.install(claim, &device_state)?;
        self.target
            .ownership
            .grant(claim.migration, claim.epoch, device_state)
            .map_err(|error| error.to_string())?;
        // The rings may start the moment this returns; the hook finds `granted`.
        let armed = arm(self.target, self.host, claim, Some(self.voice.clone()));
        armed.map_err(|error| {
            // Granted, but it cannot serve: the same as a hand-back.
            let (migration, epoch) = (claim.migration, claim.epoch);
            clearing(|| {
                match self
                    .target
                    .ownership
                    .apply(Event::HandBack { migration, epoch })
                {
                    Ok(_) => self.host.discard(claim, true, "the device cannot take it"),
                    Err(error) => {
                        tracing::error!(%claim, %error, "a failed grant is not taken back");
                    }
                }
            });
            error.to_string()
        })
    }
}

/// What a fresh connection's abort does: only a copy that was not granted is thrown away.
pub(super) fn abort(host: &Arc<dyn DestinationHost>, abort: &codec::Abort) -> Message {
    let claim = &abort.claim;
    let Some(ownership) = host.ownership(&claim.disk) else {
        return refused(format!("disk {} is not known here", claim.disk));
    };
    clearing(|| {
        match ownership.apply(Event::Discard {
            migration: claim.migration,
        }) {
            Ok(applied) => {
                if applied == Applied::Changed {
                    host.discard(claim, false, "the source aborted the migration");
                }
                Message::Returned(Returned {
                    claim: claim.clone(),
                    daemon: ownership.daemon(),
                    reason: "aborted".to_owned(),
                })
            }
            Err(error) => refused(error.to_string()),
        }
    })
}
