//! A NIC as a migration sees it.

use crossbeam_channel::Sender;
use ferry_dataplane::lifecycle::LifecycleError;
use ferry_dataplane::net::announce::Address;
use ferry_dataplane::net::counters::PortTotals;
use ferry_dataplane::net::filter::{MacTable, RxMode};
use ferry_dataplane::net::frame::Mac;
use ferry_dataplane::net::lifecycle::{ActivatedHook, Captured, NicEvent, NicLifecycle, PortFrame};
use ferry_migration::schema::net::{
    ADDRESSES_MAX, NetState, STATE_FRAME_BYTES_MAX, frame_v1, port_frame,
};
use ferry_migration::schema::net_v1::{AddressV1, ControlV1, CountersV1, NetV1};
use ferry_migration::schema::queue_v1::QueueV1;

use super::arrival;
use super::control::ControlSettings;
use super::device::{Carried, Net, NetDevice};
use crate::device::{Kind, State, feature as common};

/// Counts, as they are carried.
struct Totals(PortTotals);

impl Totals {
    fn to_v1(&self) -> CountersV1 {
        let it = &self.0;
        CountersV1 {
            rx_frames: it.rx_frames,
            rx_bytes: it.rx_bytes,
            tx_frames: it.tx_frames,
            tx_bytes: it.tx_bytes,
            dropped: [
                it.no_buffers,
                it.spoofed,
                it.malformed,
                it.limited,
                it.too_large,
                it.no_link,
                it.capture_lost,
                it.filtered,
                it.broken_queues,
            ],
        }
    }

    fn of_v1(counters: &CountersV1) -> PortTotals {
        let [
            no_buffers,
            spoofed,
            malformed,
            limited,
            too_large,
            no_link,
            capture_lost,
            filtered,
            broken_queues,
        ] = counters.dropped;
        PortTotals {
            rx_frames: counters.rx_frames,
            rx_bytes: counters.rx_bytes,
            tx_frames: counters.tx_frames,
            tx_bytes: counters.tx_bytes,
            no_buffers,
            spoofed,
            malformed,
            limited,
            too_large,
            no_link,
            capture_lost,
            filtered,
            broken_queues,
        }
    }
}

fn bad(error: impl std::fmt::Display) -> LifecycleError {
    LifecycleError::BadState(error.to_string())
}

/// What a guest has set by the control queue, as it is sent.
fn control_v1(it: &ControlSettings) -> ControlV1 {
    let mode = &it.mode;
    let bits = [
        mode.promiscuous,
        mode.all_multicast,
        mode.all_unicast,
        mode.no_multicast,
        mode.no_unicast,
        mode.no_broadcast,
    ];
    let table = |table: &MacTable| (!table.overflow()).then(|| table.macs().to_vec());
    ControlV1 {
        mac: it.mac,
        receive_mode: (0..).zip(bits).map(|(bit, on)| u8::from(on) << bit).sum(),
        unicast: table(&it.unicast),
        multicast: table(&it.multicast),
        vlans: it.vlans.map(|words| words.to_vec()),
        active_pairs: it.pairs,
        announcing: it.announcing,
    }
}

/// What was sent of it. Bits of modes that are not known yet are not set.
fn settings(it: &ControlV1) -> ControlSettings {
    let bit = |bit: u8| it.receive_mode >> bit & 1 != 0;
    let table = |macs: &Option<Vec<_>>| match macs {
        Some(macs) => MacTable::new(macs.iter().copied()),
        None => MacTable::overflowing(),
    };
    let words = |words: &Vec<u64>| <[u64; 64]>::try_from(words.as_slice()).ok();
    ControlSettings {
        mac: it.mac,
        mode: RxMode {
            promiscuous: bit(0),
            all_multicast: bit(1),
            all_unicast: bit(2),
            no_multicast: bit(3),
            no_unicast: bit(4),
            no_broadcast: bit(5),
        },
        unicast: table(&it.unicast),
        multicast: table(&it.multicast),
        vlans: it.vlans.as_ref().and_then(words),
        pairs: it.active_pairs,
        announcing: it.announcing,
    }
}

impl Net {
    /// What was imported and delivered is nobody's.
    pub(super) fn does_not_arrive(&self, state: &State<Net>, arrival: &mut arrival::Arrival) {
        self.drop_captured();
        if arrival.is_imported()
            && let Err(error) = self.forget_imported(state)
        {
            tracing::warn!(device = %self.name(), %error, "a guest that did not arrive has left its settings");
        }
        arrival.end();
    }

