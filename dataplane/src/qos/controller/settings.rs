//! How a datastore is to be steered.

/// What to do about an outsider on the datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnmanagedPolicy {
    /// Stop holding requests back, and try again later, as VMware does.
    #[default]
    Stop,
    /// Go on: the shares are kept, and the outsider gets what it takes.
    Keep,
}

/// Between whom the window is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Division {
    /// All disks of all hosts, whatever host they are on.
    #[default]
    Disks,
    /// The hosts first, by the sums of their disks' shares; then each host's disks.
    Hosts,
}

/// How a datastore is to be steered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Latency above which it is congested. [`u64::MAX`] for never.
    pub threshold_ns: u64,
    /// From one update to the next.
    pub period_ns: u64,
    /// The window of the whole datastore is never smaller, in slots.
    pub window_min: f64,
    /// And never larger, unless it is open.
    pub window_max: f64,
    /// The part of a small step that is taken; large ones are taken whole.
    pub gain: f64,
    /// What a new latency counts in the smoothed one; 1 for all.
    pub smoothing: f64,
    /// What to do about an outsider.
    pub unmanaged: UnmanagedPolicy,
    /// For how many periods nothing is held back then.
    pub retry_periods: u32,
    /// Between whom the window is divided.
    pub division: Division,
}

impl Settings {
    /// For a threshold and a period.
    pub fn new(threshold_ns: u64, period_ns: u64) -> Settings {
        Settings {
            threshold_ns,
            period_ns,
            window_min: 4.0,
            window_max: 65_536.0,
            gain: 0.5,
            smoothing: 0.5,
            unmanaged: UnmanagedPolicy::default(),
            retry_periods: 30,
            division: Division::default(),
        }
    }

    /// Within what makes sense.
    pub(super) fn checked(mut self) -> Settings {
        let usual = Settings::new(self.threshold_ns, self.period_ns);
        let within = |number: f64, least: f64, most: f64, usual: f64| {
            if (least..=most).contains(&number) {
                number
            } else {
                usual
            }
        };
        self.threshold_ns = self.threshold_ns.max(1);
        self.period_ns = self.period_ns.max(1);
        self.window_min = within(self.window_min, 0.01, 1e6, usual.window_min);
        self.window_max = within(
            self.window_max,
            self.window_min,
            1e9,
            1e6_f64.max(self.window_min),
        );
        self.gain = within(self.gain, 0.01, 1.0, usual.gain);
        self.smoothing = within(self.smoothing, 0.01, 1.0, usual.smoothing);
        self
    }
}
