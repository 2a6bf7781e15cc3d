//! What all hosts together say of a period.

use super::{HostReport, Settings};

/// The reports of all hosts, added up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measure {
    /// Mean over all I/Os; 0 if there were none.
    pub latency_ns: f64,
    pub units_per_ns: f64,
    /// What was in the window by latency and throughput.
    pub in_window: f64,
    /// Somebody waited for the window.
    pub limited: bool,
    /// What all disks want.
    pub demand: f64,
    /// The mean window of the other hosts, where it is not open, and how many those are.
    pub others_window: Option<f64>,
    others_closed: f64,
    /// How many of them are open.
    pub others_open: usize,
}

/// A number that can be added up.
fn real(number: f64) -> f64 {
    if number > 0.0 { number.min(1e15) } else { 0.0 }
}

impl Measure {
    #[allow(clippy::cast_precision_loss)] // digits, not magnitude
    pub fn of(settings: &Settings, own: &HostReport, others: &[HostReport]) -> Measure {
        let all = || std::iter::once(own).chain(others);
        let ios: f64 = all().map(|it| it.ios as f64).sum();
        let time_ns: f64 = all().map(|it| it.ios as f64 * it.latency_ns as f64).sum();
        let latency_ns = if ios > 0.0 { time_ns / ios } else { 0.0 };
        let units: f64 = all().map(|it| real(it.units)).sum();
        let units_per_ns = units / settings.period_ns as f64;
        let closed = |it: &f64| it.is_finite() && *it > 0.0;
        let windows = others.iter().map(|it| it.window_total).filter(closed);
        let others_closed = windows.clone().count() as f64;
        let others_sum: f64 = windows
            .map(|it| it.clamp(settings.window_min, settings.window_max))
            .sum();
        let others_window = (others_closed > 0.0).then(|| others_sum / others_closed);
        Measure {
            latency_ns,
            units_per_ns,
            in_window: units_per_ns * latency_ns,
            limited: all().any(|it| it.limited),
            demand: all().map(|it| it.demand.total().slots).sum(),
            others_window,
            others_closed,
            others_open: others
                .iter()
                .filter(|it| it.window_total == f64::INFINITY)
                .count(),
        }
    }

    /// The mean of all windows that are not open, with this host's.
    pub fn mean_window(&self, own: f64) -> f64 {
        let others = self.others_window.unwrap_or(0.0) * self.others_closed;
        (own + others) / (1.0 + self.others_closed)
    }
}
