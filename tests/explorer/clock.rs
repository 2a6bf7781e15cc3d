//! A lease, its holder and one that watches it: every order of what they do, and any time between.
//! Who does nothing for a while is asleep.

use std::fmt;

use ferry_migration::lease::beat::{Holder, Observer};
use stateright::{Model, Property};

/// How long it goes on.
const TICKS: u64 = 16;
const TICK_NS: u64 = 1_000_000;
const LEASE_NS: u64 = 4 * TICK_NS;
/// The longest I/O.
const IO_NS: u64 = 2 * TICK_NS;
const BEATS: u64 = 3;
/// The clocks began at different times.
const AHEAD_NS: u64 = 1000 * TICK_NS;

#[derive(Debug, Clone, Copy)]
pub struct Lease;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Clocks {
    now: u64,
    holder: Holder,
    /// A renewal is under way since then.
    began: Option<u64>,
    /// It has reached the datastore.
    landed: bool,
    /// The counter on the datastore.
    beat: u64,
    watch: Observer,
    /// It was seen to be over when it held. Who renews after it was over looks at the claims first.
    wrong: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    Tick,
    Renew,
    Land,
    Renewed,
    Look,
}

impl Clocks {
    fn now_ns(&self) -> u64 {
        self.now * TICK_NS
    }

    fn expired(&self) -> bool {
        self.watch.expired(LEASE_NS, IO_NS)
    }
}

impl Model for Lease {
    type State = Clocks;
    type Action = Move;

    fn init_states(&self) -> Vec<Clocks> {
        vec![Clocks {
            now: 0,
            holder: Holder::new(LEASE_NS),
            began: None,
            landed: false,
            beat: 0,
            watch: Observer::default(),
            wrong: false,
        }]
    }

    fn actions(&self, clocks: &Clocks, into: &mut Vec<Move>) {
        let mut add = |may: bool, step: Move| {
            if may {
                into.push(step);
            }
        };
        add(clocks.now < TICKS, Move::Tick);
        add(clocks.began.is_none() && clocks.beat < BEATS, Move::Renew);
        add(clocks.began.is_some() && !clocks.landed, Move::Land);
        add(clocks.landed, Move::Renewed);
        add(true, Move::Look);
    }

    fn next_state(&self, clocks: &Clocks, step: Move) -> Option<Clocks> {
        let mut next = clocks.clone();
        match step {
            Move::Tick => next.now += 1,
            Move::Renew => next.began = Some(next.now_ns()),
            Move::Land => {
                next.landed = true;
                next.beat += 1;
            }
            Move::Renewed => {
                next.landed = false;
                next.holder.renewed(next.began.take()?);
            }
            Move::Look => {
                let now = next.now_ns() + AHEAD_NS;
                next.watch.look(Some(next.beat), now, LEASE_NS);
                next.wrong = next.expired() && next.holder.holds(next.now_ns());
            }
        }
        (next != *clocks).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Lease>> {
        vec![
            Property::always(
                "a lease that holds is not seen to be over",
                |_, clocks: &Clocks| !clocks.wrong,
            ),
            Property::sometimes("a lease is seen to be over", |_, clocks: &Clocks| {
                clocks.beat == BEATS && clocks.expired()
            }),
        ]
    }
}

impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns / TICK_NS;
        write!(
            f,
            "{} ms: the lease is held until {} ms, and was seen silent for {} ms",
            self.now,
            ms(self.holder.ends_ns()),
            ms(self.watch.silent_ns())
        )
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Move::Tick => "a millisecond goes by",
            Move::Renew => "the holder begins to renew",
            Move::Land => "its beat is on the datastore",
            Move::Renewed => "it knows",
            Move::Look => "the other looks at the beat",
        })
    }
}
