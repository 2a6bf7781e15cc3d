//! Every interleaving of a handover, within bounds: the production tables and step lists, two hosts
//! with a daemon and a VMM each, one link, crashes anywhere.
//!
//! ```text
//!   cargo test --test explorer -- --nocapture     how many states there are
//! ```
//!
//! What it takes for granted: a daemon does one thing of a disk at a time; a guest flushes each of
//! its writes; 16-bit ring indexes of two machines do not agree by chance. Messages may overtake each
//! other and come late, even after their connection is gone, which TCP does not do.

#[path = "explorer/clock.rs"]
mod clock;
#[path = "explorer/heal.rs"]
mod heal;
#[path = "explorer/moves.rs"]
mod moves;
#[path = "explorer/shared.rs"]
mod shared;
#[path = "explorer/world.rs"]
mod world;

use std::fmt::{Debug, Display, Write as _};
use std::hash::Hash;
use std::time::Instant;

use ferry_migration::phase::Phase;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Path, Property};

use moves::Move;
use world::{Fence, Limits, Shared, World};

impl Model for Limits {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.shared)]
    }

    fn actions(&self, world: &World, into: &mut Vec<Move>) {
        moves::possible(self, world, into);
    }

    fn next_state(&self, world: &World, step: Move) -> Option<World> {
        let mut next = world.clone();
        moves::make(&mut next, step);
        (next != *world).then_some(next)
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.net.len() <= self.letters
    }

    fn properties(&self) -> Vec<Property<Limits>> {
        vec![
            Property::always("at most one host serves the disk", |_, world: &World| {
                world.hosts.iter().filter(|host| host.serves).count() <= 1
            }),
            Property::always("at most one record says so", |_, world: &World| {
                let serving = |host: &&world::Host| host.is_serving_by_record();
                // Whose disk was taken over does not know until it looks at the claims.
                !world.claims.is_empty() || world.hosts.iter().filter(serving).count() <= 1
            }),
            Property::always(
                "who serves has every acknowledged write",
                |_, world: &World| {
                    (0..2).all(|here| !world.hosts[here].serves || world.is_whole(here))
                },
            ),
            Property::always(
                "what was claimed back is not granted",
                |_, world: &World| {
                    let granted = |here: usize| match world.hosts[here].phase() {
                        Phase::Granted { epoch, .. } => !shared::has(world, 1 - here, epoch),
                        _ => true,
                    };
                    world.claims.is_empty() || (0..2).all(granted)
                },
            ),
            Property::always("another VM does not get the disk", |_, world: &World| {
                !world.stolen
            }),
            Property::always("once healed, one host owns the disk", |_, world: &World| {
                heal::has_one_owner(world)
            }),
            // That these happen at all shows that the exploration reaches them.
            Property::sometimes("a disk moves", |_, world: &World| {
                world.hosts[1].is_serving_by_record()
            }),
            Property::sometimes("a disk moves, and comes back", |_, world: &World| {
                world.hosts[0].phase().epoch() >= 3 && world.hosts[0].moved_in()
            }),
            Property::sometimes("a disk is handed back", |_, world: &World| {
                world.hosts[0].is_serving_by_record() && world.hosts[0].phase().epoch() == 3
            }),
            Property::sometimes("a disk is in doubt", |_, world: &World| {
                world.hosts.iter().all(|host| !host.serves && host.up)
            }),
            Property::sometimes("a disk is taken over", |_, world: &World| {
                let taken = |phase| matches!(phase, Phase::Taken { .. });
                world.hosts.iter().any(|host| taken(host.phase()))
            }),
            Property::sometimes("a VM pulls its disk", |_, world: &World| world.pulled),
        ]
    }
}

/// The shortest way to a state, a move a line.
fn trace<S, A>(path: &Path<S, A>) -> String
where
    S: Clone + Debug + Display + PartialEq,
    A: Clone + Display + PartialEq,
{
    let mut text = String::new();
    for (at, step) in path.clone().into_actions().iter().enumerate() {
        let _ = writeln!(text, "  {:2}. {step}", at + 1);
    }
    let _ = writeln!(text, "  {}", path.last_state());
    text
}

