//! What a request counts for.

use super::medium::Medium;
use crate::request::Op;

/// Bytes that count as one I/O where size counts: larger requests count as several.
pub const UNIT_BYTES: u64 = 32 << 10;

/// One I/O of at most [`UNIT_BYTES`], as costs are written: in 1024ths, so that parts can be told.
pub const COST_ONE: Cost = 1024;

/// What a request counts for, in parts of [`COST_ONE`].
pub type Cost = u32;

/// How requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CostModel {
    /// By size, in units of 32 KiB, each one begun: what shares and limits mean unless set otherwise.
    #[default]
    Size,
    /// By the time that a device of this medium works on the request, against that for 32 KiB.
    DeviceTime(Medium),
    /// Each as one, whatever its size.
    Requests,
}

impl CostModel {
    /// What a request counts for. A flush counts as one: it can be asked for in a loop as well.
    pub fn cost(self, op: Op, len_bytes: u64) -> Cost {
        let sized = matches!(op, Op::Read | Op::Write);
        match self {
            CostModel::Size if sized => {
                let units = len_bytes.div_ceil(UNIT_BYTES).max(1);
                Cost::try_from(units)
                    .unwrap_or(Cost::MAX / COST_ONE)
                    .min(Cost::MAX / COST_ONE)
                    * COST_ONE
            }
            CostModel::DeviceTime(medium) if sized => {
                let time_ns = medium.service_ns(len_bytes);
                let unit_ns = medium.service_ns(UNIT_BYTES).max(1);
                let cost = time_ns.saturating_mul(u64::from(COST_ONE)) / unit_ns;
                Cost::try_from(cost).unwrap_or(Cost::MAX).max(1)
            }
            _ => COST_ONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_in_units_begun() {
        let size = |bytes| CostModel::Size.cost(Op::Read, bytes);
        assert_eq!(size(512), COST_ONE);
        assert_eq!(size(32 << 10), COST_ONE);
        assert_eq!(size((32 << 10) + 512), 2 * COST_ONE);
        assert_eq!(size(1 << 20), 32 * COST_ONE);
        assert_eq!(size(u64::MAX), Cost::MAX / COST_ONE * COST_ONE);
        assert_eq!(CostModel::Size.cost(Op::Discard, 1 << 30), COST_ONE);
        assert_eq!(CostModel::Requests.cost(Op::Write, 1 << 20), COST_ONE);
    }

    #[test]
    fn a_seek_makes_sizes_alike_and_flash_does_not() {
        let time = |medium, bytes| CostModel::DeviceTime(medium).cost(Op::Read, bytes);
        assert_eq!(time(Medium::Ssd, UNIT_BYTES), COST_ONE);
        assert!(time(Medium::Sata, 4 << 10) > COST_ONE * 9 / 10);
        assert!(time(Medium::Sata, 64 << 10) < COST_ONE * 11 / 10);
        assert!(time(Medium::Ssd, 1 << 20) > 8 * COST_ONE);
    }
}
