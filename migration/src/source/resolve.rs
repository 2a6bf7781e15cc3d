//! After the release: who owns the disk?
//!
//! The grant may be answered on the mirror's own connection. If that is lost, or the VMM here
//! starts the rings again, the destination is asked on connections of their own, every second,
//! until it answers. Nothing but its answer brings the disk back, because nothing else proves that
//! it does not serve.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Group;
use super::run::micros;
use super::shared::{Live, Shared, Verdict};
use super::{SourceError, SourcePhase};
use crate::codec::{HandBack, Message};
use crate::handover::{self, Step, Word};
use crate::ids::Claim;
use crate::lease::ownership::OwnershipError;
use crate::lease::shared::{ClaimError, SharedDisk};
use crate::lease::{Ownership, Peer};
use crate::phase::{Event, Phase};
use crate::report::HandoverReport;
use crate::transport;

/// How often the destination is asked while it matters.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often the disks that went with it are looked at.
const GROUP_LOOK: Duration = Duration::from_millis(200);
/// How often it is asked whether it serves by now, when it is known to own the disk.
const IDLE_ASK_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Resolver<'a> {
    pub shared: &'a Arc<Shared>,
    pub ownership: &'a Ownership,
    pub claim: &'a Claim,
    pub peer: &'a Peer,
    pub on_shared: Option<&'a dyn SharedDisk>,
    /// The disks that went with it.
    pub group: Option<&'a Group>,
}

/// What is known when the resolver wakes.
struct News {
    verdict: Option<Verdict>,
    /// Whether to ask, and to have the disk back though it was granted.
    ask: Option<bool>,
    detach: bool,
}

