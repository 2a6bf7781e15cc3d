//! A migration from its first word to its release: a list of phases, each with its undo.
//!
//! What undoes a phase is the drop of what the phase made: the tap is detached by [`Tap`], the
//! threads are joined and the socket closed by [`Link`]. Locals drop in reverse, so on every way
//! out the tap goes first and the guest waits for nobody.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use ferry_dataplane::lifecycle::{TapEvent, WriteTap};

use super::copy::Copier;
use super::group::{Meeting, Stage};
use super::link::{Control, Link};
use super::resolve::Resolver;
use super::shared::Shared;
use super::{SourceError, SourceParams, SourcePhase, Stop};
use crate::codec::{self, Message, read_frame, write_message};
use crate::handover::{self, Step};
use crate::ids::{Claim, Member};
use crate::lease::Peer;
use crate::negotiate::{Hello, ImageKind, Ready};
use crate::phase::Phase;
use crate::report::HandoverReport;
use crate::transport::{self, ANSWER_PATIENCE, Paced, SILENCE};

/// How long a release that the destination asked for may take.
const PULL_PATIENCE: Duration = Duration::from_secs(30);
/// A question that was heard longer ago than this is not answered: it is asked every second.
const PULL_AGE_MAX: Duration = Duration::from_secs(5);
/// How long an offer is repeated: an abandoned copy is noticed within the silence that is borne.
const BUSY_PATIENCE: Duration = Duration::from_secs(8);
/// Between two offers.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Conductor {
    pub params: SourceParams,
    pub shared: Arc<Shared>,
    pub claim: Claim,
}

/// Why a release did not happen.
enum Halt {
    /// The disk serves, the mirror stands: it may be asked again.
    Stay(SourceError),
    /// The migration is over.
    End(Stop),
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Halt {
        Halt::End(stop)
    }
}

/// What ends the wait in sync.
enum Order {
    /// The two sides differ somewhere again.
    Copy,
    /// The orchestrator's word; until then.
    Release(Instant),
    /// A VM has arrived at the destination, whose rings begin there.
    Pull(Vec<u16>),
}

/// A release that is to be tried.
struct Release<'a> {
    link: &'a Link,
    peer: &'a Peer,
    deadline: Instant,
    /// Where the rings there begin, if that is what asks for it.
    proof: Option<&'a [u16]>,
}

/// Detaches on drop.
struct Tap {
    shared: Arc<Shared>,
    /// The disk gave the mirror up.
    failed: Arc<AtomicBool>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        // First, so that a late acknowledgement does not reach the tap of a later migration.
        self.shared.set_tapped(false);
        self.shared.disk.detach_tap();
    }
}

impl Conductor {
    pub fn run(self) {
        let ended = super::Ended(self.shared.clone());
        let result = self.carry_out();
        if let (Err(stop), Some(meeting)) = (&result, self.meeting()) {
            meeting.fail(&self.claim.disk, &stop.to_string());
        }
        self.shared.tell(|live| {
            let (phase, error) = match result {
                Ok(phase) => (phase, None),
                Err(_) if live.cancel => (SourcePhase::Cancelled, Some(SourceError::Cancelled)),
                Err(stop) => (
                    SourcePhase::Failed,
                    Some(SourceError::Failed(stop.to_string())),
                ),
            };
            live.phase = phase;
            if let Some(error) = error {
                tracing::warn!(claim = %self.claim, %error, "migration ended");
                live.reason = Some(error.to_string());
                if live.release.is_some() && live.release_result.is_none() {
                    live.release_result = Some(Err(error));
                }
            }
        });
        drop(ended);
    }

    fn carry_out(&self) -> Result<SourcePhase, Stop> {
        let (stream, ready) = self.preflight()?;
        let peer = Peer {
            address: self.params.peer.clone(),
            daemon: ready.daemon,
        };
        let link = Link::start(&self.shared, stream, self.claim.clone(), ready.daemon)
            .map_err(|error| Stop::Lost(format!("cannot start the mirror's threads: {error}")))?;
        let released = self.mirror_and_release(&link, &peer, ready.kept);
        match released {
            Ok((report, deadline)) => {
                let resolver = Resolver {
                    shared: &self.shared,
                    ownership: &self.params.ownership,
                    claim: &self.claim,
                    peer: &peer,
                    on_shared: self.params.shared.as_deref(),
                    group: self.params.group.as_ref(),
                };
                Ok(resolver.run(report, Some(deadline)))
            }
            Err(stop) => {
                link.order(Control::Say(Box::new(Message::Abort(codec::Abort {
                    claim: self.claim.clone(),
                }))));
                Err(stop)
            }
        }
    }

