//! Who gets how much of what is scarce: max-min fairness, found by water-filling.
//!
//! Each client has shares, and no use for more than some number of slots. Water is poured in until the
//! total is used up: everybody stands in it as deep as its shares times the level, or is full. Whoever
//! is full leaves the rest to the others.
//!
//! Hosts tell each other what their disks want as [`Bins`], which do not grow with the disks: those that
//! would be full at about the same level are added up. Within such a class, an eighth of an octave wide,
//! all are taken to be full at the same level; no part is wrong by more than that.

/// What one client could have, and what it could use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Want {
    /// Its part, in proportion to the others'.
    pub shares: f64,
    /// What it has use for, at most.
    pub slots: f64,
}

/// A [`Want`], and what the client gets whatever the others want.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim {
    /// What it wants.
    pub want: Want,
    /// No less than so many slots, if it has use for them.
    pub floor: f64,
}

/// The level at which `total` is used up: each client has `min(slots, level * shares)`. Infinite if all of
/// them are full before that.
pub fn level(total: f64, wants: &[Want]) -> f64 {
    let mut left: Vec<Want> = wants.iter().filter_map(|want| want.checked()).collect();
    left.sort_by(|a, b| (a.slots / a.shares).total_cmp(&(b.slots / b.shares)));
    pour(total, left.into_iter())
}

/// Divides `total`: the parts in the order of the claims, and the level. Floors that come to more than
/// there is are cut in proportion.
pub fn fill(total: f64, claims: &[Claim], parts: &mut Vec<f64>) -> f64 {
    let checked = |claim: &Claim| {
        let want = claim.want.checked().unwrap_or(NOTHING);
        let floor = positive(claim.floor).min(want.slots);
        Claim { want, floor }
    };
    let claims: Vec<Claim> = claims.iter().map(checked).collect();
    let total = positive(total);
    let floors: f64 = claims.iter().map(|it| it.floor).sum();
    parts.clear();
    if floors > 0.0 && floors >= total {
        parts.extend(claims.iter().map(|it| it.floor * (total / floors)));
        return 0.0;
    }
    let level = level_above(total, &claims);
    parts.extend(claims.iter().map(|it| it.at(level)));
    level
}

/// The level with floors. Whoever the level leaves below its floor gets the floor, which lowers the level
/// for the others; so those who stand on their floors only become more.
fn level_above(total: f64, claims: &[Claim]) -> f64 {
    let mut on_floor = vec![false; claims.len()];
    loop {
        let mut rest = total;
        let mut wants = Vec::with_capacity(claims.len());
        for (claim, &on_floor) in claims.iter().zip(&on_floor) {
            if on_floor {
                rest -= claim.floor;
            } else {
                wants.push(claim.want);
            }
        }
        let level = level(rest.max(0.0), &wants);
        let mut settled = true;
        for (claim, on_floor) in claims.iter().zip(&mut on_floor) {
            if !*on_floor && claim.want.at(level) < claim.floor {
                *on_floor = true;
                settled = false;
            }
        }
        if settled {
            return level;
        }
    }
}

/// The level for wants in the order in which they become full.
fn pour(total: f64, wants: impl Iterator<Item = Want> + Clone) -> f64 {
    let mut rest = positive(total);
    let mut shares: f64 = wants.clone().map(|want| want.shares).sum();
    let mut unbounded = false;
    for want in wants {
        let level = rest / shares;
        if want.slots > level * want.shares {
            unbounded = true;
            break;
        }
        rest -= want.slots;
        shares -= want.shares;
    }
    // What rounding has left of the shares at the end is no client.
    if unbounded {
        rest / shares
    } else {
        f64::INFINITY
    }
}

/// Shares that are told apart in a sum, least and most.
const SHARES: (f64, f64) = (1e-3, 1e9);

/// As good as endless.
const SLOTS_MAX: f64 = 1e12;

const NOTHING: Want = Want {
    shares: 0.0,
    slots: 0.0,
};

fn positive(number: f64) -> f64 {
    if number > 0.0 { number } else { 0.0 }
}

