//! Disks of one VM that move as one: none is granted before all are given up, and when one is back,
//! or never went, the others are asked back.
//!
//! Together with the destination's half (`handover::together`: none is served there before all are
//! granted, and none is handed back after one was) that makes all or none of a move, whichever side
//! dies at whatever moment. Each disk's own record is all that has to be durable for it.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::handover;
use crate::ids::{DiskId, Member, MigrationId};
use crate::phase::State;
use crate::sync::lock;

/// The state of a disk's record on this host, if it has one.
pub type Look = Arc<dyn Fn(&DiskId) -> Option<State> + Send + Sync>;

/// The group of one disk: the others, and where to meet them.
#[derive(Clone)]
pub struct Group {
    /// The others.
    pub members: Vec<Member>,
    /// Where those meet that are moved by this process; nothing after a restart.
    pub meeting: Option<Arc<Meeting>>,
    /// How the others stand here.
    pub look: Look,
}

impl Group {
    /// Whether all others are still given up in this attempt, as far as is known: one that is not
    /// here (yet, or any more) says nothing.
    pub(super) fn holds(&self, migration: MigrationId) -> bool {
        self.members.iter().all(|member| {
            (self.look)(&member.disk).is_none_or(|it| handover::is_given_up(&it, migration))
        })
    }
}

/// How often a disk that waits for others looks at itself.
const LOOK: Duration = Duration::from_millis(50);

/// How far a disk of a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Quiesced, and equal at the destination.
    Ready,
    /// Given up, durably.
    Released,
}

#[derive(Default)]
struct Met {
    ready: BTreeSet<DiskId>,
    released: BTreeSet<DiskId>,
    /// One of them goes no further.
    failed: Option<String>,
    /// One of them does not go at this word.
    refused: Option<String>,
}

/// Where the disks of a group wait for each other.
pub struct Meeting {
    disks: usize,
    met: Mutex<Met>,
    wake: Condvar,
}

impl Meeting {
    /// Of so many disks.
    pub fn of(disks: usize) -> Arc<Meeting> {
        Arc::new(Meeting {
            disks,
            met: Mutex::default(),
            wake: Condvar::new(),
        })
    }

    /// A person's word, for all of them, is about to be given.
    pub fn begin(&self) {
        lock(&self.met).refused = None;
    }

    /// The disk does not go at this word: the others need not wait for it.
    pub(super) fn refuse(&self, disk: &DiskId, why: &str) {
        let mut met = lock(&self.met);
        met.refused
            .get_or_insert_with(|| format!("disk {disk} of the same VM does not go: {why}"));
        self.wake.notify_all();
    }

    /// Waits until every disk is as far; an error says which is not, and why. `by_word` of a person,
    /// or because its VM has arrived. It is not waited for what `changed` says makes the wait idle.
    pub(super) fn reach(
        &self,
        disk: &DiskId,
        stage: Stage,
        by_word: bool,
        until: Instant,
        changed: impl Fn() -> bool,
    ) -> Result<(), String> {
        let mut met = lock(&self.met);
        let at = |met: &mut Met| match stage {
            Stage::Ready => met.ready.len(),
            Stage::Released => met.released.len(),
        };
        match stage {
            Stage::Ready => met.ready.insert(disk.clone()),
            Stage::Released => met.released.insert(disk.clone()),
        };
        self.wake.notify_all();
        loop {
            if at(&mut met) == self.disks {
                return Ok(());
            }
            if let Some(why) = met.failed.clone() {
                return Err(why);
            }
            if let (Some(why), Stage::Ready, true) = (met.refused.clone(), stage, by_word) {
                met.ready.remove(disk);
                return Err(why);
            }
            let left = until.saturating_duration_since(Instant::now());
            if stage == Stage::Ready && changed() {
                met.ready.remove(disk);
                return Err("its own VM goes on, or its migration is over".into());
            }
            if left.is_zero() {
                // It may be ready again later.
                met.ready.remove(disk);
                return Err("a disk of the same VM is not ready to go with it".into());
            }
            let waited = self.wake.wait_timeout(met, left.min(LOOK));
            met = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The disk's migration is over, and it was not given up.
    pub(super) fn fail(&self, disk: &DiskId, why: &str) {
        let mut met = lock(&self.met);
        if !met.released.contains(disk) {
            met.failed
                .get_or_insert_with(|| format!("disk {disk} does not go with it: {why}"));
            self.wake.notify_all();
        }
    }
}
