//! The control queue's commands (virtio 1.2, section 5.1.6.5), as a state machine without a queue.
//!
//! A command is a class, a command within it, and data; all three are the guest's. What was not
//! negotiated, is not known, or has data of another length than it should, changes nothing, is
//! answered with an error, and is counted.
//!
//! [`ring`] serves the queue, and [`standing`] has a bridge do what was set.

use ferry_dataplane::net::filter::{Filter, MacTable, RxMode, VLAN_IDS, Vlans};

use super::Mac;
use super::config::{QUEUE_PAIRS_MAX, feature, may_be_a_nics};

pub(super) mod ring;
pub(super) mod standing;

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_VLAN: u8 = 2;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;

const RX_PROMISCUOUS: u8 = 0;
const RX_ALL_MULTICAST: u8 = 1;
const RX_ALL_UNICAST: u8 = 2;
const RX_NO_MULTICAST: u8 = 3;
const RX_NO_UNICAST: u8 = 4;
const RX_NO_BROADCAST: u8 = 5;

const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;

const VLAN_ADD: u8 = 0;
const VLAN_DEL: u8 = 1;

const ANNOUNCE_ACK: u8 = 0;

const MQ_PAIRS_SET: u8 = 0;

const MAC_BYTES: usize = size_of::<Mac>();

/// The answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ack {
    /// It is done.
    Ok,
    /// It is not, and nothing has changed.
    Err,
}

impl Ack {
    /// The byte that the guest reads.
    pub fn status(self) -> u8 {
        match self {
            Ack::Ok => 0,
            Ack::Err => 1,
        }
    }
}

/// What a driver has set by the control queue. Begins anew when the device is reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlState {
    features: u64,
    filter: Filter,
    /// The one address that the guest may set.
    fixed_mac: Option<Mac>,
    pairs: u16,
    pairs_max: u16,
    announcing: bool,
    refused: u64,
}

/// What a driver has set by the control queue, as plain values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSettings {
    /// The NIC's address.
    pub mac: Mac,
    /// What passes by its sort.
    pub mode: RxMode,
    /// What passes besides the NIC's own address.
    pub unicast: MacTable,
    /// The groups that pass.
    pub multicast: MacTable,
    /// VLAN 64 w + b passes if bit b of word w is set; `None` for a driver that cannot say.
    pub vlans: Option<[u64; VLAN_IDS as usize / 64]>,
    /// Queue pairs in use.
    pub pairs: u16,
    /// The guest is asked to announce itself.
    pub announcing: bool,
}

/// Settings that this NIC cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// An address that nobody has, or that its guest may not have.
    #[error(
        "the guest has set an address that this NIC may not have; allow it any source here too"
    )]
    Mac,
    /// None, or more than there are.
    #[error("{0} queue pairs are in use, and this NIC has {1}; give it as many")]
    Pairs(u16, u16),
}

impl ControlState {
    /// Before the first command. `features` are those negotiated, `pairs_max` the queue pairs
    /// offered.
    ///
    /// All frames pass until the driver has said what it wants: one that did not negotiate CTRL_RX
    /// cannot. VLANs are filtered for a driver that can ask for them.
    pub fn new(features: u64, mac: Mac, pairs_max: u16) -> ControlState {
        let filters_vlans = features & feature::CTRL_VLAN != 0;
        ControlState {
            features,
            filter: Filter {
                mac,
                mode: RxMode {
                    promiscuous: true,
                    ..RxMode::default()
                },
                unicast: MacTable::default(),
                multicast: MacTable::default(),
                vlans: filters_vlans.then(Vlans::default),
            },
            fixed_mac: None,
            pairs: 1,
            pairs_max: pairs_max.clamp(1, QUEUE_PAIRS_MAX),
            announcing: false,
            refused: 0,
        }
    }

    /// Refuses every address but the one that the NIC has: a guest that is held to it would send into
    /// the void from another.
    #[must_use]
    pub fn keeping_its_mac(mut self) -> ControlState {
        self.fixed_mac = Some(self.filter.mac);
        self
    }

    /// The features that were negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What the guest receives.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Whether the guest wants a frame; see [`Filter::admits`].
    pub fn admits(&self, destination: Mac, vlan: Option<u16>) -> bool {
        self.filter.admits(destination, vlan)
    }

    /// The NIC's address, which the guest may have changed.
    pub fn mac(&self) -> Mac {
        self.filter.mac
    }

    /// Queue pairs in use.
    pub fn queue_pairs(&self) -> u16 {
        self.pairs
    }

    /// Whether the guest is asked to announce itself, and has not said that it did.
    pub fn announcing(&self) -> bool {
        self.announcing
    }

    /// Commands answered with an error.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Asks the guest to announce itself: its configuration space says so from now on. False for a
    /// driver that does not know how.
    pub fn announce(&mut self) -> bool {
        self.announcing = self.has(feature::GUEST_ANNOUNCE);
        self.announcing
    }

