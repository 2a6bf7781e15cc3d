//! The sending end.
//!
//! One thread conducts: preflight, tap, copy, in sync, release, and then it waits to learn who owns
//! the disk. Two more carry the mirror's connection. Callers talk to them through [`SourceHandle`].
//!
//! - Until `released` is durable, every way out detaches the tap and the disk is served here.
//! - `released` is made durable before the grant is sent, and only when the destination has flushed
//!   everything the guest wrote.
//! - From then on the disk is served here again only after the destination has said, durably, that
//!   it does not own it, and after that is recorded here.

mod copy;
pub mod group;
mod link;
mod resolve;
mod run;
mod shared;

use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_dataplane::lifecycle::{DiskLifecycle, RestartHook};
use serde::Serialize;

use crate::handover::Datastore;
use crate::ids::{Claim, DaemonId, DiskId, MigrationId};
use crate::lease::Ownership;
use crate::lease::shared::SharedDisk;
use crate::phase::Phase;
use crate::report::HandoverReport;
use crate::schema::{self, blk_v1::BlkV1};
use crate::sync::lock;
use group::{Group, Look};
use resolve::Resolver;
use shared::{Live, Shared};

/// What to move and where.
#[derive(Clone)]
pub struct SourceParams {
    /// The disk, serving.
    pub disk: Arc<dyn DiskLifecycle>,
    /// Its record.
    pub ownership: Arc<Ownership>,
    /// Its name on both hosts.
    pub disk_id: DiskId,
    /// A fresh id.
    pub migration: MigrationId,
    /// The destination daemon's `host:port`.
    pub peer: String,
    /// The device as it is now.
    pub shape: BlkV1,
    /// How long a mirrored write may wait for the destination before the mirror is given up.
    pub patience: Duration,
    /// The destination sees the same image: only ownership moves.
    pub shared: Option<Arc<dyn SharedDisk>>,
    /// The VM's other disks, which move with it or not at all.
    pub group: Option<Group>,
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourcePhase {
    /// Talking to the destination.
    Connecting,
    /// The bulk copy runs; writes behind the cursor are mirrored.
    Copying,
    /// Both sides have every byte, and every write goes to both.
    InSync,
    /// The handover runs; it can still be undone.
    Releasing,
    /// Given up, and not known to be taken: neither side serves.
    InDoubt,
    /// The destination owns it, and has not served it yet.
    Granted,
    /// The destination serves it.
    Moved,
    /// The destination gave it back; the source serves.
    Returned,
    /// Shared datastore: another host took it over.
    Taken,
    /// Cancelled; the source serves.
    Cancelled,
    /// Failed; the source serves.
    Failed,
    /// The daemon let go of the handle after the release; the record says the rest.
    Detached,
}

/// A migration at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Where it stands.
    pub phase: SourcePhase,
    /// Bytes of the disk copied or known to be holes.
    pub bytes_done: u64,
    /// Bytes of the disk.
    pub bytes_total: u64,
    /// Bytes of data sent, copies and mirrored writes.
    pub bytes_sent: u64,
    /// Mean of the copy so far.
    pub bytes_per_second: u64,
    /// At that rate; `None` while nothing is known.
    pub eta_seconds: Option<u64>,
    /// Whether a release may be asked now.
    pub in_sync: bool,
    /// Why it failed, or what it waits for.
    pub reason: Option<String>,
    /// The daemon that the disk was given to, while that may not serve it yet.
    pub given_to: Option<DaemonId>,
}

/// Why a call on a migration did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The disk is not in a state to be moved.
    #[error("{0}")]
    Refused(String),
    /// The migration failed; the source serves on.
    #[error("migration failed: {0}; the disk is served here as before")]
    Failed(String),
    /// Someone cancelled it; the source serves on.
    #[error("migration cancelled; the disk is served here as before")]
    Cancelled,
    /// It did not happen in time and goes on.
    #[error("not within {0:?}; the migration goes on")]
    TimedOut(Duration),
    /// The disk is given up and the destination has not confirmed.
    #[error(
        "in doubt: the disk was released and the destination has not confirmed ({0}); neither side \
         serves it until the two daemons can talk, which is tried every second"
    )]
    InDoubt(String),
}

