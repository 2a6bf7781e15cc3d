//! What of the window is this host's.

use super::Division;
use crate::qos::division::{Bins, Want, level};

/// What a host without demand may begin with, as a part of an even share; a slot at most.
const SPARE: f64 = 0.25;

/// What all other hosts want.
#[derive(Debug, Clone, Default)]
pub(super) struct Others {
    all: Bins,
    each: Vec<Want>,
}

impl Others {
    /// From what they said.
    pub fn of<'a>(demands: impl Iterator<Item = &'a Bins>) -> Others {
        let mut others = Others::default();
        for demand in demands {
            others.all.merge(demand);
            others.each.push(demand.total());
        }
        others
    }

    /// Slots for one share, if this host wants this besides.
    pub fn level(&self, division: Division, window: f64, own: &Bins) -> f64 {
        match division {
            Division::Disks => {
                let mut all = self.all.clone();
                all.merge(own);
                all.level(window)
            }
            Division::Hosts => {
                let mut wants = self.each.clone();
                wants.push(own.total());
                level(window, &wants)
            }
        }
    }

    /// The shares of all that want a slot or more. What is left of a disk's mean after it has stopped is no
    /// demand, and what comes and goes does not count.
    pub fn active_shares(&self, own: &Bins) -> f64 {
        self.all.active_shares() + own.active_shares()
    }

    /// This host's part. What nobody wants is divided by shares as well.
    pub fn part(&self, division: Division, window: f64, own: &Bins) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let hosts = (self.each.len() + 1) as f64;
        let (total, others) = (own.total(), self.all.total());
        let level = self.level(division, window, own);
        let wanted = match division {
            Division::Disks => own.at(level),
            Division::Hosts => total.at(level),
        };
        let shares = total.shares + others.shares;
        let of_rest = if shares > 0.0 {
            total.shares / shares
        } else {
            1.0 / hosts
        };
        let full = level.is_infinite();
        let rest = if full {
            window - total.slots - others.slots
        } else {
            0.0
        };
        (wanted + rest.max(0.0) * of_rest).max((SPARE * window / hosts).min(1.0))
    }
}
