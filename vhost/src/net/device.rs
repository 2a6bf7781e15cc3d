//! A NIC: its ports on a bridge, and who serves its rings.
//!
//! ```text
//!   ring 0, 2, 4, ...   the guest receives        ring 2p and 2p + 1 are pair p
//!   ring 1, 3, 5, ...   it sends
//!   ring 2n             control, where a front-end passes it on
//! ```
//!
//! That a front-end has the control queue served here is not negotiated: it starts that ring, or keeps it
//! to itself as QEMU does. For one that keeps it nothing is filtered here, whatever was negotiated.

use std::any::Any;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use ferry_dataplane::lifecycle::LifecycleError;
use ferry_dataplane::net::counters::PortTotals;
use ferry_dataplane::net::features::Offloads;
use ferry_dataplane::net::frame::Mac;
use ferry_dataplane::net::lifecycle::NicEvent;
use ferry_dataplane::net::limit::{RateLimit, SharedTime};
use ferry_dataplane::net::nic::NicPort;
use ferry_dataplane::net::queue::FrameQueue;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
};

use super::arrival::{Arrival, Fit};
use super::config::{self, NetOptions, NetOptionsError, feature};
use super::control::ring::ControlRing;
use super::control::standing::Standing;
use super::control::{ControlSettings, SettingsError};
use super::queue::{NetRing, Rules, RxVring, TxVring};
use super::transfer::Transfer;
use crate::device::{self, Device, Kind, PROTOCOL_FEATURES, Refusal, State};
use crate::vring::Vring;

/// Where a NIC's frames go.
#[derive(Debug)]
pub enum Attachment {
    /// All pairs to one port of a switch.
    Switch(NicPort),
    /// Each pair by a wire of its own to a queue of a tap.
    Wires(Vec<Wire>),
}

impl Attachment {
    /// The guest's side of the bridge.
    pub fn guests(&self) -> Vec<&NicPort> {
        match self {
            Attachment::Switch(port) => vec![port],
            Attachment::Wires(wires) => wires.iter().map(|wire| &wire.guest).collect(),
        }
    }

    /// The taps that it is wired to.
    pub fn taps(&self) -> &[Wire] {
        match self {
            Attachment::Switch(_) => &[],
            Attachment::Wires(wires) => wires,
        }
    }
}

/// The two ends of a wire.
#[derive(Debug)]
pub struct Wire {
    /// The guest's.
    pub guest: NicPort,
    /// The tap's.
    pub tap: NicPort,
}

/// A NIC on a bridge.
pub type NetDevice = Device<Net>;

/// The kind of device that a NIC is.
pub struct Net {
    name: Arc<str>,
    pub(super) options: NetOptions,
    pub(super) attachment: Arc<Attachment>,
    pub(super) standing: Arc<Standing>,
    /// Which ring is the control queue.
    control_at: AtomicUsize,
    control: Mutex<Option<ControlRing>>,
    /// Names this device, since it was made, to whom its frames go.
    pub(super) origin: u64,
    arrival: Arc<Mutex<Arrival>>,
    carried: Mutex<Carried>,
    /// What fills the buckets of its wires, which are on several workers.
    limit_time: SharedTime,
}

/// What went through a NIC that came from another host.
#[derive(Clone, Copy, Default)]
pub(super) struct Carried {
    /// There.
    pub elsewhere: PortTotals,
    /// Through the ports here, before it came.
    pub before: PortTotals,
    /// Whether the link was up here before it came.
    pub link_was_up: Option<bool>,
}

/// What a NIC keeps under its device's lock.
#[derive(Default)]
pub struct Own {
    /// Who is told, while it leaves.
    pub(super) told: Option<Sender<NicEvent>>,
    /// The front-end that was here when it took leave is gone.
    pub(super) is_alone: bool,
    /// How often it took leave.
    pub(super) leaves: u64,
    /// Of its state, by way of the VMM.
    transfer: Option<Transfer>,
}

/// Which way a ring goes.
#[derive(Clone, Copy)]
enum Way {
    Rx(u16),
    Tx(u16),
    Control,
    /// Behind the control queue of a driver that knows of fewer pairs.
    Nowhere,
}

impl NetDevice {
    /// A NIC without a front-end. `name` is for messages.
    pub fn new(
        name: &str,
        options: NetOptions,
        attachment: Attachment,
    ) -> Result<Arc<NetDevice>, NetOptionsError> {
        options.check()?;
        let attachment = Arc::new(attachment);
        let ports = u16::try_from(attachment.guests().len()).unwrap_or(u16::MAX);
        let kind = Net {
            name: name.into(),
            standing: Arc::new(Standing::new(&options, attachment.clone())),
            control_at: AtomicUsize::new(2 * usize::from(options.queue_pairs)),
            control: Mutex::new(None),
            options,
            attachment,
            origin: RandomState::new().build_hasher().finish(),
            arrival: Arc::default(),
            carried: Mutex::default(),
            limit_time: SharedTime::new(ports),
        };
        Ok(Device::without_front_end(kind, Own::default()))
    }