/// Why the work before the release ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Stop {
    #[error("{0}")]
    Lost(String),
    #[error("cancelled")]
    Cancelled,
    #[error("not in time")]
    Late,
}

impl Stop {
    /// A reason to stop, if there is one by now.
    fn of(live: &Live) -> Option<Stop> {
        match &live.lost {
            _ if live.cancel => Some(Stop::Cancelled),
            Some(why) => Some(Stop::Lost(why.clone())),
            None => None,
        }
    }
}

/// Says that a migration is over, even when its thread panics.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.tell(|live| {
            live.ended = true;
            live.stream = None;
        });
    }
}

/// A running migration. Dropping it cancels what can be cancelled and joins every thread; a disk
/// that is given up stays given up, and its record says to whom.
pub struct SourceHandle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts moving a disk. Returns at once; see [`SourceHandle::wait_in_sync`].
pub fn start(params: SourceParams) -> Result<SourceHandle, SourceError> {
    let epoch = run::serving_epoch(&params)?;
    let epoch = epoch
        .checked_add(1)
        .ok_or_else(|| refused("the disk's epochs have run out"))?;
    if schema::geometry(&params.shape) != params.disk.geometry() {
        return Err(refused(
            "the shape given is not the disk's; this is a defect of the daemon",
        ));
    }
    let claim = Claim {
        migration: params.migration,
        disk: params.disk_id.clone(),
        epoch,
    };
    let shared = Shared::new(params.disk.clone(), SourcePhase::Connecting);
    let conductor = run::Conductor {
        params,
        shared: shared.clone(),
        claim,
    };
    spawn(shared, move || conductor.run())
}

/// For a daemon that starts and finds `released` or `handed` in a record: keeps the disk out of
/// service and finds out who owns it. Call it before the disk's rings can start.
pub fn resolve(
    disk: &Arc<dyn DiskLifecycle>,
    ownership: Arc<Ownership>,
    disk_id: DiskId,
    on_shared: Option<Arc<dyn SharedDisk>>,
    look: Look,
) -> Result<SourceHandle, SourceError> {
    let record = ownership.record();
    let (Phase::Released { migration, epoch } | Phase::Handed { migration, epoch }) =
        record.state.phase
    else {
        return Err(refused("the disk's record knows of no release to resolve"));
    };
    let group = (!record.members.is_empty()).then_some(Group {
        members: record.members,
        meeting: None,
        look,
    });
    let peer = record
        .peer
        .ok_or_else(|| refused("the disk's record does not name the peer"))?;
    let claim = Claim {
        migration,
        disk: disk_id,
        epoch,
    };
    let shared = Shared::new(disk.clone(), SourcePhase::InDoubt);
    disk.quiesce(restart_hook(&shared, &claim))
        .map_err(|error| refused(&error.to_string()))?;
    shared.lose("the daemon was restarted");
    let worker = shared.clone();
    spawn(shared, move || {
        let ended = Ended(worker.clone());
        let resolver = Resolver {
            shared: &worker,
            ownership: &ownership,
            claim: &claim,
            peer: &peer,
            on_shared: on_shared.as_deref(),
            group: group.as_ref(),
        };
        let phase = resolver.run(
            HandoverReport {
                epoch,
                ..HandoverReport::default()
            },
            None,
        );
        worker.enter(phase);
        drop(ended);
    })
}

fn datastore(shared: bool) -> Datastore {
    if shared {
        Datastore::Shared
    } else {
        Datastore::Own
    }
}