    /// Offers the disk, again and again while the destination clears up after an earlier attempt.
    fn preflight(&self) -> Result<(TcpStream, Ready), Stop> {
        let give_up = Instant::now() + BUSY_PATIENCE;
        loop {
            match self.offer()? {
                Ok(agreed) => return Ok(agreed),
                Err(no) if !no.passing || Instant::now() >= give_up => {
                    return Err(Stop::Lost(format!(
                        "the destination refused: {}",
                        no.reason
                    )));
                }
                Err(_) => {
                    let pause = Some(Instant::now() + BUSY_PAUSE);
                    if let Some(stop) = self.shared.wait(pause, |live| Stop::of(live)) {
                        return Err(stop);
                    }
                }
            }
        }
    }

    fn offer(&self) -> Result<Result<(TcpStream, Ready), codec::Refused>, Stop> {
        let lost = |error: codec::CodecError| {
            Stop::Lost(format!("no agreement with {}: {error}", self.params.peer))
        };
        let mut stream = transport::connect(&self.params.peer)
            .map_err(|error| Stop::Lost(format!("cannot reach {}: {error}", self.params.peer)))?;
        let copy = stream.try_clone().ok();
        self.shared.tell(|live| live.stream = copy);
        if let Some(stop) = Stop::of(&self.shared.live()) {
            return Err(stop);
        }
        let hello = Hello {
            claim: self.claim.clone(),
            disk_uuid: self.params.ownership.disk_uuid(),
            daemon: self.params.ownership.daemon(),
            image: match self.params.shared {
                Some(_) => ImageKind::Shared,
                None => ImageKind::Raw,
            },
            shape: self.params.shape.clone(),
            members: self.members(),
        };
        write_message(&mut stream, &Message::Hello(hello)).map_err(lost)?;
        let _ = stream.set_read_timeout(Some(ANSWER_PATIENCE));
        let mut paced = Paced::new(&stream);
        let answer = loop {
            paced.begin_frame(ANSWER_PATIENCE);
            match read_frame(&mut paced).map_err(lost)?.message {
                // A machine that is there already asks again.
                Message::Ping | Message::Pull(_) => {}
                other => break other,
            }
        };
        let _ = stream.set_read_timeout(Some(SILENCE));
        match answer {
            Message::Ready(ready) => Ok(Ok((stream, ready))),
            Message::Refused(no) => Ok(Err(no)),
            _ => Err(Stop::Lost(
                "the destination answered an offer with something else".into(),
            )),
        }
    }

    fn mirror_and_release(
        &self,
        link: &Link,
        peer: &Peer,
        kept: bool,
    ) -> Result<(HandoverReport, Instant), Stop> {
        let mut copier = Copier::new(&self.shared, link.events.clone());
        let mut tap = None;
        if self.params.shared.is_some() {
            self.shared.plan().advance(self.shared.bytes_total);
        } else {
            tap = Some(self.attach(link.events.clone())?);
            self.shared.enter(SourcePhase::Copying);
            self.shared.by_digest.store(kept, Ordering::Release);
            copier.first_pass()?;
            copier.wait_applied()?;
            self.shared.by_digest.store(false, Ordering::Release);
            copier.settle_dirty()?;
            copier.wait_applied()?;
        }
        self.shared.enter(SourcePhase::InSync);
        loop {
            copier.deadline = None;
            copier.settle_dirty()?;
            let (deadline, proof) = match self.next_order()? {
                Order::Copy => continue,
                Order::Release(deadline) => (deadline, None),
                Order::Pull(bases) => (Instant::now() + PULL_PATIENCE, Some(bases)),
            };
            let release = Release {
                link,
                peer,
                deadline,
                proof: proof.as_deref(),
            };
            let error = match self.release(&release, &mut copier, &mut tap) {
                Ok(report) => return Ok((report, deadline)),
                Err(Halt::End(stop)) => return Err(stop),
                Err(Halt::Stay(error)) => error,
            };
            if let (None, Some(meeting)) = (&proof, self.meeting()) {
                meeting.refuse(&self.claim.disk, &error.to_string());
            }
            if proof.is_some() {
                let reason = codec::cut(error.to_string());
                let passing = true;
                let no = Message::NotGranted(codec::Refused { reason, passing });
                link.order(Control::Say(Box::new(no)));
            }
            self.shared.tell(|live| {
                live.phase = SourcePhase::InSync;
                if proof.is_none() {
                    live.release = None;
                    live.release_result = Some(Err(error));
                }
            });
        }
    }

    fn attach(&self, events: Sender<TapEvent>) -> Result<Tap, Stop> {
        self.shared.set_tapped(true);
        let patience_ns = u64::try_from(self.params.patience.as_nanos()).unwrap_or(u64::MAX);
        let failed = Arc::new(AtomicBool::new(false));
        self.params
            .disk
            .attach_tap(WriteTap {
                events,
                failed: failed.clone(),
                patience_ns,
            })
            .map_err(|error| Stop::Lost(format!("the disk cannot be mirrored: {error}")))?;
        let shared = self.shared.clone();
        Ok(Tap { shared, failed })
    }

