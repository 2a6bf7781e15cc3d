//! The way of a port's last frame, as most frames go the way of the one before.

use crate::net::frame::{Mac, Start};
use crate::net::table::Table;

/// For so long a switch need not look at its table again. An address that moves is found by the frames
/// that come from its new place after this.
const PATH_NS: u64 = 1_000_000;

/// What the table said of the last frame.
#[derive(Debug, Default)]
pub(super) struct Path {
    source: Mac,
    destination: Mac,
    vlan: u16,
    to: u16,
    until_ns: u64,
}

impl Path {
    /// Learns where the frame comes from; returns the port that it is for, if that is known.
    pub fn find(
        &mut self,
        table: &mut Table,
        start: &Start,
        from: u16,
        now_ns: u64,
    ) -> Option<u16> {
        let vlan = start.vlan.unwrap_or(0);
        let same = start.source == self.source && start.destination == self.destination;
        if same && vlan == self.vlan && now_ns < self.until_ns {
            return Some(self.to);
        }
        table.learn(start.source, vlan, from, now_ns);
        let to = table.find(start.destination, vlan, now_ns)?;
        *self = Path {
            source: start.source,
            destination: start.destination,
            vlan,
            to,
            until_ns: now_ns + PATH_NS,
        };
        Some(to)
    }

    /// Ports have changed.
    pub fn forget(&mut self) {
        self.until_ns = 0;
    }
}
