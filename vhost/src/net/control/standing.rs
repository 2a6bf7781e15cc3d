//! What a NIC's guest and its operator have set, and the gates of its ports that follow from it.
//!
//! Shared by the device, whose front-end negotiates and goes, and by the thread that serves the control
//! queue. Under one lock, which is held until the workers have followed: so the gates are those of the
//! last change, whoever made it. No worker takes the lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_dataplane::lifecycle::LifecycleError;
use ferry_dataplane::net::filter::Gate;

use super::{Ack, ControlSettings, ControlState, SettingsError};
use crate::device::feature::LOG_ALL;
use crate::net::Mac;
use crate::net::config::{NetOptions, Now, feature};
use crate::net::device::Attachment;

/// What is set now, and where.
#[derive(Debug)]
pub(in crate::net) struct Standing {
    attachment: Arc<Attachment>,
    own: Own,
    inner: Mutex<Inner>,
}

/// A command as the guest sent it.
pub(in crate::net) struct Command<'a> {
    pub class: u8,
    pub command: u8,
    pub data: &'a [u8],
}

/// What the NIC is.
#[derive(Debug, Clone, Copy)]
struct Own {
    mac: Mac,
    fixed_mac: bool,
    pairs: u16,
}

#[derive(Debug)]
struct Inner {
    control: ControlState,
    link_up: bool,
    /// The guest has its control queue here. Until then a VMM may have it, and everything passes.
    driven: bool,
    /// Its front-end is gone. What it set is kept for who asks, and ends when another negotiates.
    stale: bool,
    /// Set by another device, and not by this one's driver yet.
    taken_over: bool,
    /// What the ports were told last.
    told: Gate,
    /// Commands refused of drivers before this one.
    refused: u64,
}

impl Own {
    fn begin(self, features: u64) -> ControlState {
        let control = ControlState::new(features, self.mac, self.pairs);
        if self.fixed_mac {
            control.keeping_its_mac()
        } else {
            control
        }
    }
}

impl Inner {
    fn begin(&mut self, own: Own, features: u64) {
        self.refused = self.refused.saturating_add(self.control.refused());
        self.control = own.begin(features);
        (self.driven, self.stale, self.taken_over) = (false, false, false);
    }

    fn gate(&self) -> Gate {
        let filter = self.control.filter();
        Gate {
            link_up: self.link_up,
            filter: (self.driven && !filter.mode.promiscuous).then(|| filter.clone()),
            rx_queues: if self.driven {
                self.control.queue_pairs()
            } else {
                u16::MAX
            },
        }
    }
}

impl Standing {
    pub fn new(options: &NetOptions, attachment: Arc<Attachment>) -> Standing {
        let own = Own {
            mac: options.mac.unwrap_or_default(),
            fixed_mac: options.fixed_mac,
            pairs: options.queue_pairs,
        };
        Standing {
            attachment,
            own,
            inner: Mutex::new(Inner {
                control: own.begin(0),
                link_up: true,
                driven: false,
                stale: true,
                taken_over: false,
                told: Gate::OPEN,
                refused: 0,
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, inner: &mut Inner) -> Result<(), LifecycleError> {
        let gate = inner.gate();
        if gate == inner.told {
            return Ok(());
        }
        for port in self.attachment.guests() {
            // A wire has one pair of queues, whichever of the guest's that is.
            let rx_queues = match &*self.attachment {
                Attachment::Switch(_) => gate.rx_queues,
                Attachment::Wires(_) => u16::MAX,
            };
            port.set_gate(Gate {
                rx_queues,
                ..gate.clone()
            })?;
        }
        inner.told = gate;
        Ok(())
    }

    /// The front-end has said what its driver knows. `runs`: the control queue does, here.
    pub fn negotiated(&self, features: u64, runs: bool) -> Result<(), LifecycleError> {
        let features = features & !LOG_ALL;
        let mut inner = self.inner();
        if inner.stale || inner.control.features() != features {
            inner.begin(self.own, features);
            inner.driven = runs;
        }
        self.tell(&mut inner)
    }

    /// The control queue starts here, with `base` as its next entry: with 0 for a driver that has said
    /// nothing by it yet, unless that was elsewhere.
    pub fn driven(&self, base: u16) -> Result<(), LifecycleError> {
        let mut inner = self.inner();
        if base == 0 && !inner.taken_over {
            let features = inner.control.features();
            inner.begin(self.own, features);
        }
        (inner.driven, inner.taken_over) = (true, false);
        self.tell(&mut inner)
    }

    /// The front-end is gone.
    pub fn left(&self) -> Result<(), LifecycleError> {
        let mut inner = self.inner();
        (inner.driven, inner.stale) = (false, true);
        self.tell(&mut inner)
    }

    /// The device was reset.
    pub fn reset(&self) -> Result<(), LifecycleError> {
        let mut inner = self.inner();
        inner.begin(self.own, 0);
        inner.stale = true;
        self.tell(&mut inner)
    }

    /// Carries out commands, as many as `with` finds, and counts what it finds to be none; their effect is there when this returns.
    pub fn command<T>(
        &self,
        with: impl FnOnce(&mut dyn FnMut(Option<Command<'_>>) -> Ack) -> T,
    ) -> Result<T, LifecycleError> {
        let mut inner = self.inner();
        let control = &mut inner.control;
        let found = with(&mut |command| match command {
            Some(it) => control.apply(it.class, it.command, it.data),
            None => {
                control.refuse();
                Ack::Err
            }
        });
        self.tell(&mut inner)?;
        Ok(found)
    }

    /// Commands refused so far.
    pub fn refused(&self) -> u64 {
        let inner = self.inner();
        inner.refused.saturating_add(inner.control.refused())
    }

    /// What the guest sees of it.
    pub fn now(&self) -> Now {
        let inner = self.inner();
        let own = inner.stale && !inner.taken_over;
        Now {
            mac: if own {
                self.own.mac
            } else {
                inner.control.mac()
            },
            link_up: inner.link_up,
            announce: !own && inner.control.announcing(),
        }
    }

    pub fn link_is_up(&self) -> bool {
        self.inner().link_up
    }

    /// Whether that is a change.
    pub fn set_link(&self, up: bool) -> Result<bool, LifecycleError> {
        let mut inner = self.inner();
        let before = std::mem::replace(&mut inner.link_up, up);
        self.tell(&mut inner).map(|()| before != up)
    }

    /// Asks the guest to announce itself, if it has its control queue here and knows how.
    pub fn announce(&self) -> bool {
        let mut inner = self.inner();
        let has = inner.control.features() & feature::CTRL_VQ != 0;
        let here = inner.driven || inner.taken_over;
        has && here && inner.control.announce()
    }

    /// What the guest, or the last one, has set, and the features that it did so with; `None` for one
    /// that has its control queue elsewhere.
    pub fn settings(&self) -> Option<(u64, ControlSettings)> {
        let inner = self.inner();
        let control = &inner.control;
        let has = control.features() & feature::CTRL_VQ != 0;
        has.then(|| (control.features(), control.settings()))
    }

    /// Takes over what a guest has set elsewhere, that comes here with these features.
    pub fn take_over(&self, features: u64, settings: ControlSettings) -> Result<(), SettingsError> {
        let mut inner = self.inner();
        let mut control = self.own.begin(features & !LOG_ALL);
        control.take_over(settings)?;
        inner.refused = inner.refused.saturating_add(inner.control.refused());
        inner.control = control;
        (inner.stale, inner.taken_over) = (false, true);
        Ok(())
    }
}