fn spawn(
    shared: Arc<Shared>,
    work: impl FnOnce() + Send + 'static,
) -> Result<SourceHandle, SourceError> {
    let thread = std::thread::Builder::new()
        .name("ferry-migration".to_owned())
        .spawn(work)
        .map_err(|error| refused(&format!("cannot start a thread: {error}")))?;
    Ok(SourceHandle {
        shared,
        thread: Mutex::new(Some(thread)),
    })
}

/// For [`DiskLifecycle::quiesce`]: the VMM wants its disk back.
fn restart_hook(shared: &Arc<Shared>, claim: &Claim) -> RestartHook {
    let (shared, claim) = (Arc::downgrade(shared), claim.clone());
    Box::new(move || match shared.upgrade() {
        Some(shared) => shared.tell(|live| {
            live.restarted = true;
            if live.phase == SourcePhase::Moved {
                resolve::rings_unserved(&claim);
            }
        }),
        None => tracing::error!(%claim,
            "the rings of a disk that was given up were started; nobody asks for it back, restart \
             the daemon"),
    })
}

fn refused(why: &str) -> SourceError {
    SourceError::Refused(why.to_owned())
}

impl SourceHandle {
    /// Where it stands.
    pub fn status(&self) -> SourceStatus {
        let (done, complete) = {
            let plan = self.shared.plan();
            (plan.bytes_done(), plan.complete())
        };
        let live = self.shared.live();
        let seconds = self.shared.began.elapsed().as_secs_f64().max(0.001);
        let total = self.shared.bytes_total;
        let rate = rate(done, seconds);
        let eta_seconds = match live.phase {
            SourcePhase::Copying if rate > 0 => Some((total - done.min(total)) / rate),
            _ => None,
        };
        SourceStatus {
            phase: live.phase,
            bytes_done: done,
            bytes_total: total,
            bytes_sent: self.shared.bytes_sent.load(Ordering::Relaxed),
            bytes_per_second: rate,
            eta_seconds,
            in_sync: live.phase == SourcePhase::InSync && complete,
            reason: live.reason.clone(),
            given_to: live.given_to.filter(|_| !live.ended),
        }
    }

    /// Waits until both sides have every byte. The disk may have followed its VM by then.
    pub fn wait_in_sync(&self, timeout: Duration) -> Result<(), SourceError> {
        let until = Instant::now() + timeout;
        self.shared
            .wait(Some(until), |live| match live.phase {
                SourcePhase::InSync
                | SourcePhase::Releasing
                | SourcePhase::InDoubt
                | SourcePhase::Granted
                | SourcePhase::Moved => Some(Ok(())),
                SourcePhase::Connecting | SourcePhase::Copying if !live.ended => None,
                _ => Some(Err(over(live))),
            })
            .unwrap_or(Err(SourceError::TimedOut(timeout)))
    }

    /// Ends it before the release; returns when the tap is detached and the threads are joined.
    pub fn cancel(&self) -> Result<(), SourceError> {
        self.shared.tell(|live| {
            if before_release(live.phase) {
                live.cancel = true;
                cut(live);
            }
        });
        let answer = self.shared.wait(None, |live| match live.phase {
            phase if before_release(phase) && !live.ended => None,
            SourcePhase::Cancelled | SourcePhase::Failed => live.ended.then_some(Ok(())),
            _ => Some(Err(over(live))),
        });
        if let Some(Ok(())) = answer {
            self.join();
        }
        answer.unwrap_or(Err(SourceError::TimedOut(Duration::ZERO)))
    }

    /// Hands the disk over. Its rings must be stopped. An error says who serves the disk now.
    pub fn release(&self, timeout: Duration) -> Result<HandoverReport, SourceError> {
        {
            let mut live = self.shared.live();
            match live.phase {
                SourcePhase::InSync if live.release.is_none() && !live.ended => {}
                SourcePhase::Connecting | SourcePhase::Copying => {
                    return Err(refused("the copy is not in sync yet; wait for it"));
                }
                SourcePhase::InSync | SourcePhase::Releasing => {
                    return Err(refused("a release is running already"));
                }
                _ => return Err(over(&live)),
            }
            live.release = Some(Instant::now() + timeout);
            live.release_result = None;
        }
        self.shared.tell(|_| ());
        self.shared
            .wait(None, |live| {
                let answered = live.release_result.take();
                answered.or_else(|| live.ended.then(|| Err(over(live))))
            })
            .unwrap_or(Err(SourceError::TimedOut(timeout)))
    }

