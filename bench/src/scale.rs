//! What disks and NICs that do nothing cost, what waking up costs, and what a second worker brings.
//!
//! Runs a `ferry daemon` of its own for each side of a comparison, and alternates between them, so
//! that whatever else the machine does meets both. Figures of this machine are measured in the same
//! run as what they are compared with. The server is on one core and the client on another, where
//! there are two.

mod client;
mod idle;
mod nics;
mod server;
mod throttle;
mod wake;
mod workers;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::error::BenchError;
use crate::sys;

pub use idle::{Idle, Quiet};
pub use nics::Nics;
pub use throttle::Throttled;
pub use wake::Wake;
pub use workers::Workers;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// One busy disk alone, and beside many idle ones.
    Idle,
    /// Ten idle disks.
    Quiet,
    /// The first request after a pause.
    Wake,
    /// Two queues on one worker, and on two.
    Workers,
    /// A busy pair of NICs alone, and among many on a switch.
    Nics,
    /// A busy disk among many, with and without I/O control.
    Throttle,
}

/// A run of `ferry-bench scale`.
#[derive(Debug, Clone)]
pub struct ScalePlan {
    /// The `ferry` program.
    pub server: PathBuf,
    /// Another `ferry` program, of an earlier commit for instance, that [`Part::Throttle`] is compared
    /// with.
    pub base: Option<PathBuf>,
    /// Idle disks beside the busy one.
    pub disks: usize,
    /// NICs on a switch, the busy pair among them.
    pub nics: usize,
    /// Alternations.
    pub rounds: usize,
    /// Length of one measurement.
    pub duration: Duration,
    /// What to measure.
    pub parts: Vec<Part>,
}

impl ScalePlan {
    /// What can be judged without a server.
    pub fn check(&self) -> Result<(), BenchError> {
        let fail = |message: String| Err(BenchError::Usage(message));
        if self.disks == 0 || self.disks > 4000 {
            return fail(format!("--disks {} is not in 1 to 4000", self.disks));
        }
        if !(3..=1000).contains(&self.nics) {
            return fail(format!("--nics {} is not in 3 to 1000", self.nics));
        }
        if self.rounds == 0 || self.rounds > 1000 {
            return fail(format!("--rounds {} is not in 1 to 1000", self.rounds));
        }
        Ok(())
    }
}

/// What came out.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Cores that this process may use.
    pub cores: usize,
    /// See [`Part::Idle`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// See [`Part::Quiet`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiet: Option<Quiet>,
    /// See [`Part::Wake`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wake: Vec<Wake>,
    /// See [`Part::Workers`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
    /// See [`Part::Nics`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nics: Option<Nics>,
    /// See [`Part::Throttle`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttled>,
}

/// Which core the server is on, and which the client; none where there is one for both.
#[derive(Debug, Clone, Copy)]
struct Cores {
    server: Option<usize>,
    client: Option<usize>,
}

impl Cores {
    fn choose(all: &[usize]) -> Cores {
        match all {
            [server, client, ..] => Cores {
                server: Some(*server),
                client: Some(*client),
            },
            _ => Cores {
                server: None,
                client: None,
            },
        }
    }
}

/// Runs a plan. `told` hears what is being measured.
pub fn run(plan: &ScalePlan, told: &mut dyn FnMut(&str)) -> Result<Report, BenchError> {
    sys::raise_open_files().map_err(host("a higher limit of open files"))?;
    let all = sys::cores().map_err(host("the list of its cores"))?;
    let cores = Cores::choose(&all);
    let mut report = Report {
        cores: all.len(),
        ..Report::default()
    };
    for part in &plan.parts {
        match part {
            Part::Idle => {
                told("one busy disk, alone and beside idle ones");
                report.idle = Some(idle::beside(plan, cores)?);
            }
            Part::Quiet => {
                told("ten idle disks");
                report.quiet = Some(idle::quiet(plan, cores)?);
            }
            Part::Wake => {
                told("the first request after a pause");
                report.wake = wake::measure(plan, cores)?;
            }
            Part::Workers => {
                told("two queues on one worker and on two");
                sys::pin(&all).map_err(host("to use all cores"))?;
                report.workers = Some(workers::measure(plan, all.len())?);
            }
            Part::Nics => {
                told("a busy pair of NICs, alone and among idle ones on a switch");
                report.nics = Some(nics::among(plan, cores)?);
            }
            Part::Throttle => {
                told("a busy disk among idle ones, with and without I/O control");
                report.throttle = Some(throttle::measure(plan, cores)?);
            }
        }
    }
    Ok(report)
}

impl Report {
    /// As text for people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("{} cores", self.cores)];
        if let Some(idle) = &self.idle {
            lines.extend(idle.lines());
        }
        if let Some(quiet) = &self.quiet {
            lines.push(quiet.line());
        }
        lines.extend(self.wake.iter().map(Wake::line));
        if let Some(workers) = &self.workers {
            lines.push(workers.line());
        }
        if let Some(nics) = &self.nics {
            lines.extend(nics.lines());
        }
        if let Some(throttle) = &self.throttle {
            lines.extend(throttle.lines());
        }
        lines.join("\n")
    }
}

fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> BenchError {
    move |source| BenchError::Host { what, source }
}