    fn forget_imported(&self, state: &State<Net>) -> Result<(), LifecycleError> {
        let carried = std::mem::take(&mut *self.carried());
        if let Some(up) = carried.link_was_up {
            self.standing.set_link(up)?;
        }
        for port in self.attachment.guests() {
            port.set_spoken(Vec::new())?;
        }
        self.standing.reset()?;
        // What a front-end that waits here has said holds.
        if state.connected {
            self.standing.negotiated(state.features, false)?;
        }
        Ok(())
    }

    fn totals(&self) -> PortTotals {
        let carried = *self.carried();
        let mut totals = carried.elsewhere;
        totals.add_since(&carried.before, &self.local_totals());
        totals
    }

    fn local_totals(&self) -> PortTotals {
        let mut totals = PortTotals::default();
        for port in self.attachment.guests() {
            port.counters().add_to(&mut totals);
        }
        totals
    }

    /// The device without its queues.
    fn net_v1(&self, state: &State<Net>) -> Result<NetV1, LifecycleError> {
        let addresses = arrival::spoken(&self.attachment)?;
        let first = addresses.len().saturating_sub(ADDRESSES_MAX);
        let address = |it: &Address| AddressV1 {
            vlan: it.vlan,
            mac: it.mac.0,
            ip: it.ip,
            age_s: it.age_s,
        };
        let acked_features = self.machine(state).0;
        // What the last guest has set is not of one that has yet to begin.
        let settings = self.standing.settings().filter(|_| acked_features != 0);
        Ok(NetV1 {
            origin: self.origin,
            mac: self.options.mac.unwrap_or_default(),
            mtu: self.options.mtu.unwrap_or_default(),
            queue_pairs: self.options.queue_pairs,
            acked_features,
            link_up: self.standing.link_is_up(),
            control: settings.map(|(_, it)| control_v1(&it)),
            addresses: addresses[first..].iter().map(address).collect(),
            counters: Totals(self.totals()).to_v1(),
        })
    }

    /// Features and rings of the machine that drives the NIC, did so last, or has yet to begin.
    fn machine(&self, state: &State<Net>) -> (u64, Vec<QueueV1>) {
        if let Some(machine) = self.arrival().machine() {
            return machine.clone();
        }
        let (features, rings) = state.machine();
        // Of one whose front-end is gone, with another here: that may go on, or boot.
        let features = if state.connected && state.has_departed() {
            0
        } else {
            features
        };
        let rings = (0u16..).zip(rings);
        let queues = rings
            .map(|(index, ring)| QueueV1 {
                index,
                size: ring.reported_size(),
                next_avail: ring.base,
                used_idx: ring.used_idx,
                enabled: ring.enabled,
                event_idx: features & common::EVENT_IDX != 0,
            })
            .collect();
        (features, queues)
    }

    pub(super) fn frames_in_hand(&self) -> Result<Vec<PortFrame>, LifecycleError> {
        let mut frames = Vec::new();
        for (port, there) in (0u16..).zip(self.attachment.guests()) {
            let kept = there.in_hand()?.into_iter();
            frames.extend(kept.map(|frame| PortFrame { port, frame }));
        }
        Ok(frames)
    }

    pub(super) fn export_state(&self, state: &State<Net>) -> Result<Vec<u8>, LifecycleError> {
        if state.running().next().is_some() {
            return Err(LifecycleError::Refused(
                "its rings run; the VM must be stopped first".into(),
            ));
        }
        let mut room = STATE_FRAME_BYTES_MAX;
        let mut frames = Vec::new();
        for frame in self.frames_in_hand()? {
            let Some(left) = room.checked_sub(frame.frame.bytes.len() + 64) else {
                break;
            };
            room = left;
            frames.push(frame_v1(&frame));
        }
        NetState::new(self.net_v1(state)?, self.machine(state).1, frames)
            .and_then(|state| state.encode())
            .map_err(bad)
    }

