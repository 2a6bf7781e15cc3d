//! Which frames a guest wants to receive (virtio 1.2, section 5.1.6.5): its filters, as the control
//! queue has set them.
//!
//! Filters are bounded. A table that the guest makes longer than [`TABLE_MAX`] lets everything of its
//! sort pass, which the specification allows: a filter may let through too much and never too little.

use super::{Mac, is_group};

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
            return MacTable {
                macs: Vec::new(),
                overflow: true,
            };
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
        if is_group(destination) {
            return !self.mode.no_multicast
                && (self.mode.all_multicast || self.multicast.admits(destination));
        }
        !self.mode.no_unicast
            && (self.mode.all_unicast
                || destination == self.mac
                || self.unicast.admits(destination))
    }
}