    /// Waits for something to do, or a reason to stop.
    fn next_order(&self) -> Result<Order, Stop> {
        self.shared
            .wait(None, |live| {
                if let Some(stop) = Stop::of(live) {
                    return Some(Err(stop));
                }
                if let Some(deadline) = live.release {
                    live.phase = SourcePhase::Releasing;
                    return Some(Ok(Order::Release(deadline)));
                }
                if let Some((bases, heard)) = live.pull.take()
                    && heard.elapsed() < PULL_AGE_MAX
                {
                    return Some(Ok(Order::Pull(bases)));
                }
                (self.shared.plan().dirty_count() > 0).then_some(Ok(Order::Copy))
            })
            .unwrap_or(Ok(Order::Copy))
    }

    fn release(
        &self,
        wanted: &Release<'_>,
        copier: &mut Copier,
        tap: &mut Option<Tap>,
    ) -> Result<HandoverReport, Halt> {
        let disk = &self.params.disk;
        if disk.rings_running() {
            return Err(Halt::Stay(rings_run()));
        }
        self.shared.tell(|live| live.restarted = false);
        let mut lap = Lap::start();
        let mut report = HandoverReport {
            epoch: self.claim.epoch,
            ..HandoverReport::default()
        };
        disk.quiesce(super::restart_hook(&self.shared, &self.claim))
            .map_err(|error| Halt::Stay(SourceError::Refused(error.to_string())))?;
        report.quiesce_us = lap.next();
        // Out of service, and a ring that starts is noticed: what is proven stays so.
        let released = self
            .prove(wanted.proof)
            .and_then(|()| self.hand_over(wanted, copier, tap, (&mut lap, &mut report)));
        if let Err(halt) = &released {
            if matches!(halt, Halt::End(_)) {
                // No guest write may wait for the destination once it runs again.
                *tap = None;
            }
            disk.resume();
        }
        report.total_us = lap.total();
        released.map(|()| report)
    }

    /// Whether the VM that arrived is the one that was served here.
    fn prove(&self, bases: Option<&[u16]>) -> Result<(), Halt> {
        let Some(bases) = bases else {
            return Ok(());
        };
        let rings = self.params.disk.rings();
        let mine: Vec<u16> = rings.iter().map(|ring| ring.next_avail).collect();
        handover::prove(&mine, bases)
            .map_err(|why| Halt::Stay(SourceError::Refused(why.to_string())))?;
        self.shared.enter(SourcePhase::Releasing);
        Ok(())
    }

    /// With the disk out of service. An error means that it was not given up.
    fn hand_over(
        &self,
        &Release {
            link,
            peer,
            deadline,
            proof,
        }: &Release<'_>,
        copier: &mut Copier,
        tap: &mut Option<Tap>,
        (lap, report): (&mut Lap, &mut HandoverReport),
    ) -> Result<(), Halt> {
        copier.deadline = Some(deadline);
        if self.params.shared.is_none() {
            self.flush_tail(link, copier)?;
        } else {
            // The destination reads what the image has, and not what this host's cache has.
            let flushed = self.params.disk.flush();
            flushed.map_err(|error| {
                Stop::Lost(format!("the disk's writes cannot be made durable: {error}"))
            })?;
        }
        report.tail_flush_us = lap.next();
        if proof.is_none() {
            // It is a person's word, and where the VMM is gone a machine that boots is served there.
            self.params.disk.forget_departed();
        }
        let device_state = self.params.disk.export().map_err(|error| {
            Stop::Lost(format!("the device's state cannot be exported: {error}"))
        })?;
        report.export_us = lap.next();
        if let Some(meeting) = self.meeting() {
            let met = meeting.reach(
                &self.claim.disk,
                Stage::Ready,
                proof.is_none(),
                deadline,
                || {
                    let live = self.shared.live();
                    live.restarted || Stop::of(&live).is_some()
                },
            );
            met.map_err(|why| Halt::Stay(SourceError::Refused(why)))?;
        }
        // The rings are stopped: it cannot fail any more after this look.
        let whole = match tap.take() {
            Some(tap) => !tap.failed.load(Ordering::Acquire),
            None => self.params.shared.is_some(),
        };
        if !whole {
            let why = "the disk gave the mirror up before the release";
            return Err(Halt::End(Stop::Lost(why.into())));
        }
        if link.barrier() != Some(0) || !self.shared.plan().complete() {
            let why = "the disk changed after it was taken out of service; this is a defect";
            return Err(Halt::End(Stop::Lost(why.into())));
        }
        self.commit()?;
        let grant = codec::Grant {
            claim: self.claim.clone(),
            device_state,
        };
        let mut grant = Some(Message::Grant(grant));
        let datastore = super::datastore(self.params.shared.is_some());
        for step in handover::release(self.claim.migration, datastore) {
            match (step, &self.params.shared) {
                (Step::Record(_), _) => {
                    self.record_release(peer)?;
                    report.release_durable_us = lap.next();
                    if let Some(meeting) = self.meeting() {
                        let met = meeting.reach(
                            &self.claim.disk,
                            Stage::Released,
                            true,
                            deadline,
                            || false,
                        );
                        if let Err(why) = met {
                            // Given up, and not granted: the destination is asked to settle that.
                            self.shared.lose(why);
                            return Ok(());
                        }
                    }
                }
                (Step::LetGo, Some(image)) => {
                    if let Err(why) = image.let_go() {
                        // It is given up all the same; without the lock the grant is not taken.
                        tracing::error!(claim = %self.claim, why, "the image is kept open");
                    }
                }
                _ => {
                    if let Some(grant) = grant.take() {
                        link.order(Control::Say(Box::new(grant)));
                    }
                }
            }
        }
        Ok(())
    }

