//! A NIC that arrives: which machine may go on with it, which frames it was delivered, and what its host
//! does when it runs.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use ferry_dataplane::lifecycle::LifecycleError;
use ferry_dataplane::net::announce::{self, Address};
use ferry_dataplane::net::frame::Mac;
use ferry_dataplane::net::lifecycle::{ActivatedHook, PortFrame};
use ferry_migration::schema::queue_v1::QueueV1;

use super::device::Attachment;

/// When a NIC is announced after the first time, which is at once. All within the first second, as
/// switches may lose one while they learn of the other changes of a migration.
const ANNOUNCED_AGAIN: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(350),
    Duration::from_millis(600),
    Duration::from_millis(950),
];

/// Whether a ring may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Yes,
    /// The state of the machine that is to come has not.
    NotYet,
    /// It is another machine's.
    No,
}

/// What is known of a NIC that arrives, or arrived last.
#[derive(Default)]
pub(super) struct Arrival {
    /// Which one it is.
    number: u64,
    /// The move that brings it.
    moving: Option<u128>,
    /// It is to arrive: its first ring begins it.
    pending: bool,
    /// It did.
    arrived: bool,
    /// It has left.
    left: bool,
    /// It was told to leave before it began, and may begin still.
    may_begin: bool,
    /// By a conversation with the source, which says when nothing more comes first.
    attended: bool,
    /// What its state says of the machine: features and rings.
    machine: Option<(u64, Vec<QueueV1>)>,
    activated: Option<ActivatedHook>,
    /// Where each ring of the machine begins that may go on with it, until it did.
    bases: Vec<Option<u16>>,
    /// Nobody drove it: the machine that did last may go on, or another may boot.
    or_boots: bool,
    /// Whose frames were delivered, and the number of the next one of each port.
    delivered: Option<(u64, BTreeMap<u16, u64>)>,
}

impl Arrival {
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// Whether its state is here.
    pub fn is_imported(&self) -> bool {
        self.machine.is_some()
    }

    /// Features and rings of a machine that has come and not begun yet.
    pub fn machine(&self) -> Option<&(u64, Vec<QueueV1>)> {
        self.machine.as_ref().filter(|_| !self.arrived)
    }

    /// Whether that is this one.
    pub fn is(&self, number: u64) -> bool {
        self.number == number
    }

    /// Its number, if that move has brought it.
    pub fn by(&self, moving: u128) -> Option<u64> {
        (self.arrived && self.moving == Some(moving)).then_some(self.number)
    }

    /// Whether its guest has left since for another host.
    pub fn has_gone(&self) -> bool {
        self.left
    }

    /// Nobody will say what becomes of it, once its front-end is gone too.
    pub fn is_abandoned(&self) -> bool {
        self.pending && !self.attended
    }

    /// A machine whose rings have run may stop and start all of them as it likes.
    pub fn is_here(&mut self) {
        if !self.pending {
            self.bases.clear();
        }
    }

    /// Its driver begins anew.
    pub fn was_reset(&mut self) {
        self.or_boots |= self.pending;
        self.is_here();
    }

    /// A conversation with the source has begun.
    pub fn attend(&mut self, moving: u128, activated: ActivatedHook) -> u64 {
        *self = Arrival {
            number: self.number + 1,
            moving: Some(moving),
            pending: true,
            left: self.left,
            attended: true,
            activated: Some(activated),
            ..Arrival::default()
        };
        self.number
    }

    /// A state came by way of the VMM alone.
    pub fn begin(&mut self) {
        *self = Arrival {
            number: self.number + 1,
            moving: self.moving,
            pending: true,
            left: self.left,
            ..Arrival::default()
        };
    }

    /// It does not come.
    pub fn end(&mut self) {
        *self = Arrival {
            number: self.number + 1,
            moving: self.moving,
            left: self.left,
            ..Arrival::default()
        };
    }

    /// Whoever spoke for the source is gone. Nobody says any more whether the machine that was to come is
    /// the one that is here: another may boot as well.
    pub fn unattended(&mut self) {
        (self.attended, self.activated) = (false, None);
        self.or_boots = true;
    }

    /// It is to go to another host, and may begin here before it does. What its source passes on follows.
    pub fn leave(&mut self) {
        self.may_begin |= std::mem::take(&mut self.pending);
        self.left = false;
    }

    /// It did.
    pub fn gone(&mut self) {
        self.left = true;
        self.will_not_begin();
    }

    /// Whoever might have begun it is not here any more.
    pub fn will_not_begin(&mut self) {
        if std::mem::take(&mut self.may_begin) {
            self.activated = None;
        }
    }

    pub fn expect(&mut self, features: u64, queues: Vec<QueueV1>) {
        self.bases = queues.iter().map(|it| Some(it.next_avail)).collect();
        self.or_boots = features == 0;
        self.machine = Some((features, queues));
    }

    /// Whether a ring at `at` that begins at `base` is of the machine that the NIC comes with.
    pub fn fits(&self, at: usize, base: u16) -> Fit {
        match self.bases.get(at) {
            _ if self.pending && self.attended && self.machine.is_none() => Fit::NotYet,
            Some(Some(expected)) if base == *expected || self.or_boots && base == 0 => Fit::Yes,
            Some(Some(_)) => Fit::No,
            _ => Fit::Yes,
        }
    }