    fn check_net(&self, theirs: &NetV1) -> Result<(), LifecycleError> {
        let refuse = |why: String| Err(LifecycleError::BadState(why));
        let mac = self.options.mac.unwrap_or_default();
        if theirs.mac != mac {
            return refuse(format!(
                "the NIC there is {}, and the one here {}; give both the same --mac",
                Mac(theirs.mac),
                Mac(mac)
            ));
        }
        if theirs.queue_pairs != self.options.queue_pairs {
            return refuse(format!(
                "the NIC there has {} pairs of queues, and the one here {}; give both the same \
                 --queue-pairs",
                theirs.queue_pairs, self.options.queue_pairs
            ));
        }
        if theirs.mtu != self.options.mtu.unwrap_or_default() {
            return refuse(format!(
                "the NIC there has an MTU of {}, and the one here of {}; give both the same --mtu",
                theirs.mtu,
                self.options.mtu.unwrap_or_default()
            ));
        }
        let unknown = theirs.acked_features & !self.features();
        if unknown != 0 {
            return refuse(format!(
                "the guest uses features {unknown:#x}, which are not offered here"
            ));
        }
        Ok(())
    }

    pub(super) fn import_state(
        &self,
        state: &mut State<Net>,
        envelope: &[u8],
    ) -> Result<(), LifecycleError> {
        let incoming = NetState::decode(envelope).map_err(bad)?;
        self.check_net(&incoming.net)?;
        if state.running().next().is_some() {
            return Err(LifecycleError::Refused(
                "a guest runs on the NIC here already".into(),
            ));
        }
        let mut arrival = self.arrival();
        if !arrival.is_pending() {
            for port in self.attachment.guests() {
                port.arrive()?;
            }
            arrival.begin();
        }
        if let Some(control) = &incoming.net.control {
            let features = incoming.net.acked_features;
            let taken = self.standing.take_over(features, settings(control));
            taken.map_err(bad)?;
        }
        let link_was_up = self.standing.link_is_up();
        self.standing.set_link(incoming.net.link_up)?;
        arrival.expect(incoming.net.acked_features, incoming.queues);
        let mut carried = self.carried();
        *carried = Carried {
            elsewhere: Totals::of_v1(&incoming.net.counters),
            before: self.local_totals(),
            // A state may come twice.
            link_was_up: carried.link_was_up.or(Some(link_was_up)),
        };
        drop(carried);
        let address = |it: &AddressV1| Address {
            vlan: it.vlan,
            mac: Mac(it.mac),
            ip: it.ip,
            age_s: it.age_s,
        };
        let addresses: Vec<Address> = incoming.net.addresses.iter().map(address).collect();
        for port in self.attachment.guests() {
            port.set_spoken(addresses.clone())?;
        }
        let frames = incoming.frames.into_iter().map(port_frame).collect();
        let frames = arrival.new_ones(incoming.net.origin, frames);
        drop(arrival);
        self.pass_on(frames)
    }

    /// Each to the port that has the place of the source's.
    fn pass_on(&self, frames: Vec<PortFrame>) -> Result<(), LifecycleError> {
        let ports = self.attachment.guests();
        let mut of_port: Vec<Vec<Captured>> = ports.iter().map(|_| Vec::new()).collect();
        let count = of_port.len();
        for it in frames {
            of_port[usize::from(it.port) % count].push(it.frame);
        }
        for (port, frames) in ports.into_iter().zip(of_port) {
            if !frames.is_empty() {
                port.deliver(frames)?;
            }
        }
        Ok(())
    }
}

impl NetDevice {
    /// What went through the NIC, on whatever host it was. Does not wait for its front-end.
    pub fn totals(&self) -> PortTotals {
        self.kind.totals()
    }
}

impl NicLifecycle for NetDevice {
    fn ports(&self) -> usize {
        self.kind.attachment.guests().len()
    }

    fn shape(&self) -> Result<Vec<u8>, LifecycleError> {
        let state = self.state();
        let queues = self.kind.machine(&state).1;
        NetState::new(self.kind.net_v1(&state)?, queues, Vec::new())
            .and_then(|state| state.encode())
            .map_err(bad)
    }

    fn check(&self, envelope: &[u8]) -> Result<(), LifecycleError> {
        let theirs = NetState::decode(envelope).map_err(bad)?;
        self.kind.check_net(&theirs.net)
    }

    fn leave(&self, told: Sender<NicEvent>) -> Result<u64, LifecycleError> {
        let mut state = self.state();
        let mut arrival = self.kind.arrival();
        // Of a machine without a driver no ring says that it is here.
        if arrival.is_pending() && !(arrival.is_imported() && state.connected) {
            return Err(LifecycleError::Refused(
                "the NIC is to arrive here; its guest is elsewhere".into(),
            ));
        }
        arrival.leave();
        drop(arrival);
        for (called, port) in (0u16..).zip(self.kind.attachment.guests()) {
            port.capture(true)?;
            port.leave(told.clone(), called)?;
        }
        if state.running().next().is_none() {
            let _ = told.try_send(NicEvent::Stopped);
        }
        (state.own.told, state.own.is_alone) = (Some(told), !state.connected);
        state.own.leaves += 1;
        Ok(state.own.leaves)
    }