    fn meeting(&self) -> Option<&Meeting> {
        self.params.group.as_ref()?.meeting.as_deref()
    }

    fn members(&self) -> Vec<Member> {
        let group = self.params.group.as_ref();
        group.map_or_else(Vec::new, |group| group.members.clone())
    }

    fn record_release(&self, peer: &Peer) -> Result<(), Halt> {
        let ownership = &self.params.ownership;
        let released = ownership.release(self.claim.migration, peer.clone(), self.members());
        released.map(|_| ()).map_err(|error| {
            // Either record may be on the disk now. Nothing was granted, so both are safe.
            if let Err(again) = ownership.store_again() {
                tracing::error!(claim = %self.claim, error = %again, "ownership record not restored");
            }
            Halt::End(Stop::Lost(error.to_string()))
        })
    }

    /// Everything the guest wrote is at the destination, durably.
    fn flush_tail(&self, link: &Link, copier: &mut Copier) -> Result<(), Halt> {
        loop {
            // A new tag for each: a late answer to a flush of an earlier attempt must not count.
            let mut tag = 0;
            self.shared.tell(|live| {
                live.flush_tag += 1;
                tag = live.flush_tag;
            });
            let caught = copier.settle_dirty().and_then(|()| {
                link.order(Control::Flush(tag));
                copier.wait(|live| live.flushed >= tag || live.restarted)
            });
            match caught {
                Err(Stop::Late) => {
                    return Err(Halt::Stay(SourceError::Refused(
                        "the destination did not take the last writes in time; the disk is served \
                         here as before, release it again"
                            .into(),
                    )));
                }
                other => other?,
            }
            if self.shared.live().restarted || self.params.disk.rings_running() {
                return Err(Halt::Stay(rings_run()));
            }
            if self.shared.plan().complete() {
                return Ok(());
            }
        }
    }

    /// The last moment to change one's mind; after it, `cancel` comes too late.
    fn commit(&self) -> Result<(), Halt> {
        // Not under the lock: the disk calls back into it.
        let running = self.params.disk.rings_running();
        let mut live = self.shared.live();
        if let Some(stop) = Stop::of(&live) {
            return Err(Halt::End(stop));
        }
        if live.restarted || running {
            return Err(Halt::End(Stop::Lost(rings_run().to_string())));
        }
        live.phase = SourcePhase::InDoubt;
        Ok(())
    }
}

/// What must hold before there is anything to start.
pub(super) fn serving_epoch(params: &SourceParams) -> Result<u64, SourceError> {
    let Phase::Serving { epoch, .. } = params.ownership.phase() else {
        return Err(SourceError::Refused(format!(
            "disk {} is {} here, only a served disk can be moved",
            params.disk_id,
            params.ownership.phase().name()
        )));
    };
    Ok(epoch)
}

fn rings_run() -> SourceError {
    SourceError::Refused(
        "the disk's rings are running; stop the VM first (QEMU stops it before pre-switchover), \
         then release again"
            .into(),
    )
}

/// A stopwatch.
struct Lap {
    began: Instant,
    last: Instant,
}

impl Lap {
    fn start() -> Lap {
        let now = Instant::now();
        Lap {
            began: now,
            last: now,
        }
    }

    fn next(&mut self) -> u64 {
        let now = Instant::now();
        let lap = now.duration_since(self.last);
        self.last = now;
        micros(lap)
    }

    fn total(&self) -> u64 {
        micros(self.began.elapsed())
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
