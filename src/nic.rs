//! What a NIC and a switch are configured as.

use std::path::PathBuf;

use ferry_dataplane::net::frame::Mac;
use ferry_dataplane::net::limit::RateLimit;
use ferry_vhost::net::config::{Controls, Link, NetOptions, Offloads};
use serde::{Deserialize, Serialize};

use crate::error::{Done, Failure};
use crate::limit::Limit;
use crate::name::Name;

/// Pairs of queues that a NIC may have here.
const QUEUE_PAIRS_MAX: u16 = 64;

/// `[[switch]]`, and what `ferry switch add` sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchConfig {
    /// Its name.
    pub name: Name,
    /// Taps that are ports of it.
    #[serde(default)]
    pub taps: Vec<String>,
}

/// `[[nic]]`, and what `ferry nic add` sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// Its name, the same on every host.
    pub id: Name,
    /// The switch that it is a port of.
    pub switch: Option<Name>,
    /// The tap that it is wired to.
    pub tap: Option<String>,
    /// Queues of a tap that come as descriptors beside the request, to be wired to.
    #[serde(default)]
    pub tap_fds: u16,
    /// Its socket; `nic-ID.sock` under the run directory unless set.
    pub socket_path: Option<PathBuf>,
    /// Its address; one is made up when the NIC is added, unless set.
    pub mac: Option<String>,
    /// Bytes behind the Ethernet header.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Pairs of queues.
    #[serde(default = "default_pairs")]
    pub queue_pairs: u16,
    /// Its guest may send from any address.
    #[serde(default)]
    pub any_source: bool,
    /// Frames that its guest may send in a second.
    pub limit_pps: Option<u64>,
    /// Bits that its guest may send in a second.
    pub limit_bps: Option<u64>,
    /// The speed that its guest is told, in Mbit/s; its tap's unless set.
    pub speed_mbps: Option<u32>,
    /// Its link is down: nothing passes.
    #[serde(default)]
    pub link_down: bool,
}

/// What `ferry nic set` sends: what is not said stays.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicChange {
    /// Whose.
    pub id: Name,
    /// Frames come and go.
    pub link_up: Option<bool>,
    /// Frames that its guest may send in a second.
    pub limit_pps: Option<Limit>,
    /// Bits that its guest may send in a second.
    pub limit_bps: Option<Limit>,
}

impl NicChange {
    /// Whether it says anything.
    pub fn check(&self) -> Done {
        if self.link_up.is_none() && self.limit_pps.is_none() && self.limit_bps.is_none() {
            return Err(Failure::Usage(format!(
                "nic {}: say what to set: --link, --limit-pps or --limit-mbps",
                self.id
            )));
        }
        Ok(())
    }

    /// The configuration of a NIC that is changed so.
    pub fn of(&self, config: &NicConfig) -> NicConfig {
        let mut config = config.clone();
        if let Some(up) = self.link_up {
            config.link_down = !up;
        }
        if let Some(limit) = self.limit_pps {
            config.limit_pps = limit.value();
        }
        if let Some(limit) = self.limit_bps {
            config.limit_bps = limit.value();
        }
        config
    }
}

/// MTU for which nothing else was said.
pub const fn default_mtu() -> u16 {
    1500
}

/// Pairs of queues for which nothing else was said.
pub const fn default_pairs() -> u16 {
    1
}

impl NicConfig {
    fn wrong<T>(&self, what: impl std::fmt::Display) -> Done<T> {
        Err(Failure::Usage(format!("nic {}: {what}", self.id)))
    }

    /// Checks what types cannot say.
    pub fn check(&self) -> Done {
        match (&self.switch, &self.tap, self.tap_fds) {
            (None, None, 0) => {
                return self.wrong("say where it goes: --switch NAME or --tap NAME, or --tap-fd N");
            }
            (Some(_), None, 0) | (None, Some(_), 0) => {}
            (None, None, fds) if fds == self.queue_pairs => {}
            (None, None, fds) => {
                return self.wrong(format_args!(
                    "{fds} descriptors of a tap for {} pairs of queues; give one for each",
                    self.queue_pairs
                ));
            }
            _ => {
                return self.wrong(
                    "a switch or a tap, not both; a switch's own taps are its configuration's",
                );
            }
        }
        if !(1..=QUEUE_PAIRS_MAX).contains(&self.queue_pairs) {
            return self.wrong(format_args!("queue_pairs must be 1 to {QUEUE_PAIRS_MAX}"));
        }
        self.mac()?;
        match self.options(Mac::random(0), None).check() {
            Ok(()) => Ok(()),
            Err(error) => self.wrong(error),
        }
    }

    /// Its address, if one was given.
    pub fn mac(&self) -> Done<Option<Mac>> {
        let Some(text) = &self.mac else {
            return Ok(None);
        };
        match text.parse::<Mac>() {
            Ok(mac) if mac.is_station() => Ok(Some(mac)),
            Ok(mac) => self.wrong(format_args!("{mac} is no address of a single NIC")),
            Err(error) => self.wrong(error),
        }
    }

    /// What the device offers, on a tap of that speed.
    pub fn options(&self, mac: Mac, tap_mbps: Option<u32>) -> NetOptions {
        let link = |speed_mbps| Link {
            speed_mbps,
            full_duplex: true,
        };
        NetOptions {
            mac: Some(mac.0),
            // Frames from another are dropped.
            fixed_mac: !self.any_source,
            mtu: Some(self.mtu),
            // Always offered: the guest may move to a host that knows no speed.
            link: Some(self.speed_mbps.or(tap_mbps).map_or(Link::UNKNOWN, link)),
            status: true,
            queue_pairs: self.queue_pairs,
            mergeable: true,
            indirect: true,
            event_idx: true,
            log: true,
            // Whatever its tap or its peers take: the rest is finished in software, and so a guest may move
            // to a host with an older kernel.
            from_guest: Offloads {
                // No tap has taken them since Linux 4.14.
                ufo: false,
                ..Offloads::ALL
            },
            to_guest: Offloads {
                ufo: false,
                ..Offloads::ALL
            },
            control: Some(Controls::ALL),
        }
    }

    /// How much its guest may send.
    pub fn limit(&self) -> Option<RateLimit> {
        let limit = RateLimit {
            packets_per_s: self.limit_pps,
            bits_per_s: self.limit_bps,
        };
        (limit != RateLimit::default()).then_some(limit)
    }
}