fn is_promise<M: Model>(checker: &impl Checker<M>, name: &str) -> bool
where
    M::State: Hash,
{
    let properties = checker.model().properties();
    let mut promises = properties
        .iter()
        .filter(|p| p.expectation == Expectation::Always);
    promises.any(|property| property.name == name)
}

/// What every exploration of a move reaches.
const BY_A_MOVE: [&str; 4] = [
    "a disk moves",
    "a disk is handed back",
    "a disk is in doubt",
    "a VM pulls its disk",
];

/// Explores everything within the limits; `reaches` is what that must lead to.
fn explore<M>(limits: M, reaches: &[&str]) -> usize
where
    M: Model + Clone + Debug + Send + Sync + 'static,
    M::State: Display + Debug + Hash + Clone + PartialEq + Send + Sync,
    M::Action: Display + Clone + PartialEq + Send + Sync,
{
    let began = Instant::now();
    let bounds = format!("{limits:?}");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures = HasDiscoveries::AnyFailures;
    let checker = limits
        .clone()
        .checker()
        .threads(threads)
        .finish_when(failures);
    let mut checker = checker.spawn_bfs().join();
    if checker
        .discoveries()
        .keys()
        .any(|name| is_promise(&checker, name))
    {
        // One thread alone finds the shortest way first.
        let failures = HasDiscoveries::AnyFailures;
        checker = limits.checker().finish_when(failures).spawn_bfs().join();
    }
    let states = checker.unique_state_count();
    println!(
        "{states} distinct states in {:.1} s, {} moves at most; {bounds}",
        began.elapsed().as_secs_f64(),
        checker.max_depth()
    );
    let found = checker.discoveries();
    for property in checker.model().properties() {
        let path = found.get(property.name);
        match (property.expectation, path) {
            (Expectation::Always, Some(path)) => {
                panic!("violated: {}\n{}", property.name, trace(path));
            }
            (Expectation::Sometimes, None) if reaches.contains(&property.name) => {
                panic!("never reached: {}", property.name);
            }
            _ => {}
        }
    }
    states
}

fn bounds(migrations: u8, boots: u8, faults: u8, letters: usize) -> Limits {
    Limits {
        migrations,
        writes: 1,
        boots,
        faults,
        letters,
        shared: None,
    }
}

#[test]
fn one_move_with_two_faults_keeps_every_promise() {
    let long = std::env::var_os("FERRY_LONG").is_some();
    let states = explore(bounds(1, 0, if long { 3 } else { 2 }, 3), &BY_A_MOVE);
    assert!(states >= 100_000, "{states} states");
}

#[test]
fn one_move_with_another_vm_about_keeps_every_promise() {
    explore(bounds(1, 1, 0, 3), &BY_A_MOVE);
}

#[test]
fn there_and_back_with_a_fault_keeps_every_promise() {
    let reaches = [&BY_A_MOVE[..], &["a disk moves, and comes back"]];
    explore(bounds(2, 0, 1, 2), &reaches.concat());
}

fn shared(fence: Fence) {
    let long = std::env::var_os("FERRY_LONG").is_some();
    let takeovers = 2;
    let limits = Limits {
        shared: Some(Shared { takeovers, fence }),
        ..bounds(1, 0, if long { 2 } else { 1 }, 2)
    };
    let reaches = [&BY_A_MOVE[..], &["a disk is taken over"]];
    explore(limits, &reaches.concat());
}

#[test]
fn a_shared_disk_that_is_moved_keeps_every_promise() {
    shared(Fence::LockCoherent);
}

#[test]
fn a_shared_disk_that_is_taken_over_and_over_keeps_every_promise() {
    let takeovers = 3;
    for fence in [Fence::LockCoherent, Fence::Command] {
        let limits = Limits {
            shared: Some(Shared { takeovers, fence }),
            ..bounds(0, 0, 3, 2)
        };
        explore(limits, &["a disk is taken over"]);
    }
}

#[test]
fn a_lease_that_holds_is_not_seen_to_be_over() {
    explore(clock::Lease, &["a lease is seen to be over"]);
}

#[test]
fn a_shared_disk_whose_lock_does_not_hold_keeps_every_promise() {
    shared(Fence::Command);
}
