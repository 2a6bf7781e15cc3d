//! What a worker has registered with its ring: the images of its lanes, and guest memory where a
//! disk asks for that.
//!
//! A region of guest memory is registered while a queue with that region in its newest memory map is
//! on this worker, and taken back with the last such queue. An address names a region
//! unambiguously: a queue keeps the maps of all its outstanding requests, so nothing else can be
//! mapped there while one of them may still look its segment up.

use super::Core;
use super::lane::{of, of_mut};
use crate::queue::MemoryRegion;
use crate::ring::{Ring, Target};
use crate::segments::Segments;

/// The kernel takes no more than this in one piece.
const PIECE_BYTES: usize = 1 << 30;

/// A piece of guest memory that the ring knows.
#[derive(Debug)]
struct Piece {
    region: u64,
    start: usize,
    end: usize,
    index: u16,
    /// Queues that have it in their maps.
    users: u32,
}

/// All such pieces of a worker, by address.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    /// A refusal was logged.
    refused: bool,
}

impl Pieces {
    /// The place of the registered memory that holds all of a request's data in one run.
    pub fn holding(&self, segments: &Segments) -> Option<u16> {
        let [one] = segments.as_slice() else {
            return None;
        };
        let start = one.start().addr();
        let at = self
            .pieces
            .partition_point(|piece| piece.start <= start)
            .checked_sub(1)?;
        let piece = &self.pieces[at];
        (start + one.len() <= piece.end).then_some(piece.index)
    }

    fn add(&mut self, ring: &mut Ring, region: &MemoryRegion) {
        if self.pieces.iter().any(|piece| piece.region == region.id) {
            let same = self.pieces.iter_mut().filter(|p| p.region == region.id);
            same.for_each(|piece| piece.users += 1);
            return;
        }
        let mut done = 0;
        while done < region.len {
            let len = (region.len - done).min(PIECE_BYTES);
            let start = region.start.wrapping_add(done);
            match ring.add_memory(start, len) {
                Ok(index) => {
                    let (start, end) = (start.addr(), start.addr() + len);
                    let at = self.pieces.partition_point(|piece| piece.start < start);
                    let piece = Piece {
                        region: region.id,
                        start,
                        end,
                        index,
                        users: 1,
                    };
                    self.pieces.insert(at, piece);
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        tracing::warn!(%error, bytes = len,
                            "guest memory could not be pinned; its disk is served without. For \
                             ENOMEM raise the limit of locked memory above the guests' memory \
                             (ulimit -l, LimitMEMLOCK= of a service)");
                    }
                    return;
                }
            }
            done += len;
        }
    }

    fn remove(&mut self, ring: &mut Ring, region: u64) {
        self.pieces.retain_mut(|piece| {
            if piece.region != region {
                return true;
            }
            piece.users -= 1;
            if piece.users == 0 {
                ring.remove_memory(piece.index);
            }
            piece.users > 0
        });
    }
}

impl Core {
    /// Registers the image of a lane that was added, or has another backend.
    pub(super) fn open_target(&mut self, lane_id: u32) {
        let lane = of_mut(&mut self.lanes, lane_id);
        // What is mapped hardly ever goes through the ring.
        lane.target = match (lane.backend.fd(), lane.backend.mapping()) {
            (Some(fd), None) => Some(self.ring.add_file(fd)),
            (fd, _) => fd.map(Target::plain),
        };
    }

    /// Takes the image of a lane back, whose lock would be held otherwise. Nothing of the lane is
    /// in flight.
    pub(super) fn close_target(&mut self, lane_id: u32) {
        if let Some(target) = of_mut(&mut self.lanes, lane_id).target.take() {
            self.ring.remove_file(target);
        }
    }

    /// Registers what the queue's newest map has, and takes back what it had before.
    pub(super) fn follow_memory(&mut self, id: u32) {
        let entry = self.queues[id as usize].as_mut().expect("it is here");
        let lane = of(&self.lanes, entry.lane);
        let wanted = lane.backend.pin_guest_memory && lane.backend.mapping().is_none();
        let regions = if wanted && lane.target.is_some() && entry.leaving.is_none() {
            entry.queue.memory()
        } else {
            Vec::new()
        };
        if regions.is_empty() && entry.pinned.is_empty() {
            return;
        }
        // In this order: what stays is not pinned anew.
        for region in &regions {
            self.pieces.add(&mut self.ring, region);
        }
        for &region in &entry.pinned {
            self.pieces.remove(&mut self.ring, region);
        }
        entry.pinned = regions.iter().map(|region| region.id).collect();
    }

    /// Takes back what a queue that leaves had.
    pub(super) fn forget_memory(&mut self, pinned: &[u64]) {
        // What was pushed and not submitted names its place in the table.
        if !pinned.is_empty()
            && let Err(error) = self.ring.submit()
        {
            tracing::error!(%error, "requests could not be submitted");
        }
        for &region in pinned {
            self.pieces.remove(&mut self.ring, region);
        }
    }
}
