//! Which frames a guest wants to receive (virtio 1.2, section 5.1.6.5): its filters, as the control
//! queue has set them.
//!
//! Filters are bounded. A table that the guest makes longer than [`TABLE_MAX`] lets everything of its
//! sort pass, which the specification allows: a filter may let through too much and never too little.

use super::counters::Cause;
use super::frame::{Mac as Address, Start};
use super::queue::Bytes;

/// An Ethernet address, as on the wire.
pub type Mac = [u8; 6];

/// Most addresses that a table holds.
pub const TABLE_MAX: usize = 64;
/// VLAN ids that there are, 0 included.
pub const VLAN_IDS: u16 = 4096;

const BROADCAST: Mac = [0xff; 6];

/// What passes, whatever the tables hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxMode {
    /// Everything, the VLANs that were not asked for included.
    pub promiscuous: bool,
    /// All multicast.
    pub all_multicast: bool,
    /// All unicast.
    pub all_unicast: bool,
    /// No multicast, but broadcasts.
    pub no_multicast: bool,
    /// No unicast.
    pub no_unicast: bool,
    /// No broadcasts.
    pub no_broadcast: bool,
}

/// A table of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MacTable {
    /// Sorted; at most [`TABLE_MAX`].
    macs: Vec<Mac>,
    overflow: bool,
}

impl MacTable {
    /// A table of these; one that overflows when they are more than it holds.
    pub fn new(macs: impl ExactSizeIterator<Item = Mac>) -> MacTable {
        if macs.len() > TABLE_MAX {
            return MacTable::overflowing();
        }
        let mut macs: Vec<Mac> = macs.collect();
        macs.sort_unstable();
        MacTable {
            macs,
            overflow: false,
        }
    }

    /// The addresses, none when they were too many.
    pub fn macs(&self) -> &[Mac] {
        &self.macs
    }

    /// The guest gave more than the table holds: every address passes.
    pub fn overflow(&self) -> bool {
        self.overflow
    }

    /// One that overflows: every address passes.
    pub fn overflowing() -> MacTable {
        MacTable {
            macs: Vec::new(),
            overflow: true,
        }
    }

    fn admits(&self, mac: Mac) -> bool {
        self.overflow || self.macs.binary_search(&mac).is_ok()
    }
}

/// The VLANs that pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans(Box<[u64; VLAN_IDS as usize / 64]>);

impl Default for Vlans {
    /// None.
    fn default() -> Vlans {
        Vlans(Box::new([0; VLAN_IDS as usize / 64]))
    }
}

impl Vlans {
    /// Those whose bits are set: VLAN 64 w + b is bit b of word w.
    pub fn of(words: [u64; VLAN_IDS as usize / 64]) -> Vlans {
        Vlans(Box::new(words))
    }

    /// A bit for each VLAN, as `of` takes them.
    pub fn words(&self) -> [u64; VLAN_IDS as usize / 64] {
        *self.0
    }

    /// Lets a VLAN pass, or no longer. False when there is no such id.
    pub fn set(&mut self, id: u16, passes: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(id / 64)) else {
            return false;
        };
        let bit = 1 << (id % 64);
        if passes {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        true
    }

    /// Whether a VLAN passes.
    pub fn contains(&self, id: u16) -> bool {
        let word = self.0.get(usize::from(id / 64));
        word.is_some_and(|word| word >> (id % 64) & 1 != 0)
    }
}

/// All filters of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The NIC's own address.
    pub mac: Mac,
    /// What passes by its sort.
    pub mode: RxMode,
    /// What passes besides the NIC's own address.
    pub unicast: MacTable,
    /// The groups that pass.
    pub multicast: MacTable,
    /// The VLANs that pass; `None` for all.
    pub vlans: Option<Vlans>,
}

impl Filter {
    /// Whether the guest wants a frame to `destination`. `vlan` is the id in the frame's tag; 0 is a
    /// priority without a VLAN, and passes as a frame without a tag does.
    pub fn admits(&self, destination: Mac, vlan: Option<u16>) -> bool {
        if self.mode.promiscuous {
            return true;
        }
        let id = vlan.unwrap_or(0);
        if id != 0 && self.vlans.as_ref().is_some_and(|it| !it.contains(id)) {
            return false;
        }
        if destination == BROADCAST {
            return !self.mode.no_broadcast;
        }
        if Address(destination).is_multicast() {
            return !self.mode.no_multicast
                && (self.mode.all_multicast || self.multicast.admits(destination));
        }
        !self.mode.no_unicast
            && (self.mode.all_unicast
                || destination == self.mac
                || self.unicast.admits(destination))
    }
}

/// What a port lets through, where that is not everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Without a link nothing passes, either way.
    pub link_up: bool,
    /// What the guest wants to receive; `None` for everything.
    pub filter: Option<Filter>,
    /// Queues that the guest receives by, from the first on.
    pub rx_queues: u16,
}

impl Gate {
    /// Everything passes.
    pub const OPEN: Gate = Gate {
        link_up: true,
        filter: None,
        rx_queues: u16::MAX,
    };

    /// Whether a frame may go to the guest, or why not.
    pub(super) fn admit(&self, bytes: &Bytes<'_>) -> Result<(), Cause> {
        if !self.link_up {
            return Err(Cause::NoLink);
        }
        let Some(filter) = &self.filter else {
            return Ok(());
        };
        let mut head = [0; START_BYTES];
        let known = bytes.start(&mut head);
        match Start::parse(&head[..known]) {
            Some(start) if filter.admits(start.destination.0, start.vlan) => Ok(()),
            _ => Err(Cause::Filtered),
        }
    }
}

/// Addresses, two tags, and what is behind them.
const START_BYTES: usize = 22;
