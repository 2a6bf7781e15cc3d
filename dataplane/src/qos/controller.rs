//! Steers the window of a datastore so that its latency is the threshold's, and finds this host's part.
//!
//! Every host runs this alone, once a period, over what all of them have written of their last period.
//! From the same figures all come to about the same window; none is in charge.
//!
//! **Latency** is the mean over all hosts, weighted by their I/Os. While it stays below the threshold the
//! window is open. Above, the window closes around what the datastore can do at the threshold: by Little's
//! law, its throughput times the threshold. The throughput of a congested datastore does not depend on the
//! window, so that this can be asked for again every period, however late the latency follows: steering by
//! `T / L` alone, as PARDA does, swings when it is quick, because each latency was caused by a window of
//! before (`d(n+1) = d(n) - g d(n-1)` for a deviation `d`). What is in the window on average is not quite
//! what latency and throughput say, with requests of many sizes or a window that is not used to the full;
//! the ratio is learnt slowly and made up for, so that it is the latency that comes to the threshold.
//!
//! **Hosts** start from the mean of the windows that they have written, so that they come together whatever
//! each of them began with. A step goes the further the farther the goal is, within bounds.
//!
//! It **waits** where the reports do not belong together: while a host is late, and may be dead, and for
//! three periods after what is wanted has changed, by a disk that stopped for instance. What the hosts say was done
//! in periods that end at different times adds up to what was done only while none of them gets another part.
//!
//! It **opens** when for some periods the latency was well below the threshold and all that is wanted had
//! room. It does not grow while nobody waits for it.
//!
//! The window is **divided** by water-filling over what the disks of all hosts want ([`super::division`]):
//! who wants less than its shares are worth leaves the rest to the others, on whatever host.
//!
//! If latency does not follow the window, **somebody else** is on the datastore ([`super::unmanaged`]).
//! Cutting our own window further would only make room for the outsider: by policy the window opens, for a
//! while, or the shares are kept all the same.

use super::division::Bins;
use super::unmanaged::Detector;
use measure::Measure;
use part::Others;

mod measure;
mod part;
mod settings;

pub use settings::{Division, Settings, UnmanagedPolicy};

/// What a host did in its last period, and what its disks want.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostReport {
    /// I/Os that ended.
    pub ios: u64,
    /// How long they took at the device, on average, less what their size accounts for.
    pub latency_ns: u64,
    /// Cost of what ended, in I/Os of one unit, in a period of the settings' length.
    pub units: f64,
    /// What was at the device, on average, in the same measure.
    pub outstanding: f64,
    /// Requests waited for the window.
    pub limited: bool,
    /// What its disks want.
    pub demand: Bins,
    /// The window of the whole datastore that it went by. Infinite while it is open.
    pub window_total: f64,
    /// It has found an outsider.
    pub unmanaged: bool,
    /// It is what was said before, and nothing has come since. Whoever reads it knows, not who wrote it.
    pub late: bool,
}

/// What a host is to do in its next period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Its part of the window, in slots. Infinite while the window is open.
    pub window: f64,
    /// The window of the whole datastore. Infinite while it is open.
    pub window_total: f64,
    /// The datastore's latency, smoothed.
    pub latency_ns: u64,
    /// Slots for one share: the level of the water. Infinite while everybody has what it wants.
    pub level: f64,
    /// Somebody else is on the datastore, by this host's finding or by another's.
    pub unmanaged: bool,
    /// What is worth telling somebody.
    pub event: Option<Event>,
}

/// What is worth telling somebody.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// Somebody else is on the datastore: latency follows the window by this much only.
    UnmanagedFound {
        /// `d ln L / d ln W`; 1 if all is ours.
        elasticity: f64,
    },
    /// It seems to be gone.
    UnmanagedGone,
}

