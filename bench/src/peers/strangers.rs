//! How much of a core others took while something was measured.
//!
//! What a core did that was neither idling nor the work of those measured was
//! done for others, and the figures of that time are wrong by it. The kernel
//! tells idling in hundredths of a second, so short runs cannot be judged finely.

use std::fs;
use std::time::{Duration, Instant};

/// The share of a core that others may take of a run that is compared.
const SHARE_MAX: f64 = 0.05;
/// The step in which the kernel tells idling; both ends of a run are off by it.
const STEP: Duration = Duration::from_millis(10);

/// A core at some moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    idle: Duration,
    ours: Duration,
}

impl Moment {
    /// Now, when those measured have spent so much time on the core.
    pub fn now(core: usize, ours_ns: u64) -> Option<Moment> {
        Some(Moment {
            idle: idle(&fs::read_to_string("/proc/stat").ok()?, core)?,
            at: Instant::now(),
            ours: Duration::from_nanos(ours_ns),
        })
    }

    /// The share of the core that others had until `later`, less what cannot be
    /// told from none.
    pub fn strangers_until(&self, later: &Moment) -> f64 {
        let wall = (later.at - self.at).as_secs_f64();
        if wall <= 0.0 {
            return 0.0;
        }
        let accounted = later.idle.saturating_sub(self.idle) + later.ours.saturating_sub(self.ours);
        let unsure = 2.0 * STEP.as_secs_f64();
        ((wall - accounted.as_secs_f64() - unsure) / wall).clamp(0.0, 1.0)
    }
}

/// Whether a run of this share of others is worth comparing.
pub fn few(share: f64) -> bool {
    share <= SHARE_MAX
}

/// Whether a core idled nearly all of a moment in which nothing is measured.
pub fn quiet(cores: &[usize]) -> bool {
    let look = || -> Option<Vec<Moment>> { cores.iter().map(|c| Moment::now(*c, 0)).collect() };
    let Some(before) = look() else {
        return true; // nobody tells, so nobody is waited for
    };
    std::thread::sleep(10 * STEP);
    let Some(after) = look() else {
        return true;
    };
    let pairs = before.iter().zip(&after);
    pairs.into_iter().all(|(b, a)| few(b.strangers_until(a)))
}

/// Idle time of a core since the machine started.
fn idle(stat: &str, core: usize) -> Option<Duration> {
    let name = format!("cpu{core}");
    let mut words = stat
        .lines()
        .map(str::split_whitespace)
        .find_map(|mut w| (w.next()? == name).then_some(w))?
        .skip(3);
    let (idle, waiting): (u32, u32) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(STEP * idle + STEP * waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idling_is_read_of_the_right_core() {
        let stat =
            "cpu  1 2 3 4 5 6 7 8 9 0\ncpu0 1 1 1 100 5 0 0 0 0 0\ncpu10 1 1 1 7 1 0 0 0 0 0\n";
        assert_eq!(idle(stat, 0), Some(Duration::from_millis(1050)));
        assert_eq!(idle(stat, 10), Some(Duration::from_millis(80)));
        assert_eq!(idle(stat, 1), None);
    }

    #[test]
    fn what_is_neither_idle_nor_ours_is_of_strangers() {
        let began = Instant::now();
        let moment = |at: f64, idle: f64, ours: f64| Moment {
            at: began + Duration::from_secs_f64(at),
            idle: Duration::from_secs_f64(idle),
            ours: Duration::from_secs_f64(ours),
        };
        let before = moment(0.0, 5.0, 1.0);
        let share = before.strangers_until(&moment(1.0, 5.2, 1.4));
        assert!((share - 0.38).abs() < 0.001, "{share}");
        assert!(!few(share));
        assert!(few(before.strangers_until(&moment(1.0, 5.3, 1.7))));
        assert!(few(before.strangers_until(&before)));
    }
}
