//! What a datastore is made of, and what follows for its threshold and its costs.

use std::fmt;
use std::str::FromStr;

/// The kind of device behind a datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Medium {
    /// Disks behind Fibre Channel.
    Fc,
    /// SAS disks.
    Sas,
    /// SATA disks.
    Sata,
    /// Flash behind SATA or SAS.
    Ssd,
    /// Flash behind NVMe.
    Nvme,
}

const MS: u64 = 1_000_000;

impl Medium {
    /// All of them.
    pub const ALL: [Medium; 5] = [
        Medium::Fc,
        Medium::Sas,
        Medium::Sata,
        Medium::Ssd,
        Medium::Nvme,
    ];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Medium::Fc => "fc",
            Medium::Sas => "sas",
            Medium::Sata => "sata",
            Medium::Ssd => "ssd",
            Medium::Nvme => "nvme",
        }
    }

    /// Latency above which it counts as congested, in nanoseconds, unless set otherwise.
    ///
    /// For the first four, VMware's practice. For NVMe, 2 ms: the others' thresholds are four to
    /// thirty times what their medium takes for one request alone (30 ms for a disk's 6 to 8, 15 ms
    /// for a SATA SSD's 0.5), and an NVMe device takes 0.08 to 0.1 ms; twenty times that is a queue
    /// of some hundred requests at the least, far beyond the depth at which such a device is at its
    /// peak, so that the threshold costs no throughput.
    pub fn threshold_ns(self) -> u64 {
        match self {
            Medium::Fc | Medium::Sas => 30 * MS,
            Medium::Sata => 50 * MS,
            Medium::Ssd => 15 * MS,
            Medium::Nvme => 2 * MS,
        }
    }

    /// Thresholds that make sense for it, least and greatest, in nanoseconds.
    pub fn threshold_range_ns(self) -> (u64, u64) {
        match self {
            Medium::Fc | Medium::Sas => (20 * MS, 30 * MS),
            Medium::Sata => (30 * MS, 50 * MS),
            Medium::Ssd => (15 * MS, 20 * MS),
            Medium::Nvme => (MS / 2, 5 * MS),
        }
    }

    /// How long one device works on a request of so many bytes, in nanoseconds: what it takes to
    /// begin, and what the bytes take. Typical figures of the medium, not measured ones: only the
    /// proportions count.
    pub fn service_ns(self, len_bytes: u64) -> u64 {
        let (begin_ns, per_32k_ns) = match self {
            Medium::Fc | Medium::Sas => (5 * MS, 180_000),
            Medium::Sata => (8 * MS, 220_000),
            Medium::Ssd => (80_000, 65_000),
            Medium::Nvme => (20_000, 12_000),
        };
        begin_ns + self.bytes_ns(len_bytes, per_32k_ns)
    }

    /// What the bytes of a request beyond one unit add to its latency, in nanoseconds. A request is
    /// not slow because it is large: this is taken off before latencies are compared.
    pub fn transfer_ns(self, len_bytes: u64) -> u64 {
        let begin_ns = self.service_ns(0);
        let unit_ns = self.service_ns(super::UNIT_BYTES) - begin_ns;
        let bytes_ns = self.service_ns(len_bytes) - begin_ns;
        bytes_ns.saturating_sub(unit_ns)
    }

    fn bytes_ns(self, len_bytes: u64, per_32k_ns: u64) -> u64 {
        let ns = u128::from(len_bytes) * u128::from(per_32k_ns) / u128::from(super::UNIT_BYTES);
        u64::try_from(ns).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Medium {
    type Err = String;

    fn from_str(text: &str) -> Result<Medium, String> {
        let named = Medium::ALL.into_iter().find(|medium| medium.name() == text);
        named.ok_or_else(|| format!("{text:?} is no medium; use fc, sas, sata, ssd or nvme"))
    }
}
