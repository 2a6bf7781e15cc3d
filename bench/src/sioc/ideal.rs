//! What everybody would have if the array were divided by the book: max-min fairness, worked out
//! without anything of what the disks are scheduled with.
//!
//! There is one water level. A client has its shares times the level, but no more than it can take and
//! no less than is reserved for it. The level is as high as the array can bear: found by halving,
//! because what the clients take of the array only grows with it.

/// A client of an array.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Its shares.
    pub shares: f64,
    /// What it can take at most, in units a second.
    pub most: f64,
    /// What is reserved for it, in units a second.
    pub reserved: f64,
    /// What one unit takes of the array: seconds of a spindle's time.
    pub unit_s: f64,
}

impl Claim {
    /// One that is bound by nothing but its depth.
    ///
    /// So many requests, each of so many units, are under way all the time, and each takes as long as
    /// the array's latency.
    pub fn of_depth(shares: f64, depth: f64, units: f64, latency_s: f64, request_s: f64) -> Claim {
        Claim {
            shares,
            most: depth * units / latency_s,
            reserved: 0.0,
            unit_s: request_s / units,
        }
    }

    /// No more than so many units a second either.
    pub fn limited(self, units: f64) -> Claim {
        Claim {
            most: self.most.min(units),
            ..self
        }
    }

    /// At least so many units a second, as far as it can take them.
    pub fn reserving(self, units: f64) -> Claim {
        Claim {
            reserved: units,
            ..self
        }
    }

    fn at(&self, level: f64) -> f64 {
        (self.shares * level).max(self.reserved).min(self.most)
    }
}

/// Units a second of each claim, of an array with so many seconds of spindles' time in a second.
pub fn divide(spindles: f64, claims: &[Claim]) -> Vec<f64> {
    let taken = |level: f64| -> f64 { claims.iter().map(|c| c.at(level) * c.unit_s).sum() };
    // A level at which everybody has all that it can take.
    let full = |c: &Claim| c.most / c.shares;
    let (mut low, mut high) = (0.0, claims.iter().map(full).fold(0.0, f64::max));
    if taken(high) > spindles {
        for _ in 0..200 {
            let middle = f64::midpoint(low, high);
            if taken(middle) > spindles {
                high = middle;
            } else {
                low = middle;
            }
        }
        high = low;
    }
    claims.iter().map(|c| c.at(high)).collect()
}

/// The same in two steps: first among hosts, each with the shares and the claims of its clients, then
/// on each host among these.
pub fn divide_by_host(spindles: f64, hosts: &[Vec<Claim>]) -> Vec<Vec<f64>> {
    let sum = |claims: &[Claim], of: fn(&Claim) -> f64| claims.iter().map(of).sum::<f64>();
    let whole = |claims: &Vec<Claim>| {
        let most = sum(claims, |c| c.most);
        Claim {
            shares: sum(claims, |c| c.shares),
            most,
            reserved: sum(claims, |c| c.reserved.min(c.most)),
            unit_s: sum(claims, |c| c.most * c.unit_s) / most,
        }
    };
    let wholes: Vec<Claim> = hosts.iter().map(whole).collect();
    let parts = divide(spindles, &wholes);
    let within =
        |((part, whole), claims): ((f64, &Claim), &Vec<Claim>)| divide(part * whole.unit_s, claims);
    parts
        .into_iter()
        .zip(&wholes)
        .zip(hosts)
        .map(within)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(shares: f64, most: f64) -> Claim {
        Claim {
            shares,
            most,
            reserved: 0.0,
            unit_s: 1.0,
        }
    }

    fn whole(parts: &[f64]) -> Vec<i64> {
        #[allow(clippy::cast_possible_truncation)]
        parts.iter().map(|part| part.round() as i64).collect()
    }

    #[test]
    fn who_wants_less_leaves_it_to_the_others() {
        let all = divide(8000.0, &[1e3, 2.5e3, 500.0, 1e3].map(|s| claim(s, 1e6)));
        assert_eq!(whole(&all), [1600, 4000, 800, 1600]);
        let some = [
            claim(1e3, 1e6),
            claim(2.5e3, 1e6),
            claim(500.0, 10.0),
            claim(1e3, 1e6).limited(2000.0),
        ];
        assert_eq!(whole(&divide(8000.0, &some)), [1776, 4439, 10, 1776]);
        let hosts = [some[..2].to_vec(), some[2..].to_vec()];
        let parts = divide_by_host(8000.0, &hosts).concat();
        assert_eq!(whole(&parts), [1711, 4279, 10, 2000]);
    }

    #[test]
    fn what_is_reserved_comes_first() {
        let claims = [
            claim(100.0, 1e6).reserving(250.0),
            claim(200.0, 1e6).reserving(250.0),
            claim(300.0, 1e6).limited(1000.0),
        ];
        assert_eq!(whole(&divide(1200.0, &claims)), [250, 380, 570]);
        assert_eq!(whole(&divide(2500.0, &claims)), [500, 1000, 1000]);
    }

    #[test]
    fn with_room_for_all_nobody_is_held_back() {
        let claims = [claim(1.0, 5.0), claim(20.0, 7.0)];
        assert_eq!(divide(100.0, &claims), [5.0, 7.0]);
        let depth = Claim::of_depth(1.0, 32.0, 2.0, 0.03, 0.006);
        assert_eq!(whole(&[depth.most, 1e6 * depth.unit_s]), [2133, 3000]);
    }
}
