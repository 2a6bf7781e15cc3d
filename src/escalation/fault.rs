//! When a machine counts as failed, and what is done about it: a state machine without clock or I/O.
//!
//! ```text
//!            sick                     sick, grace over             sick, attempts used up
//!   well ───────────► restart 1 ───────────────────► ... restart N ───────────────────► escalate
//!    ▲                                                                                      │
//!    └────────────── not sick for `healthy_ns` without a break: all is forgotten ◄──────────┘
//! ```
//!
//! Sick is: a disk with requests in flight has completed none for longer than `fault_delay_ns`, or
//! a heartbeat that once was there is silent for as long. After each hook has ended a machine has
//! `fault_delay_ns` of grace. Nothing is done while a hook runs, none is started for a machine that
//! is not sick, and after `escalate` there is silence: whoever is to help has been called.

/// What the operator chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Restarts before it is escalated.
    pub restart_attempts: u32,
    /// How long without a sign of life is too long; also the grace after a hook.
    pub fault_delay_ns: u64,
    /// How long without a fault, before earlier attempts are forgotten. More than the fault delay:
    /// for so long a fault that goes on can look like none.
    pub healthy_ns: u64,
}

/// The signs of life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Requests are in flight, and for so long none has completed.
    pub stalled_ns: Option<u64>,
    /// It has beaten, and for so long no more.
    pub silent_ns: Option<u64>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A disk makes no progress.
    Stalled { ns: u64 },
    /// The heartbeat has stopped.
    Silent { ns: u64 },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The hook is to restart the machine, for the `attempt`th time.
    Restart { attempt: u32, fault: Fault },
    /// Restarts did not help: a person, or another host, is to see to it.
    Escalate { attempts: u32, fault: Fault },
    /// It was sick, and has been well for long enough: everything is forgotten.
    Forget,
}

/// Where a machine stands, for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is wrong, and nothing was lately.
    Healthy,
    /// It was sick, and is not any more, but not for long enough.
    Recovering,
    /// It is sick, and has its grace or is being restarted.
    Faulty,
    /// It is sick, and nothing more is tried.
    Escalated,
}

/// The state of one machine.
#[derive(Debug, Clone)]
pub struct Machine {
    policy: Policy,
    attempts: u32,
    escalated: bool,
    /// When a hook for it last was running.
    hook_at_ns: Option<u64>,
    /// Since when it is not sick; `None` while it is.
    well_since_ns: Option<u64>,
}

impl Machine {
    pub fn new(policy: Policy) -> Machine {
        Machine {
            policy,
            attempts: 0,
            escalated: false,
            hook_at_ns: None,
            well_since_ns: None,
        }
    }

    /// Restarts since it was last healthy.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    fn has_history(&self) -> bool {
        self.attempts > 0 || self.escalated
    }

    /// Where it stands, as of the last look.
    pub fn standing(&self) -> Standing {
        match (self.well_since_ns, self.has_history()) {
            (None, _) if self.escalated => Standing::Escalated,
            (None, true) => Standing::Faulty,
            (Some(_), true) => Standing::Recovering,
            (_, false) => Standing::Healthy,
        }
    }

    /// Looks at the machine. `now_ns` never goes back; `hook_runs` says whether a hook for it does.
    /// An action that is returned is to be carried out.
    pub fn look(&mut self, now_ns: u64, vitals: &Vitals, hook_runs: bool) -> Option<Action> {
        if hook_runs {
            self.hook_at_ns = Some(now_ns);
        }
        let Some(fault) = self.fault(vitals) else {
            let since_ns = *self.well_since_ns.get_or_insert(now_ns);
            let well = now_ns.saturating_sub(since_ns) >= self.policy.healthy_ns;
            if !(well && self.has_history()) {
                return None;
            }
            (self.attempts, self.escalated) = (0, false);
            return Some(Action::Forget);
        };
        self.well_since_ns = None;
        if hook_runs || self.escalated || self.has_grace(now_ns) {
            return None;
        }
        self.hook_at_ns = Some(now_ns);
        if self.attempts < self.policy.restart_attempts {
            self.attempts += 1;
            let attempt = self.attempts;
            return Some(Action::Restart { attempt, fault });
        }
        self.escalated = true;
        let attempts = self.attempts;
        Some(Action::Escalate { attempts, fault })
    }

    fn has_grace(&self, now_ns: u64) -> bool {
        let since = |at_ns| now_ns.saturating_sub(at_ns);
        self.hook_at_ns
            .is_some_and(|at_ns| since(at_ns) < self.policy.fault_delay_ns)
    }

    fn fault(&self, vitals: &Vitals) -> Option<Fault> {
        let too_long = |age: Option<u64>| age.filter(|&ns| ns > self.policy.fault_delay_ns);
        let stalled = too_long(vitals.stalled_ns).map(|ns| Fault::Stalled { ns });
        stalled.or(too_long(vitals.silent_ns).map(|ns| Fault::Silent { ns }))
    }
}

#[cfg(test)]
mod tests;