    /// Carries out a command. `data` is all between its two bytes of header and its answer.
    pub fn apply(&mut self, class: u8, command: u8, data: &[u8]) -> Ack {
        let done = match (class, command) {
            (CLASS_RX, _) => self.set_mode(command, data),
            (CLASS_MAC, MAC_TABLE_SET) => self.set_tables(data),
            (CLASS_MAC, MAC_ADDR_SET) => self.set_mac(data),
            (CLASS_VLAN, VLAN_ADD) => self.set_vlan(data, true),
            (CLASS_VLAN, VLAN_DEL) => self.set_vlan(data, false),
            (CLASS_ANNOUNCE, ANNOUNCE_ACK) => self.announced(data),
            (CLASS_MQ, MQ_PAIRS_SET) => self.set_pairs(data),
            _ => None,
        };
        match done {
            Some(()) => Ack::Ok,
            None => {
                self.refuse();
                Ack::Err
            }
        }
    }

    /// Counts something that is no command at all.
    pub fn refuse(&mut self) {
        self.refused = self.refused.saturating_add(1);
    }

    /// All that was set, to be kept or sent.
    pub fn settings(&self) -> ControlSettings {
        let Filter {
            mac,
            mode,
            unicast,
            multicast,
            vlans,
        } = self.filter.clone();
        ControlSettings {
            mac,
            mode,
            unicast,
            multicast,
            vlans: vlans.as_ref().map(Vlans::words),
            pairs: self.pairs,
            announcing: self.announcing,
        }
    }

    /// Takes over what another device was told. It comes from outside: what this one could not have been
    /// told is refused, and changes nothing.
    pub fn take_over(&mut self, settings: ControlSettings) -> Result<(), SettingsError> {
        let fixed = self.fixed_mac.is_some_and(|own| own != settings.mac);
        if fixed || !may_be_a_nics(settings.mac) {
            return Err(SettingsError::Mac);
        }
        if !(1..=self.pairs_max).contains(&settings.pairs) {
            return Err(SettingsError::Pairs(settings.pairs, self.pairs_max));
        }
        // A driver that did not ask for a filter of VLANs gets them all.
        let vlans = self.has(feature::CTRL_VLAN);
        self.filter = Filter {
            mac: settings.mac,
            mode: settings.mode,
            unicast: settings.unicast,
            multicast: settings.multicast,
            vlans: vlans.then(|| settings.vlans.map(Vlans::of).unwrap_or_default()),
        };
        self.pairs = settings.pairs;
        self.announcing = settings.announcing && self.has(feature::GUEST_ANNOUNCE);
        Ok(())
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn needs(&self, feature: u64) -> Option<()> {
        self.has(feature).then_some(())
    }

    fn set_mode(&mut self, command: u8, data: &[u8]) -> Option<()> {
        let extra = !matches!(command, RX_PROMISCUOUS | RX_ALL_MULTICAST);
        self.needs(if extra {
            feature::CTRL_RX_EXTRA
        } else {
            feature::CTRL_RX
        })?;
        let mode = &mut self.filter.mode;
        let place = match command {
            RX_PROMISCUOUS => &mut mode.promiscuous,
            RX_ALL_MULTICAST => &mut mode.all_multicast,
            RX_ALL_UNICAST => &mut mode.all_unicast,
            RX_NO_MULTICAST => &mut mode.no_multicast,
            RX_NO_UNICAST => &mut mode.no_unicast,
            RX_NO_BROADCAST => &mut mode.no_broadcast,
            _ => return None,
        };
        *place = match data {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        Some(())
    }

    /// Both tables, or neither.
    fn set_tables(&mut self, data: &[u8]) -> Option<()> {
        self.needs(feature::CTRL_RX)?;
        let (unicast, rest) = table(data)?;
        let (multicast, rest) = table(rest)?;
        if !rest.is_empty() {
            return None;
        }
        (self.filter.unicast, self.filter.multicast) = (unicast, multicast);
        Some(())
    }

    fn set_mac(&mut self, data: &[u8]) -> Option<()> {
        self.needs(feature::CTRL_MAC_ADDR)?;
        let mac = Mac::try_from(data).ok()?;
        if !may_be_a_nics(mac) || self.fixed_mac.is_some_and(|own| own != mac) {
            return None;
        }
        self.filter.mac = mac;
        Some(())
    }

    fn set_vlan(&mut self, data: &[u8], passes: bool) -> Option<()> {
        // There are filters if that was negotiated.
        let vlans = self.filter.vlans.as_mut()?;
        vlans.set(number(data)?, passes).then_some(())
    }

    fn announced(&mut self, data: &[u8]) -> Option<()> {
        if !self.announcing || !data.is_empty() {
            return None;
        }
        self.announcing = false;
        Some(())
    }

    fn set_pairs(&mut self, data: &[u8]) -> Option<()> {
        self.needs(feature::MQ)?;
        let pairs = number(data)?;
        if !(1..=self.pairs_max).contains(&pairs) {
            return None;
        }
        self.pairs = pairs;
        Some(())
    }
}

fn number(data: &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(data.try_into().ok()?))
}

/// A table at the head of `data`, and what comes after it.
fn table(data: &[u8]) -> Option<(MacTable, &[u8])> {
    let (entries, rest) = data.split_first_chunk()?;
    let entries = usize::try_from(u32::from_le_bytes(*entries)).ok()?;
    let (macs, rest) = rest.split_at_checked(entries.checked_mul(MAC_BYTES)?)?;
    let (macs, _) = macs.as_chunks::<MAC_BYTES>();
    Some((MacTable::new(macs.iter().copied()), rest))
}

#[cfg(test)]
mod tests;
