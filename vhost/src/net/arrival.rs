//! A NIC that arrives: which machine may go on with it, which frames it was delivered, and what its host
//! does when it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ferry_dataplane::net::announce;
use ferry_dataplane::net::frame::Mac;
use ferry_dataplane::net::lifecycle::{ActivatedHook, PortFrame};

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

/// What is known of a NIC that arrives, or arrived last.
#[derive(Default)]
pub(super) struct Arrival {
    /// It is to arrive: its first ring begins it.
    pending: bool,
    /// By a conversation with the source, which says when nothing more comes first.
    attended: bool,
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

    /// Whether it has arrived from the device of that origin.
    pub fn came_from(&self, origin: u64) -> bool {
        !self.pending && self.delivered.as_ref().is_some_and(|it| it.0 == origin)
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

    /// A conversation with the source has begun.
    pub fn attend(&mut self, activated: ActivatedHook) {
        *self = Arrival {
            pending: true,
            attended: true,
            activated: Some(activated),
            ..Arrival::default()
        };
    }

    /// A state came by way of the VMM alone.
    pub fn begin(&mut self) {
        *self = Arrival {
            pending: true,
            ..Arrival::default()
        };
    }

    /// Whoever spoke for the source is gone.
    pub fn unattended(&mut self) {
        (self.attended, self.activated) = (false, None);
    }

    pub fn expect(&mut self, bases: impl Iterator<Item = u16>, or_boots: bool) {
        self.bases = bases.map(Some).collect();
        self.or_boots = or_boots;
    }

    /// Whether a ring at `at` that begins at `base` is of the machine that the NIC came with.
    pub fn fits(&self, at: usize, base: u16) -> bool {
        match self.bases.get(at) {
            Some(Some(expected)) => base == *expected || self.or_boots && base == 0,
            _ => true,
        }
    }

    /// It has started: from now on it is its machine's to stop and start.
    pub fn started(&mut self, at: usize) {
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

    /// Its guest runs here: has that announced and told, if it has just arrived.
    pub fn activate(&mut self, name: &Arc<str>, mac: Mac, attachment: &Arc<Attachment>) -> bool {
        if !std::mem::take(&mut self.pending) {
            return false;
        }
        let (hook, attended) = (self.activated.take(), self.attended);
        let (ours, whose) = (attachment.clone(), name.clone());
        let spawned = thread::Builder::new()
            .name("ferry-announce".into())
            .spawn(move || announce_all(&ours, &whose, mac, (hook, attended)));
        if let Err(error) = spawned {
            tracing::error!(device = %name, %error, "the NIC is not announced here");
            settle(attachment, name);
        }
        true
    }
}

/// Nothing more comes before what came here.
pub(super) fn settle(attachment: &Attachment, name: &str) {
    for port in attachment.guests() {
        if let Err(error) = port.settle() {
            tracing::warn!(device = name, %error, "frames of the NIC wait");
        }
    }
}

fn announce_all(
    attachment: &Attachment,
    name: &str,
    mac: Mac,
    (hook, attended): (Option<ActivatedHook>, bool),
) {
    say(attachment, name, mac);
    // After it: what reaches the source from now on was on its way before.
    if let Some(hook) = hook {
        hook();
    }
    if !attended {
        settle(attachment, name);
    }
    let mut waited = Duration::ZERO;
    for due in ANNOUNCED_AGAIN {
        thread::sleep(due.saturating_sub(waited));
        waited = due;
        say(attachment, name, mac);
    }
    // Whatever has become of the source.
    settle(attachment, name);
}

fn say(attachment: &Attachment, name: &str, mac: Mac) {
    // The guest's queues may be on several wires; its addresses are the same.
    let mut spoken = Vec::new();
    for port in attachment.guests() {
        for address in port.spoken().unwrap_or_default() {
            if !spoken.contains(&address) {
                spoken.push(address);
            }
        }
    }
    let Some(port) = attachment.guests().first().copied() else {
        return;
    };
    if let Err(error) = port.say(announce::frames(mac, &spoken)) {
        tracing::warn!(device = name, %error, "the NIC is not announced");
    }
}