    /// What it offers.
    pub fn options(&self) -> &NetOptions {
        &self.kind.options
    }

    /// Its guest's side of the bridge.
    pub fn ports(&self) -> Vec<&NicPort> {
        self.kind.attachment.guests()
    }

    /// What went through the taps that it is wired to, here; `None` for a NIC on a switch. A tap receives
    /// what is written to it.
    pub fn tap_totals(&self) -> Option<PortTotals> {
        let mut totals = PortTotals::default();
        let taps = self.kind.attachment.taps();
        for wire in taps {
            wire.tap.counters().add_to(&mut totals);
        }
        (!taps.is_empty()).then_some(totals)
    }

    /// Whether frames come and go.
    pub fn link_is_up(&self) -> bool {
        self.kind.standing.link_is_up()
    }

    /// Lets frames come and go, or none. The guest is told, if it wants to know.
    pub fn set_link(&self, up: bool) -> Result<(), LifecycleError> {
        if self.kind.standing.set_link(up)? {
            let state = self.state();
            if state.has(feature::STATUS) {
                state.tell_config_changed(self.kind.name());
            }
        }
        Ok(())
    }

    /// Changes how much its guest may send, by all of its queues together.
    pub fn set_limit(&self, limit: Option<RateLimit>) -> Result<(), LifecycleError> {
        let ports = self.ports();
        let shared = (ports.len() > 1).then(|| self.kind.limit_time.clone());
        let mut ports = ports.into_iter();
        ports.try_for_each(|port| port.set_limit(limit, shared.clone()))
    }

    /// Asks the guest to announce itself to its network. False when it cannot be asked: its driver does
    /// not know how, or its VMM keeps the control queue and asks by itself.
    pub fn announce(&self) -> bool {
        let asked = self.kind.standing.announce();
        if asked {
            self.state().tell_config_changed(self.kind.name());
        }
        asked
    }

    /// Commands of the control queue that were refused.
    pub fn refused_commands(&self) -> u64 {
        self.kind.standing.refused()
    }

    /// What the guest, or the last one, has set by the control queue, and the features it did so with.
    /// `None` if its VMM keeps that queue.
    pub fn control_settings(&self) -> Option<(u64, ControlSettings)> {
        self.kind.standing.settings()
    }

    /// Takes over what a guest has set elsewhere that comes here with these features, before its control
    /// queue starts.
    pub fn take_over_settings(
        &self,
        features: u64,
        settings: ControlSettings,
    ) -> Result<(), SettingsError> {
        self.kind.standing.take_over(features, settings)
    }
}

impl Net {
    pub(super) fn arrival(&self) -> MutexGuard<'_, Arrival> {
        self.arrival.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn carried(&self) -> MutexGuard<'_, Carried> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was captured for the guest is for nobody.
    pub(super) fn drop_captured(&self) {
        for port in self.attachment.guests() {
            if let Err(error) = port.capture(false) {
                tracing::warn!(device = %self.name, %error, "what was captured is kept");
            }
        }
    }

    /// A driver that begins anew is not the one whose addresses are known; and what waits for the
    /// machine that was here last is not for another.
    fn forget_others(&self, state: &State<Net>, at: usize, ring: &Vring) -> Result<(), Refusal> {
        let base = ring.next_avail();
        let arrival = self.arrival();
        let other = if arrival.is_pending() {
            arrival.is_another(at, base)
        } else {
            state.left_at(at).is_some_and(|left| left != base)
        };
        let anew = base == 0 && self.begins_anew(state, at);
        // One that arrives has brought its addresses.
        let forgotten = anew && (other || !arrival.is_pending());
        drop(arrival);
        for port in self.attachment.guests() {
            if other {
                port.drop_kept()?;
            }
            if forgotten {
                port.set_spoken(Vec::new())?;
            }
        }
        Ok(())
    }

    /// Whether all receive queues begin with this one: a driver goes on at 0 with those that never
    /// received.
    fn begins_anew(&self, state: &State<Net>, at: usize) -> bool {
        let is_rx = |other: &usize| matches!(self.way(*other), Way::Rx(_));
        let others = (0..state.rings.len()).filter(is_rx);
        let mut others = others.filter(|other| *other != at);
        others.all(|other| !state.rings[other].running && state.rings[other].base == 0)
    }

