//! A NIC: its ports on a bridge, and who serves its rings.
//!
//! ```text
//!   ring 0, 2, 4, ...   the guest receives        ring 2p and 2p + 1 are pair p
//!   ring 1, 3, 5, ...   it sends
//!   ring 2n             control, where a front-end passes it on
//! ```

use std::any::Any;
use std::sync::Arc;

use ferry_dataplane::net::features::Offloads;
use ferry_dataplane::net::nic::NicPort;
use ferry_dataplane::net::queue::FrameQueue;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::config::{self, NetOptions, NetOptionsError, Now, feature};
use super::queue::{NetRing, Rules, RxVring, TxVring};
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
    options: NetOptions,
    attachment: Attachment,
}

/// Which way a ring goes.
#[derive(Clone, Copy)]
enum Way {
    Rx(u16),
    Tx(u16),
    Control,
}

impl NetDevice {
    /// A NIC without a front-end. `name` is for messages.
    pub fn new(
        name: &str,
        options: NetOptions,
        attachment: Attachment,
    ) -> Result<Arc<NetDevice>, NetOptionsError> {
        options.check()?;
        let kind = Net {
            name: name.into(),
            options,
            attachment,
        };
        Ok(Device::without_front_end(kind, ()))
    }

    /// What it offers.
    pub fn options(&self) -> &NetOptions {
        &self.kind.options
    }

    /// Its guest's side of the bridge.
    pub fn ports(&self) -> Vec<&NicPort> {
        match &self.kind.attachment {
            Attachment::Switch(port) => vec![port],
            Attachment::Wires(wires) => wires.iter().map(|wire| &wire.guest).collect(),
        }
    }
}

impl Net {
    fn way(&self, at: usize) -> Way {
        let pair = u16::try_from(at / 2).unwrap_or(u16::MAX);
        match at % 2 {
            _ if pair >= self.options.queue_pairs => Way::Control,
            0 => Way::Rx(pair),
            _ => Way::Tx(pair),
        }
    }

    /// The port of a pair, and which queue of it that is.
    fn port(&self, pair: u16) -> (&NicPort, u16) {
        match &self.attachment {
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
        if let Attachment::Wires(wires) = &self.attachment {
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
            Way::Control => {}
        }
        Ok(())
    }
}

impl Kind for Net {
    type Own = ();

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
        PROTOCOL_FEATURES | VhostUserProtocolFeatures::CONFIG
    }

    fn config(&self, _state: &State<Net>) -> Vec<u8> {
        let now = Now {
            mac: self.options.mac.unwrap_or_default(),
            link_up: true,
            announce: false,
        };
        config::space(&self.options, now).to_vec()
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
                let (port, queue) = self.port(pair);
                port.capture(true)?;
                port.start_rx(queue, Box::new(RxVring::new(name, ring, rules)))?;
            }
            Way::Tx(pair) => {
                let (port, queue) = self.port(pair);
                port.start_tx(queue, Box::new(TxVring::new(name, ring, rules)))?;
            }
            Way::Control => {
                return Err(Refusal::invalid(
                    "the control queue is not served here; keep it in the VMM",
                ));
            }
        }
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
            Way::Control => None,
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
            Way::Control => Ok(()),
        }
    }

    fn features_changed(&self, state: &State<Net>) -> Result<(), Refusal> {
        let rules = Net::rules(state);
        for at in state.running() {
            match self.way(at) {
                Way::Rx(_) => self.on_running(at, move |it: &mut RxVring| it.set_rules(rules))?,
                Way::Tx(_) => self.on_running(at, move |it: &mut TxVring| it.set_rules(rules))?,
                Way::Control => {}
            }
        }
        self.set_tap_offloads(rules.takes)
    }

    /// What came for a guest that is gone is for nobody.
    fn disconnected(&self, _state: &mut State<Net>) {
        for pair in 0..self.options.queue_pairs {
            let (port, _) = self.port(pair);
            if let Err(error) = port.capture(false) {
                tracing::warn!(device = %self.name, %error, "what was captured is kept");
            }
        }
    }
}

/// The ring of a queue that was stopped.
fn ring_of<Q: NetRing>(queue: Box<dyn Any + Send>) -> Option<Vring> {
    queue.downcast::<Q>().ok().map(|queue| queue.into_ring())
}