    /// Whether the machine that boots at a ring's start is not the one that was to go on from there.
    pub fn is_another(&self, at: usize, base: u16) -> bool {
        let expected = self.bases.get(at).copied().flatten();
        self.pending && base == 0 && expected.is_some_and(|expected| expected != 0)
    }

    /// It has started: from now on it is its machine's to stop and start.
    pub fn started(&mut self, at: usize) {
        self.left = false;
        if !self.pending {
            self.machine = None;
        }
        if let Some(base) = self.bases.get_mut(at) {
            *base = None;
        }
    }

    /// Of frames of `origin`, in their order, those that were not delivered yet.
    pub fn new_ones(&mut self, origin: u64, frames: Vec<PortFrame>) -> Vec<PortFrame> {
        if self.delivered.as_ref().is_none_or(|it| it.0 != origin) {
            self.delivered = Some((origin, BTreeMap::new()));
        }
        let Some((_, next)) = &mut self.delivered else {
            return Vec::new();
        };
        let mut fresh = |it: &PortFrame| {
            let next = next.entry(it.port).or_default();
            let fresh = it.frame.seq >= *next;
            *next = (*next).max(it.frame.seq.saturating_add(1));
            fresh
        };
        frames.into_iter().filter(|it| fresh(it)).collect()
    }

    /// Its guest runs here: who is to have that announced and told, if it has just arrived.
    pub fn activate(&mut self) -> Option<Announcer> {
        let begins = std::mem::take(&mut self.pending);
        if !std::mem::take(&mut self.may_begin) && !begins {
            return None;
        }
        (self.arrived, self.left) = (true, false);
        Some(Announcer {
            number: self.number,
            hook: self.activated.take(),
            attended: self.attended,
        })
    }
}

/// Announces a NIC that has arrived, while it is here.
pub(super) struct Announcer {
    number: u64,
    hook: Option<ActivatedHook>,
    attended: bool,
}

/// Nothing more comes before what came here.
pub(super) fn settle(attachment: &Attachment, name: &str) {
    for port in attachment.guests() {
        if let Err(error) = port.settle() {
            tracing::warn!(device = name, %error, "frames of the NIC wait");
        }
    }
}

impl Announcer {
    /// Does so on a thread of its own. A NIC that is removed meanwhile is not kept by it.
    pub fn start(
        self,
        name: &Arc<str>,
        mac: Mac,
        attachment: &Arc<Attachment>,
        arrival: &Arc<Mutex<Arrival>>,
    ) {
        let it = Announced {
            number: self.number,
            name: name.clone(),
            mac,
            attachment: Arc::downgrade(attachment),
            arrival: arrival.clone(),
        };
        let spawned = thread::Builder::new()
            .name("ferry-announce".into())
            .spawn(move || it.announce(self.hook, self.attended));
        if let Err(error) = spawned {
            tracing::error!(device = %name, %error, "the NIC is not announced here");
            settle(attachment, name);
        }
    }
}

struct Announced {
    number: u64,
    name: Arc<str>,
    mac: Mac,
    attachment: Weak<Attachment>,
    arrival: Arc<Mutex<Arrival>>,
}

impl Announced {
    /// Does so while the guest that has arrived is here.
    fn while_here(&self, task: impl FnOnce(&Attachment)) {
        let arrival = self.arrival.lock().unwrap_or_else(PoisonError::into_inner);
        if arrival.is(self.number)
            && !arrival.has_gone()
            && let Some(attachment) = self.attachment.upgrade()
        {
            task(&attachment);
        }
    }

    fn say(&self) {
        self.while_here(|there| say(there, &self.name, self.mac));
    }

    fn settle(&self) {
        self.while_here(|there| settle(there, &self.name));
    }

    fn announce(&self, hook: Option<ActivatedHook>, attended: bool) {
        self.say();
        // After it: what reaches the source from now on was on its way before.
        if let Some(hook) = hook {
            hook();
        }
        if !attended {
            self.settle();
        }
        let mut waited = Duration::ZERO;
        for due in ANNOUNCED_AGAIN {
            thread::sleep(due.saturating_sub(waited));
            waited = due;
            self.say();
        }
        // Whatever has become of the source.
        self.settle();
    }
}

fn say(attachment: &Attachment, name: &str, mac: Mac) {
    let spoken = spoken(attachment).unwrap_or_default();
    let Some(port) = attachment.guests().first().copied() else {
        return;
    };
    if let Err(error) = port.say(announce::frames(mac, &spoken)) {
        tracing::warn!(device = name, %error, "the NIC is not announced");
    }
}

/// The addresses that a guest has spoken of, each once, the last at the end. Its queues may be on several
/// wires; its addresses are the same.
pub(super) fn spoken(attachment: &Attachment) -> Result<Vec<Address>, LifecycleError> {
    let mut all = Vec::new();
    for port in attachment.guests() {
        all.extend(port.spoken()?);
    }
    all.sort_by_key(|it| Reverse(it.age_s));
    let same = |a: &Address, b: &Address| (a.vlan, a.ip) == (b.vlan, b.ip);
    let last = |at: usize| !all[at + 1..].iter().any(|later| same(later, &all[at]));
    let spoken = (0..all.len()).filter(|&at| last(at)).map(|at| all[at]);
    Ok(spoken.collect())
}

#[cfg(test)]
mod tests;