    fn way(&self, at: usize) -> Way {
        let pair = u16::try_from(at / 2).unwrap_or(u16::MAX);
        match at % 2 {
            _ if at == self.control_at.load(Ordering::Relaxed) => Way::Control,
            _ if pair >= self.options.queue_pairs => Way::Nowhere,
            0 => Way::Rx(pair),
            _ => Way::Tx(pair),
        }
    }

    fn control(&self) -> MutexGuard<'_, Option<ControlRing>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control queue is behind the pairs that the driver knows of: one, without MQ (section 5.1.2).
    fn place_control(&self, features: u64) {
        let has = |bit: u64| features & bit != 0;
        let one = has(feature::CTRL_VQ) && !has(feature::MQ);
        let pairs = if one { 1 } else { self.options.queue_pairs };
        self.control_at
            .store(2 * usize::from(pairs), Ordering::Relaxed);
    }

    /// The port of a pair, and which queue of it that is.
    fn port(&self, pair: u16) -> (&NicPort, u16) {
        match &*self.attachment {
            Attachment::Switch(port) => (port, pair),
            Attachment::Wires(wires) => (&wires[usize::from(pair)].guest, 0),
        }
    }

    fn rules(state: &State<Net>) -> Rules {
        let features = state.features;
        let mergeable = state.has(feature::MRG_RXBUF);
        let modern = state.has(device::feature::VERSION_1);
        Rules {
            sends: Offloads::sent_with(features),
            takes: Offloads::taken_with(features),
            mergeable,
            header_bytes: Rules::header_bytes(modern, mergeable),
        }
    }

    /// A tap on a wire leaves unfinished what the guest takes so.
    fn set_tap_offloads(&self, takes: Offloads) -> Result<(), Refusal> {
        if let Attachment::Wires(wires) = &*self.attachment {
            for wire in wires {
                wire.tap.set_offloads(takes)?;
            }
        }
        Ok(())
    }

    fn on_running<Q: FrameQueue>(
        &self,
        at: usize,
        task: impl FnOnce(&mut Q) + Send + 'static,
    ) -> Result<(), Refusal> {
        let changed = move |queue: &mut dyn FrameQueue| {
            let queue: &mut dyn Any = queue;
            if let Some(queue) = queue.downcast_mut::<Q>() {
                task(queue);
            }
        };
        match self.way(at) {
            Way::Rx(pair) => {
                let (port, queue) = self.port(pair);
                port.with_rx(queue, changed)?;
            }
            Way::Tx(pair) => {
                let (port, queue) = self.port(pair);
                port.with_tx(queue, changed)?;
            }
            Way::Control | Way::Nowhere => {}
        }
        Ok(())
    }
}

impl Kind for Net {
    type Own = Own;

    fn name(&self) -> &str {
        &self.name
    }

    fn num_queues(&self) -> u16 {
        2 * self.options.queue_pairs + u16::from(self.options.control.is_some())
    }

    fn queue_num(&self) -> u64 {
        self.options.queue_pairs.into()
    }

    fn features(&self) -> u64 {
        config::features(&self.options)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::DEVICE_STATE
    }

    fn config(&self, _state: &State<Net>) -> Vec<u8> {
        config::space(&self.options, self.standing.now()).to_vec()
    }

    fn may_start(&self, at: usize, base: u16) -> bool {
        let fit = self.arrival().fits(at, base);
        match fit {
            Fit::Yes => {}
            Fit::NotYet => tracing::info!(
                device = %self.name, queue = at,
                "the ring waits for the state of the machine that is to arrive"
            ),
            Fit::No => tracing::error!(
                device = %self.name, queue = at, base,
                "the ring does not begin where the NIC's state says it stopped: this is not the machine \
                 that the NIC came with, and it is not served"
            ),
        }
        fit == Fit::Yes
    }

    fn start(
        &self,
        state: &State<Net>,
        at: usize,
        name: Arc<str>,
        ring: Vring,
    ) -> Result<(), Refusal> {
        let rules = Net::rules(state);
        match self.way(at) {
            Way::Rx(pair) => {
                self.set_tap_offloads(rules.takes)?;
                self.forget_others(state, at, &ring)?;
                let (port, queue) = self.port(pair);
                port.capture(true)?;
                port.start_rx(queue, Box::new(RxVring::new(name, ring, rules)))?;
                let announcer = self.arrival().activate();
                if let Some(announcer) = announcer {
                    let now = self.standing.now();
                    announcer.start(&self.name, Mac(now.mac), &self.attachment, &self.arrival);
                    // Besides what its host says of it.
                    if self.standing.announce() || !now.link_up {
                        state.tell_config_changed(&self.name);
                    }
                }
            }
            Way::Tx(pair) => {
                let (port, queue) = self.port(pair);
                port.start_tx(queue, Box::new(TxVring::new(name, ring, rules)))?;
            }
            Way::Control => {
                self.standing.driven(ring.next_avail())?;
                let served = ControlRing::start(name, ring, self.standing.clone());
                *self.control() = Some(served.map_err(|error| {
                    Refusal::invalid(format_args!(
                        "the control queue cannot be served: {error}; raise the limits of threads and of \
                         open files (TasksMax, LimitNOFILE)"
                    ))
                })?);
            }
            Way::Nowhere => {
                return Err(Refusal::invalid(format_args!(
                    "queue {at} is none of this driver's: without MQ it has one pair and a control queue"
                )));
            }
        }
        self.arrival().started(at);
        Ok(())
    }

