//! What can be seen of a world afterwards.

use std::ops::Range;

use ferry_dataplane::qos::stats_file::Ignored;

use super::{Occurrence, Steering, World};
use crate::sioc::tally::Tally;

impl World {
    /// What a client had in a time of whole pieces.
    pub fn had(&self, client: usize, time_ns: Range<u64>) -> Tally {
        self.series[client].sum(time_ns)
    }

    /// What all clients had.
    pub fn all_had(&self, time_ns: Range<u64>) -> Tally {
        let each = self.series.iter().map(|series| series.sum(time_ns.clone()));
        each.fold(Tally::default(), Tally::and)
    }

    /// A host's window in a time, in the mean.
    pub fn window(&self, host: usize, time_ns: Range<u64>) -> f64 {
        let windows = &self.windows[host];
        let (mut sum, mut span) = (0.0, 0u64);
        for (at, &(from_ns, window)) in windows.iter().enumerate() {
            let next_ns = windows.get(at + 1).map_or(self.now_ns, |next| next.0);
            let (from, to) = (from_ns.max(time_ns.start), next_ns.min(time_ns.end));
            let part = to.saturating_sub(from);
            if part > 0 {
                #[allow(clippy::cast_precision_loss)]
                let part_ns = part as f64;
                sum += window * part_ns;
                span += part;
            }
        }
        #[allow(clippy::cast_precision_loss)]
        let span = span as f64;
        sum / span
    }

    /// What hosts noticed.
    pub fn events(&self) -> &[Occurrence] {
        &self.noticed
    }

    /// What a host did not believe of the statistics file.
    pub fn ignored(&self, host: usize) -> Ignored {
        let steering = self.steering.get(host);
        steering.map_or_else(Ignored::default, Steering::ignored)
    }
}