/// Periods of room for all, after which the window opens.
const QUIET_PERIODS: u32 = 3;
/// Latency below which it may, as a multiple of the threshold.
const WELL_BELOW: f64 = 0.9;
/// Latency of a single period that closes it, without waiting for the mean.
const WELL_ABOVE: f64 = 1.1;
/// It is divided anew where what is wanted has changed by so much, as a logarithm, and what the hosts say of
/// their periods does not belong together until all have done it.
const MOVED: f64 = 0.05;
/// Periods that it takes, and no more in a row, should it move all the time.
const MOVING_PERIODS: u32 = 3;
const WAITED_MAX: u32 = 4;
/// Periods after closing, in which all is moving and the window has still to be found.
const SETTLED_PERIODS: u32 = 4;
/// Latency beyond which there is no waiting, as a multiple of the threshold.
const FAR_ABOVE: f64 = 1.5;
/// What is wanted fits if it leaves so much of the window.
const FITS: f64 = 0.95;
/// Periods of a good latency, after which an outsider is held to be gone.
const GONE_PERIODS: u32 = 3;
/// What the window may change by in a period.
const STEP: (f64, f64) = (0.4, 3.0);
/// By how much the others' windows count for more, or less, than one's own.
const APART: f64 = 1.5;
/// How fast the use of the window is learnt, and within what bounds.
const LEARN: f64 = 0.25;
const FORGET: f64 = 0.1;
const USED: (f64, f64) = (0.25, 2.0);
/// What a window that stands still may change by, as a logarithm.
const STILL: f64 = 0.15;
/// See the module.
#[derive(Debug, Clone)]
pub struct Controller {
    settings: Settings,
    mode: Mode,
    latency_ns: Option<f64>,
    /// What is in the window by latency and throughput, as a part of the window.
    used: f64,
    /// The same as of the last update alone.
    last_used: f64,
    /// The window before the last step.
    last_window: f64,
    quiet: u32,
    detector: Detector,
    finding: Option<Finding>,
    /// What the others want, as of the last update.
    others: Others,
    others_flag: bool,
    /// The shares of those that wanted something, as of the last update.
    last_shares: f64,
    /// The level then, with the window that followed from it.
    last_level: f64,
    /// Periods to wait until what was divided anew has settled, and periods waited in a row.
    moving: u32,
    waited: u32,
    /// Periods since it was closed.
    closed: u32,
    /// The last step was taken back.
    undone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Open,
    Closed {
        window: f64,
    },
    /// Open because of an outsider, for so many periods more.
    Stopped {
        periods: u32,
    },
}

/// An outsider that was found, and for how long it has not been seen since.
#[derive(Debug, Clone, Copy)]
struct Finding {
    good: u32,
}

impl Controller {
    /// With an open window. Settings that make no sense are set right.
    pub fn new(settings: Settings) -> Controller {
        Controller {
            settings: settings.checked(),
            mode: Mode::Open,
            latency_ns: None,
            used: 1.0,
            last_used: 1.0,
            last_window: f64::INFINITY,
            quiet: 0,
            detector: Detector::default(),
            finding: None,
            others: Others::default(),
            others_flag: false,
            last_shares: 0.0,
            last_level: f64::INFINITY,
            moving: 0,
            waited: 0,
            closed: 0,
            undone: false,
        }
    }

