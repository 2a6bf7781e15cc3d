//! Bridges on a worker: their turns, their completions, and when they sleep.

use super::{Core, free_place};
use crate::limits::BRIDGES_PER_WORKER;
use crate::net::bridge::Bridge;
use crate::ring::{NetOp, Ring};

/// What is done to a bridge between turns. Must not block.
pub(crate) type BridgeTask = Box<dyn FnOnce(&mut Bridge, &mut Ring) + Send>;

/// The bridges of one worker.
#[derive(Default)]
pub(super) struct Bridges {
    all: Vec<Option<Bridge>>,
    free: Vec<u32>,
    /// Those that are to go once the kernel has ended with them.
    leaving: Vec<u32>,
}

impl Bridges {
    pub fn is_empty(&self) -> bool {
        self.all.len() == self.free.len()
    }

    /// Whether the kernel has nothing of theirs.
    pub fn are_idle(&self) -> bool {
        self.all.iter().flatten().all(Bridge::is_empty)
    }

    /// When the first of them is to be looked at again, if at a time.
    pub fn next_event_ns(&self) -> Option<u64> {
        self.all
            .iter()
            .flatten()
            .filter_map(Bridge::next_event_ns)
            .min()
    }

    /// Whether all wait for kicks and taps.
    pub fn are_quiet(&self) -> bool {
        self.leaving.is_empty() && self.all.iter().flatten().all(Bridge::is_quiet)
    }
}

impl Core {
    pub(super) fn add_bridge(&mut self, bridge: Bridge) -> Option<u32> {
        if self.bridges.all.len() - self.bridges.free.len() == BRIDGES_PER_WORKER {
            return None;
        }
        let id = free_place(&mut self.bridges.all, &mut self.bridges.free);
        self.bridges.all[id as usize] = Some(bridge);
        Some(id)
    }

    /// Its ports have left; it goes once the kernel has ended with it.
    pub(super) fn remove_bridge(&mut self, id: u32) {
        self.bridges.leaving.push(id);
    }

    pub(super) fn with_bridge(&mut self, id: u32, task: BridgeTask) {
        if let Some(Some(bridge)) = self.bridges.all.get_mut(id as usize) {
            bridge.set_now(self.now_ns);
            task(bridge, &mut self.ring);
        }
    }

    pub(super) fn turn_bridges(&mut self) {
        if self.bridges.is_empty() {
            return;
        }
        let (ring, now_ns) = (&mut self.ring, self.now_ns);
        for (id, bridge) in (0u32..).zip(&mut self.bridges.all) {
            if let Some(bridge) = bridge {
                self.worked |= bridge.turn(id, ring, now_ns);
            }
        }
    }

    pub(super) fn bridge_ended(&mut self, id: u32, op: NetOp, result: i32) {
        if let Some(Some(bridge)) = self.bridges.all.get_mut(id as usize) {
            bridge.ended(op, result);
        }
    }

    /// After the completions: shows what they brought, lets go of what is to leave, and has the quiet
    /// ones wait.
    pub(super) fn rest_bridges(&mut self) {
        if self.bridges.is_empty() {
            return;
        }
        let (ring, spin_ns) = (&mut self.ring, self.spin_ns);
        for (id, bridge) in (0u32..).zip(&mut self.bridges.all) {
            if let Some(bridge) = bridge {
                bridge.settle();
                bridge.park_quiet(id, ring, spin_ns);
            }
        }
        let Bridges { all, free, leaving } = &mut self.bridges;
        leaving.retain(|&id| {
            let there = all[id as usize].as_ref();
            let stays = there.is_some_and(|it| !it.is_empty());
            if !stays && all[id as usize].take().is_some() {
                free.push(id);
            }
            stays
        });
    }
}