    fn stop(&self, at: usize) -> Result<Option<Vring>, Refusal> {
        let ring = match self.way(at) {
            Way::Rx(pair) => {
                let (port, queue) = self.port(pair);
                let stopped = port.stop_rx(queue)?;
                stopped.and_then(|queue| ring_of::<RxVring>(queue))
            }
            Way::Tx(pair) => {
                let (port, queue) = self.port(pair);
                ring_of::<TxVring>(port.stop_tx(queue)?)
            }
            Way::Control => {
                let served = self.control().take();
                served.and_then(ControlRing::stop)
            }
            Way::Nowhere => None,
        };
        Ok(ring)
    }

    fn with_ring(
        &self,
        at: usize,
        task: impl FnOnce(&mut Vring) + Send + 'static,
    ) -> Result<(), Refusal> {
        match self.way(at) {
            Way::Rx(_) => self.on_running(at, |queue: &mut RxVring| task(queue.ring_mut())),
            Way::Tx(_) => self.on_running(at, |queue: &mut TxVring| task(queue.ring_mut())),
            Way::Control => {
                if let Some(served) = &*self.control() {
                    served.with(task);
                }
                Ok(())
            }
            Way::Nowhere => Ok(()),
        }
    }

    fn features_changed(&self, state: &State<Net>) -> Result<(), Refusal> {
        if state.running().next().is_none() {
            self.place_control(state.features);
        }
        let runs = self.control().is_some();
        self.standing.negotiated(state.features, runs)?;
        let rules = Net::rules(state);
        for at in state.running() {
            match self.way(at) {
                Way::Rx(_) => self.on_running(at, move |it: &mut RxVring| it.set_rules(rules))?,
                Way::Tx(_) => self.on_running(at, move |it: &mut TxVring| it.set_rules(rules))?,
                Way::Control | Way::Nowhere => {}
            }
        }
        self.set_tap_offloads(rules.takes)
    }

    fn reset(&self, _state: &mut State<Net>) {
        self.arrival().was_reset();
        self.place_control(0);
        if let Err(error) = self.standing.reset() {
            tracing::warn!(device = %self.name, %error, "the filters stay as the driver set them");
        }
    }

    fn stopped(&self, state: &State<Net>) {
        self.arrival().is_here();
        if let Some(told) = &state.own.told
            && state.running().next().is_none()
        {
            let _ = told.try_send(NicEvent::Stopped);
        }
    }

    /// What came for a guest that is gone is for nobody, unless it has gone elsewhere.
    fn disconnected(&self, state: &mut State<Net>) {
        self.place_control(0);
        if !self.arrival().is_pending()
            && let Err(error) = self.standing.left()
        {
            tracing::warn!(device = %self.name, %error, "the filters stay as the driver set them");
        }
        state.own.is_alone = true;
        let mut arrival = self.arrival();
        arrival.is_here();
        arrival.will_not_begin();
        if arrival.is_abandoned() {
            self.does_not_arrive(state, &mut arrival);
        } else if state.own.told.is_none() && !arrival.is_pending() {
            self.drop_captured();
        }
    }

    fn set_device_state(
        &self,
        state: &mut State<Net>,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>, Refusal> {
        if state.own.transfer.as_ref().is_some_and(Transfer::is_busy) {
            return Err(Refusal::invalid("the device's state is carried already"));
        }
        state.own.transfer = Some(match direction {
            VhostTransferStateDirection::SAVE => Transfer::save(self.export_state(state)?, file)?,
            VhostTransferStateDirection::LOAD => Transfer::load(file)?,
        });
        Ok(None)
    }

    fn check_device_state(&self, state: &mut State<Net>) -> Result<(), Refusal> {
        let Some(transfer) = state.own.transfer.take() else {
            return Err(Refusal::invalid("no device state was carried"));
        };
        if let Some(loaded) = transfer.end()? {
            self.import_state(state, &loaded)?;
        }
        Ok(())
    }
}

/// The ring of a queue that was stopped.
fn ring_of<Q: NetRing>(queue: Box<dyn Any + Send>) -> Option<Vring> {
    queue.downcast::<Q>().ok().map(|queue| queue.into_ring())
}