    /// Changes the settings, without a jump of the window; but without a threshold it opens at once.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings.checked();
        if self.settings.threshold_ns == u64::MAX {
            self.open();
            self.finding = None;
        }
    }

    /// The settings it goes by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The window of the whole datastore; infinite while it is open.
    pub fn window_total(&self) -> f64 {
        match self.mode {
            Mode::Closed { window } => window,
            Mode::Open | Mode::Stopped { .. } => f64::INFINITY,
        }
    }

    /// Whether this host holds an outsider to be there.
    pub fn unmanaged(&self) -> bool {
        match self.settings.unmanaged {
            UnmanagedPolicy::Stop => matches!(self.mode, Mode::Stopped { .. }),
            UnmanagedPolicy::Keep => self.finding.is_some(),
        }
    }

    /// Takes the reports of a period, without those of hosts that are dead, and decides on the next.
    pub fn update(&mut self, _now_ns: u64, own: &HostReport, others: &[HostReport]) -> Decision {
        let measure = Measure::of(&self.settings, own, others);
        // Who is late may be dead. What it did would be counted a second time, and that nobody uses its part
        // of the window taken for a habit.
        let late = others.iter().any(|it| it.late);
        if !late {
            self.smooth(measure.latency_ns);
        }
        self.others = Others::of(others.iter().map(|it| &it.demand));
        self.others_flag = others.iter().any(|it| it.unmanaged);
        self.notice(&own.demand);
        let event = self.step(&measure, late);
        self.last_level = self.level(&own.demand);
        Decision {
            window: self.part(&own.demand),
            window_total: self.window_total(),
            latency_ns: rounded(self.latency_ns.unwrap_or(0.0)),
            level: self.level(&own.demand),
            unmanaged: self.unmanaged() || self.others_flag,
            event,
        }
    }

    fn smooth(&mut self, latency_ns: f64) {
        let last = self.latency_ns.unwrap_or(latency_ns);
        self.latency_ns = Some(last + self.settings.smoothing * (latency_ns - last));
    }

    /// From one period to the next. The window stays as it is while a host is late.
    fn step(&mut self, measure: &Measure, late: bool) -> Option<Event> {
        if let Mode::Stopped { periods } = self.mode {
            if periods > 0 {
                self.mode = Mode::Stopped {
                    periods: periods - 1,
                };
                return None;
            }
            self.mode = Mode::Open;
        }
        if self.settings.unmanaged == UnmanagedPolicy::Stop && self.others_flag {
            self.open();
            return None;
        }
        if late {
            self.undo();
            return None;
        }
        let threshold_ns = self.threshold_ns();
        let found = self
            .detector
            .look(measure.in_window, measure.latency_ns, threshold_ns);
        let event = found.and_then(|elasticity| self.found(elasticity));
        let waits = self.waits(measure);
        match self.mode {
            Mode::Closed { .. } if waits => {
                self.undo();
                self.close(base(self.window_total(), measure));
            }
            Mode::Closed { window } => {
                self.undone = false;
                self.steer(window, measure);
            }
            Mode::Open => self.watch(measure),
            Mode::Stopped { .. } => return event,
        }
        event.or_else(|| self.is_gone(measure).then_some(Event::UnmanagedGone))
    }

    /// Takes back the last step, once: what a host or a disk did that has stopped since was counted in it.
    fn undo(&mut self) {
        let undone = std::mem::replace(&mut self.undone, true);
        if !undone && self.last_window.is_finite() && self.window_total().is_finite() {
            self.close(self.last_window);
        }
    }

    /// Has what is wanted changed since the last update? The level of the water tells, with the same window;
    /// but not just after a step, as more is seen to be wanted of a larger window.
    fn notice(&mut self, own: &Bins) {
        let (shares, level) = (self.others.active_shares(own), self.level(own));
        let last_shares = std::mem::replace(&mut self.last_shares, shares);
        let moved = |now: f64, last: f64| last > 0.0 && (now / last).ln().abs() > MOVED;
        let stepped = moved(self.window_total(), self.last_window);
        if moved(shares, last_shares) || (!stepped && moved(level, self.last_level)) {
            self.moving = MOVING_PERIODS;
        }
    }

    /// Whether the window is not steered until the division has settled.
    fn waits(&mut self, measure: &Measure) -> bool {
        self.closed = if self.window_total().is_finite() {
            self.closed.saturating_add(1)
        } else {
            0
        };
        if self.closed <= SETTLED_PERIODS {
            self.moving = 0;
        }
        let far = measure.latency_ns > FAR_ABOVE * self.threshold_ns();
        let waits = self.moving > 0 && self.waited < WAITED_MAX && !far;
        self.moving = self.moving.saturating_sub(1);
        self.waited = if waits { self.waited + 1 } else { 0 };
        waits
    }

    fn open(&mut self) {
        self.mode = Mode::Open;
        self.last_window = f64::INFINITY;
        self.quiet = 0;
        self.detector.forget();
    }

    /// Open: is it time to close?
    fn watch(&mut self, measure: &Measure) {
        let threshold_ns = self.threshold_ns();
        let smoothed_ns = self.latency_ns.unwrap_or(0.0);
        let congested =
            smoothed_ns > threshold_ns || measure.latency_ns > WELL_ABOVE * threshold_ns;
        let joined = measure
            .others_window
            .filter(|_| smoothed_ns > WELL_BELOW * threshold_ns);
        let goal = self.goal(measure);
        let window = match joined {
            Some(window) => window.clamp(goal / APART, goal * APART),
            // No more than there was: that was too much.
            None if congested => goal.min(measure.in_window),
            None => return,
        };
        self.quiet = 0;
        self.close(window);
    }

    fn close(&mut self, window: f64) {
        let window = window.clamp(self.settings.window_min, self.settings.window_max);
        self.mode = Mode::Closed { window };
    }

    /// Closed: by how much?
    fn steer(&mut self, window: f64, measure: &Measure) {
        let threshold_ns = self.threshold_ns();
        let short = measure.limited && measure.demand > FITS * window;
        if short {
            self.learn(window, measure);
        }
        self.last_window = window;
        let room = !short && measure.latency_ns < WELL_BELOW * threshold_ns;
        self.quiet = if room { self.quiet + 1 } else { 0 };
        if self.quiet >= QUIET_PERIODS {
            return self.open();
        }
        let base = base(window, measure);
        if short {
            return self.close(self.towards(base, self.goal(measure)));
        }
        if measure.latency_ns > threshold_ns {
            // What is not used of it cannot be cut.
            let base = base.min(measure.in_window / self.used);
            return self.close(self.towards(base, self.goal(measure).min(base)));
        }
        self.close(base);
    }

    /// The window that gives the threshold's latency.
    fn goal(&self, measure: &Measure) -> f64 {
        measure.units_per_ns * self.threshold_ns() / self.used
    }

    /// A step from one window towards another, on a scale of ratios.
    fn towards(&self, from: f64, to: f64) -> f64 {
        let from = from.max(self.settings.window_min);
        let way = (to.max(f64::MIN_POSITIVE) / from).ln();
        let far = (way.abs() / std::f64::consts::LN_2).min(1.0);
        let gain = self.settings.gain + (1.0 - self.settings.gain) * far;
        from * (gain * way).exp().clamp(STEP.0, STEP.1)
    }

    /// Only while the windows stand still, at this host and at the others, and are used as they were before:
    /// what the requests of one window say would be held against another, and a part whose disk has just
    /// stopped, or whose host, against all others. Against the mean of all, so that all learn the same.
    /// Meanwhile what was learnt, perhaps in another time, is trusted less and less.
    fn learn(&mut self, window: f64, measure: &Measure) {
        let mean = measure.mean_window(window);
        let still = |now: f64, before: f64| (now / before).ln().abs() < STILL;
        let known = measure.others_open == 0 && measure.in_window > 0.0;
        let used = (measure.in_window / mean).clamp(USED.0, USED.1);
        let used_still = still(used, std::mem::replace(&mut self.last_used, used));
        let windows_still = still(self.last_window, window) && still(mean, window);
        self.used += if known && windows_still && used_still {
            LEARN * (used - self.used)
        } else {
            FORGET * (1.0 - self.used)
        };
    }

    fn found(&mut self, elasticity: f64) -> Option<Event> {
        let known = self.finding.replace(Finding { good: 0 }).is_some();
        if self.settings.unmanaged == UnmanagedPolicy::Stop {
            self.open();
            self.mode = Mode::Stopped {
                periods: self.settings.retry_periods,
            };
        }
        (!known).then_some(Event::UnmanagedFound { elasticity })
    }

    fn is_gone(&mut self, measure: &Measure) -> bool {
        let good = measure.latency_ns <= WELL_ABOVE * self.threshold_ns();
        let Some(finding) = &mut self.finding else {
            return false;
        };
        finding.good = if good { finding.good + 1 } else { 0 };
        let gone = finding.good >= GONE_PERIODS;
        if gone {
            self.finding = None;
        }
        gone
    }

    /// This host's part of the window if its disks want this, and the others what they last said.
    pub fn part(&self, own: &Bins) -> f64 {
        let window = self.window_total();
        if window.is_infinite() {
            return window;
        }
        self.others.part(self.settings.division, window, own)
    }

    /// Slots for one share; infinite while everybody has what it wants.
    fn level(&self, own: &Bins) -> f64 {
        let window = self.window_total();
        if window.is_infinite() {
            return window;
        }
        self.others.level(self.settings.division, window, own)
    }

    #[allow(clippy::cast_precision_loss)] // digits, not magnitude
    fn threshold_ns(&self) -> f64 {
        self.settings.threshold_ns as f64
    }
}

/// Where hosts start from, so that they come together.
fn base(window: f64, measure: &Measure) -> f64 {
    let mean = measure.mean_window(window);
    mean.clamp(window / APART, window * APART)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
fn rounded(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests;