    /// A person's word that the destination, `fenced`, is off and never comes back with the disk:
    /// one that it was given, and that is not known to be served there, is served here again.
    pub fn resolve(&self, fenced: DaemonId, timeout: Duration) -> Result<(), SourceError> {
        let peer = self.shared.live().given_to;
        match peer {
            None => return Err(refused("the disk was not given up: there is no doubt")),
            Some(peer) if peer != fenced => {
                return Err(refused(&format!(
                    "the disk was given to daemon {peer}, and not to {fenced}; make sure that that \
                     one is off, and name it: --fenced {peer}"
                )));
            }
            Some(_) => {}
        }
        {
            let mut live = self.shared.live();
            if live.ended || live.phase == SourcePhase::Moved {
                return Err(over(&live));
            }
            if live.verdict.is_some() {
                return Err(refused("the destination has just answered: it is not off"));
            }
            let why = "by a person's word: it is off".to_owned();
            live.verdict = Some(shared::Verdict::Returned(why));
        }
        self.shared.tell(|_| ());
        let until = Instant::now() + timeout;
        self.shared
            .wait(Some(until), |live| {
                live.ended.then(|| match live.phase {
                    SourcePhase::Returned => Ok(()),
                    _ => Err(over(live)),
                })
            })
            .unwrap_or(Err(SourceError::TimedOut(timeout)))
    }

    /// Asks a released disk back, as a restart of its rings would. Before a release it means
    /// nothing.
    pub fn ask_back(&self) {
        self.shared.tell(|live| {
            if !before_release(live.phase) {
                live.restarted = true;
            }
        });
    }

    /// Waits until it is over: moved, returned, cancelled or failed.
    pub fn wait_end(&self, timeout: Duration) -> Result<SourceStatus, SourceError> {
        let until = Instant::now() + timeout;
        let ended = self
            .shared
            .wait(Some(until), |live| live.ended.then_some(()));
        ended
            .map(|()| self.status())
            .ok_or(SourceError::TimedOut(timeout))
    }

    fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for SourceHandle {
    fn drop(&mut self) {
        self.shared.tell(|live| {
            live.detach = true;
            if before_release(live.phase) {
                live.cancel = true;
                cut(live);
            }
        });
        self.join();
    }
}

/// Frees a thread that waits for the destination's consent. A running mirror is not cut: it says
/// goodbye.
fn cut(live: &Live) {
    if let (SourcePhase::Connecting, Some(stream)) = (live.phase, &live.stream) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn before_release(phase: SourcePhase) -> bool {
    use SourcePhase::{Connecting, Copying, InSync, Releasing};
    matches!(phase, Connecting | Copying | InSync | Releasing)
}

/// What a caller is told who asks something of a migration that is past it.
fn over(live: &Live) -> SourceError {
    let reason = || {
        live.reason
            .clone()
            .unwrap_or_else(|| "no reason is known".to_owned())
    };
    match live.phase {
        SourcePhase::Cancelled => SourceError::Cancelled,
        SourcePhase::InDoubt | SourcePhase::Detached => SourceError::InDoubt(reason()),
        SourcePhase::Granted | SourcePhase::Moved => {
            refused("the destination owns the disk already; move it back by a new migration")
        }
        SourcePhase::Taken => refused("another host has taken the disk over"),
        SourcePhase::Failed | SourcePhase::Returned => SourceError::Failed(reason()),
        _ => SourceError::Failed("its thread ended early; this is a defect".to_owned()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
fn rate(bytes: u64, seconds: f64) -> u64 {
    (bytes as f64 / seconds) as u64
}