impl Resolver<'_> {
    /// Runs until the disk is moved or back here, or the daemon lets go.
    pub fn run(&self, mut report: HandoverReport, mut deadline: Option<Instant>) -> SourcePhase {
        self.shared
            .tell(|live| live.given_to = Some(self.peer.daemon));
        let began = Instant::now();
        let mut acknowledged = false;
        let mut ask_at = Instant::now();
        let mut look_at = Instant::now() + GROUP_LOOK;
        loop {
            if Instant::now() >= look_at {
                look_at = Instant::now() + GROUP_LOOK;
                self.follow_the_others();
            }
            let deadline_or_look = match self.group {
                Some(_) => Some(deadline.map_or(look_at, |at| at.min(look_at))),
                None => deadline,
            };
            let news = self.news(ask_at, deadline_or_look);
            if news.detach {
                return SourcePhase::Detached;
            }
            if self.on_shared.is_some()
                && let Some(phase) = self.ended_otherwise()
            {
                return phase;
            }
            let mut verdict = news.verdict;
            if let Some(though_granted) = news.ask {
                verdict = self.ask(though_granted);
                if let (None, true, Some(image)) = (&verdict, though_granted, self.on_shared) {
                    // The datastore is the witness.
                    let steps = handover::reclaim(self.claim.migration, self.claim.epoch);
                    if let Some(phase) = self.have_back(&steps, image, "the datastore said so") {
                        return phase;
                    }
                }
                let idle = acknowledged && !though_granted;
                ask_at = Instant::now() + if idle { IDLE_ASK_EVERY } else { ASK_EVERY };
            }
            match verdict {
                Some(Verdict::Granted) => {
                    self.note(Word::Granted);
                    acknowledged = true;
                    deadline = None;
                    report.grant_round_trip_us = micros(began.elapsed());
                    self.answer(SourcePhase::Granted, None, Ok(self.finish(&report)));
                }
                Some(Verdict::Activated) => {
                    if !self.note(Word::Activated) {
                        // Asked again until it can be: a disk that is here as given up takes no offers.
                        self.shared.lose("the destination's answer is not recorded");
                        continue;
                    }
                    self.moved(acknowledged, began, report);
                    return SourcePhase::Moved;
                }
                Some(Verdict::Returned(why)) => {
                    let Some(phase) = self.returned(&why) else {
                        continue;
                    };
                    return phase;
                }
                None => {}
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                deadline = None;
                self.doubt();
            }
        }
    }

    /// Waits for something to do: an answer on the mirror's connection, a moment to ask, the
    /// deadline, or the order to stop. While the connection stands and the rings do not, there is
    /// nothing to ask.
    fn news(&self, ask_at: Instant, deadline: Option<Instant>) -> News {
        let look = |live: &mut Live| {
            let asking = live.restarted || live.lost.is_some();
            let verdict = live.verdict.take();
            let now = Instant::now();
            let due = asking && now >= ask_at;
            let late = deadline.is_some_and(|at| now >= at);
            let ask = (verdict.is_none() && due).then_some(live.restarted);
            (verdict.is_some() || due || late || live.detach).then_some(News {
                verdict,
                ask,
                detach: live.detach,
            })
        };
        loop {
            // A loss or a restart wakes the wait at once; only `ask_at` has to be slept towards.
            let tick = Instant::now() + Duration::from_millis(50);
            let until = ask_at.max(tick).min(deadline.unwrap_or(ask_at).max(tick));
            if let Some(news) = self.shared.wait(Some(until), look) {
                return news;
            }
        }
    }

    /// Asks on a connection of its own.
    fn ask(&self, though_granted: bool) -> Option<Verdict> {
        let question = Message::HandBack(HandBack {
            claim: self.claim.clone(),
            though_granted,
        });
        let heard = match transport::ask(&self.peer.address, &question) {
            Ok(Message::Granted(a)) => (a.claim, a.daemon, Verdict::Granted),
            Ok(Message::Activated(a)) => (a.claim, a.daemon, Verdict::Activated),
            Ok(Message::Returned(a)) => (a.claim, a.daemon, Verdict::Returned(a.reason)),
            Ok(Message::Refused(refused)) => return self.no_answer(&refused.reason),
            Ok(_) => return self.no_answer("it answered something else"),
            Err(error) => return self.no_answer(&error.to_string()),
        };
        let (claim, daemon, verdict) = heard;
        if claim != *self.claim {
            return self.no_answer("it answered for another disk");
        }
        if daemon != self.peer.daemon {
            return self.no_answer("another daemon answers at its address");
        }
        Some(verdict)
    }

    fn no_answer(&self, why: &str) -> Option<Verdict> {
        tracing::warn!(claim = %self.claim, peer = %self.peer.address, why,
            "the destination does not say who owns the disk");
        self.shared.live().reason = Some(format!("waiting for the destination: {why}"));
        None
    }

    /// Records what the destination said; false when that has to be tried again. It only repeats the
    /// destination's own record.
    fn note(&self, word: Word) -> bool {
        let mut noted = true;
        for step in self.on_word(word) {
            if let Step::Record(event) = step
                && let Err(error) = self.ownership.apply(event)
            {
                tracing::warn!(claim = %self.claim, %error, "the destination's answer is not recorded");
                noted &= !matches!(error, OwnershipError::Lease(_));
            }
        }
        noted
    }

    /// When one of the VM's disks is back, or never went, this one has to come back too.
    fn follow_the_others(&self) {
        let migration = self.claim.migration;
        if self.group.is_some_and(|group| !group.holds(migration)) && !self.shared.live().restarted
        {
            tracing::warn!(claim = %self.claim, "a disk of the same VM is back: this one is asked back");
            self.shared.tell(|live| live.restarted = true);
        }
    }

    fn on_word(&self, word: Word) -> Vec<Step> {
        let datastore = super::datastore(self.on_shared.is_some());
        handover::on_word(word, self.claim.migration, self.claim.epoch, datastore)
    }

    fn moved(&self, acknowledged: bool, began: Instant, mut report: HandoverReport) {
        let restarted = self.shared.live().restarted;
        if restarted {
            rings_unserved(self.claim);
        }
        if !acknowledged {
            report.grant_round_trip_us = micros(began.elapsed());
        }
        let reason = restarted.then(|| "the destination serves the disk".to_owned());
        self.answer(SourcePhase::Moved, reason, Ok(self.finish(&report)));
    }

    /// The end, when the disk is served here again.
    fn returned(&self, why: &str) -> Option<SourcePhase> {
        let steps = self.on_word(Word::Returned);
        if let Some(image) = self.on_shared {
            return self.have_back(&steps, image, why);
        }
        for step in steps {
            match step {
                Step::Record(event) => self.record_return(event)?,
                _ => self.shared.disk.resume(),
            }
        }
        self.is_back(why)
    }

    /// The same on a shared datastore, where another host may have been faster.
    fn have_back(&self, steps: &[Step], image: &dyn SharedDisk, why: &str) -> Option<SourcePhase> {
        let failed = |error: &dyn std::fmt::Display| {
            tracing::warn!(claim = %self.claim, %error, "the disk is not back");
            self.shared.live().reason = Some(format!("the disk is not back: {error}"));
        };
        let _alone = image.alone();
        // Taken over here meanwhile, or by another.
        if let Some(phase) = self.ended_otherwise() {
            return Some(phase);
        }
        if self.shared.live().detach {
            return None;
        }
        for &step in steps {
            match step {
                Step::Take => image.take().map_err(|error| failed(&error)).ok()?,
                Step::Claim {
                    epoch,
                    through,
                    or_peer,
                } => {
                    let peer = or_peer.then_some(self.peer.daemon);
                    let Err(error) = image.claim(epoch, through, peer) else {
                        continue;
                    };
                    // Claimed before, when it could not be recorded.
                    let mine = matches!(&error, ClaimError::Taken { link, .. }
                        if link.owner == self.ownership.daemon());
                    if matches!(&error, ClaimError::Taken { epoch, link }
                        if mine && link.through == through
                            && Some(*epoch) == self.claim.epoch.checked_add(1))
                    {
                        continue;
                    }
                    failed(&error);
                    if let Err(error) = image.let_go() {
                        failed(&error);
                    }
                    return match error {
                        // By a takeover that was not recorded: that is to be ended first.
                        _ if mine => None,
                        // Granted after all: it is the peer that has to say more.
                        ClaimError::Taken { epoch, link }
                            if epoch == self.claim.epoch && link.owner == self.peer.daemon =>
                        {
                            None
                        }
                        ClaimError::Taken { epoch, .. } => self.taken(epoch, &error.to_string()),
                        ClaimError::Failed { .. } => None,
                    };
                }
                Step::Record(event) => self.record_return(event)?,
                Step::Serve => self.shared.disk.resume(),
                Step::Flush | Step::LetGo | Step::Say(_) | Step::Answer => {}
            }
        }
        self.is_back(why)
    }

    /// How it ended, when the record is not that of this release any more.
    fn ended_otherwise(&self) -> Option<SourcePhase> {
        let phase = match self.ownership.phase() {
            Phase::Released { .. } | Phase::Handed { .. } => return None,
            Phase::Taken { .. } => SourcePhase::Taken,
            Phase::Moved { .. } => SourcePhase::Moved,
            _ => SourcePhase::Returned,
        };
        let why = "the disk was taken over".to_owned();
        let error = SourceError::Refused(why.clone());
        self.answer(phase, Some(why), Err(error));
        Some(phase)
    }

    /// Another host has the disk, and it is not the one that it was given to.
    fn taken(&self, epoch: u64, why: &str) -> Option<SourcePhase> {
        if let Err(error) = self.ownership.apply(Event::TakenOver { epoch }) {
            tracing::error!(claim = %self.claim, %error, "a takeover is not recorded");
            return None;
        }
        let error = SourceError::Refused(why.to_owned());
        self.answer(SourcePhase::Taken, Some(why.to_owned()), Err(error));
        Some(SourcePhase::Taken)
    }

    fn is_back(&self, why: &str) -> Option<SourcePhase> {
        let why = format!("the destination gave the disk back: {why}");
        self.answer(
            SourcePhase::Returned,
            Some(why.clone()),
            Err(SourceError::Failed(why)),
        );
        Some(SourcePhase::Returned)
    }

    /// Nothing when it cannot be recorded: the destination is asked again.
    fn record_return(&self, event: Event) -> Option<()> {
        match self.ownership.apply(event) {
            Ok(_) => return Some(()),
            Err(error @ OwnershipError::Lease(_)) => {
                tracing::error!(claim = %self.claim, %error,
                    "the disk is back but that cannot be recorded, so it is not served; trying on");
                self.shared.tell(|live| {
                    live.lost.get_or_insert_with(|| "the disk is back".into());
                });
            }
            Err(error @ OwnershipError::Refused(_)) => {
                tracing::error!(claim = %self.claim, %error, "the record does not fit a return");
            }
        }
        None
    }

    fn doubt(&self) {
        let why = {
            let live = self.shared.live();
            live.lost
                .clone()
                .unwrap_or_else(|| "no answer yet".to_owned())
        };
        tracing::error!(claim = %self.claim, why, "in doubt: neither side serves the disk");
        let error = SourceError::InDoubt(why.clone());
        self.answer(SourcePhase::InDoubt, Some(why), Err(error));
    }

    fn finish(&self, report: &HandoverReport) -> HandoverReport {
        let mut report = report.clone();
        report.total_us = report.total_us.saturating_add(report.grant_round_trip_us);
        report.bytes_sent = self
            .shared
            .bytes_sent
            .load(std::sync::atomic::Ordering::Relaxed);
        report
    }

    /// Answers the release once, whatever comes later.
    fn answer(
        &self,
        phase: SourcePhase,
        reason: Option<String>,
        result: Result<HandoverReport, SourceError>,
    ) {
        self.shared.tell(|live| {
            live.phase = phase;
            live.reason = reason;
            if live.release.take().is_some() {
                live.release_result = Some(result);
            }
        });
    }
}

/// Says why a VM's disk stands still.
pub(super) fn rings_unserved(claim: &Claim) {
    tracing::error!(%claim,
        "the rings of a moved disk were started here; they stay unserved, because the destination \
         serves the disk: the VM runs there, move it back by a new migration");
}
