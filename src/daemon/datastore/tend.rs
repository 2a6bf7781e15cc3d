//! The others: who has a disk, how long its owner is silent, and what follows from that.

use std::sync::Arc;

use ferry_migration::ids::DaemonId;
use ferry_migration::lease::beat;
use ferry_migration::lease::chain::Link;
use ferry_migration::phase::Phase;

use super::{Datastore, MS, lock, now_ns};
use crate::config::{Fence, LEASE_MS};
use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::daemon::shared::SharedImage;

/// Whether the newest claim, which is this daemon's, is that of a grant which was handed back. A takeover
/// of the same epoch that could not be recorded is none.
fn is_returned(phase: Phase, epoch: u64, claim: &Link) -> bool {
    matches!(phase, Phase::Returned { migration, epoch: at }
        if at == epoch && claim.through == Some(migration))
}

pub(super) fn unread(served: &Served, error: &std::io::Error) {
    tracing::warn!(disk = %served.config.id, %error, "the disk's claims cannot be read");
}

impl Datastore {
    pub(super) fn tend_all(&self) {
        while self.pause_tending() {
            let Some(daemon) = self.daemon.upgrade() else {
                return;
            };
            self.tend(&daemon);
        }
    }

    fn tend(&self, daemon: &Arc<Daemon>) {
        let mut watched = Vec::new();
        for (served, shared) in self.disks(daemon) {
            // Watched also while it is taken over, which asks what was seen.
            if let Some((_, link)) = self.owner(&served, &shared)
                && !shared.is_mine(&link)
                && !watched.contains(&link.owner)
            {
                self.watch(link.owner);
                watched.push(link.owner);
            }
            // Whoever is about to take it, or give it away, is not disturbed.
            if let Some(_alone) = shared.try_alone()
                && let Some((epoch, link)) = self.owner(&served, &shared)
            {
                self.tend_disk(daemon, &served, &shared, epoch, &link);
            }
        }
        lock(&self.others).retain(|owner, _| watched.contains(owner));
    }

    /// The newest epoch, and whose disk it is.
    pub(super) fn owner(&self, served: &Served, shared: &SharedImage) -> Option<(u64, Link)> {
        let newest = shared.newest().unwrap_or_else(|error| {
            unread(served, &error);
            None
        });
        let (epoch, mut link) = newest?;
        let record = served.ownership.record();
        if shared.is_mine(&link)
            && is_returned(record.state.phase, epoch, &link)
            && let Some(peer) = record.peer
        {
            // It is the source's, that has yet to claim it.
            (link.owner, link.address) = (peer.daemon, peer.address);
        }
        Some((epoch, link))
    }

    fn watch(&self, owner: DaemonId) {
        let beat = beat::read(self.root(), owner);
        let gap = self.settings.lease_ms * MS;
        let mut others = lock(&self.others);
        let other = others.entry(owner).or_default();
        // What cannot be read tells nothing: not that it is silent either.
        let Ok(beat) = beat else { return };
        let known = other.lease_ms.max(self.settings.lease_ms);
        let lease_ms = beat.as_ref().map_or(known, |beat| beat.lease_ms);
        other.lease_ms = lease_ms.clamp(LEASE_MS.0, LEASE_MS.1);
        other
            .watch
            .look(beat.map(|beat| beat.counter), now_ns(), gap);
        other.told &= other.watch.silent_ns() > 0;
    }

    fn tend_disk(
        &self,
        daemon: &Arc<Daemon>,
        served: &Arc<Served>,
        shared: &Arc<SharedImage>,
        epoch: u64,
        link: &Link,
    ) {
        let phase = served.ownership.phase();
        let mine = shared.is_mine(link);
        if let Phase::Serving { epoch: at, .. } | Phase::Granted { epoch: at, .. } = phase
            && (!mine || epoch != at)
        {
            served.taken_over(epoch, link);
            // What is copied is not this host's to give. On another thread, as that may wait.
            let (daemon, id) = (daemon.clone(), served.config.id.clone());
            std::thread::spawn(move || daemon.migrations.forget(&id));
            return;
        }
        self.serve_again(served, shared, epoch);
        match phase {
            Phase::Serving { .. } | Phase::Granted { .. } | Phase::Incoming { .. } => {}
            // Given up, and not taken yet: its resolver's matter.
            Phase::Released { epoch: at, .. } | Phase::Handed { epoch: at, .. } if epoch < at => {}
            // Claimed by an earlier run of this daemon, and not recorded.
            _ if mine && !is_returned(phase, epoch, link) => {
                match self.unfinished(served, shared, epoch, link) {
                    Ok(takeover) => self.take_over_soon(daemon, served, shared, takeover),
                    Err(error) => unread(served, &error),
                }
            }
            _ if self.is_over(link.owner) && self.settings.fence == Fence::None => {
                self.tell(served, link);
            }
            _ if self.is_over(link.owner) => match self.of_silent(shared, epoch, link) {
                Ok(takeover) => self.take_over_soon(daemon, served, shared, takeover),
                Err(error) => unread(served, &error),
            },
            _ => {}
        }
    }

    pub(super) fn is_over(&self, owner: DaemonId) -> bool {
        let others = lock(&self.others);
        others.get(&owner).is_some_and(|other| {
            let io_ns = self.settings.io_ms * MS;
            other.watch.expired(other.lease_ms * MS, io_ns)
        })
    }

    fn tell(&self, served: &Served, link: &Link) {
        let mut others = lock(&self.others);
        let Some(other) = others.get_mut(&link.owner) else {
            return;
        };
        if !std::mem::replace(&mut other.told, true) {
            tracing::error!(disk = %served.config.id, owner = %link.owner, address = link.address,
                "the owner's lease is over, and no fence is configured: nobody takes the disk over \
                 by itself; when that host is surely off, say: ferry lease break {} --fenced {}",
                served.config.id, link.owner);
        }
    }
}