impl Want {
    /// What it has at a level.
    pub fn at(&self, level: f64) -> f64 {
        if level.is_infinite() {
            return self.slots;
        }
        self.slots.min(level * self.shares)
    }

    /// Itself, if it is one that can get something, within [`SHARES`] and [`SLOTS_MAX`].
    fn checked(&self) -> Option<Want> {
        let real = self.shares > 0.0 && self.slots > 0.0;
        real.then(|| Want {
            shares: self.shares.clamp(SHARES.0, SHARES.1),
            slots: self.slots.min(SLOTS_MAX),
        })
    }
}

impl Claim {
    fn at(&self, level: f64) -> f64 {
        self.want.at(level).max(self.floor)
    }
}

/// Classes of [`Bins`].
pub const CLASSES: usize = 256;
const CLASSES_PER_OCTAVE: f64 = 8.0;
/// Slots by shares of the lowest class, as a power of two: a sixteenth of a slot with a million shares.
const LOWEST_OCTAVE: f64 = -24.0;

/// What all disks of a host want, added up by the level at which they are full.
#[derive(Debug, Clone, PartialEq)]
pub struct Bins {
    shares: [f32; CLASSES],
    slots: [f32; CLASSES],
}

impl Default for Bins {
    fn default() -> Bins {
        Bins {
            shares: [0.0; CLASSES],
            slots: [0.0; CLASSES],
        }
    }
}

impl Bins {
    /// From what [`Bins::shares`] and [`Bins::slots`] gave. What is no number from 0 to `most` is refused.
    pub fn from_classes(shares: [f32; CLASSES], slots: [f32; CLASSES], most: f32) -> Option<Bins> {
        let fine = |it: &f32| (0.0..=most).contains(it);
        (shares.iter().all(fine) && slots.iter().all(fine)).then_some(Bins { shares, slots })
    }

    /// Adds a client. One that wants nothing does not count.
    pub fn add(&mut self, want: Want) {
        let Some(want) = want.checked() else {
            return;
        };
        let octave = (want.slots / want.shares).log2() - LOWEST_OCTAVE;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
        let class = ((octave * CLASSES_PER_OCTAVE) as usize).min(CLASSES - 1);
        #[allow(clippy::cast_possible_truncation)] // digits, not magnitude
        let (shares, slots) = (want.shares as f32, want.slots as f32);
        self.shares[class] += shares;
        self.slots[class] += slots;
    }

    /// Adds all that another host wants.
    pub fn merge(&mut self, other: &Bins) {
        for class in 0..CLASSES {
            self.shares[class] += other.shares[class];
            self.slots[class] += other.slots[class];
        }
    }

    /// As [`level`], for all classes.
    pub fn level(&self, total: f64) -> f64 {
        pour(total, self.wants())
    }

    /// What all of them have at a level.
    pub fn at(&self, level: f64) -> f64 {
        self.wants().map(|want| want.at(level)).sum()
    }

    /// Shares of those that want something, and what they want.
    pub fn total(&self) -> Want {
        Want {
            shares: self.shares.iter().copied().map(f64::from).sum(),
            slots: self.slots.iter().copied().map(f64::from).sum(),
        }
    }

    /// Shares of those that want a slot or more; of a class that wants less a part of them, or nothing.
    pub fn active_shares(&self) -> f64 {
        let part = |want: Want| want.shares * (2.0 * want.slots - 1.0).clamp(0.0, 1.0);
        self.wants().map(part).sum()
    }

    /// Shares by class.
    pub fn shares(&self) -> &[f32; CLASSES] {
        &self.shares
    }

    /// Slots by class.
    pub fn slots(&self) -> &[f32; CLASSES] {
        &self.slots
    }

    fn wants(&self) -> impl Iterator<Item = Want> + Clone {
        let classes = self.shares.iter().zip(&self.slots);
        classes.filter_map(|(&shares, &slots)| {
            let want = Want {
                shares: shares.into(),
                slots: slots.into(),
            };
            want.checked()
        })
    }
}

#[cfg(test)]
mod tests;