    fn export(&self) -> Result<Vec<u8>, LifecycleError> {
        self.kind.export_state(&self.state())
    }

    fn in_hand(&self) -> Result<Vec<PortFrame>, LifecycleError> {
        self.kind.frames_in_hand()
    }

    fn gone(&self) -> Result<(), LifecycleError> {
        self.kind.arrival().gone();
        let ports = self.kind.attachment.guests();
        ports.into_iter().try_for_each(|port| port.gone())
    }

    fn stay(&self, leave: u64) {
        let mut state = self.state();
        if state.own.leaves != leave || state.own.told.take().is_none() {
            return;
        }
        for port in self.kind.attachment.guests() {
            if let Err(error) = port.stay() {
                tracing::warn!(device = self.kind.name(), %error, "the NIC's frames go elsewhere");
            }
        }
        if !state.connected {
            self.kind.drop_captured();
        }
    }

    fn is_attached(&self) -> bool {
        self.state().connected
    }

    fn arrive(&self, moving: u128, activated: ActivatedHook) -> Result<u64, LifecycleError> {
        let refuse = |why: &str| Err(LifecycleError::Refused(why.into()));
        let mut state = self.state();
        let mut arrival = self.kind.arrival();
        if state.running().next().is_some() {
            return refuse(
                "a guest runs on the NIC there already; a machine arrives at one that waits, as \
                 under -incoming",
            );
        }
        if state.has_run && !arrival.has_gone() {
            return refuse(
                "a machine that stands still is on the NIC there already; a machine arrives at one that \
                 waits, as under -incoming",
            );
        }
        if state.own.told.is_some() && !arrival.has_gone() && !state.own.is_alone {
            return refuse("the NIC there is on its way to another host; cancel that first");
        }
        state.own.told = None;
        for port in self.kind.attachment.guests() {
            port.arrive()?;
        }
        Ok(arrival.attend(moving, activated))
    }

    fn has_arrived(&self, moving: u128) -> Option<u64> {
        self.kind.arrival().by(moving)
    }

    fn import(&self, arrival: u64, envelope: &[u8]) -> Result<(), LifecycleError> {
        let mut state = self.state();
        let there = self.kind.arrival();
        let (is_it, pending) = (there.is(arrival), there.is_pending());
        drop(there);
        if !is_it {
            return Err(LifecycleError::Refused(
                "another arrival has taken its place".into(),
            ));
        }
        // Its VMM has brought the state, and begun.
        if !pending {
            return Ok(());
        }
        self.kind.import_state(&mut state, envelope)?;
        self.start_waiting(&mut state);
        Ok(())
    }

    fn deliver(
        &self,
        arrival: u64,
        origin: u64,
        frames: Vec<PortFrame>,
    ) -> Result<(), LifecycleError> {
        let mut there = self.kind.arrival();
        if !there.is(arrival) {
            return Ok(());
        }
        let frames = there.new_ones(origin, frames);
        self.kind.pass_on(frames)
    }

    fn settle(&self, arrival: u64) {
        let mut state = self.state();
        let mut there = self.kind.arrival();
        if !there.is(arrival) {
            return;
        }
        if !there.is_pending() {
            return arrival::settle(&self.kind.attachment, self.kind.name());
        }
        there.unattended();
        if !state.connected {
            self.kind.does_not_arrive(&state, &mut there);
        }
        drop(there);
        self.start_waiting(&mut state);
    }

    fn void(&self, arrival: u64) {
        let mut state = self.state();
        let mut there = self.kind.arrival();
        if there.is(arrival) && there.is_pending() {
            self.kind.does_not_arrive(&state, &mut there);
            drop(there);
            self.start_waiting(&mut state);
        }
    }

    fn dismiss(&self, arrival: u64) {
        let state = self.state();
        let there = self.kind.arrival();
        let is_here = there.is_imported() && state.connected;
        drop((there, state));
        if is_here {
            self.settle(arrival);
        } else {
            self.void(arrival);
        }
    }
}

impl NetDevice {
    /// Starts what waited for a state that has come, or does not come any more.
    fn start_waiting(&self, state: &mut State<Net>) {
        if let Err(error) = self.start_what_can(state) {
            tracing::error!(device = self.kind.name(), %error, "a ring does not start");
        }
    }
}
