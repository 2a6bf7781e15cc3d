//! A disk's place at the host: made for an offer, and cleared when the copy is void.

use std::sync::{Arc, Mutex};

use super::voice::Voice;
use crate::codec::{Abort, Message, Refused, Returned, cut, refused};
use crate::destination::{DestinationHost, PreparedTarget, TargetBytes};
use crate::ids::Claim;
use crate::lease::ownership::{Applied, OwnershipError};
use crate::lease::{Ownership, Peer};
use crate::negotiate::{Hello, check_hello, check_target};
use crate::phase::{Event, Phase};
use crate::sync::lock;

/// Held while a disk's place is taken or cleared, so that an offer never meets a half-cleared one.
static PLACES: Mutex<()> = Mutex::new(());

/// Makes a copy's end durable and then has the host clear its place, as one step for new offers.
pub(in crate::destination) fn clearing<T>(work: impl FnOnce() -> T) -> T {
    let _alone = lock(&PLACES);
    work()
}

/// Makes room and makes `incoming` durable; after this a copy is there to be discarded.
pub(super) fn prepare(
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
pub(super) fn give_up(
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

/// What a fresh connection's abort does: only a copy that was not granted is thrown away.
pub(in crate::destination) fn abort(host: &Arc<dyn DestinationHost>, abort: &Abort) -> Message {
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
